"""A GPT that is grown while it trains: heads, feed-forward widths and layers come where they pay.

It begins with one layer and narrow heads. From time to time `senn.Grower` looks at some windows of the text, and adds
what promises more than its operations, for all the tokens to come, could buy by training the network as it is.

    python examples/grow_gpt.py                            # tinyshakespeare, characters; SENN_DATA/text or --data FILE
    python examples/grow_gpt.py --data FOLDER              # any folder of text, by bytes
    python examples/grow_gpt.py --style gpt2 --optimizer muon
    python examples/grow_gpt.py --full --device cuda --data FOLDER     # to 25 million parameters, bytes, bf16, compiled
    python examples/grow_gpt.py --quick                    # a test of seconds
"""

from __future__ import annotations

import argparse
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch.utils.flop_counter import flop_registry

import senn
from senn.flops import forward_flops


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes at the start, and how the network is trained.

    `budget` counts operations of training and looking, `max_flops` those of a forward pass of one window.
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
    looks: int = 8
    look_windows: int = 64
    growth_end: float = 0.5
    autocast: bool = False


# -- the network


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


# -- the text


class Text:
    """Tokens of a text: the first nine tenths to train on, the others for validation."""

    def __init__(self, path: Path, context: int, device: str = "cpu") -> None:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            codes = torch.frombuffer(bytearray(b"\n".join(one.read_bytes() for one in files)), dtype=torch.uint8)
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
        return self.windows(self.validation, torch.linspace(0, len(self.validation) - self.context - 1, count).long())

    def windows(self, part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Windows that begin there."""
        rows = starts[:, None] + torch.arange(self.context + 1)
        found = part[rows.to(part.device)].long()
        return found[:, :-1], found[:, 1:]


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats a token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# -- when a move pays


@dataclass(frozen=True)
class ComputePrice(senn.PricePolicy):
    """Price of a move: its operations a token times the tokens to come, at what operations buy just now.

    With a fraction `left` of the budget to come and a network that takes 1 + g times as many operations, training sees
    1 + g times fewer tokens; at `rate` nats for each e-fold of operations this costs -rate log(1 - left g / (1 + g)).
    A move's score is what one step brings, of which training makes far more: `first_step` is the fraction.

    One unit or head of a place stands for many: where the best one pays, the place is doubled, by the best units that
    are on offer.

    Args:
        flops: operations of a forward pass of one window now.
        rate: nats by which the loss has lately fallen for each e-fold of operations.
        left: fraction of the budget to come.
        first_step: what one step brings of what training makes of a move.
    """

    layer_cost: float = 1.0
    confidence: float = 0.5
    unit: str = "flops"
    flops: float = 1.0
    rate: float = 0.1
    left: float = 1.0
    first_step: float = 0.15

    def price_of(self, candidate: senn.policies.Candidate) -> float:
        """Nats that the tokens are worth that it costs."""
        growth = max(candidate.flops / self.flops, -0.9)
        return -self.first_step * self.rate * math.log1p(-self.left * growth / (1 + growth))

    def choose(self, candidates, accepted):
        """Choose the best place that pays, and then the best units there until it is doubled."""
        if not accepted:
            return super().choose(candidates, accepted)
        first = accepted[0]
        if first.kind != "widen" or len(accepted) >= first.width - 1:
            return None
        here = [one for one in candidates if (one.kind, one.place) == ("widen", first.place)]
        return max(here, key=lambda one: one.held_out_gain, default=None)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations of products, convolutions and attention while it is open."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count it where there is a formula."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


# -- the run


class Run:
    """One network, trained until its operations are spent.

    Args:
        config: sizes, budget and schedules.
        text: what it learns.
        seed: of everything drawn.
        device: where it is trained.
        counter: counts the operations of a look.
    """

    def __init__(self, config: Config, text: Text, *, seed: int = 0, device: str = "cpu", counter=Operations) -> None:
        torch.manual_seed(seed)
        self.config, self.text, self.device, self.counter = config, text, device, counter
        self.model = GPT(config, text.vocabulary).to(device)
        self.optimizers = optimizers(self.model, config)
        self.generator = torch.Generator().manual_seed(seed)
        self.look_generator = torch.Generator().manual_seed(seed + 1_000)
        self.x, self.y = text.held_out(256)
        self.grower = senn.Grower(
            self.model,
            self.optimizers,
            loss,
            policy=ComputePrice(),
            samples=len(text.train),
            max_flops=config.max_flops,
            moves=("width", "depth"),
            candidate_config=senn.CandidateConfig(units=32, residual_units=0, identity_bases=0),
            seed=seed,
        )
        self.training = self.looking = self.look_seconds = 0.0
        self.steps, self.flops = 0, self.forward_flops()
        self.history: list[tuple[float, float]] = []
        self.curve: list[tuple[float, int, float]] = []
        self.growths: list[str] = []

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent."""
        return (self.training + self.looking) / self.config.budget

    def forward_flops(self) -> float:
        """Operations of a forward pass of one window."""
        return forward_flops(self.model, self.x[:1])

    def factor(self) -> float:
        """Factor of the learning rate: constant, and a linear decay at the end."""
        warm = min(1.0, (self.steps + 1) / 20)
        return warm * min(1.0, max(0.0, (1 - self.progress) / self.config.decay))

    def step(self, forward) -> None:
        """Take one step of training."""
        x, y = self.text.batch(self.config.batch, self.generator)
        cast = torch.autocast(self.device, torch.bfloat16) if self.config.autocast else nullcontext()
        with cast:
            value = loss(forward(x), y)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * self.factor()
            optimizer.step()
        self.steps += 1
        self.training += 3 * self.flops * self.config.batch
        self.history.append((self.training + self.looking, float(value.detach())))

    def rate(self) -> float:
        """Nats by which the loss has fallen over the last half of the operations, for an e-fold of them."""
        spent = self.history[-1][0]
        late, early = (
            [value for at, value in self.history if 0.8 * end < at <= end] for end in (spent, spent / 2)
        )
        fall = sum(early) / len(early) - sum(late) / len(late) if early else 1.0
        return max(fall, 0.01) / math.log(2)

    def look(self) -> None:
        """Let the grower look at some windows, and add what pays."""
        self.grower.policy = replace(
            self.grower.policy, flops=self.flops, rate=self.rate(), left=1 - self.progress
        )
        events = self.grower.grow([self.text.batch(self.config.look_windows, self.look_generator)])
        self.growths += [f"{self.progress:.2f} {event}" for event in events]
        for event in events:
            print(f"{self.progress:4.0%} step {self.steps}: {event}", flush=True)

    def evaluate(self) -> float:
        """Nats a token on the validation windows."""
        with torch.no_grad():
            value = sum(float(loss(self.model(x), y)) for x, y in zip(self.x.split(64), self.y.split(64), strict=True))
        self.curve.append((self.training + self.looking, size(self.model), value / 4))
        return value / 4

    def run(self, look=None, moments=None) -> float:
        """Train; `look` is called at `moments`, fractions of the budget. Returns the validation loss."""
        config, look = self.config, look or self.look
        if moments is None:
            moments = torch.linspace(0.1, config.growth_end, config.looks).tolist()
        forward = torch.compile(self.model) if config.autocast else self.model
        due, told = [*moments], 0
        while self.progress + 1.5 * self.flops * config.batch / config.budget < 1:
            if due and self.progress >= due[0]:
                due.pop(0)
                started = time.perf_counter()
                with self.counter() as counter:
                    look()
                self.look_seconds += time.perf_counter() - started
                self.looking, self.flops = self.looking + counter.flops, self.forward_flops()
            self.step(forward)
            if self.progress * 10 >= told + 1:
                told = int(self.progress * 10)
                print(f"{self.progress:4.0%} step {self.steps}: validation {self.evaluate():.4f}, {self.model.sizes()}", flush=True)
        return self.evaluate()


def optimizers(model: GPT, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of the blocks, and AdamW for the others."""
    muon = [p for p in model.blocks.parameters() if p.dim() == 2] if config.optimizer == "muon" else []
    chosen = {id(one) for one in muon}
    others = [one for one in model.parameters() if id(one) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([{"params": others, "base_lr": config.lr}], lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01)
    ]
    if muon:
        found.append(torch.optim.Muon([{"params": muon, "base_lr": config.muon_lr}], lr=config.muon_lr, weight_decay=0.01))
    return found


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(one.numel() for one in model.parameters())


QUICK = {"width": 16, "hidden": 16, "head_size": 8, "context": 16, "batch": 4, "budget": 8e8, "looks": 2, "look_windows": 16}
FULL = {"width": 512, "heads": 2, "head_size": 64, "hidden": 512, "context": 512, "batch": 64, "lr": 1e-3, "budget": 3e17, "look_windows": 32, "autocast": True}


def parse(argv) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file, read by characters, or a folder, read by bytes")
    parser.add_argument("--style", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--budget", type=float, help="operations of training and looking")
    parser.add_argument("--max-flops", type=int, help="most operations of a forward pass of one window")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny: a test of seconds")
    parser.add_argument("--full", action="store_true", help="to 25 million parameters, bfloat16, compiled")
    return parser.parse_args(argv)


def main(argv=None) -> Run:
    """Grow a GPT, and say what became of it."""
    given = parse(argv)
    config = Config(**(FULL if given.full else QUICK if given.quick else {}))
    named = {key: getattr(given, key) for key in ("style", "optimizer", "budget", "max_flops")}
    config = replace(config, **{key: value for key, value in named.items() if value is not None})
    path = given.data or Path(os.environ.get("SENN_DATA", ".")) / "text" / "tinyshakespeare.txt"
    started = time.perf_counter()
    run = Run(config, Text(path, config.context, given.device), seed=given.seed, device=given.device)
    value = run.run()
    seconds = time.perf_counter() - started
    print(
        f"validation {value:.4f} nats a token, {size(run.model):,} parameters, {run.model.sizes()}; "
        f"{run.training + run.looking:.3g} operations, {run.looking / (run.training + run.looking):.1%} of looking; "
        f"{seconds:.1f} s, {run.look_seconds / seconds:.1%} for deciding"
    )
    return run


if __name__ == "__main__":
    main()
