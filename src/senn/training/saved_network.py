"""A network of `senn fit` with the encoding of its data, read together and held against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from senn._memory import is_out_of_memory
from senn.checkpoint import DESCRIPTION, WEIGHTS, load, load_extra
from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.data.images.image_encoder import KIND
from senn.errors import EVERYDAY, SennError, in_one_line
from senn.runs import RESULTS, check, complete, is_at_work


def load_network(folder: Path) -> tuple[nn.Module, TableEncoder | ImageEncoder | None]:
    """Load a network and the encoding that was saved with it.

    Args:
        folder: folder of a run, or one that `senn.save` wrote.

    Returns:
        The network, and the encoding of its inputs and outputs; None if it wasn't made by `senn fit`.

    Raises:
        SennError: the folder holds no network, its files aren't those that were written together, or the encoding
            isn't one for this network.
    """
    made = complete(folder)
    # Without this, the error would be about a missing file, not about the run.
    if (made / "unfinished").is_dir() and not (made / DESCRIPTION).exists():
        why = "isn't finished"
        if is_at_work(made):
            why = "is still at work in another process"
        raise SennError(f"the run in {str(folder)!r} {why}, so it holds no network yet")
    # A folder of senn.save has no results, and checksums of its own. senn.load compares the two files with each other;
    # this also finds files of another run.
    if (made / RESULTS).exists():
        check(made, (DESCRIPTION, WEIGHTS))
    record = load_extra(made).get("encoder")
    encoder: TableEncoder | ImageEncoder | None = None
    if record is not None:
        # Encodings of images say so; those of tables have no kind.
        is_images = isinstance(record, dict) and record.get("kind") == KIND
        encoder = ImageEncoder.from_dict(record) if is_images else TableEncoder.from_dict(record)
    model = load(made)
    if encoder is not None:
        _check_fit(model, encoder, folder)
    return model, encoder


def _check_fit(model: nn.Module, encoder: TableEncoder | ImageEncoder, folder: Path) -> None:
    """Refuse an encoding that makes other inputs than the network reads, or names another number of outputs."""
    if isinstance(encoder, ImageEncoder):
        shape: tuple[int, ...] = (0, encoder.channels, encoder.side, encoder.side)
        named = len(encoder.labels)
    else:
        shape, named = (0, len(encoder.features)), encoder.target.outputs
        _check_constants(encoder, folder)
    try:
        found = _output_shape(model, shape)
    except EVERYDAY as error:
        if is_out_of_memory(error):
            raise
        what = f"doesn't fit what it is said to be for: {in_one_line(error)}"
        raise SennError(f"the network in {str(folder)!r} {what}") from error
    if found != (0, named):
        outputs = found[-1] if len(found) == 2 else list(found)
        raise SennError(
            f"the network in {str(folder)!r} has {outputs} outputs, but the encoding saved with it names {named}"
        )


def _check_constants(encoder: TableEncoder, folder: Path) -> None:
    """Refuse constants that are numbers, but of which a row can't be made: a median date in the year 10^9."""
    nothing = pd.DataFrame(
        {column.name: pd.Series([None], dtype=object) for column in encoder.columns}
    )
    try:
        sound = bool(np.isfinite(encoder.transform(nothing)).all())
    except (*EVERYDAY, OverflowError) as error:
        what = f"the stored encoding of the table in {str(folder)!r} is damaged"
        raise SennError(f"{what}: {in_one_line(error)}") from error
    if not sound:
        raise SennError(f"the stored encoding of the table in {str(folder)!r} makes no numbers")


@torch.no_grad()
def _output_shape(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a network's outputs for no rows, which need no memory however large a row is said to be."""
    # Not on the meta device, whose rules for linear maps take a second to import.
    return tuple(model(torch.empty(shape)).shape)  # float32, as both encodings make it
