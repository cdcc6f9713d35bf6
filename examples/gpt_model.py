"""A small decoder in the style of Llama or of GPT-2, and text to train it on; for `grow_gpt.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes at the start, and how the network is trained.

    `budget` counts operations of training and looking, `max_flops` those of a forward pass of one window.
    `tokens_per_parameter` must be left to train on for a network to grow.
    """

    style: str = "llama"
    width: int = 64
    layers: int = 1
    heads: int = 2
    head_size: int = 16
    hidden: int = 96
    context: int = 64
    batch: int = 16
    lr: float = 3e-3
    muon_lr: float = 0.02
    optimizer: str = "adamw"
    budget: float = 1.5e12
    max_flops: int | None = None
    decay: float = 0.3
    looks: int = 5
    look_windows: int = 64
    growth_start: float = 0.1
    growth_end: float = 0.3
    tokens_per_parameter: float = 15.0
    autocast: bool = False

    def most_units(self) -> tuple[int, int]:
        """Heads and feed-forward units of a block of the usual proportions."""
        wide = 8 * self.width // 3 if self.style == "llama" else 4 * self.width
        return max(1, self.width // self.head_size), wide


class Attention(nn.Module):
    """Causal attention; with rotary positions in the style of Llama."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.heads * config.head_size
        self.heads, self.head_size = config.heads, config.head_size
        self.query, self.key, self.value = (
            nn.Linear(config.width, inner, bias=False) for _ in range(3)
        )
        self.out = nn.Linear(inner, config.width, bias=False)
        self.rotary = config.style == "llama"
        rates = 10_000.0 ** -torch.linspace(0, 1, config.head_size // 2 + 1)[:-1]
        angles = torch.outer(torch.arange(config.context), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        """Turn pairs of features by angles that grow with the position."""
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        """What each position takes from those before it, (samples, tokens, width)."""
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.rotary:
            q, k = self.rotated(q).to(v.dtype), self.rotated(k).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU in the style of Llama, GELU in that of GPT-2."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        gated = config.style == "llama"
        self.gate = nn.Linear(config.width, config.hidden, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """The same at every position."""
        up = self.up(x)
        return self.down(F.gelu(up) if self.gate is None else F.silu(self.gate(x)) * up)


def norm(config: Config) -> nn.Module:
    """Make a norm over the stream."""
    return nn.RMSNorm(config.width) if config.style == "llama" else nn.LayerNorm(config.width)


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1, self.attention = norm(config), Attention(config)
        self.norm2, self.feed = norm(config), FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Add both to the stream."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """A decoder over tokens."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, config.width)
        learned = config.style == "gpt2"
        self.position = nn.Embedding(config.context, config.width) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm(config)
        self.head = nn.Linear(config.width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next token, (samples, tokens, vocabulary)."""
        y = self.embed(x)
        if self.position is not None:
            y = y + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))

    def sizes(self) -> str:
        """Heads and feed-forward width of each layer."""
        return " ".join(f"{b.attention.heads}h/{b.feed.up.out_features}" for b in self.blocks)


class Text:
    """Tokens of a text: the first nine tenths to train on, the others for validation."""

    def __init__(self, path: Path, context: int, device: str = "cpu") -> None:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            codes = torch.frombuffer(
                bytearray(b"\n".join(one.read_bytes() for one in files)), dtype=torch.uint8
            )
            self.vocabulary = 256
        else:
            text = path.read_text()
            numbers = {one: number for number, one in enumerate(sorted(set(text)))}
            codes, self.vocabulary = torch.tensor([numbers[one] for one in text]), len(numbers)
        split = len(codes) * 9 // 10
        self.train, self.validation = codes[:split].to(device), codes[split:].to(device)
        self.context = context

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random windows to train on, and their next tokens."""
        starts = torch.randint(len(self.train) - self.context, (size,), generator=generator)
        return self.windows(self.train, starts)

    def held_out(self, count: int) -> tuple[Tensor, Tensor]:
        """Evenly spaced windows for validation."""
        return self.windows(
            self.validation,
            torch.linspace(0, len(self.validation) - self.context - 1, count).long(),
        )

    def windows(self, part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Windows that begin there."""
        rows = starts[:, None] + torch.arange(self.context + 1)
        found = part[rows.to(part.device)].long()
        return found[:, :-1], found[:, 1:]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats a token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimizers(model: GPT, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of the blocks, and AdamW for the others."""
    muon = (
        [p for p in model.blocks.parameters() if p.dim() == 2] if config.optimizer == "muon" else []
    )
    chosen = {id(one) for one in muon}
    others = [one for one in model.parameters() if id(one) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": others, "base_lr": config.lr}],
            lr=config.lr,
            betas=(0.9, 0.95),
            weight_decay=0.01,
        )
    ]
    if muon:
        found.append(
            torch.optim.Muon(
                [{"params": muon, "base_lr": config.muon_lr}], lr=config.muon_lr, weight_decay=0.01
            )
        )
    return found


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in model.parameters())
