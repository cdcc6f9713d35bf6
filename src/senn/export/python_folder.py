"""A folder with a network as plain PyTorch: its source, its weights, and what is done to data on their way in."""

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

from senn import pytree
from senn.errors import SennError
from senn.export.atomic_folder import MARK, atomic_folder
from senn.export.check import Exported, check, in_short, several
from senn.export.module_source import python_source
from senn.pytree import Inputs

WEIGHTS, PREPROCESSING = "model.safetensors", "preprocessing.json"
TEMPLATES = Path(__file__).parent / "templates"
_TEMPLATE_OF = {"tables": "table_template.py", "images": "image_template.py"}

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

def predict(rows):
    """What the network says of rows, which are dicts from column to cell: {what}."""
    known = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    x = torch.tensor(encode(rows, known["columns"]), dtype=torch.float32)
    with torch.no_grad():
        outputs = load()(x)
    return decode(outputs.tolist(), known["target"])


if __name__ == "__main__":
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
        model: of layers of torch.nn and senn.nn.
        path: of the folder.
        inputs: an example batch, on which the folder's model is run and compared; without it that isn't checked.
        name: of the class in `net.py`.
        preprocessing: what is done to data on their way in, JSON-able, written to `preprocessing.json`. With the record
            of a `TableEncoder` or an `ImageEncoder`, `net.py` has a function `predict` that reads rows or image files.
        overwrite: whether an earlier export there may be replaced.

    Returns:
        What was checked, as text one sentence.

    Raises:
        UnsupportedError: part of the model can't be written as source, see `python_source`.
        SennError: what was written doesn't compute the same, or it can't be written.
    """
    with atomic_folder(path, folder=True, overwrite=overwrite) as draft:
        write_python(model, draft, name, preprocessing)
        return check_python(Path(path), draft, model, inputs)


def write_python(model: nn.Module, folder: Path, name: str, preprocessing: Mapping[str, Any] | None) -> None:
    """The files, in a folder that is there."""
    (folder / MARK).write_text(net_source(model, name, preprocessing), encoding="utf-8")
    state = {key: x.detach().cpu().contiguous().clone() for key, x in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    if preprocessing is not None:
        try:
            text = json.dumps(preprocessing, indent=1, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SennError(f"preprocessing can't be written as JSON: {error}") from error
        (folder / PREPROCESSING).write_text(text + "\n", encoding="utf-8")


def check_python(path: Path, folder: Path, model: nn.Module, inputs: Inputs | None) -> Exported:
    """Run `load` of the folder's `net.py`, and its network on the inputs."""
    source = (folder / MARK).read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "net", "__file__": str(folder / MARK)}
    try:
        exec(compile(source, str(folder / MARK), "exec"), namespace)
        with torch.random.fork_rng(devices=[]):  # fresh layers draw numbers
            twin = namespace["load"]()
    except Exception as error:
        raise SennError(f"what was exported can't be read back: {in_short(error)}") from error
    if inputs is None:
        return Exported(path=path, reader=MARK, why_not="there are no example inputs")
    place = next((x.device for x in pytree.tensor_leaves(inputs)), None)
    twin.to(place)

    def run(x: Inputs) -> list[Tensor]:
        return [out for out in pytree.tensor_leaves(pytree.call(twin, x)) if out.is_floating_point()]

    return check(path, f"its {MARK}", model, several(inputs), run, exact=True)


def net_source(model: nn.Module, name: str, preprocessing: Mapping[str, Any] | None) -> str:
    """The text of `net.py`."""
    kind, record = _kind(preprocessing), preprocessing or {}
    imports, body = _split(python_source(model, name))
    imports |= {"from pathlib import Path", "from safetensors.torch import load_file"}
    body += _LOAD.format(name=name)
    needs, use, with_what = "torch and safetensors", "", ""
    if kind is not None:
        more, code = _split((TEMPLATES / _TEMPLATE_OF[kind]).read_text(encoding="utf-8"))
        imports |= more | {"import json", "import sys", "import torch"}
        body += "\n\n" + code
    if kind == "tables":
        regression = record["target"]["task"] == "regression"
        what = f"{'numbers' if regression else 'classes'} of {record['target']['name']!r}"
        body += _TABLE.format(what="numbers" if regression else "classes")
        with_what = f" that predicts {_quoted(what)}"
        use = '    predict(read_rows("new.csv"))  # or dicts from column to cell; `python net.py new.csv`\n'
    elif kind == "images":
        body += _IMAGES
        needs, with_what = (
            "torch, safetensors, numpy and Pillow",
            f" that knows {len(record['labels'])} classes of images",
        )
        use = '    predict(["new.jpg"])           # their classes; `python net.py new.jpg ...`\n'
    if kind is not None:
        use += "\nencode() does to data what was done in training; its constants are in preprocessing.json.\n"
    return _ABOUT.format(with_what=with_what, needs=needs, name=name, use=use) + _sorted(imports) + "\n\n" + body


def _quoted(text: str) -> str:
    """Safe in a docstring, on one line."""
    return " ".join(text[:60].split()).replace("\\", "\\\\").replace('"', "'")


def _kind(record: Mapping[str, Any] | None) -> str | None:
    """Whose record it is."""
    if record is None:
        return None
    if record.get("kind") == "images":
        return "images"
    return "tables" if {"columns", "target"} <= set(record) else None


def _split(source: str) -> tuple[set[str], str]:
    """The imports at the top of a source, and what comes after."""
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    ends = [node.end_lineno or node.lineno for node in imports]
    found = {"".join(lines[node.lineno - 1 : end]).strip() for node, end in zip(imports, ends, strict=True)}
    return found, "".join(lines[max(ends) :]).strip("\n") + "\n"


def _sorted(imports: Iterable[str]) -> str:
    """Import lines in the usual order, those of Python's own library first."""

    def key(line: str) -> tuple[bool, bool, str]:
        return line.split()[1].split(".")[0] not in sys.stdlib_module_names, line.startswith("from"), line.lower()

    ordered = sorted(imports, key=key)
    groups = [[line for line in ordered if key(line)[0] is foreign] for foreign in (False, True)]
    return "\n" + "\n".join("\n".join(group) + "\n" for group in groups if group)
