"""Which optimizers live through a growth: three steps, a growth, three steps, a state dict.

    pip install pytorch_optimizer heavyball schedulefree  (with --no-deps where torch is installed already)
    python benchmarks/optimizers.py [--restart] [--only NAME ...] [--out results.json]

Every class of torch.optim, pytorch_optimizer, heavyball and schedulefree that trains one small net by itself, with its
defaults and a learning rate of 0.01, is given to a Grower. It `grows`, is `refused` (by `Grower(...)`, or by the first
growth, with everything as it was), or `fails later`: a step or `state_dict()` after the growth raises, or the loss
isn't finite. `--restart` gives `on_uncarried_state="restart"`. What doesn't train the net without the growth isn't
counted. Code isn't compiled. Muon of torch.optim gets the matrices, and AdamW the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import senn

PACKAGES = ("torch.optim", "pytorch_optimizer", "heavyball", "schedulefree")


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] + 0.5 * x[:, 2] > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
    )  # fmt: skip


def classes() -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    """Yield a name and what makes the optimizer of a model."""
    for package in PACKAGES:
        try:
            module = importlib.import_module(package)
        except ImportError:
            print(f"{package} isn't installed")
            continue
        if package == "heavyball":
            module.utils.compile_mode = None
        supported = getattr(module, "get_supported_optimizers", None)
        if supported is not None:
            for name in supported():
                yield f"{package}.{name}", maker(module.load_optimizer(name))
            continue
        for name, kind in sorted(vars(module).items()):
            is_class = inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
            if is_class and kind is not torch.optim.Optimizer and not name.startswith("_"):
                yield f"{package}.{name}", maker(kind)
        if package == "schedulefree":
            yield "schedulefree.ScheduleFreeWrapper", wrapped(module.ScheduleFreeWrapper)


def maker(kind: Any) -> Callable[[nn.Module], Any]:
    def make(model: nn.Module) -> Any:
        if kind is getattr(torch.optim, "Muon", None):
            matrices = [p for p in model.parameters() if p.dim() == 2]
            others = [p for p in model.parameters() if p.dim() != 2]
            return [kind(matrices, lr=0.01), torch.optim.AdamW(others, lr=0.01)]
        try:
            return kind(model.parameters(), lr=0.01)
        except TypeError:
            return kind(model.parameters())

    return make


def wrapped(kind: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(torch.optim.RMSprop(model.parameters(), lr=0.01))


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    """Steps as the optimizer wants them: with a closure, a gradient of a gradient, or neither."""
    x, y = data()
    every = optimizer if isinstance(optimizer, list) else [optimizer]
    for one in every:
        with contextlib.suppress(AttributeError):
            one.train()
    for _ in range(steps):

        def closure() -> torch.Tensor:
            model.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(model(x), y)
                loss.backward(create_graph=bool(every[0].__dict__.get("wants_graph")))
            return loss

        for one in every:
            loss = closure()
            try:
                one.step()
            except (TypeError, AssertionError, ValueError, RuntimeError) as error:
                if "closure" not in str(error) and not isinstance(error, TypeError | ValueError):
                    raise
                one.step(closure)
    if not torch.isfinite(loss):
        raise ArithmeticError("the loss isn't finite")


def verdict(make: Callable[[nn.Module], Any], restart: bool) -> tuple[str, str]:
    """What becomes of one optimizer, and the reason."""
    try:
        model = net()
        train(model, make(model), 6)
    except Exception as error:  # it doesn't train this net
        return "not counted", f"{type(error).__name__}: {error}"
    model = net()
    optimizer = make(model)
    arguments: dict[str, Any] = {"on_uncarried_state": "restart"} if restart else {}
    try:
        grower = senn.Grower(model, optimizer, F.cross_entropy, samples=4000, **arguments)
    except senn.SennError as error:
        return "refused", str(error)
    train(model, optimizer)
    try:
        events = grower.grow([data()])
    except senn.SennError as error:
        return "refused", f"at the first growth: {error}"
    if not events:
        return "not counted", "nothing was bought"
    try:
        train(model, optimizer)
        for one in optimizer if isinstance(optimizer, list) else [optimizer]:
            one.state_dict()
    except Exception as error:
        return "fails later", f"{type(error).__name__}: {error}"
    return "grows", ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    results = {}
    for name, make in classes():
        if options.only and not any(part in name for part in options.only):
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            results[name] = verdict(make, options.restart)
        print(name, *(text.split("\n")[0][:160] for text in results[name]), flush=True)
    counts: dict[str, Counter[str]] = {}
    for name, (found, _) in results.items():
        package = next(one for one in PACKAGES if name.startswith(one))
        counts.setdefault(package, Counter())[found] += 1
    for package, count in counts.items():
        print(package, dict(count))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
