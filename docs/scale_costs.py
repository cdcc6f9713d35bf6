"""What a growth round costs at scale, by the formulas of docs/several_processes.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from senn.kfac.folds import Fold


@dataclass(frozen=True)
class Machine:
    """What the hardware does, per GPU.

    Attributes:
        passes: flops a second of forward and backward passes (bfloat16, of a peak of 1,000 Tflop/s).
        products: flops a second of sums of outer products, accumulated in float32.
        double: flops a second of factorizations in float64.
        link: bytes a second to the other GPUs.
        latency: seconds of a small operation of the group.
        memory: bytes available.
        ratio: bytes sent, measured, over those calculated.
        meetings: meetings of a round.
        store: seconds of a meeting in the store, by who reads the messages, and by number of ranks.
    """

    passes: float = 0.4 * 1000e12
    products: float = 200e12
    double: float = 30e12
    link: float = 50e9
    latency: float = 50e-6
    memory: float = 80e9
    ratio: float = 1.0
    meetings: int = 0
    store: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @classmethod
    def measured(cls, found: Mapping[str, Any]) -> Machine:
        """Take from the stored results what could be measured."""
        decoder = next(net for net in found["nets"] if net["net"].startswith("decoder"))
        (world,) = select(decoder, "now", "as it is", ranks=4)
        store = {
            name: {int(size): one for size, one in of.items()}
            for name, of in found["store_seconds"].items()
        }
        return cls(
            ratio=world["sent"]["sum the moments"] / world["calculated"],
            meetings=world["meetings"],
            store=store,
        )


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

    @property
    def hidden_candidates(self) -> int:
        """Candidate units of a feed-forward layer: as many as have 200,000 weights, between 64 and 256."""
        return min(max(200_000 // (2 * self.d + 1), 64), 256)

    def maps(self, heads: int) -> list[tuple[int, int, int]]:
        """Existing columns, candidate columns and outputs of each linear map.

        Candidate heads of 64 units are columns of the projection, the feed-forward layer's units of its second map, and
        16 of each map are those of a layer before it. The residual stream passes norms, so it has no candidates.
        """
        d = self.d
        return self.layers * [
            (d, 16, 3 * d), (d, heads * 64 + 16, d), (d, 16, 4 * d), (4 * d, self.hidden_candidates + 16, d),
        ]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a growth round is carried out.

    Attributes:
        tokens: tokens observed by all ranks together.
        length: tokens per sequence.
        owned: True if the factors, kept samples and gains of each map are on one rank only; False if on all.
        meets_in: the `group`, or the store, where `each reads all` messages or `one joins` them.
        share: fraction of the maps that a round scores.
        heads: candidate heads, of 64 columns each.
        number: bytes per number of a gradient that is sent.
        every: training steps between rounds.
    """

    tokens: int
    length: int = 2048
    owned: bool = True
    meets_in: str = "group"
    share: float = 1.0
    heads: int = 64
    number: int = 4
    every: int = 1000


@dataclass(frozen=True)
class Cost:
    """Cost of one growth round, per GPU.

    Attributes:
        flops: of passes, products and elimination.
        received: bytes received by the GPU that receives most.
        memory: bytes held, the model included.
        model: bytes of the whole model with Adam's state.
        seconds: seconds of passes, products, sending, elimination and meetings.
        step: seconds per training step.
    """

    flops: float
    received: float
    memory: float
    model: float
    seconds: tuple[float, float, float, float, float]
    step: float

    def share(self, every: int) -> float:
        """Share of the training time with a round every so many steps."""
        return sum(self.seconds) / (every * self.step)


@dataclass(frozen=True)
class MapCost:
    """What one map takes.

    Attributes:
        products: flops of sums of outer products.
        elimination: flops of factorizations and solves.
        whole: numbers of its factors as they are held.
        triangles: numbers of its covariances as they are sent.
        gradients: numbers of its gradients.
        kept: bytes of its kept samples.
    """

    products: float
    elimination: float
    whole: float
    triangles: float
    gradients: float
    kept: float


def map_cost(c: int, p: int, m: int, gpus: int, setting: Setting) -> MapCost:
    """Compute what a map of c columns, p candidate columns and m outputs takes."""
    wide, own = c + p, setting.tokens / gpus
    rows = min(max(2048, 8 * wide), setting.tokens / 2) * 2  # rows that enter A, both folds
    # a sample's sums over its locations, or its rows, whose gradients are in bfloat16
    a_sample = min(8 * m * wide, setting.length * (4 * wide + 4 * m))
    return MapCost(
        products=2 * m * wide * own + 2 * m * m * own + 2 * wide * wide * rows / gpus,
        # Cholesky of A three times (all samples and each fold) and of S, solves for the new columns and for G
        elimination=c**3 + m**3 / 3 + 3 * 2 * c * c * p + 2 * m * c * c + 2 * m * m * wide,
        whole=2 * (wide * wide + m * wide + m * m),
        triangles=wide * wide + m * m,
        gradients=2 * m * wide,
        kept=2 * Fold.max_kept(setting.length, m) * a_sample,
    )


def cost(net: Transformer, gpus: int, setting: Setting, machine: Machine) -> Cost:
    """Compute what a growth round costs, by the formulas of the page."""
    maps = [map_cost(c, p, m, gpus, setting) for c, p, m in net.maps(setting.heads)]
    # forward 2, two backward passes to the maps' outputs 2 each, the copy forward 2, per parameter and token
    passes = 8 * net.parameters * setting.tokens / gpus

    def total(name: str) -> float:
        return setting.share * sum(float(getattr(one, name)) for one in maps)

    def of_owner(name: str) -> float:
        """Of the rank that owns most: one map at least, which can't be divided."""
        return max(total(name) / gpus, max(float(getattr(one, name)) for one in maps))

    ring, model = (
        (gpus - 1) / gpus,
        16.0 * net.parameters,
    )  # float32 weights, Adam's two factors, gradients
    if setting.owned:
        elimination = of_owner("elimination")
        own = 4 * (of_owner("triangles") + of_owner("gradients"))
        sums = ring * (4 * total("triangles") + setting.number * total("gradients")) + own
        received = machine.ratio * sums + ring * of_owner("kept")
        memory = 4 * total("whole") + sums - own + 12 * of_owner("whole")
        memory += total("kept") / gpus + of_owner("kept")
    else:
        elimination = total("elimination")
        received = ring * (2 * 4 * total("whole") + total("kept"))
        memory = 12 * total("whole") + total("kept")
    in_group = setting.meets_in == "group"
    meeting = 2 * machine.latency if in_group else machine.store[setting.meets_in][gpus]
    products = total("products")
    seconds = (
        passes / machine.passes, products / machine.products, received / machine.link,
        elimination / machine.double, machine.meetings * meeting,
    )  # fmt: skip
    step = 6 * net.parameters * net.step / gpus / machine.passes
    return Cost(passes + products + elimination, received, memory + model, model, seconds, step)


NETS = (Transformer("100 M", 12, 832, 1 << 20), Transformer("10 B", 40, 4608, 4 << 20))
GPUS = (8, 512)
PLAIN = Setting(tokens=1 << 20)
FEW = replace(PLAIN, heads=4)
STEPS = (
    ("before: everything is on all ranks", replace(PLAIN, owned=False, meets_in="each reads all")),
    ("one owner for each map", replace(PLAIN, meets_in="one joins")),
    ("and meetings in the group", PLAIN),
    ("and 256 candidate columns of heads", FEW),
    ("and an eighth of the maps per round", replace(FEW, share=1 / 8)),
)  # fmt: skip


def select(
    net: Mapping[str, Any], version: str, setting: str, ranks: int | None = None
) -> list[Any]:
    """Find the measured worlds of a net, of one version and setting."""
    return [
        one
        for one in net["worlds"]
        if (one["version"], one["setting"]) == (version, setting) and ranks in (None, one["ranks"])
    ]
