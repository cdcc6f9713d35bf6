"""The run that `senn fit --continue` goes on with: its network and its encoding, for other rows and new classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.data import Table, TableEncoder, Target
from senn.data.tabular.continued_target import continued
from senn.data.tabular.feature_columns import listed
from senn.data.tabular.table_encoder import check_names
from senn.errors import SennError
from senn.nn import MLP, Ensemble, SinhOutput
from senn.runs import FitOptions
from senn.runs.fit_options import option_name
from senn.surgery import add_outputs
from senn.training import TrainConfig
from senn.training.heavy_targets import network_in
from senn.training.member_plan import continued_members
from senn.training.saved_network import load_network

_DECIDED = ("column", "task", "cv", "members")
"""Options that a network decides which is there already."""

_ROWS = "row", "rows again, in one table with the new ones"

_OF_TABLES = (MLP, SinhOutput, Ensemble)
"""Classes of the networks that tables are fitted with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ContinuedRun:
    """Network of a finished run, which is trained on.

    Attributes:
        folder: of the run.
        model: the network, with outputs for the classes of the run.
        encoder: encoding of its columns, which stays as it is but for the target's new classes.
    """

    folder: str
    model: MLP | SinhOutput | Ensemble
    encoder: TableEncoder

    @classmethod
    def read(cls, options: FitOptions) -> ContinuedRun | None:
        """Read the run that is to go on.

        Args:
            options: of the new run.

        Returns:
            The run; None where a network is to begin anew.

        Raises:
            SennError: the folder holds no network of a table, or an option says what the network has decided.
        """
        folder = options.continued
        if folder is None:
            return None
        model, encoder = load_network(Path(folder))
        if not isinstance(encoder, TableEncoder) or not isinstance(model, _OF_TABLES):
            raise SennError(f"the run in {folder!r} is none of a table, so it can't go on with one")
        refuse_decided(options, _DECIDED)
        if options.target not in (None, encoder.target.name):
            raise SennError(
                f"--target {options.target!r} contradicts the run in {folder!r}, which predicts "
                f"{encoder.target.name!r}"
            )
        return cls(folder=folder, model=model, encoder=encoder)

    def read_table(self, options: FitOptions) -> Table:
        """Read the new rows as those of the run were read.

        Args:
            options: of the new run.

        Raises:
            SennError: the table lacks a column, or can't be read.
        """
        table = self.encoder.read(options.data, encoding=options.encoding, decimal=options.decimal)
        check_names(table.frame, self.encoder.target.name)
        return table

    def target_of(self, cells: pd.Series[Any]) -> Target:
        """Return the target with the classes of the run and those that are new in some cells."""
        return continued(self.encoder.target, cells)

    def network(self, target: Target, x: Tensor) -> MLP | SinhOutput | Ensemble:
        """Return the network, with outputs for new classes.

        Args:
            target: with the new classes.
            x: (rows, features) inputs, on which outputs are compared.

        Returns:
            A network of its own for each call.
        """
        model, _ = load_network(Path(self.folder))
        model.to(x)
        new = target.outputs - self.encoder.target.outputs
        for one in model.members if isinstance(model, Ensemble) else [model]:
            if new:
                add_outputs(one, new, x[:256])
        assert isinstance(model, _OF_TABLES)  # as `read` has found
        return model.train()

    def recipe(self, recipe: TrainConfig) -> TrainConfig:
        """Return a recipe for the network as it is.

        Raises:
            SennError: an ensemble can't go on by it.
        """
        inner, _ = network_in(self.model)
        if isinstance(inner, Ensemble):
            # Refused before anything is trained.
            others = [one for one in inner.members[1:] if isinstance(one, MLP)]
            continued_members(others, recipe, cross_fits=True)
        return replace(recipe, hidden=self.model.hidden)

    def notes(self, target: Target, frame: pd.DataFrame, y: Tensor) -> Sequence[str]:
        """Say what is new, and what will be forgotten.

        Args:
            target: with the new classes.
            frame: the new rows.
            y: encoded targets of those to train on.

        Returns:
            One sentence each.
        """
        known = self.encoder.target
        widths = ", ".join(map(str, self.model.hidden)) or "no hidden layer"
        several = len(self.model.members) if isinstance(self.model, Ensemble) else 1
        who = f"the network of {self.folder!r} goes on"
        if several > 1:
            who = f"the {several} networks of {self.folder!r} go on"
        said = [f"{who} ({widths})"]
        if known.labels:
            said += class_notes(known.labels, target.labels, y.numpy(), what=_ROWS)
        return [*said, *self.encoder.surprises(frame)]


def refuse_decided(options: FitOptions, names: Sequence[str]) -> None:
    """Refuse options that say what a network that goes on has decided.

    Args:
        options: of the new run.
        names: fields of these options.

    Raises:
        SennError: naming the first one that is given.
    """
    record = options.to_dict()
    for name in names:
        if record[name]:
            raise SennError(
                f"{option_name(name)} can't be combined with --continue: the network of {options.continued!r} has "
                "decided it"
            )


def class_notes(
    known: Sequence[Any], labels: Sequence[Any], y: NDArray[Any], *, what: tuple[str, str]
) -> list[str]:
    """Say which classes are new, and which will be forgotten.

    Args:
        known: labels of the network.
        labels: these, and new ones after them.
        y: (n,) numbers of the classes to train on.
        what: what has no class that is forgotten, and how to give it again.
    """
    said, new = [], labels[len(known) :]
    if new:
        which = f"{len(new)} classes are new and get outputs of their own"
        which = which if len(new) > 1 else "1 class is new and gets an output of its own"
        said.append(f"{which}: {listed(new)}")
    counts = np.bincount(y, minlength=len(labels))
    lost = [label for label, count in zip(known, counts, strict=False) if not count]
    if lost:
        said.append(
            f"no {what[0]} to train on has the class {listed(lost)}, so the network will forget it: give the old "
            f"{what[1]}"
        )
    return said


def parts_of(model: nn.Module) -> list[Tensor]:
    """Return the numbers of a network, for a checksum."""
    with torch.no_grad():
        return [one.detach().cpu() for one in model.state_dict().values()]
