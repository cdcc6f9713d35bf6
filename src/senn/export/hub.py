"""A folder for the Hugging Face hub: weights, `config.json`, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from senn import atomic_files
from senn._text import one_line, printable
from senn.errors import SennError
from senn.events.run_schema import check_results
from senn.export.atomic_folder import MARK, atomic_folder
from senn.export.check import Exported
from senn.export.python_folder import WEIGHTS, check_python, write_python
from senn.pytree import Inputs

CONFIG, CARD, DESCRIPTION, FIGURE = "config.json", "README.md", "model.json", "growth.png"

_MARKUP = frozenset("<>&`|*[]\\~#!$\"'")
"""Characters that may begin markup; underscores inside a word don't, and names of columns are full of them."""
_PLAIN = """\
## In plain PyTorch

`net.py` holds the network and needs {needs}:

```python
from net import load{also}

model = load()  # {parameters:,} parameters, in eval mode
{predict}```

"""
_SENN = """\
## With senn

```python
import senn

model = senn.load("this/folder")
```

"""


def to_hub(
    folder: str | Path,
    model: nn.Module,
    inputs: Inputs | None = None,
    *,
    name: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    saved: str | Path | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a folder for the Hugging Face hub: `model.safetensors`, `net.py`, `config.json` and a model card.

    Args:
        folder: where to; `push_to_hub` uploads it.
        model: made of layers of torch.nn and senn.nn.
        inputs: an example batch, on which the folder's model is run and compared; None to skip that check.
        name: of the model on its card; None for the folder's.
        preprocessing: how data are encoded, as for `to_python`; None to leave that out.
        results: what `senn fit` writes to `results.json`; test scores and data go onto the card. None for none.
        saved: a folder to which `senn.save` or `senn fit` wrote the same model; its files are copied, so that
            `senn.load` reads this folder too. None to leave them out.
        license: as the hub calls it (`mit`, ...); None for a card that names none.
        overwrite: True if an earlier export there may be replaced.

    Returns:
        What was written and how it was checked; as text, one sentence.

    Raises:
        UnsupportedError: a part of the model can't be written as source, see `python_source`.
        SennError: what was written doesn't compute the same, or it can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = to_hub(Path(folder) / "net", nn.Linear(2, 3), license="mit")
    ...     print(sorted(path.name for path in exported.path.iterdir()))
    ['README.md', 'config.json', 'model.safetensors', 'net.py']
    """
    name = name or Path(folder).resolve().name
    if results is not None:
        check_results(results, "the record of the results")
    files = {} if saved is None else _saved_files(Path(saved), results or {})
    with atomic_folder(folder, folder=True, overwrite=overwrite) as draft:
        # Always the same name, which `config.json` gives and the card's code imports.
        write_python(model, draft, "Net", preprocessing)
        # The saved weights replace those just written: `senn.load` checks them against model.json.
        for file_name, content in files.items():
            (draft / file_name).write_bytes(content)
        config = _config(model, preprocessing, results or {})
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (draft / CONFIG).write_bytes(atomic_files.encoded(text))
        card = model_card(
            name,
            model,
            preprocessing=preprocessing,
            results=results or {},
            license=license,
            files={file.name for file in draft.iterdir()},
        )
        (draft / CARD).write_bytes(atomic_files.encoded(card))
        return check_python(Path(folder), draft, model, inputs)


def _saved_files(folder: Path, results: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the files that make `senn.load` read a copy of a saved model's folder, and the figure of its growth."""
    names = [WEIGHTS, DESCRIPTION]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise SennError(f"{str(folder)!r} holds no saved model: it lacks {absent[0]}")
    # What is uploaded is public, and the folder may be somebody else's: a figure only if the run vouches for it.
    noted = results.get("files", {})
    names += [FIGURE] if FIGURE in noted and (folder / FIGURE).is_file() else []
    found = {}
    for name in names:
        digest = noted.get(name)
        with (
            atomic_files.open_named(folder / name)
            if digest is None
            else atomic_files.verified(folder / name, digest, digest["bytes"], "results.json")
        ) as file:
            found[name] = file.read()
    return found


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder that `to_hub` wrote to the Hugging Face hub.

    Needs `pip install 'senn[huggingface]'`.

    Args:
        folder: what to upload.
        repo_id: where to, `user/name`; created if missing.
        private: True if a new repository is private; None for the account's own default.
        token: of the account; None for the one that is logged in.

    Returns:
        The address of the commit.

    Raises:
        SennError: huggingface_hub isn't installed, the folder isn't one that `to_hub` wrote, or the hub refuses it.
    """
    # Whatever else lies in that folder would become public: it has to be an export.
    needed = (WEIGHTS, CONFIG, CARD, MARK)
    missing = [file for file in needed if not (Path(folder) / file).is_file()]
    if missing:
        raise SennError(
            f"{str(folder)!r} is no folder for the hub: it lacks {missing[0]}; write one with to_hub"
        )
    # Imported here: everything but the upload works without it.
    try:
        import huggingface_hub
    except ImportError as error:
        raise SennError(
            "the hub needs the package 'huggingface_hub': pip install 'senn[huggingface]'"
        ) from error
    try:
        # exist_ok: without it only the first upload to a repository would succeed.
        huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message="A network that senn grew",
        )
    except Exception as error:  # anything that the network or the hub may object to
        raise SennError(
            f"{repo_id!r} can't be pushed to: {' '.join(str(error).split())}"
        ) from error
    return str(commit.commit_url)


def model_card(
    name: str,
    model: nn.Module,
    *,
    preprocessing: Mapping[str, Any] | None,
    results: Mapping[str, Any],
    license: str | None,
    files: set[str],
) -> str:
    """Write a model card: YAML about the model, then what its reader wants to know.

    Args:
        name: of the model.
        model: the model.
        preprocessing: how data are encoded; None if unknown.
        results: what `senn fit` writes to `results.json`; empty if there is none.
        license: as the hub calls it; None for none.
        files: names of the files in the folder.

    Returns:
        The text of `README.md`.
    """
    record: Mapping[str, Any] = preprocessing or {}
    data: Mapping[str, Any] = results.get("data", {})
    # Names of tasks as the hub has them: image-classification, tabular-regression, ...
    kind = "image" if record.get("kind") == "images" else "tabular"
    # Others than plain numbers, such as a table of classes, have no place in the hub's list of scores.
    scores = {
        key: value
        for key, value in results.get("test", {}).items()
        if isinstance(value, int | float)
    }
    # The hub reads the YAML between the dashes: its filters, its widget and its table of results come from there.
    lines = ["---", "library_name: pytorch", "tags:", "- senn", "- pytorch"]
    if license:
        lines.append(f"license: {json.dumps(license)}")
    if "task" in results:
        task = f"{kind}-{results['task']}"
        lines.append(f"pipeline_tag: {_yaml(task)}")
        lines += _model_index(name, task, str(data.get("name", "unknown")), scores)
    lines += ["---", "", f"# {_plain(name)}", "", _summary(model, record, results), ""]
    if FIGURE in files:
        lines += [f"![How the network grew]({FIGURE})", ""]
    if scores:
        rows, unit = data.get("test_rows", 0), "images" if kind == "image" else "rows"
        lines += [f"On {rows:,} {unit} that were held out:", "", "| score | value |", "|---|---|"]
        lines += [f"| {_plain(key)} | {value:.4g} |" for key, value in scores.items()]
        lines.append("")
    return "\n".join(lines) + _usage(model, record, DESCRIPTION in files)


def _model_index(
    name: str,
    task: str,
    data: str,
    scores: Mapping[str, float],
) -> list[str]:
    """Write the scores as the hub's `model-index`."""
    if not scores:
        return []
    metrics = []
    for key, value in scores.items():
        metric = _yaml({"type": key, "value": value})
        metrics.append(f"    - {metric}")
    about = _yaml({"name": data, "type": data})
    return [
        "model-index:",
        f"- name: {_yaml(name)}",
        "  results:",
        f"  - task: {_yaml({'type': task})}",
        f"    dataset: {about}",
        "    metrics:",
        *metrics,
    ]


def _summary(model: nn.Module, record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Summarize the model in a paragraph: its size, and what it predicts from what."""
    kind = type(model).__name__
    size = sum(parameter.numel() for parameter in model.parameters())
    hidden = "-".join(map(str, results.get("architecture", ())))
    about = f"A PyTorch network ({kind}) of {size:,} parameters"
    if hidden:
        about += f" with hidden layers of {hidden} units"
    about += ", which found its size by itself while it was trained"
    if record.get("kind") == "images":
        side, labels = record["side"], record["labels"]
        about += f". It tells {len(labels)} classes of images of {side} x {side} apart: "
        about += _listed(labels)
    elif "target" in record:
        columns = [column["name"] for column in record["columns"] if column["kind"] != "dropped"]
        target = _cell(record["target"]["name"])
        about += f". It predicts {target} from {len(columns)} columns: {_listed(columns)}"
    return about + "."


def _usage(model: nn.Module, record: Mapping[str, Any], has_description: bool) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    needs, also, predict = "torch and safetensors", "", ""
    if record.get("kind") == "images":
        needs, also = "torch, safetensors, numpy and Pillow", ", predict"
        predict = 'predict(["new.jpg"])  # the most probable class of each file\n'
    elif {"columns", "target"} <= set(record):
        also = ", predict, read_rows"
        predict = 'predict(read_rows("new.csv"))  # a class or number for each row; columns are found by name\n'
    text = _PLAIN.format(needs=needs, also=also, parameters=size, predict=predict)
    # Without `model.json` there is nothing that senn.load could read.
    return "\n" + text + (_SENN if has_description else "")


def _config(
    model: nn.Module, preprocessing: Mapping[str, Any] | None, results: Mapping[str, Any]
) -> dict[str, Any]:
    size = sum(parameter.numel() for parameter in model.parameters())
    # `architectures` is a key that the hub shows; it has to be the name of a class.
    config: dict[str, Any] = {
        "architectures": ["Net"],
        "class": type(model).__name__,
        "parameters": size,
    }
    config |= {
        key: results[key]
        for key in ("task", "architecture", "test", "data", "versions")
        if key in results
    }
    if preprocessing is not None:
        config["preprocessing"] = dict(preprocessing)
    return config


def _listed(names: Any, most: int = 12) -> str:
    cells = [_cell(name) for name in names]
    text = ", ".join(cells[:most])
    return f"{text} and {len(cells) - most:,} more" if len(cells) > most else text


def _cell(text: object) -> str:
    """Format a name as Markdown code, on one line; it is the user's, so it may hold anything."""
    line = one_line(text).replace("`", "'")
    # In code nothing is markup, but for what ends it; a page that ignores that must find no tag either.
    return f"<code>{_plain(line)}</code>" if set(line) & set("<>&|") else f"`{line}`"


def _plain(text: object) -> str:
    """Write a text so that Markdown and HTML show it as it is."""
    escaped = (f"&#{ord(mark)};" if mark in _MARKUP else mark for mark in one_line(text))
    return "".join(escaped)


def _yaml(value: Any) -> str:
    """Write a value as JSON, which is YAML too and quotes every text."""
    return printable(json.dumps(value, ensure_ascii=False))
