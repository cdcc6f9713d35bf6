"""Nets with a class per position, for `growth_step.py`: a small GPT, the head of a large one, segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A pre-norm block of causal attention and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention and the feed-forward part say to x (samples, tokens, width)."""
        samples, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).view(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(samples, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A language model of `layers` blocks."""

    def __init__(self, *, vocabulary: int, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next word, (samples, tokens, vocabulary)."""
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        out: Tensor = self.head(self.norm(self.blocks(h)))
        return out


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over flattened tokens, as training loops write it."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-100)


def tokens(vocabulary: int, *, samples: int, context: int, batches: int) -> Batches:
    """Sequences in which a token says much of the next one."""
    g = torch.Generator().manual_seed(1)
    after = torch.randint(vocabulary, (vocabulary, 4), generator=g)
    found = []
    for _ in range(batches):
        x = [torch.randint(vocabulary, (samples,), generator=g)]
        for _ in range(context):
            x.append(after[x[-1], torch.randint(4, (samples,), generator=g)])
        text = torch.stack(x, 1)
        found.append((text[:, :-1], text[:, 1:]))
    return found


def small_gpt(batches: int) -> tuple[nn.Module, Batches]:
    """4 layers of width 128, context 128, 65 characters, batches of 32."""
    torch.manual_seed(0)
    model = GPT(vocabulary=65, width=128, layers=4, context=128)
    return model, tokens(65, samples=32, context=128, batches=batches)


def wide_head() -> tuple[nn.Module, Batches]:
    """GPT-2 small's width and vocabulary with one of its layers: the head is what is new about it."""
    torch.manual_seed(0)
    model = GPT(vocabulary=50_257, width=768, layers=1, context=64)
    return model, tokens(50_257, samples=4, context=64, batches=1)


def segmentation() -> tuple[nn.Module, Batches]:
    """16 images of 64 x 64 pixels in 21 classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        nn.Conv2d(32, 21, 1),
    )
    g = torch.Generator().manual_seed(1)
    x = F.avg_pool2d(torch.randn(16, 3, 68, 68, generator=g), 5, 1)
    y = (20 * x.sum(1).sigmoid()).long()
    y[:, :4] = -100  # a border without classes
    return model, [(x, y)]
