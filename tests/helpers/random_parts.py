"""Parts of random models: (n, width, h, w) to (n, out, h, w)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KEEPING = (
    *("residual", "depthwise", "squeeze", "norm", "prelu", "channels last", "group"),
    *("attention", "grouped query", "multihead", "normed", "swiglu", "messages", "relative"),
)
"""Parts whose output is as wide as their input."""

PARTS = (
    *("conv", "concat", "gate", "twice", "shuffle", "strided", "branches", "glu", "padded"),
    *KEEPING,
)


def _modules(kind: str, width: int, out: int) -> dict[str, nn.Module]:
    """The layers of a part, by name."""
    three = {"kernel_size": 3, "padding": 1}
    inner, size = out, 2  # a head's size
    return {
        "conv": lambda: {"main": nn.Conv2d(width, out, **three)},
        "residual": lambda: {"main": nn.Conv2d(width, width, **three)},
        "concat": lambda: {"main": nn.Conv2d(width, out, **three)},
        "padded": lambda: {"main": nn.Conv2d(width, out, (2, 3))},
        "messages": lambda: {"main": nn.Linear(width, width)},
        "strided": lambda: {"main": nn.Conv2d(width, out, **three)},
        "gate": lambda: {"main": nn.Conv2d(width, 2 * out, **three)},
        "shuffle": lambda: {"main": nn.Conv2d(width, 4 * out, **three)},
        "norm": lambda: {"norm": nn.BatchNorm2d(width)},
        "depthwise": lambda: {"depth": nn.Conv2d(width, width, groups=width, **three)},
        "squeeze": lambda: {"down": nn.Linear(width, 3), "up": nn.Linear(3, width)},
        "twice": lambda: {"main": nn.Conv2d(width, width, **three), "last": nn.Conv2d(width, out, 1)},
        "group": lambda: {
            "main": nn.Conv2d(width, width, **three), "groups": nn.GroupNorm(2 if width % 2 == 0 else 1, width)
        },
        "branches": lambda: {"main": nn.Conv2d(width, out, 1), "last": nn.Conv2d(width, out, 1)},
        "prelu": lambda: {"main": nn.Conv2d(width, width, **three), "slope": nn.PReLU(width)},
        "channels last": lambda: {"down": nn.Linear(width, 3), "up": nn.Linear(3, width)},
        "attention": lambda: {"qkv": nn.Linear(width, 3 * out * size), "back": nn.Linear(out * size, width)},
        "relative": lambda: {
            "qkv": nn.Linear(width, 3 * out * size), "table": nn.Embedding(31, out),
            "back": nn.Linear(out * size, width)
        },
        "grouped query": lambda: {
            "q": nn.Linear(width, 2 * out * size), "k": nn.Linear(width, out * size), "v": nn.Linear(width, out * size),
            "back": nn.Linear(2 * out * size, width),
        },
        "multihead": lambda: {
            "inp": nn.Linear(width, out * size), "attn": nn.MultiheadAttention(out * size, out, batch_first=True),
            "back": nn.Linear(out * size, width),
        },
        "normed": lambda: {
            "layer": nn.LayerNorm(width), "down": nn.Linear(width, inner), "up": nn.Linear(inner, width)
        },
        "glu": lambda: {"main": nn.Linear(width, 2 * out)},
        "swiglu": lambda: {
            "w1": nn.Linear(width, inner), "w2": nn.Linear(inner, width), "w3": nn.Linear(width, inner)
        },
    }[kind]()  # fmt: skip


class Part(nn.Module):
    """One step of a random model."""

    def __init__(self, kind: str, width: int, out: int) -> None:
        super().__init__()
        self.kind, self.heads = kind, out
        self.out = width if kind in KEEPING else width + out if kind == "concat" else out
        for name, module in _modules(kind, width, out).items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.kind.replace(' ', '_')}")(x)

    def _conv(self, x):
        return F.relu(self.main(x))

    def _norm(self, x):
        return torch.tanh(self.norm(x))

    def _residual(self, x):
        return x + F.gelu(self.main(x))

    def _concat(self, x):
        return torch.cat([self.main(x).sigmoid(), x], 1)

    def _depthwise(self, x):
        return F.silu(self.depth(x))

    def _gate(self, x):
        value, gate = self.main(x).chunk(2, dim=1)
        return value * gate.sigmoid()

    def _squeeze(self, x):
        return x * self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]

    def _twice(self, x):
        return self.last(torch.tanh(self.main(torch.tanh(self.main(x)))))

    def _group(self, x):
        return self.groups(self.main(x))

    def _shuffle(self, x):
        return F.avg_pool2d(F.pixel_shuffle(self.main(x), 2).tanh(), 2)

    def _strided(self, x):
        return F.interpolate(F.max_pool2d(F.leaky_relu(self.main(x)), 2), size=x.shape[-2:])

    def _branches(self, x):
        return self.main(x).relu() + self.last(x)

    def _prelu(self, x):
        return self.slope(self.main(x))

    def _channels_last(self, x):
        return self.up(self.down(x.permute(0, 2, 3, 1)).tanh()).permute(0, 3, 1, 2)

    def _attention(self, x):
        y = tokens(x)
        b, n, _ = y.shape
        q, k, v = self.qkv(y).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return x + pixels(self.back(y), x)

    def _relative(self, x):
        y = tokens(x)
        b, n, _ = y.shape
        q, k, v = self.qkv(y).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        distance = torch.arange(n)[:, None] - torch.arange(n) + n - 1
        bias = self.table.weight[distance.flatten()].view(n, n, -1).permute(2, 0, 1)
        y = (q @ k.mT + bias).softmax(-1) @ v
        return x + pixels(self.back(y.transpose(1, 2).reshape(b, n, -1)), x)

    def _padded(self, x):
        return F.silu(self.main(F.pad(x, (2, 0, 0, 1), value=0.5)))

    def _messages(self, x):
        y = self.main(tokens(x)).transpose(0, 1)
        targets = torch.arange(len(y)) // 2
        sums = y.new_zeros(y.shape).index_add_(0, targets, y)
        return x + pixels(sums.transpose(0, 1), x)

    def _grouped_query(self, x):
        y = tokens(x)
        b, n, _ = y.shape
        q, k, v = (part(y).view(b, n, -1, 2).transpose(1, 2) for part in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
        y = torch.softmax(q @ k.transpose(-2, -1) * 2**-0.5, dim=-1) @ v
        return x + pixels(self.back(y.transpose(1, 2).flatten(2)), x)

    def _multihead(self, x):
        y = self.inp(tokens(x))
        return x + pixels(self.back(self.attn(y, y, y, need_weights=False)[0]), x)

    def _normed(self, x):
        return x + pixels(self.up(F.gelu(self.down(self.layer(tokens(x))))), x)

    def _glu(self, x):
        return pixels(F.glu(self.main(tokens(x))), x)

    def _swiglu(self, x):
        y = tokens(x)
        return pixels(self.w2(F.silu(self.w1(y)) * self.w3(y)), x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def pixels(y: Tensor, like: Tensor) -> Tensor:
    return y.transpose(1, 2).unflatten(2, like.shape[-2:])


class Random(nn.Module):
    """Random parts between a convolution and a linear head."""

    def __init__(self, kinds: list[tuple[str, int]], start: int, flat: bool) -> None:
        super().__init__()
        self.stem, self.flat = nn.Conv2d(2, start, 3, padding=1), flat
        parts, width = [], start
        for kind, out in kinds:
            parts.append(Part(kind, width, out))
            width = parts[-1].out
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(width * 16 if flat else width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(x.flatten(1) if self.flat else x.amax((2, 3)))
