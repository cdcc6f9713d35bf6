"""`senn reproduce`: the paper's experiments."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Carry the command out."""
    experiment = importlib.import_module(f"senn.experiments.{args.experiment}")
    experiment.main(seeds=args.seeds, out=args.out or Path("runs") / args.experiment)
    return 0
