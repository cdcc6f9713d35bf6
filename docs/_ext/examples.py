"""Lets the programs of the gallery have plain docstrings: the first line becomes the title of the page."""

from __future__ import annotations

import re

from reference import literal_blocks
from sphinx.application import Sphinx

_HEAD = re.compile(
    r"(\.\. _sphx_glr_gallery_\w+\.py:\n\n+)(.+?)(?=\n\.\. GENERATED FROM|\n\.\. rst-class|\Z)",
    re.S,
)
_CURRENT = ".. py:currentmodule:: senn"  # so that `Grower` finds its page
_NAME = re.compile(r'(thumbnail-title">)(.+?)\.?(</div>)')


def entitle(text: str) -> str:
    """The page that sphinx-gallery wrote, with a title."""

    def head(found: re.Match[str]) -> str:
        first, *rest = literal_blocks(found[2].split("\n"))
        title = first.removesuffix(".")
        return "\n".join([found[1] + title, "=" * len(title), "", _CURRENT, "", *rest])

    return _NAME.sub(r"\1\2\3", _HEAD.sub(head, text, count=1))


def read(_app: Sphinx, name: str, source: list[str]) -> None:
    """Sphinx's hook."""
    if name.startswith("gallery/"):
        source[0] = entitle(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
