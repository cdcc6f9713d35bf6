"""Growth in the loggers that people have: those of Lightning and of Lightning Fabric.

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

__all__ = [
    "LoggerCallback",
]

Record = Mapping[str, Any]


class LoggerCallback(Callback):
    """Sends what a run records to loggers, for `train`, `fit_model` and the callbacks for loops of others.

    Scalars, by step: `senn/eta`, `senn/eta_of/MAP`, `senn/loss`, `senn/parameters`; `senn/width/NUMBER` of each place
    that can grow, in order of use; `senn/best/KIND/gain`, `price` and `margin` of the best candidate of each kind;
    `senn/growth/promised` and `realised`, at the step of the change; of an epoch the losses and the learning rate.
    Text: `senn/events`, each change and what failed. Image: `senn/growth`, at the end.

    Args:
        loggers: one or several, with `log_metrics(metrics, step)` as Lightning's and Fabric's have it.
        image: whether the growth is drawn; needs matplotlib.
    """

    def __init__(self, loggers: Any, *, image: bool = True) -> None:
        self.loggers: list[Any] = [*loggers] if isinstance(loggers, list | tuple) else [loggers]
        self.image = image
        self.history: list[Record] = []
        self._told: set[int] = set()

    def on_start(self, record: Record) -> None:
        """Sizes at the start."""
        self.history, self._told = [record], set()
        self._scalars(record, _sizes(record))

    def restart(self, history: Sequence[Record]) -> None:
        """Take over the records of a run that goes on, which the loggers have already."""
        self.history = [*history]
        self._told = {record["step"] for record in history if record.get("realized_decrease") is not None}

    def on_epoch(self, record: Record) -> None:
        """Losses, learning rate, sizes."""
        self.history.append(record)
        figures = {name: record[name] for name in ("train_loss", "validation_loss", "validation_score", "lr")}
        self._scalars(record, figures | _sizes(record))

    def on_growth_round(self, record: Record) -> None:
        """Eta, and the best candidate of each kind."""
        self._realized()
        self.history.append(record)
        scalars = {name: record[name] for name in ("eta", "loss", "parameters")}
        scalars |= {f"eta_by_map/{name}": value for name, value in record["eta_by_map"].items()}
        sizes = {} if record["accepted"] else _sizes(record)  # else those after the changes follow, at this step
        self._scalars(record, scalars | {"accepted": len(record["accepted"])} | sizes | _best(record))

    def on_rollback(self, record: Record) -> None:
        """Why the network did not change."""
        self.history.append(record)
        self._text(record, f"not done: {record['text']}")

    def on_fault(self, record: Record) -> None:
        """Why there was no round."""
        self.on_rollback(record)

    def on_growth(self, record: Record) -> None:
        """The change, and what it promised."""
        self.history.append(record)
        self._scalars(record, {"growth/expected_decrease": record["expected_decrease"]} | _sizes(record))
        self._text(record, record["text"])

    def on_end(self, record: Record) -> None:
        """Draws how the network grew."""
        self._realized()
        step = max((int(one.get("step", 0)) for one in self.history), default=0)
        self.history.append(record)
        if self.image and any(map(_takes, self.loggers)):
            image = growth_image(self.history)
            for logger in self.loggers:
                log_image(logger, "senn/growth", image, step)
        for logger in self.loggers:
            if callable(save := getattr(logger, "save", None)):
                save()

    # -- inside

    def _scalars(self, record: Record, scalars: Record) -> None:
        known = {f"senn/{_plain(name)}": float(x) for name, x in scalars.items() if x is not None and math.isfinite(x)}
        if known:
            for logger in self.loggers:
                logger.log_metrics(known, int(record["step"]))

    def _realized(self) -> None:
        """What a round of changes brought is known at the next one."""
        for step, value in {
            r["step"]: r["realized_decrease"] for r in self.history if r.get("realized_decrease") is not None
        }.items():
            if step not in self._told:
                self._told.add(step)
                self._scalars({"step": step}, {"growth/realised": value})

    def _text(self, record: Record, text: str) -> None:
        for logger in self.loggers:
            log_text(logger, "senn/events", text, int(record["step"]))


def log_text(logger: Any, key: str, text: str, step: int) -> None:
    """Text, to a logger that takes it."""
    kind = _takes(logger)
    if kind == "tensorboard":
        logger.experiment.add_text(key, text, step)
    elif kind == "wandb":
        logger.log_text(key, columns=["step", "text"], data=[[step, text]], step=step)
    elif kind == "mlflow":
        logger.experiment.log_text(logger.run_id, text, f"{key}/{step:07d}-{_mark(text)}.txt")


def log_image(logger: Any, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
    """An image (height, width, 3), to a logger that takes it."""
    kind = _takes(logger)
    if kind == "tensorboard":
        logger.experiment.add_image(key, image, step, dataformats="HWC")
    elif kind == "wandb":
        logger.log_image(key, [image], step=step)
    elif kind == "mlflow":
        logger.experiment.log_image(logger.run_id, image, f"{key}.png")


def growth_image(history: Sequence[Record]) -> npt.NDArray[np.uint8]:
    """How a network grew, as an image (height, width, 3).

    Where no epoch was recorded, the losses drawn are those of the samples looked at.
    """
    from matplotlib.image import imread

    from senn.viz.plots import growth_figure

    if not any(one["event"] == "epoch" for one in history):
        history = [*history, *_instead_of_epochs(history)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "growth.png"
        kept = [one for one in history if one["event"] != "end" or "best_epoch" in one]
        first: Record = next((one for one in history if "architecture" in one), {"event": "start"})
        start = () if first["event"] == "start" else first["architecture"]  # which a round found
        growth_figure(kept, path, start)
        pixels = imread(path)
    return np.asarray(np.round(pixels[..., :3] * 255), dtype=np.uint8)


def _instead_of_epochs(history: Sequence[Record]) -> list[Record]:
    """The losses at every round, and the sizes up to the end."""
    none = {"event": "epoch", "epoch": 0, "train_loss": None, "validation_loss": None}
    losses = [{**none, "step": one["step"], "train_loss": one["loss"]} for one in history if "eta_by_map" in one]
    last = [one["architecture"] for one in history if "architecture" in one][-1:]
    return [*losses, *({**none, "step": history[-1].get("step", 0), "architecture": one} for one in last)]


def _takes(logger: Any) -> str | None:
    """Which way a logger takes texts and images, if it does."""
    names = {cls.__name__ for cls in type(logger).__mro__}
    known = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
    return next((kind for name, kind in known.items() if name in names), None)


def _sizes(record: Record) -> dict[str, float]:
    """Widths by number, and the number of parameters."""
    widths = {f"width/{number}": float(width) for number, width in enumerate(record.get("architecture", ()))}
    total = record.get("size") if record["event"] == "growth" else record.get("parameters")
    return widths if total is None else {**widths, "parameters": float(total)}


def _best(record: Record) -> dict[str, float | None]:
    """Gain, price and margin of the candidate of each kind that comes closest to being accepted, or exceeds it most."""
    best: dict[str, Record] = {}
    for one in (*record["accepted"], *record["refused"]):
        if one["margin"] is not None and one["margin"] > best.get(one["kind"], {"margin": -math.inf})["margin"]:
            best[one["kind"]] = one
    return {f"best/{kind}/{name}": one[name] for kind, one in best.items() for name in ("gain", "price", "margin")}


def _plain(name: str) -> str:
    """A name that every logger takes."""
    return re.sub(r"[^\w./-]", "_", name)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
