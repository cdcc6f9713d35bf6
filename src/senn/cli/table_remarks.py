"""What `senn fit` tells the user of a table's rows before it trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from senn.cli.prepared_data import no_validation_note, part_sizes
from senn.cli.table_parts import TableParts
from senn.data import Table, TableEncoder
from senn.data.tabular.feature_columns import listed
from senn.data.tabular.table_notes import (
    deciding_columns,
    duplicate_note,
    order_notes,
    placeholder_notes,
    rising_columns,
    tail_note,
    target_notes,
)
from senn.runs import FitOptions
from senn.training import TrainConfig

Encoded = tuple[Tensor, Tensor]


def remarks(
    options: FitOptions,
    table: Table,
    parts: TableParts,
    encoder: TableEncoder,
    *,
    train: Encoded,
    test: Encoded,
    recipe: TrainConfig,
) -> tuple[str, ...]:
    """Write notes on leaks, on classes and on validation.

    Args:
        options: of the run.
        table: the table as read.
        parts: its rows, by what they are for.
        encoder: encoding of the columns.
        train: encoded inputs and targets to train on.
        test: those to test on.
        recipe: training configuration.

    Returns:
        One sentence each.
    """
    target = encoder.target
    # The targets of built-in tables are known for what they are.
    is_inferred = options.task is None and table.target is None
    notes = [*parts.notes, *target_notes(target, is_inferred=is_inferred)]
    notes += tail_note(target, parts.train[target.name])
    if options.test is not None:
        notes += [f"{options.test!r}: {sentence}" for sentence in encoder.surprises(parts.test)]
    notes += placeholder_notes(encoder, parts.train)
    notes += _without_rows(encoder, train[1], parts.validation)
    rising = rising_columns(table.frame, encoder)
    if options.test is None and options.time is None and table.target is None:
        notes += order_notes(rising)
    counted = [name for name, kind in rising.items() if kind == "number"]
    compared = [column.name for column in encoder.columns if column.features()]
    compared = [name for name in compared if name not in counted]
    if compared:
        notes += duplicate_note(parts.train, parts.test, [*compared, target.name])
    decides = deciding_columns(
        encoder,
        (train[0].numpy(), test[0].numpy()),
        (train[1].numpy(), test[1].numpy()),
        but=counted,
    )
    if decides:
        plural = "s" * (len(decides) > 1)
        notes.append(
            f"column{plural} {listed(decides)} decide{'s' * (not plural)} {target.name!r} alone: a copy, or known only "
            f"afterwards? --column {decides[0]}=dropped leaves it out"
        )
    return tuple(notes + _on_training(encoder, train, parts, recipe))


def _without_rows(encoder: TableEncoder, y: Tensor, validation: object) -> list[str]:
    labels = encoder.target.labels
    if not labels or validation is None:
        return []
    chosen = torch.from_numpy(np.asarray(validation, dtype=np.int64))
    kept = torch.ones(len(y), dtype=torch.bool)
    kept[chosen] = False
    counts = torch.bincount(y[kept], minlength=len(labels)).tolist()
    lost = [label for label, count in zip(labels, counts, strict=True) if not count]
    if not lost:
        return []
    many = len(lost) > 1
    return [
        f"class{'es' * many} {listed(lost)} {'have' if many else 'has'} no row to fit on, and can't be learned"
    ]


def _on_training(
    encoder: TableEncoder, train: Encoded, parts: TableParts, recipe: TrainConfig
) -> list[str]:
    chosen = None if parts.validation is None else torch.from_numpy(parts.validation)
    rows, held_out = part_sizes(train[1], recipe, chosen)
    notes = [] if held_out else [no_validation_note(rows, "rows", recipe)]
    weights = train[0].shape[1] * encoder.target.outputs
    if recipe.start("shortcut") and weights > rows:
        notes.append(
            f"the linear map from {train[0].shape[1]:,} features to the outputs has {weights:,} weights for {rows:,} "
            "rows; it is there from the start, so no price limits it"
        )
    return notes
