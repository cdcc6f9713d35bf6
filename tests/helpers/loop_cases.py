"""Runs in the loops of others, by two processes and by one on the joined batches: what must come out alike."""

from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from senn.integrations import lightning, transformers
from senn.training import Callback, TrainConfig
from senn.training.growth_session import GrowthSession

BATCH = 32
"""Samples of a joint batch."""

RECIPE = TrainConfig(
    addition_rounds=(0.1, 0.2, 0.425, 0.6),
    pruning_rounds=(0.8,),
    max_scoring_samples=64,
    candidates_per_layer=8,
)
"""One round is a step after the end of the second epoch, and looks at a batch of before too."""


def rows(dealt: bool = False) -> tuple[Tensor, Tensor]:
    """Inputs and targets; `dealt`: as two processes have joint batches that are dealt out in turns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * BATCH, 6, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0.3).long()
    if not dealt:
        return x, y
    order = torch.arange(len(x)).view(-1, BATCH // 2, 2).mT.reshape(-1)
    return x[order], y[order]


class Net(pl.LightningModule):
    """Groups with and without decay."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 4)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in self.parameters() if (p.dim() > 1) == matrices]}
            for matrices in (True, False)
        ]
        return torch.optim.AdamW(
            [{**groups[0], "weight_decay": 0.1}, {**groups[1], "weight_decay": 0.0}], lr=0.02
        )


class Ears(Callback):
    """Counts what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        for event in ("start", "growth_round", "growth", "rollback", "fault", "end"):
            setattr(self, f"on_{event}", self._hear)

    def _hear(self, record: Any) -> None:
        self.heard.append(record["event"])


def by_lightning(rank: int, size: int, folder: Path, resume: str | None = None) -> dict[str, Any]:
    """A run of a Lightning Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    module, ears, average = Net(), Ears(), EMAWeightAveraging(decay=0.8)
    expansion = lightning.SelfExpansion(RECIPE, callbacks=[ears])
    kept = ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
    options: dict[str, Any] = {}
    if size > 1:
        strategy = pl.strategies.DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
        options = {"strategy": strategy, "devices": size}
    trainer = pl.Trainer(
        max_epochs=5, accelerator="cpu", callbacks=[expansion, average, kept], logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    data = TensorDataset(*rows(dealt=size == 1))
    sampler = DistributedSampler(data, size, rank, shuffle=False)
    loader = DataLoader(data, batch_size=BATCH // size, sampler=sampler)
    trainer.fit(module, loader, ckpt_path=None if resume is None else folder / resume)
    return found(expansion, ears, module, average._average_model, trainer.optimizers[0])


class Config(PretrainedConfig):
    model_type = "two"


class Two(PreTrainedModel):
    """Two layers, called as a Trainer calls."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.first, self.last = nn.Linear(6, 2).double(), nn.Linear(2, 4).double()
        self.post_init()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.last(self.first(x).relu())
        return (
            {"logits": logits}
            if labels is None
            else {"loss": F.cross_entropy(logits, labels), "logits": logits}
        )


class Ordered(Trainer):
    """Takes the samples as they come."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def by_trainer(rank: int, size: int, folder: Path, resume: str | None = None) -> dict[str, Any]:
    """A run of a Trainer of transformers."""
    torch.manual_seed(0)
    model, ears = Two(Config()), Ears()
    expansion = transformers.SelfExpansion(RECIPE, callbacks=[ears])
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=40, per_device_train_batch_size=BATCH // size, learning_rate=0.02,
        use_cpu=True, weight_decay=0.1, save_steps=16, report_to=[], disable_tqdm=True, logging_strategy="no",
        max_grad_norm=0.0, ddp_backend="gloo" if size > 1 else None,
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)]
    trainer = Ordered(model, arguments, train_dataset=data, callbacks=[expansion])
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / resume))
    return found(expansion, ears, model, None, trainer.optimizer.optimizer)


def found(
    expansion: Any,
    ears: Ears,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """What is compared."""
    history = expansion.session.history
    return {
        "events": [
            (r["step"], r["kind"], r["place"], r["units"])
            for r in history
            if r["event"] == "growth"
        ],
        "told": [r["event"] for r in history],
        "figures": [
            r[name]
            for r in history
            if r["event"] == "growth_round"
            for name in ("eta", "loss", "n_samples_seen")
        ],
        "heard": ears.heard,
        "weights": model.state_dict(),
        "average": {} if average is None else average.state_dict(),
        "state": [x for one in optimizer.state.values() for x in one.values()],
    }


def troubled(rank: int) -> dict[str, Any]:
    """A loop in which one process can't read its batches for a while."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 4)).double()
    wrapped = DistributedDataParallel(model)
    (x, y), steps = rows(), range(1, 13)

    def prepare(step: int) -> tuple[Tensor, Tensor]:
        part = slice(step * 16 + 8 * rank, step * 16 + 8 * rank + 8)
        return x[part], y[part] if rank == 0 or step > 6 else {}["label"]

    session = GrowthSession(
        TrainConfig(addition_rounds=(0.3, 0.6, 0.9), pruning_rounds=(), max_scoring_samples=16),
        prepare=prepare,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session.start(model, optimizer, steps=12, samples=256, wrapper=lambda: wrapped)
    for step in steps:
        own = slice(step * 16 + 8 * rank, step * 16 + 8 * rank + 8)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x[own]), y[own]).backward()
        optimizer.step()
        if session.needs_batch(step):
            session.add_batch(step, step)
            session.grow(step)
    return {"history": session.history, "weights": model.state_dict()}


RUNS = {"lightning": (by_lightning, "step=16.ckpt"), "transformers": (by_trainer, "checkpoint-16")}


def several(rank: int, folder: str) -> bytes:
    """Both loops, each from the start and from a checkpoint."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in own.items()})
    buffer = io.BytesIO()
    torch.save(
        {name: runs(name, rank, Path(folder)) for name in RUNS} | {"troubled": troubled(rank)},
        buffer,
    )
    return buffer.getvalue()


def runs(name: str, rank: int, folder: Path) -> list[dict[str, Any]]:
    """A run of two processes in a loop, and one from a checkpoint between growths."""
    run, checkpoint = RUNS[name]
    home = folder / name / "2"
    return [run(rank, 2, home), run(rank, 2, home, checkpoint)]
