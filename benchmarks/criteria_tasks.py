"""Tasks of `criteria.py`: rows, a small net that grows, and how it is trained; a run takes seconds on one core.

Public data are read in place from the folder that SENN_DATA names (`mnist`, `cifar-10`, `tables`, `text`).
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT, EMBEDDING = 32, 32


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        name: of the task.
        rows: training inputs and targets, then those of validation.
        build: makes the net, given the widths of its places by name.
        start: units of each place at the beginning.
        added: units that each place gains, in all births.
        loss: a mean over samples.
        activation: between the map that makes units and those that read them.
        batch: samples a step.
        steps: number of steps.
        lr: peak learning rate of AdamW.
        looked_at: rows of a look.
    """

    name: str
    rows: tuple[Tensor, Tensor, Tensor, Tensor]
    build: Callable[[Mapping[str, int]], nn.Module]
    start: Mapping[str, int]
    added: int
    steps: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    activation: Callable[[Tensor], Tensor] = F.relu
    batch: int = 128
    lr: float = 2e-3
    looked_at: int = 2048

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Row numbers of each step, the same for every arm of a seed."""
        generator = torch.Generator().manual_seed(1000 + seed)
        count = len(self.rows[0])
        while True:
            order = torch.randperm(count, generator=generator)
            yield from order[: count // self.batch * self.batch].split(self.batch)

    def final(self) -> dict[str, int]:
        """Widths at the end."""
        return {place: width + self.added for place, width in self.start.items()}

    @torch.no_grad()
    def figures(self, model: nn.Module) -> dict[str, float]:
        """Validation loss, with accuracy or explained variance, and the loss on training rows."""
        x, y, held_x, held_y = self.rows
        outputs = torch.cat([model(part) for part in held_x.split(1000)])
        found = {"loss": float(self.loss(outputs, held_y))}
        if held_y.is_floating_point():
            found["score"] = 1 - float((outputs - held_y).square().mean() / held_y.var())
        else:
            found["score"] = float((outputs.argmax(1) == held_y).float().mean())
        rows = slice(0, 4000)
        train = torch.cat([model(part) for part in x[rows].split(1000)])
        return {**found, "train loss": float(self.loss(train, y[rows]))}


def data_folder() -> Path:
    """The folder with the public sets."""
    if "SENN_DATA" not in os.environ:
        raise SystemExit("SENN_DATA must name the folder with the data sets")
    return Path(os.environ["SENN_DATA"])


def _idx(name: str) -> np.ndarray[Any, Any]:
    raw = gzip.decompress((data_folder() / "mnist" / name).read_bytes())
    shape = np.frombuffer(raw, ">u4", raw[3], 4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def read_mnist(part: str) -> Tensor:
    """Images (n, 784), standardized, or labels (n,) of a file of MNIST, named without its ending."""
    found = _idx(f"{part}-ubyte.gz")
    if found.ndim == 1:
        return torch.tensor(found, dtype=torch.long)
    return (torch.tensor(found.reshape(-1, 784), dtype=torch.float32) / 255 - 0.1307) / 0.3081


def mnist(rows: int = 12_000, steps: int = 1395) -> Task:
    """784-[10]-10 on rows of MNIST's training set; validation on its last 10,000."""
    x, y = read_mnist("train-images-idx3"), read_mnist("train-labels-idx1")
    return Task(
        name="mnist",
        rows=(x[:rows], y[:rows], x[50_000:], y[50_000:]),
        build=lambda widths: mlp(784, widths["0"], 10),
        start={"0": 10},
        added=32,
        steps=steps,
        looked_at=4096,
    )


def digits(steps: int = 880) -> Task:
    """64-[10]-10 on the digits of scikit-learn; a fifth is validation."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    inputs = torch.tensor(x[order], dtype=torch.float32) / 16
    labels = torch.tensor(y[order], dtype=torch.long)
    held = len(x) // 5
    return Task(
        name="digits",
        rows=(inputs[held:], labels[held:], inputs[:held], labels[:held]),
        build=lambda widths: mlp(64, widths["0"], 10),
        start={"0": 10},
        added=32,
        steps=steps,
        batch=64,
        lr=3e-3,
        looked_at=1400,
    )


def _table(name: str, target: str, steps: int) -> Task:
    """Two hidden layers [8]-[8] on 6,000 rows of a table, of which a third is validation."""
    import pandas as pd

    frame = pd.read_csv(data_folder() / "tables" / f"{name}.csv.gz").sample(6000, random_state=0)
    column = frame.pop(target)
    frame = pd.get_dummies(frame, dtype=float)
    frame = frame.fillna(frame[:4000].mean())
    is_label = column.dtype.kind not in "iuf"
    x = torch.tensor(frame.to_numpy(np.float64), dtype=torch.float32)
    held, kept = x[4000:], x[:4000]
    mean, spread = kept.mean(0), kept.std(0).clamp_min(1e-6)
    y: Tensor
    if is_label:
        y, outputs = torch.tensor(pd.factorize(column, sort=True)[0]), column.nunique()
    else:
        values = torch.tensor(column.to_numpy(np.float64), dtype=torch.float32)
        y, outputs = ((values - values[:4000].mean()) / values[:4000].std())[:, None], 1
    return Task(
        name=name,
        rows=((kept - mean) / spread, y[:4000], (held - mean) / spread, y[4000:]),
        build=lambda widths: mlp(x.shape[1], widths["0"], widths["2"], outputs),
        start={"0": 8, "2": 8},
        added=24,
        steps=steps,
        loss=F.cross_entropy if is_label else F.mse_loss,
        lr=3e-3,
    )


def bike(steps: int = 1200) -> Task:
    """Hired bicycles an hour, least squares."""
    return _table("bike", "cnt", steps)


def california(steps: int = 1200) -> Task:
    """Prices of houses, least squares."""
    return _table("california", "median_house_value", steps)


def letter(steps: int = 1200) -> Task:
    """26 printed letters."""
    return _table("letter", "letter", steps)


class Bottlenecks(nn.Sequential):
    """Convolutions whose channels are read by 1 x 1 convolutions: `0` and `4` make the channels that grow."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        first, second = widths["0"], widths["4"]
        super().__init__(
            nn.Conv2d(3, first, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, 24, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )


def cifar(rows: int = 4000, steps: int = 600) -> Task:
    """Bottlenecks [6], [6] on rows of CIFAR-10 (JPEG copy) at 16 x 16 pixels; validation on 2,000 others."""
    import pandas as pd
    from PIL import Image

    frame = pd.read_parquet(data_folder() / "cifar-10" / "train-00000-of-00001.parquet")
    frame = frame.iloc[: rows + 2000]

    def pixels(one: dict[str, bytes]) -> np.ndarray[Any, Any]:
        image = Image.open(io.BytesIO(one["bytes"])).convert("RGB").resize((16, 16))
        return np.asarray(image, dtype=np.float32)

    images = np.stack([pixels(one) for one in frame["img"]]) / 255
    x = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    x = (x - x[:rows].mean((0, 2, 3), keepdim=True)) / x[:rows].std((0, 2, 3), keepdim=True)
    y = torch.tensor(frame["label"].to_numpy(), dtype=torch.long)
    return Task(
        name="cifar",
        rows=(x[:rows], y[:rows], x[rows:], y[rows:]),
        build=Bottlenecks,
        start={"0": 6, "4": 6},
        added=16,
        steps=steps,
        batch=64,
        lr=3e-3,
        looked_at=512,
    )


class CharacterModel(nn.Module):
    """A transformer of two blocks over characters, whose feed-forward layers grow."""

    def __init__(self, characters: int, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.embed, self.position = (
            nn.Embedding(characters, EMBEDDING),
            nn.Embedding(CONTEXT, EMBEDDING),
        )
        self.blocks = nn.ModuleList(Block(widths[f"blocks.{i}.up"]) for i in range(2))
        self.norm, self.head = nn.LayerNorm(EMBEDDING), nn.Linear(EMBEDDING, characters, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character, (samples, characters, positions)."""
        y = self.embed(x) + self.position.weight
        for block in self.blocks:
            y = block(y)
        logits: Tensor = self.head(self.norm(y))
        return logits.mT


class Block(nn.Module):
    """Causal attention of two heads and a feed-forward layer, before each a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(EMBEDDING), nn.LayerNorm(EMBEDDING)
        self.qkv = nn.Linear(EMBEDDING, 3 * EMBEDDING, bias=False)
        self.out = nn.Linear(EMBEDDING, EMBEDDING, bias=False)
        self.up, self.down = nn.Linear(EMBEDDING, width), nn.Linear(width, EMBEDDING)

    def forward(self, x: Tensor) -> Tensor:
        """The stream (samples, positions, features) after the block."""
        samples, positions, features = x.shape
        q, k, v = self.qkv(self.first(x)).view(samples, positions, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(samples, positions, features))
        return x + self.down(F.gelu(self.up(self.second(x))))


def text(steps: int = 700) -> Task:
    """A character model of width 32, context 32, on windows of plays; validation on the last tenth."""
    plays = (data_folder() / "text" / "tinyshakespeare.txt").read_text()
    known = {character: number for number, character in enumerate(sorted(set(plays)))}
    codes = torch.tensor([known[character] for character in plays])
    windows = codes[: len(codes) // CONTEXT * CONTEXT + 1]
    x, y = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
    cut = len(x) * 9 // 10
    return Task(
        name="text",
        rows=(x[:cut], y[:cut], x[cut : cut + 600], y[cut : cut + 600]),
        build=lambda widths: CharacterModel(len(known), widths),
        start={"blocks.0.up": 16, "blocks.1.up": 16},
        added=48,
        steps=steps,
        activation=F.gelu,
        batch=16,
        lr=3e-3,
        looked_at=128,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "mnist": mnist,
    "digits": digits,
    "bike": bike,
    "california": california,
    "letter": letter,
    "cifar": cifar,
    "text": text,
}
