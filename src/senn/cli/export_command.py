"""Write a trained network as a file or folder that needs no senn: the command `senn export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senn.atomic_files import encoded
from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.data.images.image_encoder import KIND
from senn.errors import SennError
from senn.export import Exported, to_hub, to_onnx, to_pt2, to_python
from senn.runs import RESULTS, complete, read
from senn.training.saved_network import load_network

EXAMPLES = 8
"""Samples in the batch on which what was exported is held against the network."""

_ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "python": "-python", "hub": "-hub"}


def run(*, folder: Path, to: str, out: Path | None, overwrite: bool, license: str | None) -> int:
    """Export a network.

    Args:
        folder: folder of the run.
        to: format: `onnx`, `pt2`, `python` or `hub`.
        out: file or folder to write; None for one beside the run's folder.
        overwrite: replace an earlier export.
        license: that the model card names; for `hub` only.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no network, or it can't be exported to this format.
    """
    if license is not None and to != "hub":
        raise SennError(f"--license is for --to hub, not for {to}: only a model card names one")
    model, encoder = load_network(folder)
    made = complete(folder)
    resolved = folder.resolve()
    # "." and ".." have no name to add an ending to.
    named = resolved if folder.name in ("", "..") else folder
    out = out or named.with_name(named.name + _ENDINGS[to])
    if out.resolve() == resolved:
        raise SennError(f"--out is the folder of the run, {str(folder)!r}; choose another name")
    # A model that was saved by senn.save knows neither its inputs nor their encoding.
    inputs, about = (None, None) if encoder is None else _data(encoder)
    if to == "python":
        print(to_python(model, out, inputs, preprocessing=about, overwrite=overwrite))
    elif to == "hub":
        results = read(folder).results if (made / RESULTS).exists() else None
        card: dict[str, Any] = {
            "name": resolved.name,
            "preprocessing": about,
            "results": results,
            "license": license,
        }
        print(to_hub(out, model, inputs, saved=made, overwrite=overwrite, **card))
    elif inputs is None or about is None:
        raise SennError(
            f"the model in {str(folder)!r} wasn't made by 'senn fit', so its inputs are unknown: export it with "
            f"senn.export.to_{to}(model, path, inputs)"
        )
    else:
        print(_graph(to, model, out, inputs, about, overwrite=overwrite))
    return 0


def _graph(
    to: str, model: nn.Module, out: Path, inputs: Tensor, about: dict[str, Any], *, overwrite: bool
) -> Exported:
    """Export a model as a graph: for ONNX, or for `torch.export.load`."""
    if to == "pt2":
        return to_pt2(model, out, inputs, metadata=about, overwrite=overwrite)
    return to_onnx(
        model,
        out,
        inputs,
        input_names=["images" if about.get("kind") == KIND else "features"],
        output_names=[
            "prediction" if about.get("target", {}).get("task") == "regression" else "logits"
        ],
        metadata=_metadata(about),
        overwrite=overwrite,
    )


def _data(encoder: TableEncoder | ImageEncoder) -> tuple[Tensor, dict[str, Any]]:
    """Return an example batch, and the encoding of the data as a JSON-able record."""
    # A fixed seed: the same run exports the same bytes.
    generator = torch.Generator().manual_seed(0)
    if isinstance(encoder, ImageEncoder):
        shape = EXAMPLES, encoder.channels, encoder.side, encoder.side
        return torch.randn(shape, generator=generator), encoder.to_dict()
    features = encoder.features
    x = torch.randn(EXAMPLES, len(features), generator=generator)
    return x, {"features": features, **encoder.to_dict()}


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """Return an ONNX file's metadata: names of features, classes, and the encoding with its constants, as JSON."""
    target = about.get("target", {})
    labels = about.get("labels", target.get("labels"))
    parts = {"classes": labels or None, "features": about.get("features"), "preprocessing": about}
    return {
        key: encoded(json.dumps(value, ensure_ascii=False)).decode()
        for key, value in parts.items()
        if value is not None
    }
