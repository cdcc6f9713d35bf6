"""A GPT that is grown while it trains: heads, feed-forward widths and layers come where they pay.

It begins with one layer and narrow heads. Early on, `senn.Grower` looks at some windows of the text from time to time,
and adds units, heads and layers where its score says, as long as enough tokens are left to train the larger network on.

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
from gpt_model import GPT, Config, Text, loss, optimizers, size
from torch import nn
from torch.utils.flop_counter import flop_registry

import senn
from senn.flops import forward_flops

# -- when a network grows


@dataclass(frozen=True)
class RoomPolicy(senn.PricePolicy):
    """Buys where the score says, as long as the larger network will still see enough tokens.

    A move costs its operations a token times the tokens to come: of a fixed budget the fewer tokens are left, the
    larger the network is. First steps look alike in long and in short runs and can't tell whether that pays in the end.
    So each parameter must have as many tokens to come as networks profit from (some twenty: Hoffmann et al. 2022, arXiv
    2203.15556).

    Blocks have the usual proportions. Short of these, one unit or head stands for many: where the best one has a clear
    gain, its place is doubled, by the best units on offer. Else the block is copied whose copy has the largest gain,
    clear or not: the first step of a copy brings a thousandth of a nat, and training makes hundredths of it, which no
    look of a few windows can tell from nothing.

    Args:
        flops: operations of a forward pass of one window now.
        parameters: of the network now.
        context: tokens of a window.
        budget: operations to come.
        tokens_per_parameter: least number of tokens to come.
        most: most units of a place, by the end of its name.
    """

    unit: str = "flops"
    flops: float = 1.0
    parameters: int = 1
    context: int = 1
    budget: float = math.inf
    tokens_per_parameter: float = 0.0
    most: tuple[tuple[str, int], ...] = ()

    def price_of(self, candidate: senn.policies.Candidate) -> float:
        """Return 0: `has_room` asks what a move costs."""
        return 0.0

    def has_room(self, flops, parameters):
        """Return True if a network that is larger by so much still sees enough tokens."""
        tokens = self.context * self.budget / (3 * (self.flops + flops))
        return tokens >= self.tokens_per_parameter * (self.parameters + parameters)

    def margin(self, candidate):
        """Return what both folds of the look agree on, less its error.

        A head has more weights than a look has tokens, so that its step is fitted to noise in part. That makes the
        held-out gain of a step of full length far too small; the birth will shorten it. For copies of blocks the best
        length is searched already.
        """
        gain = candidate.cross_fold_gain
        gain = candidate.held_out_gain if math.isnan(gain) else gain
        return (gain - self.confidence * candidate.held_out_stderr) / (2 * candidate.loss_per_nat)

    def choose(self, candidates, accepted):
        """Choose the best place, and then the best units there until it is doubled."""
        allowed = [
            one
            for one in candidates
            if self.has_room(one.flops, one.parameters)
            and all(one.width <= units for end, units in self.most if one.place.endswith(end))
        ]
        if not accepted:
            copies = [one for one in allowed if one.kind == "insert"]
            best_copy = max(copies, key=lambda one: one.held_out_gain, default=None)
            return super().choose(allowed, accepted) or best_copy
        first = accepted[0]
        if first.kind != "widen" or len(accepted) >= first.width - 1:
            return None
        here = [one for one in allowed if (one.kind, one.place) == ("widen", first.place)]
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

    def __init__(
        self, config: Config, text: Text, *, seed: int = 0, device: str = "cpu", counter=Operations
    ) -> None:
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
            policy=RoomPolicy(),
            samples=len(text.train),
            max_flops=config.max_flops,
            moves=("width", "depth"),
            candidate_config=senn.CandidateConfig(
                units=config.hidden, max_columns=192, residual_units=0, identity_bases=0
            ),
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
        cast = (
            torch.autocast(self.device, torch.bfloat16) if self.config.autocast else nullcontext()
        )
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

    def moves(self, policy: RoomPolicy) -> tuple[str, ...]:
        """Return what there is room for: units and heads short of the usual proportions, another block."""
        heads, hidden = self.config.most_units()
        block = self.model.blocks[-1]
        stream = torch.zeros(1, self.config.context, self.config.width, device=self.device)
        fits = policy.has_room(forward_flops(block, stream), size(block))
        is_short = any(
            one.attention.heads < heads or one.feed.up.out_features < hidden
            for one in self.model.blocks
        )
        return ("width",) * is_short + ("depth",) * fits

    def look(self) -> None:
        """Let the grower look at some windows, and add what there is room for."""
        heads, hidden = self.config.most_units()
        policy = replace(
            self.grower.policy,
            flops=self.flops,
            parameters=size(self.model),
            context=self.config.context,
            budget=(1 - self.progress) * self.config.budget,
            tokens_per_parameter=self.config.tokens_per_parameter,
            most=(("attention.query", heads), ("feed.up", hidden)),
        )
        moves = self.moves(policy)
        if not moves:
            return
        self.grower.policy = policy
        windows = self.text.batch(self.config.look_windows, self.look_generator)
        events = self.grower.grow([windows], moves)
        self.growths += [f"{self.progress:.2f} {event}" for event in events]
        for event in events:
            print(f"{self.progress:4.0%} step {self.steps}: {event}", flush=True)

    def evaluate(self) -> float:
        """Nats a token on the validation windows."""
        with torch.no_grad():
            value = sum(
                float(loss(self.model(x), y))
                for x, y in zip(self.x.split(64), self.y.split(64), strict=True)
            )
        self.curve.append((self.training + self.looking, size(self.model), value / 4))
        return value / 4

    def run(self, look=None, moments=None) -> float:
        """Train; `look` is called at `moments`, fractions of the budget. Returns the validation loss."""
        config, look = self.config, look or self.look
        if moments is None:
            moments = torch.linspace(config.growth_start, config.growth_end, config.looks).tolist()
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
                print(
                    f"{self.progress:4.0%} step {self.steps}: validation {self.evaluate():.4f}, {self.model.sizes()}",
                    flush=True,
                )
        return self.evaluate()


QUICK = {
    "width": 16, "hidden": 16, "head_size": 8, "context": 16, "batch": 4, "budget": 8e8, "looks": 2, "look_windows": 16,
    "tokens_per_parameter": 0,
}  # fmt: skip
FULL = {
    "width": 512, "hidden": 512, "head_size": 64, "context": 512, "batch": 64, "lr": 1e-3, "budget": 5e16,
    "max_flops": int(3e10), "looks": 16, "look_windows": 32, "growth_start": 0.02, "growth_end": 0.5, "autocast": True,
}  # fmt: skip


def parse(argv) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="a file, read by characters, or a folder, read by bytes"
    )
    parser.add_argument("--style", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--budget", type=float, help="operations of training and looking")
    parser.add_argument(
        "--max-flops", type=int, help="most operations of a forward pass of one window"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny: a test of seconds")
    parser.add_argument(
        "--full", action="store_true", help="to 25 million parameters, bfloat16, compiled"
    )
    return parser.parse_args(argv)


def main(argv=None) -> Run:
    """Grow a GPT, and say what became of it."""
    given = parse(argv)
    config = Config(**(FULL if given.full else QUICK if given.quick else {}))
    named = {key: getattr(given, key) for key in ("style", "optimizer", "budget", "max_flops")}
    config = replace(config, **{key: value for key, value in named.items() if value is not None})
    path = given.data or Path(os.environ.get("SENN_DATA", ".")) / "text" / "tinyshakespeare.txt"
    started = time.perf_counter()
    run = Run(
        config, Text(path, config.context, given.device), seed=given.seed, device=given.device
    )
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
