"""Saving models to folders and loading them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from senn.checkpoint.describe import describe
from senn.checkpoint.model_files import WEIGHTS, read_description, read_numbers, read_weights, write
from senn.checkpoint.resize import resize_model
from senn.checkpoint.schema import parse
from senn.errors import SennError


def save(folder: str | Path, model: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write a model to a folder (created if missing), replacing the one that is there.

    Both files are complete on the disk before either is renamed.

    Args:
        folder: where `model.safetensors` and `model.json` go.
        model: any module; its parameters must be finite.
        extra: JSON-able data to keep in `model.json`, for `load_extra`; None for nothing.

    Raises:
        SennError: a tensor isn't finite, `extra` isn't JSON-able, or the folder can't be written.
        UnsupportedError: the model keeps state that isn't plain tensors.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, nn.Sequential(nn.Linear(2, 3), nn.ReLU()), extra={"epoch": 7})
    ...     print(sorted(path.name for path in Path(folder).iterdir()), load_extra(folder))
    ['model.json', 'model.safetensors'] {'epoch': 7}
    """
    _check_module("save", model)
    try:
        described, tensors = describe(model)
    except RecursionError as error:
        raise SennError(f"a {type(model).__name__} is nested too deeply to be saved") from error
    write(Path(folder), tensors, {**described, "extra": extra or {}})


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Load a model that `save` wrote.

    Args:
        folder: where it was saved.
        into: a freshly built model of the same classes and any size. It is resized in place (widths, inserted layers,
            repeated blocks) and returned; its tensors stay the same objects. It keeps its device, mode, settings and
            trainable parameters, and takes the saved dtype. None to rebuild the model on the CPU, in eval mode, from
            layers of torch.nn and senn.nn.

    Returns:
        `into`, or the rebuilt model.

    Raises:
        SennError: the folder holds no intact model of a known version, or none like `into`, which is unchanged then.
        UnsupportedError: the model, or something that was added to it, is of a class that only its owner can build.

    >>> import tempfile
    >>> model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder, model)
    ...     rebuilt = load(folder)
    ...     resized = load(folder, into=nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)))
    >>> rebuilt[0], resized[0]
    (Linear(in_features=2, out_features=5, bias=True), Linear(in_features=2, out_features=5, bias=True))
    """
    if into is not None:
        _check_module("load", into)
    try:
        # The description first: it says how large the file with the numbers may be.
        description = parse(read_description(Path(folder)))
        weights = read_weights(Path(folder), description.weights_sha256, description.shapes)
        with weights.file:
            description.check({name: one.shape for name, one in weights.stored.items()})
            tensors = read_numbers(weights, Path(folder) / WEIGHTS)
        return resize_model(description, tensors, into)
    # A forged file may be nested as deeply as it likes; its own depth is no reason to crash.
    except RecursionError as error:
        raise SennError(f"the model in {str(folder)!r} is nested too deeply to be read") from error


def _check_module(caller: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise SennError(f"{caller} needs an nn.Module, not a {type(model).__name__}")


def load_extra(folder: str | Path) -> dict[str, Any]:
    """Load the data that were saved as `extra` with a model.

    Raises:
        SennError: the folder's description isn't intact.
    """
    return parse(read_description(Path(folder))).extra
