"""What the records of a run look like: those of its history, and its results.

The one place that says which fields they have, for all who read what another program may have written. Fields that
aren't listed are left alone: a later version may have more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from senn._records import check_value

Figure = float | None
"""A number; null where it isn't finite or isn't known."""


class _Record(TypedDict):
    event: str
    step: int


class _Sized(_Record):
    architecture: NotRequired[list[int]]
    layers: NotRequired[list[str]]
    parameters: int


class StartRecord(_Sized):
    """Record of what is about to happen."""

    epoch: NotRequired[int]
    epochs: NotRequired[int]
    steps: NotRequired[int]
    train_rows: NotRequired[int]
    validation_rows: NotRequired[int]


class EpochRecord(_Sized):
    """Record of an epoch that has ended."""

    epoch: int
    epochs: NotRequired[int]
    steps: NotRequired[int]
    train_loss: NotRequired[Figure]
    validation_loss: NotRequired[Figure]
    validation_score: NotRequired[Figure]
    validation_metric: NotRequired[Figure]
    lr: NotRequired[Figure]
    flops: NotRequired[Figure]
    seconds: NotRequired[float]


class GrowthRecord(_Sized):
    """Record of a change of size."""

    epoch: NotRequired[int]
    text: str
    kind: str
    place: str
    detail: NotRequired[str]
    width_before: int
    width_after: int
    units: NotRequired[int]
    removed_units: NotRequired[list[int]]
    expected_decrease: NotRequired[Figure]
    realized_decrease: NotRequired[Figure]
    price: NotRequired[Figure]
    loss_before: NotRequired[Figure]
    loss_after: NotRequired[Figure]


class CandidateRecord(TypedDict):
    """Candidate of a round with the decision about it."""

    kind: str
    place: str
    detail: str
    units: int
    parameters: int
    flops: NotRequired[int | None]
    gain: Figure
    held_out_gain: Figure
    held_out_stderr: Figure
    expected_decrease: Figure
    price: Figure
    margin: Figure
    reason: NotRequired[str]


class RoundRecord(_Record):
    """Record of a round of growth."""

    epoch: NotRequired[int]
    accepted: list[CandidateRecord]
    refused: list[CandidateRecord]
    round: NotRequired[int]
    loss: NotRequired[Figure]
    eta: NotRequired[Figure]
    score_limit: NotRequired[Figure]
    samples: NotRequired[int]
    n_samples_seen: NotRequired[int]
    parameters: NotRequired[int]
    architecture: NotRequired[list[int]]
    layers: NotRequired[list[str]]
    moves: NotRequired[list[str]]
    eta_by_map: NotRequired[dict[str, Figure]]
    realized_decrease: NotRequired[Figure]
    realized_decreases: NotRequired[list[Figure]]


class RemarkRecord(_Record):
    """Record of a change that was taken back, or of something that was left out."""

    epoch: NotRequired[int]
    text: str


class MembersRecord(_Record):
    """Record of further networks that are about to be trained."""

    epoch: NotRequired[int]
    members: int


class FrontierPointRecord(TypedDict):
    """A network at one size of a frontier."""

    parameters: int
    removed: int
    widths: dict[str, int]
    figures: dict[str, Figure]
    expected_rise: Figure


class FrontierRecord(TypedDict):
    """Networks of falling sizes."""

    points: list[FrontierPointRecord]
    units: int
    score_name: str | None


class EndRecord(TypedDict):
    """Record of how a run ended."""

    event: str
    reason: NotRequired[str]
    kept: NotRequired[str]
    best_epoch: NotRequired[int]
    parameters: NotRequired[int]
    architecture: NotRequired[list[int]]
    output_scale: NotRequired[float]
    members: NotRequired[int]
    frontier: NotRequired[FrontierRecord | None]


RECORDS: Mapping[str, Any] = {
    "start": StartRecord,
    "epoch": EpochRecord,
    "growth": GrowthRecord,
    "growth_round": RoundRecord,
    "rollback": RemarkRecord,
    "fault": RemarkRecord,
    "members": MembersRecord,
    "end": EndRecord,
}
"""Fields of a history's records, by their event."""


class DataRecord(TypedDict):
    """What a run says of its data."""

    name: str
    kind: NotRequired[str]
    rows: NotRequired[int]
    train_rows: int
    test_rows: int
    features: NotRequired[int]
    target: NotRequired[str | list[str] | None]
    classes: NotRequired[list[str | int | float | bool] | None]
    class_rows: NotRequired[list[int] | None]
    columns: NotRequired[dict[str, str]]
    notes: NotRequired[list[str]]
    shape: NotRequired[list[int]]


class FileDigest(TypedDict):
    """Size and checksum of a file that was written with the results."""

    bytes: int
    sha256: str


class FoldRecord(TypedDict):
    """What came of one fold of a cross-validation."""

    train_rows: int
    test_rows: int
    test: dict[str, Figure]
    baselines: dict[str, dict[str, Figure]]
    architecture: list[int]
    parameters: int
    best_epoch: int
    seconds: float


class CrossValidation(TypedDict):
    """Scores of all folds, with their means and their standard deviations over the folds."""

    folds: list[FoldRecord]
    mean: dict[str, Figure]
    spread: dict[str, Figure]
    baselines: dict[str, dict[str, Figure]]


class WrongImage(TypedDict):
    """A test image that was taken for another class."""

    image: str
    true: int
    taken_for: int
    probability: Figure


class LinearRecord(TypedDict):
    """A linear model on the encoded inputs."""

    weight: list[list[float]]
    bias: list[float]


class TestDetails(TypedDict):
    """What is kept of a test beside its scores, in `test.json`."""

    pairs: list[tuple[float, float]] | None
    wrong: int | None
    wrongest: list[WrongImage]
    constant: list[float]
    linear: LinearRecord | None
    trained_on: NotRequired[str]


class Results(TypedDict):
    """Content of `results.json`."""

    task: Literal["classification", "regression"]
    seed: int
    optimizer: str
    policy: str
    architecture: list[int]
    layers: NotRequired[list[str]]
    parameters: int
    seconds: float
    best_epoch: int
    kept: NotRequired[str]
    interrupted: bool
    test: dict[str, Figure]
    intervals: NotRequired[dict[str, tuple[Figure, Figure] | None] | None]
    baselines: NotRequired[dict[str, dict[str, Figure]] | None]
    confusion: NotRequired[list[list[int]] | None]
    cross_validation: NotRequired[CrossValidation | None]
    metric: NotRequired[str | None]
    test_notes: NotRequired[list[str]]
    positive: NotRequired[str | int | float | bool | None]
    validation: dict[str, Figure]
    growth_events: NotRequired[int]
    data: DataRecord
    versions: NotRequired[dict[str, str]]
    files: NotRequired[dict[str, FileDigest]]
    output_scale: NotRequired[float]
    members: NotRequired[int]
    frontier: NotRequired[FrontierRecord | None]


def check_results(results: object, what: str) -> None:
    """Check the results of a run, field by field.

    Args:
        results: content of `results.json`.
        what: subject of the error's sentence.

    Raises:
        SennError: a field is missing, or isn't what it should be.
    """
    check_value(Results, results, what)


def check_details(details: object, what: str) -> None:
    """Check what is kept of a test beside its scores.

    Args:
        details: content of `test.json`.
        what: subject of the error's sentence.

    Raises:
        SennError: a field is missing, or isn't what it should be.
    """
    check_value(TestDetails, details, what)


def check_folds(folds: object, what: str) -> None:
    """Check the records of a cross-validation's folds, field by field.

    Args:
        folds: the records.
        what: subject of the error's sentence.

    Raises:
        SennError: a field is missing, or isn't what it should be.
    """
    check_value(list[FoldRecord], folds, what)


def check_record(record: object, what: str) -> None:
    """Check a record of a history, field by field; one of an unknown event needs a step alone.

    Args:
        record: the record.
        what: subject of the error's sentence.

    Raises:
        SennError: a field is missing, or isn't what it should be.
    """
    event = record.get("event") if isinstance(record, Mapping) else None
    check_value(RECORDS.get(event, _Record) if isinstance(event, str) else _Record, record, what)


def check_history(records: Sequence[object], what: str) -> None:
    """Check all records of a history.

    Args:
        records: the records.
        what: subject of the error's sentence.

    Raises:
        SennError: a record isn't what it should be.
    """
    for record in records:
        check_record(record, what)
