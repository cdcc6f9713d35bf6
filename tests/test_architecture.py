"""The direction of imports and the size of files, as docs/architecture.md has them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "senn"
PAGE = (ROOT / "docs" / "architecture.md").read_text()

# From the ground up: a room imports from lower layers only, or from itself. The page has them from the roof down.
_LIST = PAGE.partition("Import direction:")[2].partition("\n\n")[2].partition("\n\n")[0]
LAYERS = tuple(set(line.strip().split(", ")) for line in reversed(_LIST.splitlines()))
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# What a room must not know although it lies lower: the table in docs/architecture.md.
STRANGERS = {
    "structure": {"curvature", "optim"},
    "curvature": {"structure", "policy"},
    "candidates": {"policy", "optim"},
    "scores": {"structure", "policy"},
    "scoring": {"optim"},
    "plots": {"nn", "torch"},
    "policy": {"curvature", "structure", "torch"},
    "surgery": {"scores"},
    "optim": {"structure", "surgery"},
    "persistence": {"training"},
    "data": {"nn", "torch"},
}

MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[:2] != "__")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms of senn, and `torch`, that a module's import statements name, wherever they stand."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            is_root = node.module == "senn"
            names += [f"senn.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    rooms = {name.split(".")[1] for name in names if name.startswith("senn.")} - {"__version__"}
    return rooms | {"torch" for name in names if name.split(".")[0] == "torch"}


def complaints(room: str, rooms: set[str]) -> list[str]:
    upward = [other for other in rooms - {room, "torch"} if RANK.get(other, len(LAYERS)) >= RANK[room]]
    return [f"{room} imports {other}" for other in sorted({*upward, *(rooms & STRANGERS.get(room, set()))})]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downward(path):
    assert room_of(path) in RANK, f"{room_of(path)} has no place in the layers"
    assert complaints(room_of(path), imported_rooms(path.read_text())) == []


def test_every_layer_exists():
    assert {room_of(path) for path in MODULES} == set(RANK)
    assert LAYERS[0] == {"errors"}


def test_every_room_is_described():
    described = set(re.findall(r"`senn/(\w+)(?:\.py|/)`", PAGE))
    assert described >= set(RANK) - {"errors"}


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("surgery", "def f():\n    from senn.grower import Grower", "surgery imports grower"),
        ("cli", "import senn.integrations.sklearn", "cli imports estimators"),
        ("data", "from torch import nn", "data imports torch"),
        ("curvature", "from senn import structure", "curvature imports structure"),
        ("scores", "from senn.cellar import wine", "scores imports cellar"),
    ],
)
def test_a_wrong_import_is_found(room, source, complaint):
    assert complaints(room, imported_rooms(source)) == [complaint]


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "reproduce").rglob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
