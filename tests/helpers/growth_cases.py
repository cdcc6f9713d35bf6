"""Digits, small networks and a policy that takes what it is told to, for the tests of `Grower`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import senn
from senn.policies import Candidate, Policy

_DIGITS = load_digits()
X = torch.tensor(_DIGITS.data[:600] / 16, dtype=torch.float32)
Y = torch.tensor(_DIGITS.target[:600])
FEW = senn.CandidateConfig(units=16, residual_units=8, identity_bases=1)


def net(hidden: int = 3, layers: int = 1, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.Linear(64, hidden), nn.ReLU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, 10))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, x=X, y=Y, loss=F.cross_entropy
) -> float:
    g = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=g)
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss(model(x), y))


class Take(Policy):
    """A policy that accepts the first `count` candidates of one kind, whatever they promise; births are silent."""

    uses_joint_score = False
    birth = "silent"

    def __init__(self, kind: str, count: int = 1, detail: str = "", place: str = "") -> None:
        self.kind, self.count, self.detail, self.place = kind, count, detail, place

    def choose(self, candidates, accepted) -> Candidate | None:
        fit = [
            c
            for c in candidates
            if c.kind == self.kind and self.detail in c.detail and self.place in c.place
        ]
        return fit[0] if fit and len(accepted) < self.count else None

    def price(self, parameters: int, samples: int) -> float:
        return 0.0
