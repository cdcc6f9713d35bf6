"""A folder with a network as plain PyTorch: its source, its weights, and how data are encoded for it."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from senn import atomic_files, pytree
from senn._text import one_line
from senn.data import tabular
from senn.errors import SennError
from senn.export.atomic_folder import MARK, atomic_folder
from senn.export.check import Exported, at_least_two, check, summarize_error
from senn.export.module_source import python_source
from senn.pytree import Inputs

WEIGHTS, PREPROCESSING = "model.safetensors", "preprocessing.json"
TEMPLATES = Path(__file__).parent / "templates"
_TABULAR = Path(tabular.__file__).parent
# A table is read and encoded by the very functions that senn uses where these are plain Python.
_SOURCES_OF = {
    "tables": (
        _TABULAR / "cell_texts.py",
        _TABULAR / "written_numbers.py",
        _TABULAR / "written_dates.py",
        _TABULAR / "text_layout.py",
        TEMPLATES / "table_template.py",
    ),
    "images": (TEMPLATES / "image_template.py",),
}

# The parts of `net.py`, in the order in which they stand there; braces are filled in by str.format.
_ABOUT = '''\
"""A network as plain PyTorch{with_what}.

It needs {needs}:

    model = load()                 # {name} with the weights of model.safetensors, in eval mode
{use}"""
'''
_LOAD = '''

FOLDER = Path(__file__).parent


def load():
    """The network with its weights, in eval mode."""
    model = {name}()
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model.eval()
'''
_TABLE = '''

def read_preprocessing():
    """How data are read and encoded."""
    return json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))


def read_rows(path):
    """The rows of a text file as dicts from column to text, None where a cell is empty."""
    known = read_preprocessing()
    return read_table_rows(path, known.get("encoding"), known.get("legacy_encoding"))


def predict(rows):
    """What the network says of rows, which are dicts from column to cell: {what}."""
    known = read_preprocessing()
    x = torch.tensor(encode(rows, known["columns"]), dtype=torch.float32)
    with torch.no_grad():
        outputs = load()(x)
    return decode(outputs.tolist(), known["target"])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names needn't be valid text
    for prediction in predict(read_rows(sys.argv[1])):
        print(prediction)
'''
_IMAGES = '''

def predict(paths):
    """The most probable class of each image file."""
    known = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        outputs = load()(encode(paths, known))
    return [known["labels"][at] for at in outputs.argmax(dim=1).tolist()]


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # names needn't be valid text
    for path, prediction in zip(sys.argv[1:], predict(sys.argv[1:]), strict=True):
        print(path, prediction, sep="\\t")
'''


def to_python(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs | None = None,
    *,
    name: str = "Net",
    preprocessing: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a folder in which the model lives on without senn: `net.py` and `model.safetensors`.

    Args:
        model: made of layers of torch.nn and senn.nn.
        path: of the folder.
        inputs: an example batch, on which the folder's model is run and compared; None to skip that check.
        name: of the class in `net.py`.
        preprocessing: how data are encoded, JSON-able, written to `preprocessing.json`. With the record of a
            `TableEncoder` or an `ImageEncoder`, `net.py` gets a function `predict` that reads rows or image files.
        overwrite: True if an earlier export there may be replaced.

    Returns:
        What was written and how it was checked; as text, one sentence.

    Raises:
        UnsupportedError: a part of the model can't be written as source, see `python_source`.
        SennError: what was written doesn't compute the same, or it can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = to_python(nn.Linear(2, 3), Path(folder) / "net", torch.randn(4, 2))
    ...     print(exported.difference, sorted(path.name for path in exported.path.iterdir()))
    0.0 ['model.safetensors', 'net.py']
    """
    with atomic_folder(path, folder=True, overwrite=overwrite) as draft:
        write_python(model, draft, name, preprocessing)
        return check_python(Path(path), draft, model, inputs)


def write_python(
    model: nn.Module,
    folder: Path,
    name: str,
    preprocessing: Mapping[str, Any] | None,
) -> None:
    """Write the files into a folder that exists.

    Args:
        model: made of layers of torch.nn and senn.nn.
        folder: where to.
        name: of the class in `net.py`.
        preprocessing: how data are encoded; None to leave that out.

    Raises:
        UnsupportedError: a part of the model can't be written as source.
        SennError: `preprocessing` isn't JSON-able.
    """
    (folder / MARK).write_bytes(atomic_files.encoded(net_source(model, name, preprocessing)))
    # safetensors takes neither views nor tensors that share memory
    state = {}
    for key, tensor in model.state_dict().items():
        state[key] = tensor.detach().cpu().contiguous().clone()
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    if preprocessing is not None:
        try:
            text = json.dumps(preprocessing, indent=1, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SennError(f"preprocessing can't be written as JSON: {error}") from error
        (folder / PREPROCESSING).write_bytes(atomic_files.encoded(text + "\n"))


def check_python(
    path: Path,
    folder: Path,
    model: nn.Module,
    inputs: Inputs | None,
) -> Exported:
    """Execute the folder's `net.py`, and compare its network with the model.

    Args:
        path: the final name of the folder.
        folder: where it lies now.
        model: the exported model.
        inputs: an example batch; None to build the network without running it.

    Returns:
        What was written and how it was checked.

    Raises:
        SennError: it can't be executed, or its outputs differ from the model's by as much as the last bit.
    """
    source = (folder / MARK).read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "net", "__file__": str(folder / MARK)}
    try:
        # It is executed as a user would, from its own folder, and reads its own weights.
        exec(compile(source, str(folder / MARK), "exec"), namespace)
        # Fresh layers draw random numbers, which the caller's own draws must not notice.
        with torch.random.fork_rng(devices=[]):
            twin = namespace["load"]()
    except Exception as error:
        raise SennError(
            f"what was exported can't be read back: {summarize_error(error)}"
        ) from error
    if inputs is None:
        return Exported(path=path, reader=MARK, why_not="there are no example inputs")
    twin.to(next((x.device for x in pytree.tensor_leaves(inputs)), None))

    def run(batch: Inputs) -> list[Tensor]:
        return [
            out for out in pytree.tensor_leaves(pytree.call(twin, batch)) if out.is_floating_point()
        ]

    # The same kernels in the same order: not one bit may differ.
    return check(path, f"its {MARK}", model, at_least_two(inputs), run=run, exact=True)


def net_source(model: nn.Module, name: str, preprocessing: Mapping[str, Any] | None) -> str:
    """Write the text of `net.py`.

    Args:
        model: made of layers of torch.nn and senn.nn.
        name: of the class.
        preprocessing: how data are encoded; None for a network without `predict`.

    Returns:
        The class, `load`, and for tables and images the encoding and `predict`.

    Raises:
        UnsupportedError: a part of the model can't be written as source.
    """
    # What is written must be formatted and import nothing that it doesn't use: people read it and edit it.
    kind, record = _kind_of(preprocessing), preprocessing or {}
    imports, body = _split_imports(python_source(model, name))
    imports |= {"from pathlib import Path", "from safetensors.torch import load_file"}
    body += _LOAD.format(name=name)
    needs, use, purpose = "torch and safetensors", "", ""
    if kind is not None:
        imports |= {"import json", "import sys", "import torch"}
        for path in _SOURCES_OF[kind]:
            # Read as text, not imported: Pillow may be missing here.
            further, code = _split_imports(path.read_text(encoding="utf-8"))
            imports |= {line for line in further if not line.startswith("from senn")}
            body += "\n\n" + code
    if kind == "tables":
        target = record["target"]
        answers = "numbers" if target["task"] == "regression" else "classes"
        body += _TABLE.format(what=answers)
        answer_of = f"{answers} of {target['name']!r}"
        purpose = f" that predicts {_docstring_safe(answer_of)}"
        use = '    predict(read_rows("new.csv"))  # or dicts from column to cell; `python net.py new.csv`\n'
    elif kind == "images":
        body += _IMAGES
        needs = "torch, safetensors, numpy and Pillow"
        purpose = f" that knows {len(record['labels'])} classes of images"
        use = '    predict(["new.jpg"])           # their classes; `python net.py new.jpg ...`\n'
    if kind is not None:
        use += "\nencode() does to data what was done in training; its constants are in preprocessing.json.\n"
    about = _ABOUT.format(with_what=purpose, needs=needs, name=name, use=use)
    return about + _sorted_imports(_merged(imports)) + "\n\n" + body


def _docstring_safe(text: str) -> str:
    """Shorten a text of the user's and make it safe in a docstring, on one line."""
    line = one_line(text[:60])
    return line.replace("\\", "\\\\").replace('"', "'")


def _kind_of(record: Mapping[str, Any] | None) -> str | None:
    """Return "images" or "tables" for a record of such an encoder, None for any other record."""
    if record is None:
        return None
    if record.get("kind") == "images":
        return "images"
    # Records of tables have no kind.
    return "tables" if {"columns", "target"} <= set(record) else None


def _split_imports(source: str) -> tuple[set[str], str]:
    """Split a source into the imports at its top and what comes after them."""
    lines = source.splitlines(keepends=True)
    nodes = [
        node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    ends = [node.end_lineno or node.lineno for node in nodes]
    imports = set()
    for node, end in zip(nodes, ends, strict=True):
        imports.add("".join(lines[node.lineno - 1 : end]).strip())
    rest = "".join(lines[max(ends) :])
    return imports, rest.strip("\n") + "\n"


def _merged(imports: Iterable[str]) -> set[str]:
    """Import from each module once, though several sources do."""
    names: dict[str, set[str]] = {}
    for node in ast.parse("\n".join(imports)).body:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    plain = {line for line in imports if not line.startswith("from ")}
    # In the order of formatters: constants, classes, functions.
    return plain | {
        f"from {module} import {', '.join(sorted(found, key=_rank))}"
        for module, found in names.items()
    }


def _rank(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), name[:1].islower(), name


def _sorted_imports(imports: Iterable[str]) -> str:
    """Sort import lines as formatters do: those of Python's own library in a group of their own, first."""

    def key(line: str) -> tuple[bool, bool, str]:
        is_foreign = line.split()[1].split(".")[0] not in sys.stdlib_module_names
        return is_foreign, line.startswith("from"), line.lower()

    ordered = sorted(imports, key=key)
    own = [line for line in ordered if not key(line)[0]]
    foreign = [line for line in ordered if key(line)[0]]
    return "\n" + "\n".join("\n".join(group) + "\n" for group in (own, foreign) if group)
