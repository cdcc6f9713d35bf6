"""Models with forward code of their own: branches, gates, shared parts, bare parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Entry, vectors


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7 + 6, 5)
        self.slope = nn.PReLU(9)

    def forward(self, x):
        y = F.dropout(self.slope(self.first(x)), 0.0, self.training)
        if x.dim() != 2:
            raise ValueError("expects rows")
        return self.third(torch.cat([self.second(y).relu_(), x], dim=-1))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh())
        self.head = nn.Linear(7, 5)

    def forward(self, a, b):
        return self.head((self.body(a) - self.body(b)).abs())


@dataclass
class Report:
    label: Tensor
    value: Tensor


class ManyWays(nn.Module):
    """Several inputs by name, several outputs."""

    def __init__(self):
        super().__init__()
        self.image, self.table = nn.Conv2d(1, 4, 3), nn.Linear(6, 5)
        self.trunk, self.label, self.value = nn.Linear(4 + 5, 8), nn.Linear(8, 5), nn.Linear(8, 1)

    def forward(self, picture=None, row=None, *, scale=1.0):
        joined = torch.cat(
            (F.relu(self.image(picture)).amax((2, 3)), self.table(row).relu() * scale), 1
        )
        trunk = torch.sigmoid(self.trunk(joined))
        return Report(label=self.label(trunk), value=self.value(trunk))


class Bare(nn.Module):
    """Parameters without modules."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(0.4 * torch.randn(9, 6)), nn.Parameter(torch.zeros(9))
        self.w2, self.gain = nn.Parameter(0.4 * torch.randn(9, 7)), nn.Parameter(torch.ones(7))
        self.out = nn.Parameter(0.4 * torch.randn(5, 7))

    def forward(self, x):
        y = F.linear(x, self.w1, self.b1).relu()
        return F.linear((y @ self.w2).tanh() * self.gain, self.out)


class TabGate(nn.Module):
    """Gated linear units behind an attentive mask of features, as in TabNet."""

    def __init__(self):
        super().__init__()
        self.mask, self.bn = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.first, self.bn1 = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.second, self.out = nn.Linear(8, 14), nn.Linear(7, 5)

    def forward(self, x):
        x = self.bn(x)
        x = x * torch.softmax(self.mask(x), dim=-1)
        y = F.glu(self.bn1(self.first(x)))
        value, gate = self.second(y).chunk(2, dim=1)
        return self.out(value * gate.sigmoid())


class Twice(nn.Module):
    """One layer called three times."""

    def __init__(self):
        super().__init__()
        self.inp, self.again, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.tanh(self.inp(x))
        for _ in range(3):
            x = x + torch.tanh(self.again(x))
        return self.out(x)


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        mixed = torch.einsum("bts,bsd->btd", x @ x.transpose(1, 2), self.left(x))
        return self.out(F.gelu(mixed * self.right(x)).mean(1))


class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.back = nn.Linear(6, 9), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return F.linear(self.enc(x).sigmoid(), self.enc.weight.t(), self.back)


OUT = {"out": "outputs"}
ENTRIES = {
    "own forward": Entry(OwnForward, vectors(6), {"first": 9, "second": 7}, never={"third": "outputs"}),
    "siamese": Entry(
        Siamese, lambda n: (torch.randn(n, 6), torch.randn(n, 6)), {"body.0": 9, "body.2": 7}, never={"head": "outputs"}
    ),
    "many inputs": Entry(
        ManyWays, lambda n: {"picture": torch.randn(n, 1, 5, 5), "row": torch.randn(n, 6)},
        {"image": 4, "table": 5, "trunk": 8}, never={"label": "outputs", "value": "outputs"},
        output=lambda report: torch.cat([report.label, report.value], 1),
    ),
    "bare parameters": Entry(Bare, vectors(6), {"w1": 9, "w2": 7}, never=OUT),
    "tabular gate": Entry(
        TabGate, vectors(6), {"first": 8, "second": 7}, never={"mask": "mixes its units|its units meet", **OUT}
    ),
    "called thrice": Entry(Twice, vectors(6), {"inp": 8}, never=OUT),
    "einsum": Entry(Einsum, vectors(4, 6), {"left": 8}, never=OUT),
    "tied autoencoder": Entry(TiedAutoencoder, vectors(6), {"enc": 9}, never={"enc.weight:1": "outputs"}),
}  # fmt: skip
