"""The network of a finished run with all that it needs to predict new data: `senn.load_run`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.data import TableEncoder
from senn.data.images import ImageEncoder, Images, planes
from senn.errors import SennError, warn
from senn.training.augment import ChannelStats
from senn.training.round_records import first_line
from senn.training.saved_network import load_network
from senn.training.validation import IMAGES_AT_ONCE

# Activations of 1,000 units take 260 MB; twice the rows would take twice that.
_ROWS_AT_ONCE = 65_536

Data = pd.DataFrame | str | Path | Iterable[str | Path]
"""Rows to predict, or a file of them; for images files and folders."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRun:
    """Network of a finished run, with the encoding of its columns or images.

    Attributes:
        folder: of the run.
        model: the network, in eval mode.
        encoder: turns rows or images into its inputs, and its outputs into labels or numbers.

    >>> import tempfile, senn
    >>> from senn.cli.main import main
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     code = main(["fit", "wine", "--out", f"{folder}/wine", "--epochs", "1", "--quiet"])
    ...     run = senn.load_run(f"{folder}/wine")
    >>> new = senn.data.read_table("wine").frame.drop(columns="cultivar").head(3)
    >>> run.predict(new).shape, run.predict_proba(new).shape, run.classes
    ((3,), (3, 3), ('class_0', 'class_1', 'class_2'))
    """

    folder: Path
    model: nn.Module
    encoder: TableEncoder | ImageEncoder

    @property
    def classes(self) -> tuple[Any, ...] | None:
        """Labels in the order of the columns of `predict_proba`; None for a number."""
        if isinstance(self.encoder, ImageEncoder):
            return tuple(self.encoder.labels)
        return self.encoder.target.labels or None

    def predict(self, data: Data) -> NDArray[Any]:
        """Predict rows or images, as `senn predict` does.

        What training never saw, such as a category that is new, is a warning.

        Args:
            data: a data frame, or the path of a table; for images paths of files and folders.

        Returns:
            (n,) labels, or numbers in the target's own unit.

        Raises:
            SennError: a column is missing, or a cell or an image can't be read.
        """
        return np.asarray(self.decode(self._outputs(data)))

    def predict_proba(self, data: Data) -> NDArray[np.float64]:
        """Predict the probability of each class.

        Args:
            data: as for `predict`.

        Returns:
            (n, classes) probabilities, in the order of `classes`.

        Raises:
            SennError: the target is a number, or as for `predict`.
        """
        if self.classes is None:
            assert isinstance(self.encoder, TableEncoder)
            name = self.encoder.target.name
            raise SennError(f"probabilities are for classes, and {name!r} is a number")
        return probabilities(self._outputs(data))

    def decode(self, outputs: NDArray[Any]) -> list[Any]:
        """Convert a network's outputs (n, outputs) to labels or numbers."""
        if isinstance(self.encoder, ImageEncoder):
            return [self.encoder.labels[int(at)] for at in outputs.argmax(axis=1)]
        return self.encoder.target.decode(outputs)

    def _outputs(self, data: Data) -> NDArray[np.float64]:
        if isinstance(self.encoder, ImageEncoder):
            if isinstance(data, pd.DataFrame):
                raise SennError(f"the model in {str(self.folder)!r} predicts images, not a table")
            return self._image_outputs(data)
        if not isinstance(data, pd.DataFrame):
            if not isinstance(data, str | Path):
                raise SennError(f"the model in {str(self.folder)!r} predicts the rows of one table")
            data = self.encoder.read(data).frame
        for sentence in self.encoder.surprises(data):
            warn(sentence)
        return self.row_outputs(data)

    def row_outputs(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Compute the network's outputs for the rows of a table.

        Args:
            frame: the rows.

        Returns:
            (n, outputs) float64: logits, or standardized numbers.

        Raises:
            SennError: a column is missing, a cell can't be read, or the network doesn't fit the encoding.
        """
        assert isinstance(self.encoder, TableEncoder)
        x = torch.from_numpy(self.encoder.transform(frame))
        with self._fitting():
            return table_outputs(self.model, x)

    def pixel_outputs(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Compute the network's outputs for images.

        Args:
            pixels: (n, side, side, channels), as `ImageEncoder.read` gives them.

        Returns:
            (n, classes) float64 logits.

        Raises:
            SennError: the network doesn't fit the encoding.
        """
        assert isinstance(self.encoder, ImageEncoder)
        images = planes(Images(pixels, np.zeros(len(pixels), np.int64)))
        with self._fitting():
            return image_outputs(self.model, self.encoder, images)

    def _image_outputs(self, data: str | Path | Iterable[str | Path]) -> NDArray[np.float64]:
        assert isinstance(self.encoder, ImageEncoder)
        sources = [data] if isinstance(data, str | Path) else data
        parts = []
        for names, pixels, left_out in self.encoder.read([str(one) for one in sources]):
            # a line less would shift the others against the caller's own list
            if left_out:
                raise SennError(left_out[0].reason)
            parts += [self.pixel_outputs(pixels)] * bool(names)
        if not parts:
            raise SennError("there is no image to predict")
        return np.concatenate(parts)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Say in a sentence that the network isn't one for such data."""
        try:
            yield
        except RuntimeError as error:  # shapes or kinds of numbers that `senn fit` doesn't make
            what = f"doesn't fit what it is said to be for: {first_line(error)}"
            raise SennError(f"the network in {str(self.folder)!r} {what}") from error


@torch.no_grad()
def table_outputs(model: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """Compute a network's outputs for a table.

    Args:
        model: network of `senn fit`.
        x: (rows, features) float32.

    Returns:
        (rows, outputs) float64.
    """
    # float64 from here on: a mean over many rows loses digits in float32.
    return torch.cat([model(part) for part in torch.split(x, _ROWS_AT_ONCE)]).double().numpy()


@torch.no_grad()
def image_outputs(
    model: nn.Module, encoder: ImageEncoder, pixels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Compute a network's outputs for images, in batches.

    Args:
        model: network of `senn fit`.
        encoder: encoding of its images.
        pixels: (n, channels, side, side) uint8.

    Returns:
        (n, classes) float64 logits.
    """
    standard = ChannelStats(mean=encoder.mean, std=encoder.std)
    # An array that is mapped from a file can't be written to: torch warns of it, so it is copied.
    images = torch.from_numpy(np.require(pixels, requirements="W"))
    parts = [model(standard(part)) for part in torch.split(images, IMAGES_AT_ONCE)]
    return torch.cat(parts).double().numpy()


def probabilities(outputs: NDArray[Any]) -> NDArray[np.float64]:
    """Return the softmax of logits over the last dimension."""
    return torch.from_numpy(outputs).softmax(dim=-1).numpy()


def load_run(folder: str | Path) -> TrainedRun:
    """Load the network of a finished run, with what it needs to predict new data.

    Args:
        folder: written by `senn fit`.

    Returns:
        The network, with `predict` and `predict_proba`.

    Raises:
        SennError: the folder holds no intact network of `senn fit`.
    """
    model, encoder = load_network(Path(folder))
    if encoder is None:
        raise SennError(
            f"the model in {str(folder)!r} wasn't made by 'senn fit', so the columns it needs are unknown"
        )
    return TrainedRun(folder=Path(folder), model=model, encoder=encoder)
