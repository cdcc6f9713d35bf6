"""Prepare a table for `senn fit`: read it, split it, encode it, and choose the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.cli.continued_run import ContinuedRun, parts_of
from senn.cli.prepared_data import (
    FEWEST_ROWS,
    checksum_of,
    class_line,
    class_rows,
    part_sizes,
    planned,
    refuse_options,
)
from senn.cli.scorer import Scorer
from senn.cli.table_parts import TableParts, about_test, divide, fold_parts, read_test_table
from senn.cli.table_recipe import checked, table_recipe
from senn.cli.table_remarks import remarks
from senn.data import Table, TableEncoder, Target, read_table
from senn.data.tabular.feature_columns import listed
from senn.data.tabular.table_columns import with_count_of_bins
from senn.data.tabular.table_encoder import check_names
from senn.data.tabular.table_notes import index_columns
from senn.data.tabular.target import labeled
from senn.errors import SennError
from senn.nn import MLP, Ensemble, SinhOutput
from senn.runs import FitOptions, RunStart
from senn.training import Callback, Task, TrainConfig, TrainResult, train
from senn.training.builders import build_model, most_inputs, start_widths
from senn.training.run_state import Checkpointer
from senn.training.trained_run import table_outputs

_MOST_NAMED = 8
"""Columns of one kind that are listed by name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Preparation:
    """Hold a table as numbers; implements `Prepared`.

    Attributes:
        source: the table as read.
        encoder: encoding, fitted on the training rows.
        x: (rows, features) float32 training rows.
        y: classes (rows,) int64, or standardized numbers (rows, 1) float32.
        x_test: (test rows, features) float32 rows held out for the test.
        y_test: their targets, like `y`.
        recipe: training configuration.
        scorer: what predictions of the test part are scored by.
        clusters: (test rows,) numbers of the rows that belong together; None where each stands for itself.
        times: (test rows,) their times where they are the latest; else None.
        latest: mean target of the latest training rows, standardized; None where rows have no order, and for classes.
        validation: (k,) long numbers of the training rows that are held out for validation; None where training draws
            them.
        remarks: on the rows, one sentence each.
        folds: rows of each fold of a cross-validation.
    """

    source: _Source
    encoder: TableEncoder
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    recipe: TrainConfig
    scorer: Scorer
    clusters: NDArray[Any] | None = None
    times: NDArray[Any] | None = None
    latest: float | None = None
    validation: Tensor | None = None
    remarks: tuple[str, ...] = ()
    folds: tuple[TableParts, ...] = ()

    @property
    def name(self) -> str:
        """Name of the table, from its file or data set."""
        return self.source.table.name

    def fold(self, number: int) -> Preparation:
        """Encode the rows of a fold by those that it trains on.

        Args:
            number: of the fold, from 0.
        """
        return self.source.encoded(self.folds[number], self.recipe, positive=self.scorer.positive)

    @property
    def task(self) -> Task:
        """Task of the target column."""
        return self.encoder.target.task

    @property
    def notes(self) -> list[str]:
        """Remarks on rows and on single columns, one sentence each."""
        return [*self.remarks, *self.encoder.notes]

    @property
    def start(self) -> tuple[int, ...]:
        """Widths of the hidden layers before training."""
        return start_widths(self.x.shape[1], self.encoder.target.outputs, self.recipe)

    def line(self) -> str:
        """Describe the data in one line."""
        about = self.summary()
        what = f"{len(about['classes'])} classes" if about["classes"] else "a number"
        return (
            f"{about['name']}: {about['rows']:,} rows ({about['train_rows']:,} to train on, {about['test_rows']:,} for "
            f"the test), {about['features']:,} features, target {about['target']!r} ({what})"
        )

    def details(self) -> list[str]:
        """List the columns of each kind, the first few by name."""
        lines, columns = [], self.encoder.columns
        for kind in sorted({column.kind for column in columns}):
            names = [with_count_of_bins(column) for column in columns if column.kind == kind]
            more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
            lines.append(f"{kind}: {', '.join(names[:_MOST_NAMED])}{more}")
        labels = self.encoder.target.labels
        return (
            [*lines, class_line("rows of each class", labels, self.class_rows)] if labels else lines
        )

    @property
    def class_rows(self) -> list[int]:
        """Rows of each class, those for the test included; empty for numbers."""
        labels = self.encoder.target.labels
        return class_rows(labels, self.y.numpy(), self.y_test.numpy()) if labels else []

    def digest(self) -> str:
        """Return a SHA-256 of the encoded data, by which a resumed run knows its data."""
        # Encoded rather than raw: another reader of the file may give other cells for the same bytes.
        chosen = [] if self.validation is None else [self.validation]
        record = self.encoder.original_record()
        network = [] if self.source.continued is None else parts_of(self.network())
        tensors = [self.x, self.y, self.x_test, self.y_test, *chosen, *network]
        return checksum_of(record, *tensors)

    def network(self) -> MLP | SinhOutput | Ensemble:
        """Return the network that training begins with."""
        target = self.encoder.target
        if self.source.continued is not None:
            return self.source.continued.network(target, self.x)
        return build_model(self.x.shape[1], target.outputs, self.recipe)

    def train(
        self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None
    ) -> TrainResult:
        """Train a network.

        Args:
            callbacks: that hear of every record.
            checkpointer: keeps the run's state, and has the state to resume from; None to keep nothing.
        """
        outputs = self.encoder.target.outputs
        return train(
            self.x,
            self.y,
            task=self.task,
            outputs=outputs,
            recipe=self.recipe,
            validation=self.validation,
            callbacks=callbacks,
            checkpointer=checkpointer,
            model=None if self.source.continued is None else self.network(),
        )

    def test_outputs(self, model: nn.Module) -> NDArray[Any]:
        """Compute a network's outputs for the test part, (rows, outputs)."""
        return table_outputs(model, self.x_test)

    def train_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs (rows, features) and targets of the training part, for baselines."""
        return self.x.numpy(), self.y.numpy()

    def test_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return those of the test part."""
        return self.x_test.numpy(), self.y_test.numpy()

    @property
    def mean(self) -> float:
        """Mean of the training rows' targets, for numbers."""
        return self.encoder.target.mean

    def test_pixels(self) -> None:
        """None: a table has no images."""
        return

    def record(self) -> dict[str, Any]:
        """Return the encoding of the columns, JSON-able."""
        return self.encoder.to_dict()

    def summary(self) -> dict[str, Any]:
        """Describe the data and their encoding as a JSON-able record, for `results.json`."""
        kinds = {column.name: column.kind for column in self.encoder.columns}
        target = self.encoder.target
        return {
            "name": self.name,
            "rows": len(self.x) + len(self.x_test),
            "train_rows": len(self.x),
            "test_rows": len(self.x_test),
            "features": self.x.shape[1],
            "target": target.name,
            "classes": list(target.labels) or None,
            "class_rows": self.class_rows or None,
            "columns": kinds,
            "notes": self.notes,
        }

    def plan(self) -> dict[str, Any]:
        """Describe the start of training and the price of growth there, JSON-able."""
        outputs = self.encoder.target.outputs
        model = self.network()
        # One more hidden unit has a weight for each feature, a bias, and a weight to each output.
        rows = part_sizes(self.y, self.recipe, self.validation)
        return planned(model, self.recipe, self.start, rows, unit=self.x.shape[1] + 1 + outputs)


def prepare(options: FitOptions, begun_with: RunStart | None = None) -> Preparation:
    """Read, split and encode a table, and choose its recipe, before anything is written.

    Args:
        options: of the run.
        begun_with: how a run began that is resumed, perhaps by an older version; None for a new run.

    Returns:
        Data ready for training.

    Raises:
        SennError: naming the column, row or option that is wrong.
    """
    refuse_options(options, ("image_size", "data_dir", "no_flip"), "images, and {data} is a table")
    source = _Source.read(options)
    table, target, recipe = source.table, source.target, table_recipe(options)
    test = read_test_table(options, target.name, source.as_text, table)
    parts = divide(options, table, target, test, recipe)
    folds = fold_parts(options, table, target, recipe)
    made = source.encoded(parts, recipe, begun_with=begun_with)
    notes = remarks(
        options,
        table,
        replace(parts, validation=None if made.validation is None else made.validation.numpy()),
        made.encoder,
        train=(made.x, made.y),
        test=(made.x_test, made.y_test),
        recipe=made.recipe,
    )
    if source.continued is not None:
        notes = (*source.continued.notes(target, table.frame, made.y), *notes)
    return replace(made, remarks=(*table.notes, *notes), folds=folds)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Source:
    """A table as read, of which the run and each fold encode other rows.

    Attributes:
        options: of the run.
        table: the table, less rows without a target.
        target: the column to predict, with the classes of all rows.
        as_text: columns that are read as text.
        continued: the run whose network goes on; None for a network that begins.
    """

    options: FitOptions
    table: Table
    target: Target
    as_text: list[str]
    continued: ContinuedRun | None = None

    @classmethod
    def read(cls, options: FitOptions) -> _Source:
        # Categories are read as text, or the code "007" would become the number 7.
        kinds = dict(options.column)
        as_text = [name for name, kind in kinds.items() if kind == "category"]
        continued = ContinuedRun.read(options)
        if continued is None:
            table = read_table(
                options.data, text=as_text, encoding=options.encoding, decimal=options.decimal
            )
            name = options.target or table.target
        else:
            table, name = continued.read_table(options), continued.encoder.target.name
            as_text = continued.encoder.text_columns
        if name is None:
            which = f"the column of {options.data!r} to predict isn't known; name it with --target"
            raise SennError(f"{which}; the table has {listed(table.frame.columns)}")
        check_names(table.frame, name)
        # A target has no kind: its task decides how it is read.
        if name in kinds:
            raise SennError(
                f"{name!r} is the target; use --task to say how it is read, not --column"
            )
        labels, unlabeled = labeled(table.frame, name, table.decimal)
        table = replace(table, frame=labels, notes=[*table.notes, *unlabeled])
        rows = len(table.frame)
        if rows < FEWEST_ROWS:
            raise SennError(
                f"the table has {rows} row{'s' * (rows > 1)}; at least {FEWEST_ROWS} are needed"
            )
        cells = table.frame[name]
        target = (
            Target.fit(name, cells, options.task, table.decimal)
            if continued is None
            else continued.target_of(cells)
        )
        return cls(
            options=options, table=table, target=target, as_text=as_text, continued=continued
        )

    def encoded(
        self,
        parts: TableParts,
        recipe: TrainConfig,
        *,
        positive: int | None = None,
        begun_with: RunStart | None = None,
    ) -> Preparation:
        """Encode rows by the training rows among them.

        Args:
            parts: the rows, by what they are for.
            recipe: training configuration, but for what is to be watched.
            positive: number of the class of two that scores are about; None to choose it.
            begun_with: as of `prepare`.
        """
        options, name = self.options, self.target.name
        kinds = dict(options.column)
        used = {name, *kinds, *filter(None, (options.group, options.time))}
        if self.continued is not None:
            encoder = replace(self.continued.encoder, target=self.target)
            recipe = self.continued.recipe(recipe)
            return self._with(encoder, parts, recipe, positive, begun_with)
        # Classes are known from all rows; mean and scale are those of the training rows, or the test would leak into
        # them.
        encoder = TableEncoder.fit(
            parts.train,
            self.target.scaled_to(parts.train[name]),
            kinds=kinds,
            left_out={**index_columns(parts.train, used), **parts.left_out},
            decimal=self.table.decimal,
            encoding=options.encoding,
            max_inputs=most_inputs(recipe),
            useful_bins=parts.is_random,
        )
        encoder = replace(encoder, legacy_encoding=self.table.legacy_encoding)
        if begun_with is not None and begun_with.is_original:
            encoder = encoder.original(parts.train)
        return self._with(encoder, parts, recipe, positive, begun_with)

    def _with(
        self,
        encoder: TableEncoder,
        parts: TableParts,
        recipe: TrainConfig,
        positive: int | None,
        begun_with: RunStart | None,
    ) -> Preparation:
        """Encode rows with an encoder that is known."""
        options = self.options
        x, y = _encoded(encoder, parts.train)
        y = torch.from_numpy(encoder.target.training_part(y.numpy()))
        with about_test(options.test):
            x_test, y_test = _encoded(encoder, parts.test)
        scorer = Scorer.of(encoder.target, y.numpy(), options.metric)
        if positive is not None:
            scorer = Scorer.with_positive(encoder.target, positive, options.metric)
        scorer.check(y.numpy())
        recipe = replace(recipe, monitor=scorer.metric)
        validation = parts.validation
        if validation is not None and len(validation) < recipe.min_validation:
            validation = validation[:0]
        return Preparation(
            source=self,
            encoder=encoder,
            x=x,
            y=y,
            x_test=x_test,
            y_test=y_test,
            validation=None if validation is None else torch.from_numpy(validation),
            scorer=scorer,
            clusters=parts.clusters,
            times=parts.times,
            latest=None if parts.latest is None or y.dim() < 2 else float(y[parts.latest].mean()),
            recipe=checked(recipe, encoder, x.shape[1], begun_with),
        )


def _encoded(encoder: TableEncoder, frame: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Encode rows and their targets."""
    targets = encoder.target.encode(frame[encoder.target.name])
    return torch.from_numpy(encoder.transform(frame)), torch.from_numpy(targets)
