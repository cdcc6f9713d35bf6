"""A network of heavy-tailed numbers: its transform is exact, and it is a module as any other."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import senn
from senn.export.module_source import build_from_source, python_source
from senn.nn import MLP, Ensemble, SinhOutput


def heavy(rows=300, outputs=2):
    z = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(0))
    return torch.sinh(3 * z)


@given(st.floats(-1e8, 1e8))
def test_what_is_transformed_is_restored(number):
    learned = SinhOutput.fit(torch.nn.Identity(), heavy().double())
    y = torch.full((1, 2), number, dtype=torch.float64)
    assert torch.allclose(learned(learned.transform(y)), y, rtol=1e-9, atol=1e-9)


def test_no_output_of_a_network_makes_an_infinite_number():
    learned = SinhOutput.fit(torch.nn.Identity(), heavy())
    said = torch.tensor([[-1e30, 1e30], [float("inf"), -float("inf")]])
    assert torch.isfinite(learned(said)).all()


def test_it_is_saved_and_written_as_source_alone_and_in_an_ensemble(tmp_path):
    torch.manual_seed(0)
    alone = SinhOutput.fit(MLP(4, (3, 5), 2, shortcut=True), heavy())
    x = torch.randn(7, 4)
    for name, model in (("one", alone), ("two", Ensemble([alone, alone.around(MLP(4, (6,), 2))]))):
        senn.save(tmp_path / name, model)
        assert torch.equal(senn.load(tmp_path / name)(x), model(x))
        plain = build_from_source(python_source(model))
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(x), model(x))
