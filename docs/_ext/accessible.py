"""What the theme's pages lack for people who listen to them or use a keyboard, put into the finished files."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

REPAIRS = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="This page" class="toc-drawer',
    'role="heading">': 'role="heading" aria-level="2">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    "<pre>": '<pre tabindex="0">',  # wide code scrolls, by keys too
}


def repair(app: Sphinx, error: Exception | None) -> None:
    """Rewrite all pages; a second time changes nothing."""
    for path in [] if error else Path(app.outdir).rglob("*.html"):
        text = old = path.read_text()
        for wanting, whole in REPAIRS.items():
            text = text.replace(wanting, whole)
        if text != old:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Run after the pages are written."""
    app.connect("build-finished", repair)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
