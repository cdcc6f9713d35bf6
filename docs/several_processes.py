"""Write docs/several_processes.md: how several processes grow one network, and what that costs.

    python docs/several_processes.py

Measured numbers come from benchmarks/results/communication.json, calculated ones from the formulas here, which stand on
the page beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
STORED = HERE.parent / "benchmarks" / "results" / "communication.json"

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

`python benchmarks/communication.py --out benchmarks/results/communication.json`

<!-- measured -->

`calculated` is 2 (W - 1) / W times 4 bytes times 2 folds of (c + p)² + m (c + p) + m² numbers for each map of c
columns, p candidate columns and m outputs; it counts the columns of layers before convolutions there too, whose sums
are apart and smaller. The ranks share the passes and the elimination.

## What it would cost at scale

Nothing here is measured. A decoder of width d has 12 d² parameters per layer: maps of d to 3 d, d to d, d to 4 d and 4
d to d columns. The embedding and the output layer are excluded by `ignore`, since S of a vocabulary fits nowhere.
Assumed are {passes:,.0f} Tflop/s per GPU for passes (of {peak:,.0f}, at a utilization of 0.4), {products:.0f} for
products, {double:.0f} in float64, {link:.0f} GB/s between GPUs and {memory:.0f} GB of memory. A growth round
observes {tokens:,} tokens in sequences of {length:,}; a training step has {steps} tokens for the two sizes. With n
tokens on a GPU, W GPUs, q parameters, and for each map c, p, m as above:

| | |
| --- | --- |
| passes | 8 q n flops: forward, two backward passes to the outputs of maps, forward of the copy |
| products | 2 m (c + p) n + 2 m² n + 2 (c + p)² r / W flops, with r rows in A: 8 per column, at most all |
| elimination | c³ + m³ / 3 + 6 c² p + 2 m c² + 2 m² (c + p) flops in float64 |
| factors | M = 2 ((c + p)² + m (c + p) + m²) numbers |
| kept samples | K = 2 · 64 · min(2 m (c + p), 2,048 (2 m + c + p)) numbers |
| sent | 4 (2 M + K) (W - 1) / W bytes |
| memory | 12 M + 4 K bytes, and 16 q for the model with Adam's state and gradients, if it was sharded |
| training step | 6 q flops per token |

Per GPU:

<!-- costs -->

So a model of 10 B doesn't fit whole into a GPU. `full_parameters` is for those that do; larger ones would have to be
scored while they are sharded, block by block, which isn't implemented. The factors are the smaller part: the
per-sample quantities, kept for exact curvatures along a step, outgrow everything, and they are what doesn't fit. In the
table below each row adds one approximation to those above it; cells give the share of training time with a growth round
every {every:,} steps, and the memory that a GPU needs besides the model.

<!-- remedies -->

None of these is implemented yet; each changes where numbers are, or how many, not what they mean:

- *Kept samples stay where they are*: a step's curvature is a sum over samples, so ranks need to exchange one number per
  candidate, not the samples.
- *Each rank eliminates for some maps*: factors are reduced to one owner (half the bytes), which holds the only float64
  copies and factorizations.
- *bfloat16*: a sum of W rounded sums has a relative error of about 2⁻⁹ / √W, far below the standard error of a gain.
- *Fewer sequences and heads*: 8 sequences of 2,048 tokens are still 16,384 rows, and a head counts as many columns as
  it has units.
- *An eighth of the maps per round*: groups take turns, so each is scored every {turn:,} steps.
- Rarer rounds cost only patience: all shares fall as the steps between rounds grow.
"""


@dataclass(frozen=True)
class Machine:
    """What the hardware does, per GPU.

    Attributes:
        passes: flops a second of forward and backward passes (bfloat16, of a peak of 1,000 Tflop/s).
        products: flops a second of sums of outer products, accumulated in float32.
        double: flops a second of factorizations in float64.
        link: bytes a second to the other GPUs.
        memory: bytes available.
    """

    passes: float = 0.4 * 1000e12
    products: float = 200e12
    double: float = 30e12
    link: float = 50e9
    memory: float = 80e9


@dataclass(frozen=True)
class Transformer:
    """A decoder of `layers` blocks of width d, without embedding and output layer.

    Attributes:
        step: tokens per training step.
    """

    name: str
    layers: int
    d: int
    step: int

    @property
    def parameters(self) -> int:
        """Parameters of all blocks."""
        return 12 * self.layers * self.d**2

    def maps(self) -> list[tuple[int, int, int]]:
        """Existing columns, candidate columns and outputs of each linear map: 64 candidates per group.

        The residual stream's candidates are columns of the maps that read it, the feed-forward layer's are columns of
        its second map; 64 candidate heads of 64 units are columns of the projection.
        """
        d = self.d
        return self.layers * [(d, 64, 3 * d), (d, 64 * 64, d), (d, 64, 4 * d), (4 * d, 64, d)]


@dataclass(frozen=True)
class Setting:
    """How a growth round is carried out.

    Attributes:
        tokens: tokens observed by all ranks together.
        length: tokens per sequence.
        kept: sequences of each fold that are kept one by one.
        gathered: True if every rank receives all kept sequences; else each keeps its own, and sums are sent.
        sharded: True if the factors and gains of each map are on one rank only.
        share: fraction of the maps that a round scores.
        heads: candidate heads, of 64 columns each.
        number: bytes per number sent.
        every: training steps between rounds.
    """

    tokens: int
    length: int = 2048
    kept: int = 64
    gathered: bool = True
    sharded: bool = False
    share: float = 1.0
    heads: int = 64
    number: int = 4
    every: int = 1000


@dataclass(frozen=True)
class Cost:
    """Cost of one growth round, per GPU.

    Attributes:
        passes: flops of forward and backward passes.
        products: flops of sums of outer products.
        elimination: flops of factorizations and solves.
        sent: bytes sent.
        memory: bytes held, the model included.
        model: bytes of the whole model with Adam's state.
        seconds: seconds of passes, products, sending and elimination.
        step: seconds per training step.
    """

    passes: float
    products: float
    elimination: float
    sent: float
    memory: float
    model: float
    seconds: tuple[float, float, float, float]
    step: float

    def share(self, every: int) -> float:
        """Share of the training time with a round every so many steps."""
        return sum(self.seconds) / (every * self.step)


def cost(net: Transformer, gpus: int, setting: Setting, machine: Machine) -> Cost:
    """Compute what a growth round costs, by the formulas of the page."""
    maps = [(c, p * setting.heads // 64 if p > 64 else p, m) for c, p, m in net.maps()]
    own = setting.tokens / gpus  # tokens that a GPU looks at
    # forward 2, two backward passes to the maps' outputs 2 each, the copy forward 2, per parameter and token
    passes = 8 * net.parameters * own
    products = factors = kept = elimination = 0.0
    for c, p, m in maps:
        wide = c + p
        rows = min(max(2048, 8 * wide), setting.tokens / 2) * 2  # rows that enter A, both folds
        products += 2 * m * wide * own + 2 * m * m * own + 2 * wide * wide * rows / gpus
        factors += 2 * (wide * wide + m * wide + m * m)
        a_sample = min(
            2 * m * wide, setting.length * (2 * m + wide)
        )  # sums over its locations, or its rows
        kept += 2 * setting.kept * a_sample
        # Cholesky of A three times (all samples and each fold) and of S, solves for the new columns and for G
        elimination += (
            3 * c**3 / 3 + m**3 / 3 + 3 * 2 * c * c * p + 2 * m * c * c + 2 * m * m * wide
        )
    products, factors, kept, elimination = (
        setting.share * x for x in (products, factors, kept, elimination)
    )
    ring = (gpus - 1) / gpus
    sent = setting.number * factors * ring * (1 if setting.sharded else 2)
    sent += 4 * kept * ring if setting.gathered else 0.0
    held = factors / gpus if setting.sharded else factors
    # float32 factors, their float64 copies, what is kept
    memory = 4 * factors + 8 * held + 4 * (kept if setting.gathered else kept / gpus)
    elimination = elimination / gpus if setting.sharded else elimination
    seconds = (
        passes / machine.passes, products / machine.products, sent / machine.link, elimination / machine.double
    )  # fmt: skip
    model = 16.0 * net.parameters  # float32 weights, Adam's two factors, gradients
    step = 6 * net.parameters * net.step / gpus / machine.passes
    return Cost(passes, products, elimination, sent, memory + model, model, seconds, step)


NETS = (Transformer("100 M", 12, 832, 1 << 20), Transformer("10 B", 40, 4608, 4 << 20))
GPUS = (8, 512)
PLAIN = Setting(tokens=1 << 20)
SPREAD = replace(PLAIN, gathered=False, sharded=True)
STEPS = (
    ("as it is", PLAIN),
    ("kept samples stay where they are", replace(PLAIN, gathered=False)),
    ("and each rank eliminates for some maps", SPREAD),
    ("and sums are sent in bfloat16", replace(SPREAD, number=2)),
    ("and 8 sequences are kept, 4 heads sampled", replace(SPREAD, number=2, kept=8, heads=4)),
    ("and an eighth of the maps per round", replace(SPREAD, number=2, kept=8, heads=4, share=1 / 8)),
)  # fmt: skip


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


def measured() -> Iterator[str]:
    """Yield the table of what was counted and timed."""
    found = json.loads(STORED.read_text())
    rows = []
    for net in found["nets"]:
        one = net["worlds"][0]
        for world in net["worlds"]:
            sent, ranks = world["sent"], world["ranks"]
            whole = sum(sent.values())
            rows.append(
                (
                    net["net"], f"{net['parameters']:,}", ranks,
                    size(sent.get("sum the moments", 0.0)) if ranks > 1 else "",
                    size(world["calculated"]) if ranks > 1 else "",
                    size(sent.get("gather the kept samples", 0.0)) if ranks > 1 else "",
                    f"{whole / net['parameters']:,.0f}" if ranks > 1 else "",
                    f"{world['look_seconds']:.3f}", f"{world['look_seconds'] / one['look_seconds']:.2f}",
                    f"{world['seconds'] - world['look_seconds']:.3f}",
                )
            )  # fmt: skip
    head = (
        "net", "parameters", "ranks", "factors sent", "calculated", "kept samples sent", "bytes per parameter",
        "observe, s", "of one rank's", "score, s",
    )  # fmt: skip
    yield table(head, rows)
    yield (
        f"\nPer rank, in one growth round of {found['samples']:,} samples; seconds are CPU time of the slowest "
        f"rank, medians of {found['repeats']}, PyTorch {found['torch']}.\n"
    )


def costs(machine: Machine) -> Iterator[str]:
    """Yield the table of costs at scale."""
    rows = []
    for net in NETS:
        for gpus in GPUS:
            one = cost(net, gpus, PLAIN, machine)
            passes, products, sending, elimination = map(seconds, one.seconds)
            total = sum(one.seconds)
            rows.append(
                (
                    net.name, gpus, f"{one.passes + one.products + one.elimination:.2g}", size(one.sent),
                    size(one.memory), size(one.model), passes, products, sending, elimination, seconds(one.step),
                    f"{total / one.step:,.1f}", percent(one.share(PLAIN.every)),
                )
            )  # fmt: skip
    head = (
        "parameters", "GPUs", "flops", "sent", "memory", "of it model and Adam", "passes", "products", "sending",
        "elimination", "training step", "in steps", f"share, every {PLAIN.every:,} steps",
    )  # fmt: skip
    yield table(head, rows) + "\n"


def remedies(machine: Machine) -> Iterator[str]:
    """Yield the table of approximations."""
    rows = []
    for name, setting in STEPS:
        cells: list[object] = [name]
        for net in NETS:
            for gpus in GPUS:
                one = cost(net, gpus, setting, machine)
                fits = "" if one.memory - one.model < machine.memory else ", too much"
                cells.append(
                    f"{percent(one.share(setting.every))}; {size(one.memory - one.model)}{fits}"
                )
        rows.append(cells)
    yield table(("", *(f"{net.name}, {gpus}" for net in NETS for gpus in GPUS)), rows) + "\n"


def page(machine: Machine) -> str:
    """Fill in the whole page."""
    parts = {"measured": measured(), "costs": costs(machine), "remedies": remedies(machine)}
    text = TEXT.format(
        passes=machine.passes / 1e12, peak=machine.passes / 0.4e12, products=machine.products / 1e12,
        double=machine.double / 1e12, link=machine.link / 1e9, memory=machine.memory / 1e9, tokens=PLAIN.tokens,
        length=PLAIN.length, steps=" and ".join(f"{net.step:,}" for net in NETS), every=PLAIN.every,
        turn=8 * PLAIN.every,
    )  # fmt: skip
    for name, found in parts.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(found))
    return text


if __name__ == "__main__":
    (HERE / "several_processes.md").write_text(page(Machine()))
