"""The direction of imports and the size of files, as docs/architecture.md has them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "senn"
PAGE = (ROOT / "docs" / "architecture.md").read_text()

# From the ground up: a package imports from lower layers only, or from itself. The page has them from the roof down.
_LIST = PAGE.partition("Import direction:")[2].partition("\n\n")[2].partition("\n\n")[0]
LAYERS = tuple(set(line.strip().split(", ")) for line in reversed(_LIST.splitlines()))
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}

# What a package must not know although it lies lower: the table in docs/architecture.md.
STRANGERS = {
    "graph": {"kfac", "optim"},
    "kfac": {"graph", "policies"},
    "verification": {"scoring", "policies"},
    "candidates": {"policies", "optim"},
    "scoring": {"optim"},
    "policies": {"kfac", "graph", "torch"},
    "surgery": {"scoring"},
    "distributed": {"policies"},
    "optim": {"graph", "surgery"},
    "checkpoint": {"training"},
    "data": {"nn", "torch"},
    "viz": {"nn", "torch"},
    "cli": {"integrations"},
}

MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[:2] != "__")


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_packages(source: str) -> set[str]:
    """Packages of senn, and `torch`, that a module's import statements name, wherever they stand."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            is_root = node.module == "senn"
            names += [f"senn.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    packages = {name.split(".")[1] for name in names if name.startswith("senn.")} - {"__version__"}
    return packages | {"torch" for name in names if name.split(".")[0] == "torch"}


def complaints(package: str, packages: set[str]) -> list[str]:
    upward = [other for other in packages - {package, "torch"} if RANK.get(other, len(LAYERS)) >= RANK[package]]
    return [f"{package} imports {other}" for other in sorted({*upward, *(packages & STRANGERS.get(package, set()))})]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path):
    assert package_of(path) in RANK, f"{package_of(path)} has no place in the layers"
    assert complaints(package_of(path), imported_packages(path.read_text())) == []


def test_every_layer_exists():
    assert {package_of(path) for path in MODULES} == set(RANK)
    assert LAYERS[0] == {"errors"}


def test_every_package_is_described():
    described = set(re.findall(r"`senn/(\w+)(?:\.py|/)`", PAGE))
    assert described >= set(RANK) - {"errors"}


@pytest.mark.parametrize(
    ("package", "source", "complaint"),
    [
        ("surgery", "def f():\n    from senn.grower import Grower", "surgery imports grower"),
        ("cli", "import senn.integrations.sklearn", "cli imports integrations"),
        ("data", "from torch import nn", "data imports torch"),
        ("kfac", "from senn import graph", "kfac imports graph"),
        ("scoring", "from senn.cellar import wine", "scoring imports cellar"),
    ],
)
def test_a_wrong_import_is_found(package, source, complaint):
    assert complaints(package, imported_packages(source)) == [complaint]


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "reproduce").rglob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
