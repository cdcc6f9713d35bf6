"""What `.ci/package` asks of a wheel: what lies in it, and what it requires."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def contents(folder: str, package: str, wheel: Path, sdist: Path) -> None:
    """Check that a wheel holds its package and nothing else, and that its source archive can be tested from."""
    source = ROOT / folder / "src"
    wanted = {
        str(path.relative_to(source)) for path in (source / package).rglob("*") if path.is_file()
    }
    wanted = {name for name in wanted if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source_archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        archived = {name.partition("/")[2] for name in source_archive.getnames()}
    held = {name for name in names if ".dist-info/" not in name}
    if held != wanted:
        sys.exit(
            f"{wheel.name} lacks {sorted(wanted - held)} and has {sorted(held - wanted)} too much"
        )
    if f"{package}/py.typed" not in held or not any(
        name.endswith("licenses/LICENSE") for name in names
    ):
        sys.exit(f"{wheel.name} lacks py.typed or the license")
    tested = (
        {"README.md", "tests/conftest.py", "reproduce/pyproject.toml"}
        if package == "senn"
        else set()
    )
    absent = {f"src/{name}" for name in wanted} | {"pyproject.toml", "LICENSE"} | tested
    if absent - archived:
        sys.exit(f"{sdist.name} lacks {sorted(absent - archived)}")
    sizes = ", ".join(
        f"{path.name} {path.stat().st_size / 1000:,.0f} kB" for path in (wheel, sdist)
    )
    print(f"{sizes}: {len(held)} files in the package")


def lend(wheel: Path, environment: Path, extras: list[str]) -> None:
    """Link what the wheel requires, and nothing else, from this environment into a fresh one."""
    (target,) = environment.glob("[lL]ib/**/site-packages")
    for found in required(_metadata(wheel), ["", *extras], set()):
        if found.name == "senn":  # installed from its wheel
            continue
        for name in {
            file.parts[0]
            for file in found.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }:
            link, place = target / name, Path(str(found.locate_file(name)))
            if place.exists() and not link.exists():
                link.symlink_to(place)


def required(found: Distribution, extras: list[str], seen: set[str]) -> Iterator[Distribution]:
    """The distributions that one requires here, and those that they require."""
    for requirement in map(Requirement, found.requires or ()):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = f"{requirement.name.lower().replace('_', '-')}{sorted(requirement.extras)}"
        if key not in seen:
            seen.add(key)
            other = distribution(requirement.name)
            yield other
            yield from required(other, ["", *requirement.extras], seen)


def _metadata(wheel: Path) -> Distribution:
    archive = zipfile.Path(wheel)
    (info,) = (path for path in archive.iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(info)


if __name__ == "__main__":
    if sys.argv[1] == "contents":
        contents(sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        lend(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
