"""Write docs/several_processes.md: how several processes grow one network, and what that costs.

    python docs/several_processes.py

Measured numbers come from benchmarks/results/communication.json, calculated ones from the formulas here, which stand on
the page beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scale_costs import GPUS, NETS, PLAIN, STEPS, Machine, cost, map_cost, select

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "results" / "communication.json"

EXCHANGES = 30
"""Exchanges of a round in which owners would ask for sums over samples.

Five for each kind of candidate (two lengths, two values and what both folds agree on), three kinds, and twice over.
"""

TEXT = """# Several processes

Written by `python docs/several_processes.py`.

The processes of one `torch.distributed` group grow one network together. All ranks make the same calls, each with its
own batches, and all end with the same network and the same optimizer state:

```python
import senn.distributed

model = DistributedDataParallel(net)  # or fully_shard(net), or gradients summed by hand
grower = senn.Grower(model, optimizer, F.cross_entropy)  # finds the process group by itself
...
events = grower.grow(recent_batches)  # on every rank
model = senn.distributed.rewrap_ddp(model)  # DistributedDataParallel follows the grown network
```

```python
with senn.distributed.full_parameters(model, optimizer):  # for fully_shard: whole inside
    events = grower.grow(recent_batches)
```

`torchrun --nproc-per-node 2 examples/ddp_loop.py` is a complete loop. `torchrun --nproc-per-node 2 -m senn fit digits`
trains in several processes: each computes its part of every batch, and rank 0 prints and writes. By default a `Grower`
uses all processes; `communicator=senn.collectives.Communicator()` makes it ignore the others, and
`communicator=senn.collectives.ProcessGroupCommunicator(group)` uses those of one group.

## How it works

- **One global batch.** The batches of all ranks are concatenated in the order of ranks and permuted by one random
  permutation, which every rank draws from the same generator. Folds, kept samples, random signs and sampled locations
  follow that order, so all figures equal those of one process that sees the whole batch: to 1e-8 in float64, however
  the samples are spread, even if some ranks have none.
- **Candidates** are sampled from the first 128 samples, which every rank receives. New BatchNorm channels take their
  statistics from the first 1,024, which also verify the change.
- **Kronecker factors are sums.** Each rank accumulates those of its own samples. Once per round they are summed, each
  on the rank that owns the map, and the samples that are kept one by one go there as well. Of covariances, one triangle
  is sent.
- **One owner for each map.** It alone factorizes, eliminates and scores; all ranks receive the scored candidates and
  what surgery needs. Owners are chosen so that all ranks have about as much to compute.
- **One decision.** Rank 0's policy chooses, and all receive the numbers of its
  moves. Before that, all ranks compare their weights bit by bit, and their dependency graphs, generators, policies and
  budgets; afterwards, the weights again. A change that fails verification on one rank is rolled back on all.
- **Failures name a rank.** Before a collective operation, all ranks meet in the group's store. If one is missing for 45
  seconds, has failed, differs, or is at another operation, all of them raise one error that names it.

## Requirements and limits

- Losses must be means over samples. If one divides by something else (class weights, ignored targets), it is averaged
  over ranks, as in DistributedDataParallel.
- From a growth round on, buffers are rank 0's, as in DistributedDataParallel. `senn fit` averages the running
  statistics of BatchNorms. BatchNorms normalize by each rank's own part of a batch, so a network with BatchNorms trains
  slightly differently than in one process.
- A batch that is scored in chunks (more than 65,536 rows of a map) is cut into chunks that are larger by the number of
  ranks, as one process with that limit would cut it. Beyond 67 million random signs, each rank draws its own.
- Every rank needs at least an empty batch, whose shape it can read.
- Inside `full_parameters`, each rank needs memory for the whole model and its optimizer state. CPU offloading, tensor
  parallelism and sharding along other dimensions than the first are refused by name, as is `DistributedDataParallel`
  with `mixed_precision`.
- `natural-gradient` runs in one process only.
- If a signal, a failure or a lost process ends a run of `senn fit`, `senn fit --resume` continues from its last
  checkpoint in any number of processes, and bit for bit in as many as before. The first checkpoint is written after 20
  seconds, or at a signal; a run that loses a process earlier has to start again.

## What is sent

`python benchmarks/communication.py --before TREE --out benchmarks/results/communication.json`, where `TREE` is a
checkout of the version before linear maps had owners

<!-- measured -->

`calculated` is (W - 1) / W times 2 folds of (c + p) (c + p + 1) / 2 + m (c + p) + m (m + 1) / 2 numbers for each map of
c columns, p candidate columns and m outputs, and the sums of 1 / W of them once more, on their way to the owner; it
counts the columns of layers before convolutions there too, whose sums are apart and smaller. Before, a sum went to all
ranks, as whole matrices, and so did every kept sample.

With `RoundConfig`:

<!-- settings -->

<!-- decisions -->

## What it would cost at scale

No machine of this size was at hand: what follows is calculated, from formulas whose bytes the table above confirms. A
decoder of width d has 12 d² parameters per layer: maps of d to 3 d, d to d, d to 4 d and 4 d to d columns. The
embedding and the output layer are excluded by `ignore`. Candidates are as many as `CandidateConfig` makes by default:
64 heads of 64 units, {ffn} units of a feed-forward layer (in the two sizes), 16 units of a layer before each map.

Measured are the ratio of bytes sent to bytes calculated ({ratio:.3f}, of the decoder above in four processes), the
number of meetings in a round without a change ({meetings}), and the time of a meeting in the store: {store_8} for 8
ranks, {store_512} for 512, of CPU time of the server and all clients on one core, where rank 0 joins the messages; it
was {flat_512} when each rank read them all. Assumed are {passes:,.0f} Tflop/s per GPU for passes (of {peak:,.0f}, at a
utilization of 0.4), {products:.0f} for products, {double:.0f} in float64, {link:.0f} GB/s between GPUs,
{latency:.0f} µs for a small operation of the group, and {memory:.0f} GB of memory. A growth round observes {tokens:,}
tokens in sequences of {length:,}; a training step has {steps} tokens for the two sizes. With n tokens on a GPU, W GPUs,
q parameters, and for each map c, p, m as above:

| | |
| --- | --- |
| passes | 8 q n flops: forward, two backward passes to the outputs of maps, forward of the copy |
| products | 2 m (c + p) n + 2 m² n + 2 (c + p)² r / W flops, with r rows in A: 8 per column, at most all |
| elimination | c³ + m³ / 3 + 6 c² p + 2 m c² + 2 m² (c + p) flops in float64; 1 / W of all maps, or the largest one |
| factors | N = 2 ((c + p)² / 2 + m (c + p) + m² / 2) numbers |
| kept samples | K = 2 · 8 · min(8 m (c + p), 2,048 (4 (c + p) + 4 m)) bytes: 8 or 9 sequences a fold |
| received | (W - 1) / W · 4 N, 4 N / W once more and K / W, or of the largest map 4 N and K |
| meetings | two small operations of the group each, or one meeting in the store |
| memory | 4 bytes a number of all factors, and again while they are sent; of own maps 12, and K; 16 q for the model |
| training step | 6 q flops per token |

Per GPU, as it is, with meetings in the group:

<!-- costs -->

In the table below each row adds something to those above it; cells give the share of training time with a growth round
every {every:,} steps, and the memory that a GPU needs besides the model.

<!-- remedies -->

- *One owner for each map*: the default. All figures are those of one process.
- *Meetings in the group*: `ProcessGroupCommunicator(meets_in="group")`. A store serves one rank after the other, so
  with hundreds of ranks it alone costs more than all else. In the group, a rank that has ended is noticed by the
  group's timeout.
- *256 candidate columns*: `CandidateConfig(max_columns=256)`, four heads instead of 64, each of which counts as many
  columns as it has units.
- *An eighth of the maps per round*: `RoundConfig(maps_per_round=1/8)`. Groups take turns, so each is scored every
  {turn:,} steps. What eta says is then about the maps in turn.
- Rarer rounds cost only patience: all shares fall as the steps between rounds grow.

*Why kept samples don't stay where they are.* A step's curvature is a sum over samples, so owners could send steps and
get sums back. But each rank would need what the existing columns predict of the candidates, 2 c p numbers a map, and
every choice an exchange in which all ranks take part. For 100 M parameters on 512 GPUs, with 64 heads, that is
{predicted} to every rank instead of {kept} to the owner of the largest map, and some {exchanges} exchanges of
{latency:.0f} µs. That saves little where samples are few, and they are: each is sent once, to one rank.

*Why sums aren't sent in bfloat16.* Covariances are inverted: of one that is rounded to 8 bits the smallest eigenvalues
are negative, far beyond any damping, and a round ends there. Gradients alone can be sent so,
`RoundConfig(reduce_dtype=torch.bfloat16)`, but what a candidate adds is a small difference of large gradients, divided
by small eigenvalues: the decisions above differ, and rounding passes for gain. It saves little and is off by default.

*What isn't solved.* A model of 10 B doesn't fit whole into a GPU. `full_parameters` is for those that do; larger ones
would have to be scored while they are sharded, block by block, which isn't implemented.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def size(number: float) -> str:
    """Format a number of bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def percent(share: float) -> str:
    """Format a share of training time with two digits."""
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"


def seconds(number: float) -> str:
    """Format a number of seconds."""
    return f"{number:.3g} s" if number >= 0.1 else f"{1000 * number:.2g} ms"


def measured(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what was counted and timed."""
    rows = []
    for net in found["nets"]:
        before = select(net, "before", "as it is")
        now = select(net, "now", "as it is")
        for old, new in zip(before, now, strict=True):
            is_one = new["ranks"] == 1
            sent = [
                "" if is_one else size(world["sent"].get(action, 0.0))
                for action in ("sum the moments", "gather the kept samples")
                for world in (old, new)
            ]
            rows.append(
                (
                    net["net"], f"{net['parameters']:,}", new["ranks"], *sent[:2],
                    "" if is_one else size(new["calculated"]), *sent[2:],
                    f"{old['look_seconds']:.3f}", f"{new['look_seconds']:.3f}",
                    f"{old['seconds'] - old['look_seconds']:.3f}", f"{new['seconds'] - new['look_seconds']:.3f}",
                )
            )  # fmt: skip
    head = (
        "net", "parameters", "ranks", "factors sent, before", "now", "calculated", "kept samples sent, before", "now",
        "observe, s, before", "now", "score, s, before", "now",
    )  # fmt: skip
    yield table(head, rows)
    yield (
        f"\nPer rank, in the mean, in one growth round; seconds are CPU time of the slowest rank, medians of "
        f"{found['repeats']}, PyTorch {found['torch']}, all in one run.\n"
    )


def settings(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what settings make of it."""
    rows = []
    names = list(dict.fromkeys(one["setting"] for one in found["nets"][0]["worlds"]))
    for net in found["nets"]:
        worlds = [select(net, "now", name, 2)[0] for name in names]
        cells = [f"{size(sum(one['sent'].values()))}, {one['seconds']:.2f} s" for one in worlds]
        rows.append((net["net"], *cells))
    yield table(("net", *names), rows) + "\n"
    yield "All that each of two ranks sends, in the mean, and CPU time of the whole round."


def decisions(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what bfloat16 does to decisions."""
    pairs = []
    for net in found["nets"]:
        plain, short = (
            select(net, "now", name, 2)[0]["decisions"]
            for name in ("as it is", "gradients in bfloat16")
        )
        same = sum(one == other for one, other in zip(plain, short, strict=False))
        pairs.append((net["net"], plain == short, same, len(plain), len(short)))
    equal = sum(one[1] for one in pairs)
    yield f"Decisions of a round with gradients in bfloat16 are those without for {equal} of {len(pairs)} nets:\n"
    for name, _, same, plain, short in pairs:
        yield f"- {name}: {plain} changes, {short} with bfloat16; the first {same} in order are the same"


def costs(machine: Machine) -> Iterator[str]:
    """Yield the table of costs at scale."""
    rows = []
    for net in NETS:
        for gpus in GPUS:
            one = cost(net, gpus, PLAIN, machine)
            rows.append(
                (
                    net.name, gpus, f"{one.flops:.2g}", size(one.received), size(one.memory), size(one.model),
                    *map(seconds, one.seconds), seconds(one.step), f"{sum(one.seconds) / one.step:,.1f}",
                    percent(one.share(PLAIN.every)),
                )
            )  # fmt: skip
    head = (
        "parameters", "GPUs", "flops", "received", "memory", "of it model and Adam", "passes", "products", "sending",
        "elimination", "meetings", "training step", "in steps", f"share, every {PLAIN.every:,} steps",
    )  # fmt: skip
    yield table(head, rows) + "\n"


def remedies(machine: Machine) -> Iterator[str]:
    """Yield the table of what makes rounds cheaper."""
    rows = []
    for name, setting in STEPS:
        cells: list[object] = [name]
        for net in NETS:
            for gpus in GPUS:
                one = cost(net, gpus, setting, machine)
                own = one.memory - one.model
                fits = "" if own < machine.memory else ", too much"
                cells.append(f"{percent(one.share(setting.every))}; {size(own)}{fits}")
        rows.append(cells)
    yield table(("", *(f"{net.name}, {gpus}" for net in NETS for gpus in GPUS)), rows) + "\n"


def page(found: Mapping[str, Any]) -> str:
    """Fill in the whole page."""
    machine = Machine.measured(found)
    parts = {
        "measured": measured(found),
        "settings": settings(found),
        "decisions": decisions(found),
        "costs": costs(machine),
        "remedies": remedies(machine),
    }
    small = NETS[0]
    kept = max(map_cost(c, p, m, 512, PLAIN).kept for c, p, m in small.maps(64))
    text = TEXT.format(
        passes=machine.passes / 1e12, peak=machine.passes / 0.4e12, products=machine.products / 1e12,
        double=machine.double / 1e12, link=machine.link / 1e9, memory=machine.memory / 1e9, tokens=PLAIN.tokens,
        length=PLAIN.length, steps=" and ".join(f"{net.step:,}" for net in NETS), every=PLAIN.every,
        turn=8 * PLAIN.every, ffn=" and ".join(str(net.hidden_candidates) for net in NETS), ratio=machine.ratio,
        meetings=machine.meetings, latency=machine.latency * 1e6, store_8=seconds(machine.store["one joins"][8]),
        store_512=seconds(machine.store["one joins"][512]), flat_512=seconds(machine.store["each reads all"][512]),
        predicted=size(4 * sum(2 * c * p for c, p, _ in small.maps(64))), kept=size(kept), exchanges=EXCHANGES,
    )  # fmt: skip
    for name, lines in parts.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    return text


if __name__ == "__main__":
    (HERE / "several_processes.md").write_text(page(json.loads(STORED.read_text())))
