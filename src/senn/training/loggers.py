"""Log growth to the loggers of Lightning and of Lightning Fabric.

Figures go as scalars to every logger, changes as text and a figure of the growth as an image to those that take them:
TensorBoard, Weights & Biases, MLflow.
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from senn.training.callbacks import Callback

Record = Mapping[str, Any]

# By the name of a logger's class, so that none of their packages has to be installed; subclasses count.
_KINDS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}


class LoggerCallback(Callback):
    """Sends the records of a run to loggers; for `train`, `fit_model`, `GrowthSession` and `SelfExpansion`.

    Scalars, by step: `senn/eta`, `senn/eta_by_map/MAP`, `senn/loss`, `senn/parameters`; `senn/width/NUMBER` of each
    place
    that can grow, in order of use; `senn/best/KIND/gain`, `price` and `margin` of the best candidate of each kind;
    `senn/growth/expected_decrease` and `growth/realized_decrease`, the expected and the realized decrease, at the
    step of the change; of an
    epoch the losses and the learning rate. Text: `senn/events`, each change and each failure. Image: `senn/growth`, at
    the end.

    Args:
        loggers: one or several, with a method `log_metrics(metrics, step)` as Lightning's and Fabric's have it.
        image: True to draw the growth, which needs matplotlib.
    """

    def __init__(self, loggers: Any, *, image: bool = True) -> None:
        self.loggers: list[Any] = [*loggers] if isinstance(loggers, list | tuple) else [loggers]
        self.image = image
        self.history: list[Record] = []
        self._logged_realized: set[int] = set()

    def on_start(self, record: Record) -> None:
        """Log the sizes at the start."""
        self.history, self._logged_realized = [record], set()
        self._log_scalars(record, _sizes(record))

    def restart(self, history: Sequence[Record]) -> None:
        """Take over the records of a resumed run, which the loggers have already."""
        self.history = [*history]
        self._logged_realized = {step for step, _ in self._realized()}

    def on_epoch(self, record: Record) -> None:
        """Log losses, learning rate and sizes."""
        self.history.append(record)
        figures = {
            name: record[name]
            for name in ("train_loss", "validation_loss", "validation_score", "lr")
        }
        self._log_scalars(record, figures | _sizes(record))

    def on_growth_round(self, record: Record) -> None:
        """Log eta and the best candidate of each kind."""
        self._log_realized()
        self.history.append(record)
        scalars = {name: record[name] for name in ("eta", "loss", "parameters")}
        for name, value in record["eta_by_map"].items():
            scalars[f"eta_by_map/{name}"] = value
        scalars["accepted"] = len(record["accepted"])
        # Loggers take one value for a step: if there are changes, the sizes after them follow at this step.
        if not record["accepted"]:
            scalars |= _sizes(record)
        self._log_scalars(record, scalars | _best(record))

    def on_rollback(self, record: Record) -> None:
        """Log why the network did not change."""
        self.history.append(record)
        self._log_text(record, f"not done: {record['text']}")

    def on_fault(self, record: Record) -> None:
        """Log why there was no round."""
        self.on_rollback(record)

    def on_growth(self, record: Record) -> None:
        """Log the change and its expected decrease."""
        self.history.append(record)
        self._log_scalars(
            record, {"growth/expected_decrease": record["expected_decrease"]} | _sizes(record)
        )
        self._log_text(record, record["text"])

    def on_members(self, record: Record) -> None:
        """Keep the record, as all others."""
        self.history.append(record)

    def on_end(self, record: Record) -> None:
        """Log a figure of how the network grew."""
        self._log_realized()
        step = max((int(one.get("step", 0)) for one in self.history), default=0)
        self.history.append(record)
        if self.image and any(map(_kind, self.loggers)):
            image = growth_image(self.history)
            for logger in self.loggers:
                log_image(logger, "senn/growth", image, step)
        # Some loggers, as Lightning's for CSV files, write only when they are saved.
        for logger in self.loggers:
            save = getattr(logger, "save", None)
            if callable(save):
                save()

    def _log_scalars(self, record: Record, scalars: Record) -> None:
        finite: dict[str, float] = {}
        for name, value in scalars.items():
            if value is not None and math.isfinite(value):
                finite[f"senn/{_plain(name)}"] = float(value)
        if finite:
            for logger in self.loggers:
                logger.log_metrics(finite, int(record["step"]))

    def _realized(self) -> list[tuple[int, float]]:
        """Return, of each round whose realized decrease is known, its step and the sum over its changes."""
        # Rounds have that field too, for the changes of the round before.
        changes = [one for one in self.history if one["event"] == "growth"]
        sums: dict[int, float] = {}
        for one in changes:
            if one["realized_decrease"] is not None:
                sums[one["step"]] = sums.get(one["step"], 0.0) + one["realized_decrease"]
        return [*sums.items()]

    def _log_realized(self) -> None:
        """Log what came of the changes of a round, which is known only at the next one, at the step of the change."""
        for step, value in self._realized():
            if step not in self._logged_realized:
                self._logged_realized.add(step)
                self._log_scalars({"step": step}, {"growth/realized_decrease": value})

    def _log_text(self, record: Record, text: str) -> None:
        for logger in self.loggers:
            log_text(logger, "senn/events", text, int(record["step"]))


def log_text(logger: Any, key: str, text: str, step: int) -> None:
    """Log text, if a logger takes it.

    Args:
        logger: of any kind.
        key: name of the series.
        text: one line.
        step: optimizer steps done.
    """
    kind = _kind(logger)
    if kind == "tensorboard":
        logger.experiment.add_text(key, text, step)
    elif kind == "wandb":
        logger.log_text(key, columns=["step", "text"], data=[[step, text]], step=step)
    elif kind == "mlflow":
        # An artifact of its own for each text, or the last of a step would replace the others.
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        logger.experiment.log_text(logger.run_id, text, f"{key}/{step:07d}-{digest}.txt")


def log_image(logger: Any, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
    """Log an image, if a logger takes it.

    Args:
        logger: of any kind.
        key: name of the series.
        image: (height, width, 3).
        step: optimizer steps done.
    """
    kind = _kind(logger)
    if kind == "tensorboard":
        logger.experiment.add_image(key, image, step, dataformats="HWC")
    elif kind == "wandb":
        logger.log_image(key, [image], step=step)
    elif kind == "mlflow":
        logger.experiment.log_image(logger.run_id, image, f"{key}.png")


def growth_image(history: Sequence[Record]) -> npt.NDArray[np.uint8]:
    """Draw how a network grew; where no epoch was recorded, with the losses on the samples of the rounds.

    Returns:
        (height, width, 3) image.
    """
    from matplotlib.image import imread

    from senn.viz.plots import growth_figure

    if not any(one["event"] == "epoch" for one in history):
        history = [*history, *_instead_of_epochs(history)]
    # The end of a `GrowthSession` doesn't say which epoch was kept, and the figure marks that one.
    shown = [one for one in history if one["event"] != "end" or "best_epoch" in one]
    sized = next((one for one in history if "architecture" in one), None)
    # A session learns the widths from its first round.
    start = () if sized is None or sized["event"] == "start" else sized["architecture"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "growth.png"
        growth_figure(shown, path, start)
        pixels = imread(path)
    # matplotlib reads PNG as RGBA from 0 to 1.
    return np.asarray(np.round(pixels[..., :3] * 255), dtype=np.uint8)


def _instead_of_epochs(history: Sequence[Record]) -> list[Record]:
    """Make records of epochs from the loss at every round, and one that carries the last sizes to the end."""
    empty = {"event": "epoch", "epoch": 0, "train_loss": None, "validation_loss": None}
    epochs: list[Record] = []
    widths = None
    for one in history:
        if one["event"] == "growth_round":
            epochs.append({**empty, "step": one["step"], "train_loss": one["loss"]})
        widths = one.get("architecture", widths)
    if widths is not None:
        epochs.append({**empty, "step": history[-1].get("step", 0), "architecture": widths})
    return epochs


def _kind(logger: Any) -> str | None:
    """Tell by which methods a logger takes texts and images; None if it doesn't."""
    for cls in type(logger).__mro__:
        if cls.__name__ in _KINDS:
            return _KINDS[cls.__name__]
    return None


def _sizes(record: Record) -> dict[str, float]:
    sizes = {
        f"width/{number}": float(width)
        for number, width in enumerate(record.get("architecture", ()))
    }
    # The `parameters` of a change are a difference.
    total = record.get("size") if record["event"] == "growth" else record.get("parameters")
    if total is not None:
        sizes["parameters"] = float(total)
    return sizes


def _best(record: Record) -> dict[str, float | None]:
    """Return gain, price and margin of the candidate of each kind with the largest margin."""
    best: dict[str, Record] = {}
    for one in (*record["accepted"], *record["refused"]):
        kind, margin = one["kind"], one["margin"]
        if margin is not None and (kind not in best or margin > best[kind]["margin"]):
            best[kind] = one
    figures: dict[str, float | None] = {}
    for kind, one in best.items():
        for name in ("gain", "price", "margin"):
            figures[f"best/{kind}/{name}"] = one[name]
    return figures


def _plain(name: str) -> str:
    """Replace the characters that not every logger takes in a name."""
    return re.sub(r"[^\w./-]", "_", name)
