"""Check links, public names and the examples of docstrings: python docs/check.py [SITE].

With the folder of the site that `make docs` has built, its pages are checked as well.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import senn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import reference  # noqa: E402


def broken_links(root: Path = ROOT) -> Iterator[str]:
    """Relative links of the texts that lead nowhere, read as on a host of repositories."""
    for page in sorted([*root.glob("*.md"), *root.glob("docs/*.md")]):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target and not _source(page, target).exists():
                yield f"{page.relative_to(root)}: no {target}"


def _source(page: Path, target: str) -> Path:
    """The file that a link leads to; for pages that only a build writes, what they are made of."""
    folder, _, name = target.partition("/")
    if folder == "gallery" and name:
        return (
            page.parent.parent
            / "examples"
            / ("GALLERY_HEADER.rst" if name == "index" else f"{name}.py")
        )
    return page.parent / ("_ext/reference.py" if target == "api/index" else target)


class _Page(HTMLParser):
    """What an HTML page points to, what can be pointed at in it, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "source", "iframe") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and "href" in given and given.get("rel") not in ("canonical", "author"):
            self.loads.append(given["href"])


def broken_pages(site: Path) -> Iterator[str]:
    """Links and anchors of a site that lead nowhere, what it loads from elsewhere, paths of this machine."""
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} holds no pages"
    for path, page in pages.items():
        shown = path.relative_to(site)
        yield from (f"{shown} loads {load}" for load in page.loads if urlsplit(load).netloc)
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{shown}: no {link}"
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                yield f"{shown}: no anchor {link}"
        if str(ROOT) in path.read_text():
            yield f"{shown} has a path of this machine"


def unlisted(inventory: Iterable[str], modules: list[ModuleType]) -> Iterator[str]:
    """Public names of modules that aren't among the names which a site describes."""
    described = set(inventory)
    for module, names in reference.describe(modules).items():
        yield from (f"{name.shown} is on no page" for name in names if name.shown not in described)
        if module not in described:
            yield f"{module} has no page"


def misnamed(names: Iterable[str], root: Path = ROOT) -> Iterator[str]:
    """Names in the texts that are said to be described, and aren't."""
    known = set(names)
    for page in sorted(root.glob("docs/*.md")):
        said = re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?([\w.]+)>?`", page.read_text())
        yield from (
            f"{page.relative_to(root)}: {name} is on no page" for name in said if name not in known
        )


def described(site: Path) -> set[str]:
    """Python names that a site describes, by its inventory."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {
        name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names
    }


def failing_examples() -> Iterator[str]:
    """Modules whose docstring examples don't give what they show."""
    for found in pkgutil.walk_packages(senn.__path__, "senn."):
        failed = doctest.testmod(importlib.import_module(found.name)).failed
        if failed:
            yield f"{found.name}: {failed} examples fail"


def main(argv: list[str]) -> int:
    """Print what is wrong; 1 if anything is."""
    modules = reference.public_modules()
    problems = [
        *broken_links(),
        *reference.undocumented(reference.describe(modules)),
        *failing_examples(),
    ]
    for site in map(Path, argv):
        names = described(site)
        problems += [*broken_pages(site.resolve()), *unlisted(names, modules), *misnamed(names)]
    print("\n".join(problems) or "documentation: links, docstrings and examples hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
