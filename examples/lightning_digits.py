"""Grow a LightningModule in its own Trainer.

The module and the Trainer are what anyone would write: AdamW, a one-cycle schedule, an average of the weights, clipped
gradients, checkpoints. With one more callback, the network finds its widths and depth on scikit-learn's handwritten
digits. At the end its checkpoint is loaded into a fresh small module.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from senn.integrations.lightning import SelfExpansion, load_from_checkpoint


class Digits(pl.LightningModule):
    """Classifier with two hidden units to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10)."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return F.cross_entropy(self(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy on a batch."""
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        """Return AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Load digits to train on, and a fifth that is held out."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = map(
        torch.as_tensor, train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    )
    return TensorDataset(x.float(), y), TensorDataset(x_test.float(), y_test)


def main(argv: Sequence[str] | None = None) -> None:
    """Print each change of size, and the held-out accuracy of the module and of its checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    train, test = digits()
    with tempfile.TemporaryDirectory() as folder:
        expansion, checkpoints = SelfExpansion(), ModelCheckpoint(folder, filename="last")
        trainer = pl.Trainer(
            max_epochs=arguments.epochs, callbacks=[expansion, EMAWeightAveraging(decay=0.98), checkpoints],
            gradient_clip_val=1.0, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        module = Digits()
        trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
        for record in expansion.session.history:
            if record["event"] == "growth":
                print(f"step {record['step']}: {record['text']}")
        (figures,) = trainer.test(module, DataLoader(test, batch_size=512), verbose=False)
        again = load_from_checkpoint(Path(folder) / "last.ckpt", Digits())
        (same,) = trainer.test(again, DataLoader(test, batch_size=512), verbose=False)
    print(module.net)
    print(f"{sum(p.numel() for p in module.parameters()):,} parameters, accuracy {figures['accuracy']:.4f}; "
          f"of the checkpoint in a fresh module {same['accuracy']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
