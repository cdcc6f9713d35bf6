"""Which optimizers live through growth: training, a growth, training, a checkpoint, a second growth, training.

    python -m venv optimizers && optimizers/bin/pip install -c constraints.txt -e ".[optimizers]"
    optimizers/bin/python benchmarks/optimizers.py [--only NAME ...] [--out benchmarks/results/optimizers.json]

Every class of torch.optim, pytorch_optimizer, heavyball and schedulefree that trains one small net, with its defaults
and a learning rate of 0.01, is given to a Grower. It

- `carries`: all of its state follows a growth by position;
- `restarts`: with `on_uncarried_state="restart"`, since some state of a resized parameter follows no rule;
- is `refused` with either, by `Grower(...)` or by the first growth, with everything as it was; or
- `fails later`: within 30 steps after the growth, as its state is saved and loaded, or around a second growth,
  something raises, or the loss isn't finite.

What doesn't train the net without a growth isn't counted, and a state that can't be loaded without one isn't loaded.
Optimizers of matrices get those, and AdamW the rest. Code isn't compiled. A run that was broken off goes on where its
`--out` ends.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
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
from wild import TakeAny

import senn

PACKAGES = ("torch.optim", "heavyball", "schedulefree", "pytorch_optimizer")
BEFORE, AFTER = 10, 30
"""Steps before the growth, and after it."""

Make = Callable[[nn.Module], Any]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] + 0.5 * x[:, 2] > 0).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
    )  # fmt: skip


def classes() -> Iterator[tuple[str, Make]]:
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


def maker(kind: Any) -> Make:
    """Make an optimizer with the first arguments that its class takes."""

    def ways(model: nn.Module) -> Iterator[Callable[[], Any]]:
        params = [*model.parameters()]
        matrices = [p for p in params if p.dim() == 2]
        others = [p for p in params if p.dim() != 2]
        rest = torch.optim.AdamW
        if kind is not getattr(torch.optim, "Muon", None):
            yield lambda: kind(model.parameters(), lr=0.01)
            yield lambda: kind(model.parameters())
        groups = [
            {"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}
        ]  # fmt: skip
        yield lambda: kind(groups, lr=0.01)
        yield lambda: [kind(matrices, lr=0.01), rest(others, lr=0.01)]

    def make(model: nn.Module) -> Any:
        errors = []
        for way in ways(model):
            try:
                return way()
            except Exception as error:
                errors.append(error)
        raise errors[0]

    return make


def wrapped(kind: Any) -> Make:
    return lambda model: kind(torch.optim.RMSprop(model.parameters(), lr=0.01))


def parts(optimizer: Any) -> list[Any]:
    return optimizer if isinstance(optimizer, list) else [optimizer]


def train(model: nn.Module, optimizer: Any, steps: int) -> float:
    """Steps as the optimizer wants them: with a closure, or without one. Returns the largest loss."""
    x, y = data()
    for one in parts(optimizer):
        with contextlib.suppress(AttributeError):
            one.train()
    worst = 0.0
    for _ in range(steps):

        def closure() -> torch.Tensor:
            model.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(model(x), y)
                loss.backward()
            return loss

        loss = closure()
        for one in parts(optimizer):
            try:
                one.step()
            except Exception as error:
                no_closure = "closure" in f"{type(error).__name__} {error}".lower()
                if not no_closure and not isinstance(error, TypeError | ValueError):
                    raise
                one.step(closure)
        worst = max(worst, float(loss.detach()))
        if not torch.isfinite(loss):
            raise ArithmeticError("the loss isn't finite")
    return worst


def reload(model: nn.Module, optimizer: Any, make: Make) -> None:
    """Save and load the state, as a checkpoint does, and go on with a copy."""
    file = io.BytesIO()
    torch.save([one.state_dict() for one in parts(optimizer)], file)
    file.seek(0)
    copied = copy.deepcopy(model)
    other = make(copied)
    # PyTorch loads by position: groups list their parameters as those of the state do, new layers last.
    names = {parameter: name for name, parameter in model.named_parameters()}
    own = dict(copied.named_parameters())
    for one, saved in zip(parts(other), parts(optimizer), strict=True):
        for group, its in zip(one.param_groups, saved.param_groups, strict=True):
            place = {own[names[p]]: number for number, p in enumerate(its["params"])}
            group["params"].sort(key=place.__getitem__)
    for one, state in zip(parts(other), torch.load(file, weights_only=False), strict=True):
        one.load_state_dict(state)
    train(copied, other, 2)


def without_growth(make: Make) -> tuple[float, str | None, bool]:
    """Return the largest loss of the later steps, why it doesn't train, and whether its state can be loaded."""
    try:
        model = net()
        optimizer = make(model)
        train(model, optimizer, BEFORE)
        worst = train(model, optimizer, AFTER)
    except Exception as error:
        return 0.0, f"{type(error).__name__}: {error}", False
    try:
        reload(model, optimizer, make)
    except Exception:
        return worst, None, False
    return worst, None, True


def verdict(make: Make) -> dict[str, Any]:
    """What becomes of one optimizer, and the reason."""
    usual, error, loads = without_growth(make)
    if error is not None:
        return {"verdict": "not counted", "reason": error}
    found = grown(make, "refuse", loads)
    if found["verdict"] == "refused":
        second = grown(make, "restart", loads)
        if second["verdict"] == "refused":
            found["with restart"] = second["reason"]
        else:
            found = {**second, "reason": found["reason"] + second.get("reason", "")}
    if "worst" in found:
        found["worst over usual"] = round(found.pop("worst") / usual, 3)
    return found


def grown(make: Make, on_uncarried_state: Any, loads: bool) -> dict[str, Any]:
    """Grow twice with one optimizer: units, and layers where there is room for them."""
    model = net()
    optimizer = make(model)
    by = "Grower(...)"
    try:
        grower = senn.Grower(
            model,
            optimizer,
            F.cross_entropy,
            policy=TakeAny(),
            on_uncarried_state=on_uncarried_state,
        )
        train(model, optimizer, BEFORE)
        by = "the first growth"
        events = grower.grow([data()])
    except senn.SennError as error:
        return {"verdict": "refused", "by": by, "reason": str(error)}
    if not events:
        return {"verdict": "refused", "by": by, "reason": "nothing could be changed"}
    try:
        worst = train(model, optimizer, AFTER)
        if loads:
            reload(model, optimizer, make)
        try:
            again = grower.grow([data()])
        except senn.SennError as error:
            return {"verdict": "refused", "by": "the second growth", "reason": str(error)}
        train(model, optimizer, AFTER)
        if loads:
            reload(model, optimizer, make)
        if not again:
            raise ArithmeticError("the second growth changed nothing")
    except Exception as error:
        return {"verdict": "fails later", "reason": f"{type(error).__name__}: {error}"}
    kind = "carries" if on_uncarried_state == "refuse" else "restarts"
    return {"verdict": kind, "worst": worst}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    found: dict[str, Any] = {"versions": versions(), "steps": [BEFORE, AFTER], "optimizers": {}}
    if options.out and options.out.exists():
        stored = json.loads(options.out.read_text())
        found = stored if stored["versions"] == found["versions"] else found
    results = found["optimizers"]
    for name, make in classes():
        is_asked = not options.only or any(part in name for part in options.only)
        if not is_asked or name in results:
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            results[name] = one = verdict(make)
        reason = one.get("reason", "").split("\n")[0][:150]
        print(name, one["verdict"], one.get("worst over usual", ""), reason, flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    counts: dict[str, Counter[str]] = {}
    for name, one in results.items():
        package = next(one for one in PACKAGES if name.startswith(one))
        counts.setdefault(package, Counter())[one["verdict"]] += 1
    for package, count in counts.items():
        print(package, dict(count))


def versions() -> dict[str, str]:
    names = (name.partition(".")[0] for name in PACKAGES)
    return {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    main()
