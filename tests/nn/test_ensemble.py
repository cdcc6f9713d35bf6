"""Ensembles are modules as any other: saved, exported, looked into and grown."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import senn
from senn.export.module_source import build_from_source, python_source
from senn.nn import MLP, Ensemble


def ensemble():
    torch.manual_seed(0)
    return Ensemble([MLP(4, (3, 5), 2, shortcut=True), MLP(4, (6,), 2)])


def test_it_is_saved_and_written_as_source(tmp_path):
    model, x = ensemble(), torch.randn(7, 4)
    senn.save(tmp_path / "model", model)
    loaded = senn.load(tmp_path / "model")
    assert type(loaded) is Ensemble
    assert torch.equal(loaded(x), model(x))
    plain = build_from_source(python_source(model))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


def test_its_members_grow():
    model = ensemble()
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters())
    grower = senn.Grower(
        model,
        optimizer,
        loss=F.cross_entropy,
        policy=senn.PricePolicy(kappa=1e-4),
        moves=("width",),
    )
    assert grower.grow([(x, y)])
    assert model.hidden_names == ("members.0.body.0", "members.0.body.2")
