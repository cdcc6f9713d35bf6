"""Encoding of images as a record, so that new ones are treated like those that a network was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senn._records import from_dict
from senn.data.images.encoded import encoded_rows, image_columns
from senn.data.images.folders import Entry, LeftOut, files_in, square, squares
from senn.data.images.idx import is_idx, read_idx
from senn.errors import SennError

KIND = "images"
_AT_ONCE = 1000
# One of 10^10 pixels that differs by 1 / 255 makes 4e-8: only constant channels lie below.
_LEAST_STD = 1e-9


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """Encoder of images as squares of pixels, the same way each time.

    Attributes:
        side: of the squares.
        channels: 1 (gray) or 3.
        mean: of each channel of the training images, with pixels from 0 to 1.
        std: standard deviation of each channel, likewise.
        labels: names of the classes.
        flip: True if training images were mirrored.
    """

    side: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    flip: bool

    def __post_init__(self) -> None:
        # checked here, so that a record from elsewhere can't make an encoder that fails later
        if self.side < 1 or self.channels not in (1, 3):
            raise SennError(
                f"images of side {self.side} with {self.channels} channels can't be encoded"
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise SennError(f"mean and std need a number for each of {self.channels} channels")
        if min(self.mean) < 0 or min(self.std) < _LEAST_STD:
            raise SennError(
                f"mean must be at least 0 and std at least {_LEAST_STD:g} in each channel"
            )
        if len(self.labels) < 2:
            raise SennError(f"classes need two labels at least, and there are {len(self.labels)}")
        if len(set(self.labels)) < len(self.labels):
            raise SennError("two classes have the same label")

    def read(
        self, sources: Sequence[str]
    ) -> Iterator[tuple[list[str], NDArray[np.uint8], tuple[LeftOut, ...]]]:
        """Read images of files, or of all files in folders, in parts.

        PNG and JPEG files hold an image each; IDX and parquet files many, which are named by their row, from 1.

        Yields:
            Names, pixels (n, side, side, C), and images that are left out.

        Raises:
            SennError: a source isn't there, or is damaged as a whole.
        """
        plain: list[Entry] = []
        for path in (file for source in sources for file in _files(source)):
            # single images are collected and decoded together, up to the next file that holds many
            if path.suffix.lower() == ".parquet" or is_idx(path):
                yield from self._encoded(plain)
                plain = []
                yield from self._rows(path)
            else:
                plain.append(Entry(str(path), path))
        yield from self._encoded(plain)

    def _encoded(
        self, entries: Sequence[Entry]
    ) -> Iterator[tuple[list[str], NDArray[np.uint8], tuple[LeftOut, ...]]]:
        # in parts, so that memory doesn't grow with the number of files
        for at in range(0, len(entries), _AT_ONCE):
            part = entries[at : at + _AT_ONCE]
            made = squares(part, self.side, self.channels)
            yield [part[row].name for row in made.rows], made.pixels, made.left_out

    def _rows(
        self, path: Path
    ) -> Iterator[tuple[list[str], NDArray[np.uint8], tuple[LeftOut, ...]]]:
        """Read a file that holds many images."""
        if path.suffix.lower() == ".parquet":
            columns = image_columns(path, labeled=False)
            if columns is None:
                raise SennError(f"{str(path)!r} has no column of encoded images")
            rows = encoded_rows(path, *columns)
            yield from self._encoded([Entry(name, content or b"") for name, content, _ in rows])
            return
        # IDX files of images have no channels: gray
        pixels = read_idx(path, 3)[..., None]
        made = [square(image, self.side, self.channels) for image in pixels]
        yield (
            [f"row {row:,} of {str(path)!r}" for row in range(1, len(made) + 1)],
            np.stack(made),
            (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert the encoder to a JSON record."""
        return {"kind": KIND, **{key: _listed(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_dict(cls, record: Any) -> ImageEncoder:
        """Restore an encoder from a record of `to_dict`.

        Raises:
            SennError: the record is damaged.
        """
        what = "the stored encoding of the images"
        if not isinstance(record, dict) or record.get("kind") != KIND:
            raise SennError(f"{what} is damaged: it isn't of kind {KIND!r}")
        return from_dict(
            cls, {key: value for key, value in record.items() if key != "kind"}, what, complete=True
        )


def _files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = files_in(path)
        if not found:
            raise SennError(f"the folder {source!r} holds no files")
        return found
    if not path.exists():
        raise SennError(f"there is no file or folder {source!r}")
    return [path]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
