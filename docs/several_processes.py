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

Processes of one `torch.distributed` group grow one network together. All of them make the same calls, each with its
own batches, and all end with the same network and the same optimizer state:

```python
import senn.distributed

model = DistributedDataParallel(net)  # or fully_shard(net), or gradients summed by hand
grower = senn.Grower(model, optimizer, F.cross_entropy)  # knows of the processes by itself
...
events = grower.grow(recent_batches)  # on every rank
model = senn.distributed.rewrap(model)  # DistributedDataParallel follows the grown network
```

```python
with senn.distributed.gathered(model, optimizer):  # fully_shard: whole for the moment, then sharded as before
    events = grower.grow(recent_batches)
```

`torchrun --nproc-per-node 2 examples/ddp_loop.py` is a whole loop. `torchrun --nproc-per-node 2 -m senn fit digits`
trains in several processes: each computes its part of every batch, the first one speaks and writes. `Grower(...,
ranks=Ranks())` grows in one process alone, `ranks=senn.collectives.Processes(group)` in those of one group.

## How it works

- **One joint batch.** The batches of all ranks, one after the other, are put into one random order, which every rank
  draws from the same generator. Folds, kept samples, random signs and locations follow that order, so that the
  figures are those of one process that sees the joined batch: to 1e-8 in float64, for any spread of the samples,
  ranks without any included.
- **Candidates** are drawn from the first 128 samples, which every rank gets. New BatchNorm channels take their
  statistics from the first 1,024, on which the change is verified too.
- **Moments are sums**: each rank has those of its own samples, and they are summed once, when the window of looking
  closes. What is kept sample by sample is gathered then.
- **One decision.** All ranks have the same accounts; the first one's policy chooses, and all get the numbers of its
  moves. Before it, the weights of all ranks are compared bit by bit, and their structures, generators, policies and
  budgets; after it, the weights again. A change that fails its verification on one rank is taken back on all.
- **A clear end.** Before anything is sent all ranks meet in the group's store. One that is missing for 45 seconds,
  has failed, differs or does something else ends all of them with one sentence that names it.

## What it asks for

- Losses that are means over samples. One that divides by something else (class weights, ignored targets) is averaged
  over ranks, as by DistributedDataParallel.
- Buffers are those of the first rank from a consideration on, as DistributedDataParallel has them. `senn fit` takes
  the mean of the running statistics of BatchNorms; they normalise by the statistics of each rank's own part, so that
  a network with BatchNorms trains a little differently than in one process.
- A batch that is looked at in parts (more than 65,536 rows of a map) is cut into parts that are larger by the number
  of ranks: as one process would with that limit. Beyond 67 million signs each rank draws its own.
- Every rank needs at least an empty batch, to know its shape.
- For `gathered`, each rank must have room for the whole model with its optimizer states. CPU offloading, tensor
  parallelism, and sharding along other dimensions than the first are refused by name, as is `DistributedDataParallel`
  with `mixed_precision`.
- `natural-gradient` steps in one process only.
- A run of `senn fit` that a signal, a failure or a lost process ends goes on from its last checkpoint with `senn fit
  --resume`, in any number of processes; in as many as before, bit for bit. The first checkpoint is made after
  20 seconds, or at a signal; a run that loses a process before is begun again.

## What is sent

`python benchmarks/communication.py --out benchmarks/results/communication.json`

<!-- measured -->

`calculated` is 2 (W - 1) / W times 4 bytes times 2 folds of (c + p)² + m (c + p) + m² numbers for each map of c
columns, p candidate columns and m outputs; it counts the columns of layers before convolutions there too, whose sums
are apart and smaller. Looking is shared by the ranks; the accounts are not: every rank computes all of them.

## What it would cost at scale

Nothing here is measured. A decoder of width d has 12 d² parameters a layer: maps of d to 3 d, d to d, d to 4 d and 4
d to d columns; embedding and output layer are left out by `ignore`, since S of a vocabulary has no place anywhere.
Assumed are {passes:,.0f} Tflop/s a GPU for passes (of {peak:,.0f}, at a utilisation of 0.4), {products:.0f} for
products, {double:.0f} in float64, {link:.0f} GB/s between GPUs and {memory:.0f} GB of memory. A consideration looks
at {tokens:,} tokens in sequences of {length:,}; a training step is of {steps} tokens for the two sizes. With n tokens
on a GPU, W GPUs, q parameters, and for each map c, p, m as above:

| | |
| --- | --- |
| passes | 8 q n flops: forward, two backward passes to the outputs of maps, forward of the copy |
| products | 2 m (c + p) n + 2 m² n + 2 (c + p)² r / W flops, r rows entering A: 8 a column, at most all |
| accounts | c³ + m³ / 3 + 6 c² p + 2 m c² + 2 m² (c + p) flops in float64 |
| moments | M = 2 ((c + p)² + m (c + p) + m²) numbers |
| kept samples | K = 2 · 64 · min(2 m (c + p), 2,048 (2 m + c + p)) numbers |
| sent | 4 (2 M + K) (W - 1) / W bytes |
| memory | 12 M + 4 K bytes, and 16 q for the model with Adam's states and gradients, if it was sharded |
| a step | 6 q flops a token |

By GPU:

<!-- costs -->

So a model of 10 B doesn't fit whole into a GPU: `gathered` is for those that do, and beyond them the sharded model
would have to be looked at as it is, block by block, which isn't built. The sums are the smaller part: what is kept
sample by sample, for exact curvatures along a step, outgrows everything, and it is what doesn't fit. Below, each row
adds one approximation to those above it; cells are the share of training time with a consideration every {every:,}
steps, and the memory that a GPU needs beside the model.

<!-- remedies -->

None of these is built yet; each changes where numbers are, or how many, and not what they mean:

- *Kept samples stay where they are*: a step's curvature is a sum over samples, so that ranks need to exchange one
  number a candidate, not the samples.
- *Each rank has the accounts of some maps*: sums go to one owner (half the bytes), whose float64 copies and
  factorisations are the only ones.
- *bfloat16*: a sum of W rounded sums has a relative error of about 2⁻⁹ / √W, far below a promise's standard error.
- *Fewer sequences and heads*: 8 sequences of 2,048 tokens are still 16,384 rows, and a head counts as many columns as
  it has units.
- *An eighth of the maps a round*: spaces take turns, and so each is considered every {turn:,} steps.
- Considering rarely costs nothing but patience: all shares fall as the steps between considerations grow.
"""


@dataclass(frozen=True)
class Machine:
    """What the hardware does, per GPU.

    Attributes:
        passes: flops a second of forward and backward passes (bfloat16, of a peak of 1,000 Tflop/s).
        products: of sums of outer products in float32 accumulation.
        double: of factorisations in float64.
        link: bytes a second to the other GPUs.
        memory: bytes.
    """

    passes: float = 0.4 * 1000e12
    products: float = 200e12
    double: float = 30e12
    link: float = 50e9
    memory: float = 80e9


@dataclass(frozen=True)
class Transformer:
    """A decoder of `layers` blocks of width d; embedding and output layer are left out by `ignore`.

    Attributes:
        step: tokens of a training step.
    """

    name: str
    layers: int
    d: int
    step: int

    @property
    def parameters(self) -> int:
        """Of all blocks."""
        """Of all blocks."""
        """Of all blocks."""
        """Of all blocks."""
        return 12 * self.layers * self.d**2

    def maps(self) -> list[tuple[int, int, int]]:
        """Existing columns, candidate columns and outputs of each linear map: 64 candidates for each space.

        The stream's candidates are columns of what reads it, those of the feed-forward layer of the second map there;
        64 candidate heads of 64 units are columns of the projection.
        """
        d = self.d
        return self.layers * [(d, 64, 3 * d), (d, 64 * 64, d), (d, 64, 4 * d), (4 * d, 64, d)]


@dataclass(frozen=True)
class Look:
    """How a consideration is done.

    Attributes:
        tokens: looked at, of all ranks.
        length: of a sequence.
        kept: sequences of each fold that are kept one by one.
        gathered: whether every rank gets all that are kept; else each keeps its own, and sums of numbers are sent.
        sharded: whether each map has its sums and its account on one rank only.
        share: of the maps that a consideration looks at.
        heads: candidate heads; fewer columns than 64 of them have.
        number: bytes of a number that is sent.
        every: training steps from one to the next.
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
    """Of one consideration, by GPU.

    Attributes:
        passes: flops of forward and backward passes.
        products: flops of sums of outer products.
        account: flops of factorisations.
        sent: bytes.
        memory: bytes, of which the whole model with Adam's states is `model`.
        model: bytes.
        seconds: of passes, products, sending and accounts.
        step: seconds of a training step.
    """

    passes: float
    products: float
    account: float
    sent: float
    memory: float
    model: float
    seconds: tuple[float, float, float, float]
    step: float

    def share(self, every: int) -> float:
        """Of the training time."""
        return sum(self.seconds) / (every * self.step)


def cost(net: Transformer, gpus: int, look: Look, machine: Machine) -> Cost:
    """What a consideration costs; the formulas of the page."""
    maps = [(c, p * look.heads // 64 if p > 64 else p, m) for c, p, m in net.maps()]
    own = look.tokens / gpus  # tokens that a GPU looks at
    # forward 2, two backward passes to the maps' outputs 2 each, the copy forward 2, per parameter and token
    passes = 8 * net.parameters * own
    products = moments = kept = account = 0.0
    for c, p, m in maps:
        wide = c + p
        rows = min(max(2048, 8 * wide), look.tokens / 2) * 2  # rows that enter A, both folds
        products += 2 * m * wide * own + 2 * m * m * own + 2 * wide * wide * rows / gpus
        moments += 2 * (wide * wide + m * wide + m * m)
        a_sample = min(2 * m * wide, look.length * (2 * m + wide))  # sums over its locations, or its rows
        kept += 2 * look.kept * a_sample
        # Cholesky of A three times (all samples and each fold) and of S, solves for the new columns and for G
        account += 3 * c**3 / 3 + m**3 / 3 + 3 * 2 * c * c * p + 2 * m * c * c + 2 * m * m * wide
    products, moments, kept, account = (look.share * x for x in (products, moments, kept, account))
    ring = (gpus - 1) / gpus
    sent = look.number * moments * ring * (1 if look.sharded else 2)
    sent += 4 * kept * ring if look.gathered else 0.0
    held = moments / gpus if look.sharded else moments
    # float32 sums, float64 copies in the accounts, what is kept
    memory = 4 * moments + 8 * held + 4 * (kept if look.gathered else kept / gpus)
    account = account / gpus if look.sharded else account
    seconds = (
        passes / machine.passes, products / machine.products, sent / machine.link, account / machine.double
    )  # fmt: skip
    model = 16.0 * net.parameters  # float32 weights, Adam's two moments, gradients
    step = 6 * net.parameters * net.step / gpus / machine.passes
    return Cost(passes, products, account, sent, memory + model, model, seconds, step)


NETS = (Transformer("100 M", 12, 832, 1 << 20), Transformer("10 B", 40, 4608, 4 << 20))
GPUS = (8, 512)
PLAIN = Look(tokens=1 << 20)
SPREAD = replace(PLAIN, gathered=False, sharded=True)
SPREAD = replace(PLAIN, gathered=False, sharded=True)
SPREAD = replace(PLAIN, gathered=False, sharded=True)
SPREAD = replace(PLAIN, gathered=False, sharded=True)
STEPS = (
    ("as it is", PLAIN),
    ("kept samples stay where they are", replace(PLAIN, gathered=False)),
    ("and each rank has the accounts of some maps", SPREAD),
    ("and sums are sent in bfloat16", replace(SPREAD, number=2)),
    ("and 8 sequences are kept, 4 heads drawn", replace(SPREAD, number=2, kept=8, heads=4)),
    ("and an eighth of the maps a round", replace(SPREAD, number=2, kept=8, heads=4, share=1 / 8)),
)  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def size(number: float) -> str:
    """Bytes."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def percent(share: float) -> str:
    """A share of training time, at two digits."""
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"


def seconds(number: float) -> str:
    """A duration."""
    return f"{number:.3g} s" if number >= 0.1 else f"{1000 * number:.2g} ms"


def measured() -> Iterator[str]:
    """What was counted and timed."""
    found = json.loads(STORED.read_text())
    rows = []
    for net in found["nets"]:
        one = net["worlds"][0]
        for world in net["worlds"]:
            sent, communicator = world["sent"], world["ranks"]
            whole = sum(sent.values())
            rows.append(
                (
                    net["net"], f"{net['parameters']:,}", communicator,
                    size(sent.get("sum the moments", 0.0)) if communicator > 1 else "",
                    size(world["calculated"]) if communicator > 1 else "",
                    size(sent.get("gather the kept samples", 0.0)) if communicator > 1 else "",
                    f"{whole / net['parameters']:,.0f}" if communicator > 1 else "",
                    f"{world['look_seconds']:.3f}", f"{world['look_seconds'] / one['look_seconds']:.2f}",
                    f"{world['seconds'] - world['look_seconds']:.3f}",
                )
            )  # fmt: skip
    head = (
        "net", "parameters", "ranks", "moments sent", "calculated", "kept samples sent", "bytes a parameter", "look, s",
        "of one's", "account, s",
    )  # fmt: skip
    yield table(head, rows)
    yield (
        f"\nBy each rank, in one consideration of {found['samples']:,} samples; seconds are CPU time of the slowest "
        f"rank, medians of {found['repeats']}, PyTorch {found['torch']}.\n"
    )


def costs(machine: Machine) -> Iterator[str]:
    """What it would cost at scale."""
    rows = []
    for net in NETS:
        for gpus in GPUS:
            one = cost(net, gpus, PLAIN, machine)
            passes, products, sending, account = map(seconds, one.seconds)
            total = sum(one.seconds)
            rows.append(
                (
                    net.name, gpus, f"{one.passes + one.products + one.account:.2g}", size(one.sent), size(one.memory),
                    size(one.model), passes, products, sending, account, seconds(one.step), f"{total / one.step:,.1f}",
                    percent(one.share(PLAIN.every)),
                )
            )  # fmt: skip
    head = (
        "parameters", "GPUs", "flops", "sent", "memory", "of it model and Adam", "passes", "products", "sending",
        "accounts", "a step", "in steps", f"share, every {PLAIN.every:,} steps",
    )  # fmt: skip
    yield table(head, rows) + "\n"


def remedies(machine: Machine) -> Iterator[str]:
    """How far approximations bring it down."""
    rows = []
    for name, look in STEPS:
        cells: list[object] = [name]
        for net in NETS:
            for gpus in GPUS:
                one = cost(net, gpus, look, machine)
                fits = "" if one.memory - one.model < machine.memory else ", too much"
                cells.append(f"{percent(one.share(look.every))}; {size(one.memory - one.model)}{fits}")
        rows.append(cells)
    yield table(("", *(f"{net.name}, {gpus}" for net in NETS for gpus in GPUS)), rows) + "\n"


def page(machine: Machine) -> str:
    """The whole page."""
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
