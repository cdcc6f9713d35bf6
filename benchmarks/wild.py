"""Models of public packages, as nobody prepared them: what can change size, whether it does so exactly, what breaks.

    python -m venv wild && wild/bin/pip install -c constraints.txt -e ".[wild]"
    wild/bin/python benchmarks/wild.py [--only TEXT] [--pruning] [--jobs 1] [--limit 600] [--resume]
        [--out benchmarks/results/wild.json]

Each model runs in a process of its own, in a small configuration, in float64, with all parameters and statistics
disturbed so that no zero hides anything. Channel groups are widened by the least number of units, three of them alone
and then all together, compared on a batch of another size, trained for one AdamW step in train mode, and pruned back.
Then a `Grower` makes a round with everything that it may do, another training step follows, and the grown model is
saved and loaded into a fresh small one. `--pruning` adds torch-pruning 1.6.1, called as its README does, at 20 %.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from wild_models import MODELS, Batch
from wild_reasons import is_vague

import senn
from senn import pytree
from senn.graph import ChannelGroup, DependencyGraph
from senn.policies import Candidate, Policy
from senn.surgery import Prune, Widen, transaction

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest relative change of outputs that counts as rounding: some float64 models go through float32 inside."""


PRUNING_LIMIT = 10
"""CPU seconds for torch-pruning, which finds no end in some models."""


class TakeAny(Policy):
    """Accepts one candidate of each kind, whatever it gains: what is offered must work."""

    def choose(  # noqa: D102
        self, candidates: Sequence[Candidate], accepted: Sequence[Candidate]
    ) -> Candidate | None:
        taken = {one.kind for one in accepted}
        left = [one for one in candidates if one.kind not in taken and one.kind != "prune"]
        return max(left, key=lambda one: one.held_out_gain, default=None)


def disturb(model: nn.Module) -> None:
    """Move every parameter and statistic by some noise: zero initializations would hide wrong columns."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel():
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                if "running_var" in name:
                    tensor.mul_(1 + 0.2 * noise.abs())
                elif tensor.requires_grad or "running_mean" in name:
                    tensor.add_(0.05 * noise)


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Make floating-point inputs of one dtype."""

    def converted(n: int) -> Any:
        return pytree.map_leaves(lambda x: x.to(dtype) if x.is_floating_point() else x, batch(n))

    return converted


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model in one dtype; as it is for float32, since a cast would cut complex parameters."""
    return model if dtype == torch.float32 else model.to(dtype)


def output_of(result: Any) -> Tensor:
    """Find the first floating-point tensor of what a model returns."""
    if isinstance(result, Tensor):
        return result
    found = [one for one in pytree.tensor_leaves(result) if one.is_floating_point()]
    return found[0]


def run_model(model: nn.Module, inputs: Any) -> Tensor:
    """Outputs in eval mode."""
    model.eval()
    with torch.no_grad():
        return output_of(pytree.call(model, inputs))


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    """Mean of the squares of the outputs, whatever their shape."""
    return (output.flatten(1) - target).square().mean()


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any) -> None:
    """One step in train mode, over every output that a loss could take."""
    model.train()
    optimizer.zero_grad()
    leaves = pytree.tensor_leaves(pytree.call(model, inputs))
    sum(one.square().mean() for one in leaves if one.requires_grad).backward()
    optimizer.step()
    model.eval()


def widening(model: nn.Module, graph: DependencyGraph, group: ChannelGroup) -> Widen:
    """Widen a group by the least number of units, with random incoming parameters."""
    units, values = group.granularity, {}
    generator = torch.Generator().manual_seed(1)
    for coupled in group.dims_of("producer"):
        if (
            coupled.behind_norm
        ):  # new units there are means of the others, which the norm doesn't see
            continue
        parameter = model.get_parameter(coupled.name)
        shape = list(parameter.shape)
        shape[coupled.dim] = units * coupled.index.shape[1]
        noise = 0.1 * torch.randn(shape, generator=generator)
        values[coupled.name] = noise.to(parameter.dtype)
    return Widen(group.name, units, values)


def widen_and_prune(
    model: nn.Module, graph: DependencyGraph, names: Sequence[str], inputs: Any
) -> tuple[float, DependencyGraph]:
    """Widen groups together, train a step, prune them back; returns the relative change of the outputs."""
    before = run_model(model, inputs)
    shapes = [one.shape for one in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    widths = {name: graph.group(name).width for name in names}
    moves = [widening(model, graph, graph.group(name)) for name in names]
    wider = transaction(model, moves, graph, optimizer=optimizer).graph
    after = run_model(model, inputs)
    training_step(model, optimizer, inputs)
    assert wider is not None
    removals = [
        Prune(name, tuple(range(width, wider.group(name).width))) for name, width in widths.items()
    ]
    graph = transaction(model, removals, wider, optimizer=optimizer).graph or graph
    if [one.shape for one in model.parameters()] != shapes:
        raise AssertionError("pruning back left other shapes")
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-12)), graph


def surgery(model: nn.Module, batch: Batch, found: dict[str, Any]) -> None:
    """Widen groups alone and all together, in a model that is trained in between."""
    graph = senn.analyze(model, batch(2))
    found["groups"], found["blocks"] = len(graph.groups), len(graph.residual_blocks)
    found["points"] = len(graph.insertion_points)
    found["refusals"] = [
        {"place": one.place or "(the model)", "reason": one.reason, "line": one.line}
        for one in graph.refusals
    ]
    found["worst"] = 0.0
    names = [group.name for group in graph.groups]
    found["can_grow"] = any(map(len, graph.changeable))
    if not names:
        return
    tolerance = TOLERANCE[run_model(model, batch(3)).dtype]
    alone = dict.fromkeys(names[number] for number in (0, len(names) // 2, -1))
    for chosen in [*([name] for name in alone), names]:
        change, graph = widen_and_prune(model, graph, chosen, batch(3))
        found["worst"] = max(found["worst"], change)
        if change > tolerance:
            raise AssertionError(f"widening {chosen} changed the outputs by {change:.1e}")


def growth(model: nn.Module, fresh: nn.Module, batch: Batch, found: dict[str, Any]) -> None:
    """A round of a Grower, a training step, and a way through a saved file."""
    inputs = batch(8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    training_step(model, optimizer, inputs)
    outputs = run_model(model, inputs).flatten(1)
    target = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2)).to(outputs)
    grower = senn.Grower(
        model,
        optimizer,
        mean_square,
        TakeAny(),
        samples=1000,
        output=output_of,
        candidate_config=senn.CandidateConfig(units=8, residual_units=4, identity_bases=1),
    )
    if len(pytree.tensor_leaves(inputs)[0]) != len(outputs):
        inputs = batch(len(outputs))
    events = grower.grow([(inputs, target)])
    found["events"] = [f"{one.kind} {one.place}" for one in events]
    training_step(model, optimizer, inputs)
    with tempfile.TemporaryDirectory() as folder:
        senn.save(Path(folder) / "saved", model)
        loaded = senn.load(Path(folder) / "saved", into=fresh)
    other = batch(3)
    change = (run_model(loaded, other) - run_model(model, other)).abs().max()
    found["loaded"] = float(change)
    if float(change) > TOLERANCE[outputs.dtype]:
        raise AssertionError(f"the loaded model's outputs differ by {float(change):.1e}")


def pruned(model: nn.Module, batch: Batch) -> str:
    """torch-pruning as its README calls it, at 20 %: what became of the model."""
    import torch_pruning as tp

    inputs = batch(2)
    example = inputs if isinstance(inputs, Tensor | tuple) else dict(inputs)
    before = sum(one.numel() for one in model.parameters())
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(model, example, importance=importance, pruning_ratio=0.2)
    pruner.step()
    if sum(one.numel() for one in model.parameters()) == before:
        return "nothing pruned"
    try:
        run_model(model, batch(3))
    except Exception as error:
        return f"forward broken: {type(error).__name__}"
    return "pruned"


def examine(name: str, *, pruning: bool) -> dict[str, Any]:
    """Everything about one model, in this process.

    Args:
        name: of the model.
        pruning: True to run torch-pruning beside.

    Returns:
        Figures; `failed` names the stage that raised, with the error.
    """
    chosen = MODELS[name]
    found: dict[str, Any] = {"model": name, "package": chosen.package, "failed": None}
    begin, stage = time.perf_counter(), "build"
    try:
        made = []
        for _ in range(3):
            torch.manual_seed(0)
            model = chosen.model()
            disturb(model)
            made.append(in_precision(model, chosen.dtype).eval())
        model, fresh, victim = made
        batch = in_dtype(chosen.batch, chosen.dtype)
        found["parameters"] = sum(one.numel() for one in model.parameters())
        stage = "surgery"
        surgery(model, batch, found)
        stage = "growth"
        if found["can_grow"]:
            growth(model, fresh, batch, found)
    except Exception as error:
        found["failed"] = stage
        found["error"] = f"{type(error).__name__}: {error}"[:600]
        found["is_refusal"] = isinstance(error, senn.SennError)
        found["where"] = traceback.format_exc().splitlines()[-4:-1]
    found["seconds"] = round(time.perf_counter() - begin, 1)
    if pruning and found["failed"] != "build":
        signal.signal(signal.SIGVTALRM, _give_up)
        signal.setitimer(signal.ITIMER_VIRTUAL, PRUNING_LIMIT)
        try:
            found["torch_pruning"] = pruned(victim, batch)
        except TimeoutError:
            found["torch_pruning"] = f"no end in {PRUNING_LIMIT} s"
        except Exception as error:
            found["torch_pruning"] = f"crash: {type(error).__name__}"
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return found


def _give_up(*_: object) -> None:
    raise TimeoutError


def in_process(name: str, pruning: bool, limit: float) -> dict[str, Any]:
    """Run `examine` in a process of its own.

    Args:
        name: of the model.
        pruning: True to run torch-pruning beside.
        limit: seconds of computing that it may take.
    """
    found: dict[str, Any] = {"model": name, "package": MODELS[name].package}
    # A server that has imported what all need: a fork of it costs no import.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wild", "torch_pruning"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, name, pruning, limit))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:  # the child is gone without a word
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        found |= {
            "failed": "time" if late else "crash",
            "error": f"ended with exit code {child.exitcode}",
        }
    child.join()
    return found


def _send(sender: Connection, name: str, pruning: bool, limit: float) -> None:
    # Of its own computing, so that other processes on the machine don't count.
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with redirect_stdout(io.StringIO()):  # some packages print what they build
        found = examine(name, pruning=pruning)
    sender.send(found)


def vague_places(found: dict[str, Any]) -> int:
    """Count the refused places of a model whose reason is vague."""
    return sum(is_vague(one["reason"], one["line"]) for one in found.get("refusals", ()))


def table(results: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| model | groups | blocks | refused | vague | worst change | a round | saved and loaded | torch-pruning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        failed = one["failed"]
        cells = [
            one["model"],
            one.get("groups", "-"),
            one.get("blocks", "-"),
            len(one.get("refusals", ())),
            vague_places(one),
            f"{one['worst']:.0e}" if "worst" in one else f"{failed}: {one.get('error', '')[:60]}",
            len(one["events"]) if "events" in one else (failed or "-"),
            f"{one['loaded']:.0e}" if "loaded" in one else "-",
            one.get("torch_pruning", "-"),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="models whose name or package has this text")
    parser.add_argument("--pruning", action="store_true", help="run torch-pruning beside")
    parser.add_argument("--resume", action="store_true", help="only models that --out hasn't")
    parser.add_argument("--jobs", type=int, default=1, help="models at once")
    parser.add_argument("--limit", type=float, default=600, help="CPU seconds for one model")
    parser.add_argument("--out", type=Path, help="results as JSON; rows that it has are replaced")
    args = parser.parse_args()
    names = [name for name, one in MODELS.items() if args.only in f"{name} {one.package}"]
    known = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    results = {found["model"]: found for found in known if found["model"] in MODELS}
    names = [name for name in names if not (args.resume and name in results)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for found in pool.map(lambda name: in_process(name, args.pruning, args.limit), names):
            results[found["model"]] = found
            state = found["failed"] or "fine"
            print(f"{found['model']}: {state} {found.get('error', '')[:150]}", flush=True)
            if args.out:  # after each model, so that a run that is stopped has cost nothing
                rows = [results[name] for name in MODELS if name in results]
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table([results[name] for name in MODELS if name in results]))


if __name__ == "__main__":
    main()
