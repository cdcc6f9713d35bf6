"""The source of senn as syntax trees, each parsed once, and not before it is read."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "senn"
FILES = sorted(SOURCE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def trees() -> list[tuple[Path, ast.Module]]:
    """All files of senn with their trees."""
    return [(path, tree_of(path)) for path in FILES]
