"""Run an experiment of the paper: the command `senn reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from senn._extras import reproduce_module
from senn.cli.help_texts import EXPERIMENTS
from senn.cli.signals import Signals
from senn.errors import SennError
from senn.runs import RunFolder


def run(
    *,
    experiment: str,
    seeds: int | None,
    out: Path | None,
    overwrite: bool,
    data_dir: Path | None,
    full: bool,
    device: str | None,
) -> int:
    """Run an experiment; the folder of results is written whole, or left as it was.

    Args:
        experiment: name of the experiment.
        seeds: number of random seeds; None for the default.
        out: folder for the results; None for `runs/EXPERIMENT`.
        overwrite: replace the results that the folder holds.
        data_dir: folder of the images; None for that in SENN_DATA, or a download.
        full: run at the paper's size.
        device: device for experiments on images; None for CUDA if it is available, else the CPU.

    Returns:
        Exit code.

    Raises:
        SennError: the experiments aren't installed, or an option doesn't fit the experiment.
    """
    images = _image_options(experiment, data_dir, device)
    module = reproduce_module(experiment.replace("-", "_"), "senn reproduce")
    seeds = seeds or EXPERIMENTS[experiment].seeds
    out = out or Path("runs") / experiment
    with Signals() as signals, RunFolder(out, overwrite=overwrite) as folder:
        module.main(seeds=seeds, out=folder.draft, settings=module.FULL if full else None, **images)
        written = sorted(file.name for file in folder.draft.iterdir())
        signals.ignore_further()
        folder.publish()
    print(f"written to {out}: {', '.join(written)}")
    return 0


def _image_options(experiment: str, data_dir: Path | None, device: str | None) -> dict[str, Any]:
    """Return the options of experiments on images.

    Raises:
        SennError: the experiment has no images, or PyTorch can't compute on the device.
    """
    options = {"data_dir": data_dir, "device": device}
    if EXPERIMENTS[experiment].images:
        if device is not None:
            _check_device(device)
        return options
    for name, value in options.items():
        if value is not None:
            raise SennError(
                f"--{name.replace('_', '-')} is for experiments on images, which {experiment} isn't"
            )
    return {}


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name).item()
    except (
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # PyTorch asserts that it was built for CUDA
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SennError(f"the device {name!r} can't be used: {why}") from error
