"""By how much block-diagonal K-FAC departs from dense truth: eta of 40 small nets, and the ranks of candidate units.

    python benchmarks/dense_eta.py [--nets 10] [--out benchmarks/results/dense_eta.json]

Nets of four families (deep linear, MLP, convolutions, attention), each with `--nets` seeds, are trained for some steps
of Adam, for another number with each seed, on the outputs of a random net with noise; even seeds have a squared error,
odd ones cross-entropy. Dense truth is eta = (1/N) |P g_y|^2 with the whole Gauss-Newton matrix, by a singular value
decomposition in float64. Beside it: the sum over the linear maps as `Grower.eta` has it; the sum of the maps' dense
blocks, in which only block-diagonality is left; K-FAC over the dense block of each map; eta of the network as a whole,
which the paper's policy compares with; and lambda.

In the MLPs 24 random units are offered in each hidden layer. The truth is by how much dense eta rises when their
outgoing weights join the parameters; it is compared with what K-FAC and the dense block of the map that reads them make
of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

import senn
from senn.kfac.capture import capture
from senn.kfac.factors import kronecker_factors
from senn.kfac.layer_statistics import LayerRows
from senn.kfac.loss_metric import LossMetric
from senn.scoring.formulas import expansion_score, residual_cross, width_gain, width_gain_bound

ROWS, OUTPUTS, CANDIDATES = 240, 3, 24


class Attention(nn.Module):
    """One head over five tokens, added to what it reads; the mean of all tokens goes to the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (rows, outputs) of tokens (rows, tokens, 3)."""
        x = self.embed(x)
        weight = (self.query(x) @ self.key(x).mT / 6**0.5).softmax(-1)
        mixed = x + self.out(weight @ self.value(x))
        logits: Tensor = self.head(mixed.tanh().mean(1))
        return logits


def deep_linear(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, OUTPUTS))


def mlp(seed: int) -> nn.Module:
    act = (nn.ReLU, nn.Tanh)[seed // 2 % 2]
    return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 5), act(), nn.Linear(5, OUTPUTS))


def convolutions(seed: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, OUTPUTS),
    )  # fmt: skip


def attention(seed: int) -> nn.Module:
    return Attention()


FAMILIES: Mapping[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "deep linear": (deep_linear, (4,)),
    "MLP": (mlp, (4,)),
    "convolutions": (convolutions, (1, 6, 6)),
    "attention": (attention, (5, 3)),
}


@dataclass(frozen=True)
class Problem:
    """A trained net with its data, and the square root of the loss's Hessian.

    Attributes:
        model: in float64.
        x: (rows, ...).
        y: (rows,) classes, or (rows, outputs).
        root: (rows, outputs, outputs) R with H = R R^T.
        along: (rows, outputs) u with R u = the loss's gradient at the outputs.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    root: Tensor
    along: Tensor

    @property
    def loss(self) -> Callable[..., Tensor]:
        """The loss."""
        return F.mse_loss if self.y.is_floating_point() else F.cross_entropy


def trained(family: str, seed: int) -> Problem:
    """Train a net of a family for a little.

    Args:
        family: one of `FAMILIES`.
        seed: decides on data, weights, loss and number of steps.
    """
    build, shape = FAMILIES[family]
    torch.manual_seed(seed)
    x = torch.randn(ROWS, *shape, dtype=torch.float64)
    teacher = nn.Sequential(
        nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, OUTPUTS)
    ).double()
    with torch.no_grad():
        target = 2 * teacher(x)
        target += 0.3 * torch.randn_like(target)
    y = target if seed % 2 == 0 else target.argmax(1)
    model = build(seed).double()
    loss = F.mse_loss if y.is_floating_point() else F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10 + 15 * (seed % 10)):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        z = model(x)
    if y.is_floating_point():
        scale = (2 / OUTPUTS) ** 0.5  # the mean over outputs of squares has the Hessian 2 / outputs
        root = scale * torch.eye(OUTPUTS).double().expand(ROWS, -1, -1)
        return Problem(model, x, y, root, scale * (z - y))
    p = z.softmax(1)
    # H = diag(p) - p p^T is R R^T for R = diag(sqrt p) - p sqrt(p)^T
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
    return Problem(model, x, y, root, (p - F.one_hot(y, OUTPUTS)) / p.sqrt())


# -- dense truth


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Derivatives of each row's outputs in the parameters, (rows, outputs, entries), by name."""
    values = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, values, (row[None],))[0]

    return {
        name: found.flatten(2).detach()
        for name, found in vmap(jacrev(outputs), (None, 0))(values, x).items()
    }


def projected(problem: Problem, J: Tensor) -> float:
    """Compute eta = (1/N) |P u|^2 with P the projection on the range of R^T J; J is (rows, outputs, parameters)."""
    whitened = (problem.root.mT @ J).flatten(0, 1)
    U, sigma, _ = torch.linalg.svd(whitened, full_matrices=False)
    basis = U[:, sigma > 1e-7 * sigma[0]]
    return float((basis.mT @ problem.along.flatten()).square().sum() / ROWS)


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def kfac_eta(rows: LayerRows) -> float:
    """Compute eta of one map from its rows, as `Grower` has it."""
    f = kronecker_factors(rows.a, rows.output_grad, rows.pseudo_grad, locations=rows.locations)
    return float(expansion_score(f.G, f.A, f.S, locations=f.locations))


def measure(family: str, seed: int) -> dict[str, Any]:
    """Compare eta of one net with dense truth.

    Args:
        family: one of `FAMILIES`.
        seed: of the net.
    """
    problem = trained(family, seed)
    model, maps = problem.model, linear_maps(problem.model)
    J = jacobians(model, problem.x)
    blocks = {
        name: projected(problem, torch.cat([J[n] for n in J if n.startswith(f"{name}.")], -1))
        for name in maps
    }
    metric = LossMetric(problem.loss)
    found = capture(
        model, [*maps], problem.x, problem.y, metric, generator=torch.Generator().manual_seed(seed)
    )
    kfac = {name: kfac_eta(found.rows[name]) for name in maps}
    whole = senn.Grower(model, None, problem.loss, senn.PaperPolicy(), moves=("width",), seed=seed)
    whole.score_candidates([(problem.x, problem.y)])
    return {
        "family": family, "seed": seed, "loss": "squared error" if seed % 2 == 0 else "cross-entropy",
        "dense": projected(problem, torch.cat([*J.values()], -1)), "kfac": kfac, "blocks": blocks,
        "whole": whole.eta, "lambda": float(problem.along.square().sum() / ROWS),
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


# -- candidates


def candidates(seed: int, layer: int) -> dict[str, list[float]]:
    """Score random units in a hidden layer of an MLP, by dense truth and by each approximation.

    Args:
        seed: of the net.
        layer: 0 or 1.
    """
    problem = trained("MLP", seed)
    model = problem.model
    assert isinstance(model, nn.Sequential)
    first, reader = 2 * layer, 2 * layer + 2
    with torch.no_grad():
        below = model[:first](problem.x)
        draw = torch.randn(below.shape[1], CANDIDATES, dtype=torch.float64)
        z = below @ F.normalize(draw, dim=0)
        units = model[1](z - z.mean(0) * torch.rand(CANDIDATES) * 2)
        z = model[: reader + 1](problem.x)
    tail = model[reader + 1 :]
    own = (
        vmap(jacrev(lambda row: tail(row[None])[0]))(z)
        if len(tail)
        else torch.eye(OUTPUTS).double()
    )
    own = own.detach().expand(ROWS, OUTPUTS, -1)
    found = jacobians(model, problem.x)
    J = torch.cat([*found.values()], -1)
    block = torch.cat([found[n] for n in found if n.startswith(f"{reader}.")], -1)
    rows = capture(
        model, [str(reader)], problem.x, problem.y, LossMetric(problem.loss),
        generator=torch.Generator().manual_seed(seed),
    ).rows[str(reader)]  # fmt: skip
    f = kronecker_factors(rows.a, rows.output_grad, rows.pseudo_grad)
    scores: dict[str, list[float]] = {
        name: [] for name in ("truth", "dense block", "gain", "bound", "gradient")
    }
    before, before_block = projected(problem, J), projected(problem, block)
    for a in units.mT[:, :, None]:
        new = own * a[:, :, None]
        scores["truth"].append(projected(problem, torch.cat([J, new], -1)) - before)
        scores["dense block"].append(projected(problem, torch.cat([block, new], -1)) - before_block)
        C = rows.output_grad.double().mT @ a / ROWS
        A_cp, A_pp = rows.a.double().mT @ a / ROWS, a.mT @ a / ROWS
        cross = residual_cross(C, f.G, f.A, A_cp)
        scores["gain"].append(float(width_gain(cross, A_pp, A_cp, f.A, f.S)))
        scores["bound"].append(float(width_gain_bound(cross, A_pp, f.S)))
        # of a unit of length one, as GradMax has it
        scores["gradient"].append(float(C.square().sum() / A_pp.clamp_min(1e-12)))
    return scores


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of ranks.

    Args:
        first: values.
        second: as many others.
    """
    ranks = [torch.tensor(v).argsort().argsort().double() for v in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def place(seed: int, layer: int) -> dict[str, Any]:
    """Rank correlations with the truth at one place, and the share of the best gain that each choice gets."""
    torch.manual_seed(1000 + seed)
    scores = candidates(seed, layer)
    truth = scores.pop("truth")
    best = max(truth)
    return {
        "seed": seed, "layer": layer, "best": best,
        "rank": {name: rank_correlation(found, truth) for name, found in scores.items()},
        "share": {name: truth[found.index(max(found))] / best for name, found in scores.items()}
        | {"random": statistics.fmean(truth) / best},
    }  # fmt: skip


def main() -> None:
    """Measure all nets and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--nets", type=int, default=10, help="nets of each family")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dense_eta.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nets = []
    for family in FAMILIES:
        for seed in range(arguments.nets):
            nets.append(measure(family, seed))
            one = nets[-1]
            total, dense = sum(one["kfac"].values()), one["dense"]
            print(f"{family} {seed}: {total / dense:.2f} of {dense:.3g}", flush=True)
    places = [place(seed, layer) for seed in range(arguments.nets) for layer in (0, 1)]
    command = f"python benchmarks/dense_eta.py --nets {arguments.nets}"
    document = {"command": command, "candidates": CANDIDATES, "nets": nets, "places": places}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
