"""Check that links lead somewhere, public names are documented and examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import senn

ROOT = Path(__file__).parent.parent


def broken_links() -> Iterator[str]:
    """Relative links of the pages that lead nowhere."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                yield f"{page.relative_to(ROOT)}: no {target}"


def modules() -> Iterator[ModuleType]:
    """Every module of the package."""
    for found in pkgutil.walk_packages(senn.__path__, "senn."):
        yield importlib.import_module(found.name)


def undocumented() -> Iterator[str]:
    """Public names without a docstring of their own."""
    for name in senn.__all__:
        value = getattr(senn, name)
        if not name.startswith("__") and not inspect.getdoc(value):
            yield f"senn.{name} has no docstring"


def failing_examples() -> Iterator[str]:
    """Modules whose docstring examples don't give what they show."""
    for module in modules():
        failed = doctest.testmod(module).failed
        if failed:
            yield f"{module.__name__}: {failed} examples fail"


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    problems = [*broken_links(), *undocumented(), *failing_examples()]
    print("\n".join(problems) or "documentation: links, docstrings and examples hold")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
