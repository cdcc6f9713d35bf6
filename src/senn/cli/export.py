"""`senn export`: a trained network as a file or folder that needs no senn."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.data.images.encoder import KIND
from senn.errors import SennError
from senn.export import Exported, to_hub, to_onnx, to_pt2, to_python
from senn.persistence import DESCRIPTION, WEIGHTS, load, load_extra
from senn.runs import RESULTS, check, complete, read

EXAMPLES = 8
"""Samples in the batch on which what was exported is held against the network."""

_ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "python": "-python", "hub": "-hub"}


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    folder = complete(args.folder)
    if args.license is not None and args.to != "hub":
        raise SennError(f"--license is for --to hub, not for {args.to}: only a model card names one")
    if (folder / "unfinished").is_dir() and not (folder / DESCRIPTION).exists():
        raise SennError(f"the run in {str(args.folder)!r} isn't finished, so it holds no network yet")
    if (folder / RESULTS).exists():
        check(folder, (DESCRIPTION, WEIGHTS))
    extra = load_extra(folder)
    model = load(folder)
    resolved = args.folder.resolve()
    named = resolved if args.folder.name in ("", "..") else args.folder
    out = args.out or named.with_name(named.name + _ENDINGS[args.to])
    if Path(out).resolve() == resolved:
        raise SennError(f"--out is the folder of the run, {str(args.folder)!r}; choose another name")
    record = extra.get("encoder")
    inputs, about = (None, None) if record is None else _data(record)
    print(_export(args, model, Path(out), inputs, about))
    return 0


def _export(
    args: argparse.Namespace, model: nn.Module, out: Path, inputs: Tensor | None, about: dict[str, Any] | None
) -> Exported:
    if args.to == "python":
        return to_python(model, out, inputs, preprocessing=about, overwrite=args.overwrite)
    if args.to == "hub":
        made = complete(args.folder)
        results = read(args.folder).results if (made / RESULTS).exists() else None
        name = args.folder.resolve().name
        return to_hub(
            out,
            model,
            inputs,
            name=name,
            preprocessing=about,
            results=results,
            saved=made,
            license=args.license,
            overwrite=args.overwrite,
        )
    if inputs is None or about is None:
        raise SennError(
            f"the model in {str(args.folder)!r} wasn't made by 'senn fit', so its inputs are unknown: export it with "
            f"senn.export.to_{args.to}(model, path, inputs)"
        )
    if args.to == "pt2":
        return to_pt2(model, out, inputs, metadata=about, overwrite=args.overwrite)
    return to_onnx(
        model,
        out,
        inputs,
        input_names=["images" if about.get("kind") == KIND else "features"],
        output_names=["prediction" if about.get("target", {}).get("task") == "regression" else "logits"],
        metadata=_metadata(about),
        overwrite=args.overwrite,
    )


def _data(record: Any) -> tuple[Tensor, dict[str, Any]]:
    """An example batch, and all that is done to data on their way in, JSON-able."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(record, dict) and record.get("kind") == KIND:
        images = ImageEncoder.from_dict(record)
        x = torch.randn(EXAMPLES, images.channels, images.side, images.side, generator=generator)
        return x, images.to_dict()
    table = TableEncoder.from_dict(record)
    features = table.features
    return torch.randn(EXAMPLES, len(features), generator=generator), {"features": features, **table.to_dict()}


def _metadata(about: dict[str, Any]) -> dict[str, str]:
    """What an ONNX file says of its inputs and outputs: names of features, classes, and every constant, as JSON."""
    target = about.get("target", {})
    labels = about.get("labels", target.get("labels"))
    parts = {"classes": labels or None, "features": about.get("features"), "preprocessing": about}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in parts.items() if value is not None}
