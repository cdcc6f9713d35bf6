"""A small decoder, pre-trained on plays, and the text that it is adapted to: the task of `lora_ranks.py`.

The decoder reads printable ASCII. It is pre-trained on one half of Shakespeare's plays (`SENN_DATA/text`) and adapted
to the reference of the Python language (`pydoc_data.topics` of the standard library), of which the last tenth is the
test and the tenth before it is for validation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHARACTERS = 96
WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 2, 4, 64, 8
LAYERS_ADAPTED = ["query", "key", "value", "out", "up", "down", "head"]
"""Layers that get adapters."""


class Block(nn.Module):
    """Causal attention and a feed-forward layer, before each a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The stream (samples, positions, features) after the block."""
        y = self.first(x)
        q, k, v = (
            one(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    """A GPT of .4 million parameters over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(
                    module.weight, std=0.02 if isinstance(module, nn.Embedding) else 0.06
                )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next character, (samples, positions, characters)."""
        y = self.embed(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            y = block(y)
        logits: Tensor = self.head(self.norm(y))
        return logits


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats a character."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def encoded(text: str) -> Tensor:
    """Numbers of characters: 0 for a line's end, then printable ASCII; others are left out."""
    codes = torch.tensor(
        [0 if one == "\n" else ord(one) - 31 for one in text if one == "\n" or " " <= one <= "~"]
    )
    return codes.clamp(max=CHARACTERS - 1)


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text in parts."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def batch(self, generator: torch.Generator, size: int = BATCH) -> tuple[Tensor, Tensor]:
        """Random windows of the training part, and their next characters."""
        starts = torch.randint(len(self.train) - CONTEXT, (size,), generator=generator)
        rows = starts[:, None] + torch.arange(CONTEXT + 1)
        windows = self.train[rows]
        return windows[:, :-1], windows[:, 1:]


def in_parts(codes: Tensor) -> Text:
    """Split a text: eight tenths, one for validation, one for the test."""
    tenth = len(codes) // 10
    return Text(
        train=codes[: 8 * tenth], validation=codes[8 * tenth : 9 * tenth], test=codes[9 * tenth :]
    )


def plays() -> Text:
    """One half of Shakespeare's plays."""
    text = (Path(os.environ["SENN_DATA"]) / "text" / "tinyshakespeare.txt").read_text()
    return in_parts(encoded(text[: len(text) // 2]))


def reference() -> Text:
    """The Python language's reference."""
    from pydoc_data import topics

    return in_parts(encoded("\n".join(topics.topics[name] for name in sorted(topics.topics))))


@torch.no_grad()
def mean_loss(model: nn.Module, codes: Tensor, windows: int = 400) -> float:
    """Mean loss over evenly spaced windows of a part."""
    model.eval()
    starts = torch.linspace(0, len(codes) - CONTEXT - 2, windows).long()
    rows = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
    losses = [float(loss(model(part[:, :-1]), part[:, 1:])) for part in rows.split(100)]
    model.train()
    return sum(losses) / len(losses)


def pretrained(path: Path, steps: int = 1500) -> dict[str, Tensor]:
    """Weights of the decoder, pre-trained on plays; kept in a file."""
    if path.exists():
        weights: dict[str, Tensor] = torch.load(path)
        return weights
    torch.manual_seed(0)
    model, text, chance = Decoder(), plays(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        x, y = text.batch(chance, 3 * BATCH)
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"pre-training, step {step}: {float(value.detach()):.3f}", flush=True)
    print(f"pre-trained: validation {mean_loss(model, text.validation):.4f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.state_dict()
