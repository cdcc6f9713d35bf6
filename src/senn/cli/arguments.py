"""What a command line of `senn fit` says itself, kept with the run so that it can be gone on with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from senn.cli.main import fit_parser
from senn.errors import SennError

NOT_THE_RUNS = {"help", "resume", "out", "overwrite", "dry_run", "quiet", "json", "watch", "port"}
"""Options that say nothing of what a run computes."""


def given(argv: Sequence[str]) -> dict[str, Any]:
    """What the arguments of `senn fit` say themselves, without defaults."""
    parser = fit_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_args(list(argv)))


def as_kept(said: dict[str, Any]) -> list[str]:
    """Those of these arguments that decide on the run, to be read from any working directory."""
    kept: list[str] = []
    for action in fit_parser()._actions:
        if action.dest not in said or action.dest in NOT_THE_RUNS or said[action.dest] is None:
            continue
        value, name = said[action.dest], action.option_strings[0] if action.option_strings else ""
        if action.dest == "data" or action.type is Path:
            value = _placed(value)
        if not name:
            kept.append(value)
        elif action.nargs == 0:
            kept.append(name)
        elif isinstance(value, list):
            kept += [f"{name}={'='.join(item)}" for item in value]
        else:
            kept.append(f"{name}={value}")
    return kept


def _placed(value: str | Path) -> str:
    """A path to something that is there, from the root; anything else, such as a data set's name, as it is."""
    return os.path.abspath(value) if os.path.exists(value) else str(value)


def refuse_others(argv: Sequence[str], folder: Path) -> None:
    """Refuse data and options beside --resume of a run that is complete: they would say nothing any more.

    Raises:
        SennError: naming one.
    """
    for name in given(argv):
        if name not in NOT_THE_RUNS:
            what = _called(name)
            raise SennError(f"the run in {str(folder)!r} is complete, {what} can't change it; begin another with --out")


def _called(name: str) -> str:
    """An argument as its user writes it."""
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def resumed(argv: Sequence[str], kept: Sequence[str], folder: Path) -> argparse.Namespace:
    """The arguments of a run that goes on.

    Args:
        argv: what it is called with now.
        kept: what it was begun with.
        folder: where it lies.

    Raises:
        SennError: it is told to be another one now.
    """
    said, args = given(argv), fit_parser().parse_args(list(kept))
    if args.resume is not None or args.data is None:
        raise SennError(f"{str(folder)!r} is damaged: it was begun with no arguments of a run")
    for name in ("out", "overwrite", "dry_run"):
        if name in said:
            raise SennError(f"{_called(name)} makes no sense with --resume: the run stays where it is")
    now = {name: value for name, value in said.items() if name not in NOT_THE_RUNS}
    before = given(kept)
    for name, value in now.items():
        if value is not None and (name not in before or as_kept({name: value}) != as_kept({name: before[name]})):
            raise SennError(
                f"{_called(name)} says another thing than the run in {str(folder)!r} was begun with; leave it out"
            )
    for name in NOT_THE_RUNS & said.keys():
        setattr(args, name, said[name])
    args.out = folder
    return args
