"""Files from their public source, with a progress bar, kept only if their checksum is the published one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from senn.errors import SennError

_CHUNK = 2**16


@dataclass(frozen=True)
class Download:
    """A public file.

    Attributes:
        url: where it is.
        checksum: "md5:..." or "sha256:...", as published.
    """

    url: str
    checksum: str


def fetch(name: str, downloads: Sequence[Download], folder: Path, timeout: float = 30) -> None:
    """Have the files of a set in a folder; one that is there with the right checksum isn't downloaded again.

    Args:
        name: of the set.
        downloads: its files.
        folder: where they go, under the last parts of their addresses.
        timeout: seconds that a server may be silent.

    Raises:
        SennError: if a file can't be had, or isn't the published one.
    """
    otherwise = "give --data-dir or the environment variable SENN_DATA a folder that holds it"
    try:
        import pooch
    except ImportError as error:
        raise SennError(
            f"{name} can't be downloaded without pooch: install senn[reproduce], or {otherwise}"
        ) from error
    loader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), chunk_size=_CHUNK, timeout=timeout
    )
    for file in downloads:
        target = file.url.rpartition("/")[2]
        try:
            pooch.retrieve(file.url, file.checksum, fname=target, path=folder, downloader=loader)
        except OSError as error:  # of which those of requests are
            response = getattr(error, "response", None)
            reason = type(error).__name__ if response is None else f"status {response.status_code}"
            reason = error.strerror or reason
            raise SennError(
                f"{name} can't be downloaded from {file.url} ({reason}); {otherwise}"
            ) from error
        except ValueError as error:  # pooch's word for a wrong sum
            raise SennError(
                f"{name} can't be downloaded: {file.url} isn't the published file, as its checksum differs; {otherwise}"
            ) from error
