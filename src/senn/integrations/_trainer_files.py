"""Files that senn adds to a checkpoint of a Hugging Face Trainer, and how a grown model is loaded with them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from senn import atomic_files
from senn.checkpoint import describe_shapes, optimizer_param_names, rebind_optimizer, resize_like
from senn.checkpoint.model_state import packed, unpacked
from senn.errors import SennError
from senn.surgery.model_config import update_config

SIZES, TENSORS = "senn.json", "senn.safetensors"
FORMAT, VERSION = "senn-growth", 1

# Far above any state of growth: a limit only keeps a forged file from filling the memory.
_MOST_BYTES = 1 << 40


def save(model: nn.Module, folder: str | Path) -> None:
    """Call `model.save_pretrained(folder)`, and add to the folder what `load` needs.

    Args:
        model: a model of transformers.
        folder: where to; made if it is missing.

    Raises:
        SennError: the folder can't be written.
    """
    model.save_pretrained(folder)  # type: ignore[operator]
    write(Path(folder), model, {})


def load(folder: str | Path, into: nn.Module) -> Any:
    """Resize a fresh model to what `save`, or a Trainer with `SelfExpansion`, saved, and load it.

    Args:
        folder: folder of the model or checkpoint.
        into: of the same class, of any size; changed in place.

    Returns:
        That model.

    Raises:
        SennError: the folder holds no sizes, those of another model, or no `model.safetensors`.
    """
    saved, path = read(Path(folder)), Path(folder) / "model.safetensors"
    if saved is None or not path.is_file():
        raise SennError(f"{str(folder)!r} doesn't hold both {SIZES} and {path.name}")
    resize_like(into, saved["sizes"])
    state = safetensors.torch.load_file(path)
    name_classes(into, saved.get("classes"))
    rename_in_place(state, saved["names"])
    # Not strict: tied tensors are saved once.
    into.load_state_dict(state, strict=False)
    update_config(into)
    return into


def write(folder: Path, model: nn.Module, growth: Mapping[str, Any]) -> None:
    """Write the sizes of a model, and the state of its growth, into a folder.

    Args:
        folder: an existing folder.
        model: the model.
        growth: nested plain values and tensors.

    Raises:
        SennError: the folder can't be written.
    """
    described = {
        "sizes": describe_shapes(model),
        "names": _saved_names(model),
        "classes": class_names(model),
    }
    document, data = packed({**described, **growth})
    head = {"format": FORMAT, "version": VERSION, "numbers": atomic_files.file_digest(data)}
    text = atomic_files.to_checksummed_json({**head, "state": document}, indent=None)
    try:
        # The document last: with it the digest of the numbers is there, too.
        atomic_files.write(folder / TENSORS, data)
        atomic_files.write(folder / SIZES, text)
    except OSError as error:
        raise SennError(f"{str(folder)!r} can't be written: {error.strerror or error}") from error


def read(folder: Path) -> Mapping[str, Any] | None:
    """Read what `write` wrote; None if there is nothing.

    Raises:
        SennError: it was altered.
    """
    if not (folder / SIZES).is_file():
        return None
    document = atomic_files.read_checksummed_json(folder / SIZES, FORMAT, VERSION)
    path = folder / TENSORS
    data = atomic_files.verify_file(path, document.get("numbers"), _MOST_BYTES, SIZES)
    state: Mapping[str, Any] = unpacked(document["state"], data, path)
    return state


def class_names(model: nn.Module) -> list[str] | None:
    """List the names of the classes in a model's configuration; None if it names none.

    Args:
        model: any module.
    """
    table = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(table, dict) or sorted(table) != [*range(len(table))]:
        return None
    return [str(table[number]) for number in range(len(table))]


def name_classes(model: Any, names: Sequence[str] | None) -> None:
    """Give a model the classes that a saved one had, new ones included.

    Args:
        model: a model with the sizes of the saved one; its configuration and its modules' `num_labels` change.
        names: of the classes; None if the saved model, or an older senn, named none.
    """
    own = class_names(model)
    if names is None or own is None or len(own) == len(names):
        return
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    for module in model.modules():
        if vars(module).get("num_labels") == len(own):
            module.num_labels = len(names)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters and buffers, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fits(incoming: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True if a state is that of a model of some shapes; it may lack tied tensors, which are saved once.

    Args:
        incoming: the state.
        shapes: shapes of the model's tensors, by name.
    """
    return all(shapes.get(name) == tuple(tensor.shape) for name, tensor in incoming.items())


def renamed(incoming: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Give tensors the names that they have in the model.

    Args:
        incoming: tensors, by the names under which they were saved.
        names: saved name to name in the model, where they differ.
    """
    return {names.get(name, name): tensor for name, tensor in incoming.items()}


def rename_in_place(incoming: MutableMapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Give tensors the names that they have in the model, in the same mapping.

    Args:
        incoming: tensors, by the names under which they were saved.
        names: saved name to name in the model, where they differ.
    """
    tensors = renamed(incoming, names)
    incoming.clear()
    incoming.update(tensors)


def reorder_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[Sequence[str | None]]
) -> None:
    """Give every parameter its own state again, after states were loaded by position in another order.

    Args:
        optimizer: holds the model's parameters.
        model: the model.
        names: for each group, the names of its parameters in the order in which their states were saved.
    """
    if optimizer_param_names(optimizer, model) == names:
        return
    states = [
        [optimizer.state.get(one) for one in group["params"]] for group in optimizer.param_groups
    ]
    rebind_optimizer(optimizer, model, names)
    for group, own in zip(optimizer.param_groups, states, strict=True):
        for parameter, state in zip(group["params"], own, strict=True):
            if state is not None:
                optimizer.state[parameter] = state


def _saved_names(model: Any) -> dict[str, str]:
    """Map the names under which `save_pretrained` writes tensors to those in the model, where they differ.

    Some classes of transformers write the names of older versions, and its Trainer doesn't convert them when it loads a
    checkpoint.
    """
    own = model.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion

        saved = revert_weight_conversion(model, own)
    except (ImportError, AttributeError):  # another version, or a model that isn't of transformers
        return {}
    own_names = {id(tensor): name for name, tensor in own.items()}
    names: dict[str, str] = {}
    for name, tensor in saved.items():
        own_name = own_names.get(id(tensor), name)
        if own_name != name:
            names[name] = own_name
    return names
