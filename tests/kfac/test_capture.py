"""What is read at each linear map, against autograd on every sample; and that reading leaves nothing behind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from senn.errors import SennError, UnsupportedError
from senn.kfac.capture import capture
from senn.kfac.loss_metric import LossMetric


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Tokens(nn.Module):
    """Three tokens a sample, a map without a bias, a residual path and an activation that writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.mix = (
            nn.Linear(4, 5),
            nn.ReLU(inplace=True),
            nn.Linear(5, 4, bias=False),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.mix(self.act(self.inner(x)))).flatten(1))


NAMES = ("inner", "mix", "head")


def batch(samples: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, 4, generator=g, dtype=torch.float64), torch.randint(
        0, 3, (samples,), generator=g
    )


def tokens() -> Tokens:
    torch.manual_seed(0)
    return Tokens().double()


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_give_the_gradient_of_the_loss(weighted: bool):
    """Sum over rows of dz a^T is N times autograd's weight gradient, bias in the last column."""
    model, (x, y) = tokens(), batch()
    weights = torch.linspace(0, 2, len(y)).double() if weighted else None
    seen = capture(
        model, NAMES, x, y, LossMetric(F.cross_entropy), generator=generator(), weights=weights
    )
    losses = F.cross_entropy(model(x), y, reduction="none")
    loss = (losses * (1 if weights is None else weights)).mean()
    loss.backward()
    assert seen.loss == pytest.approx(loss.item(), rel=1e-10)
    for name, locations in (("inner", 3), ("mix", 3), ("head", 1)):
        rows, linear = seen.rows[name], model.get_submodule(name)
        assert rows.locations == locations
        assert len(rows.a) == len(rows.output_grad) == len(rows.pseudo_grad) == locations * len(y)
        expected = linear.weight.grad
        if linear.bias is not None:
            expected = torch.cat([expected, linear.bias.grad[:, None]], 1)
        torch.testing.assert_close(rows.output_grad.mT @ rows.a / len(y), expected)


def test_signs_have_the_gauss_newton_block_as_their_mean():
    """E[s s^T] over the signs is J^T H J at each map's output."""
    model, (x, y) = tokens(), batch(3)
    g, metric = generator(), LossMetric(F.cross_entropy)
    many = x.repeat(100, 1, 1), y.repeat(100)
    rows = torch.cat(
        [
            capture(model, ["inner"], *many, metric, generator=g)
            .rows["inner"]
            .pseudo_grad.unflatten(0, (100, 9))
            for _ in range(30)
        ]
    )
    found = torch.einsum("kni,knj->nij", rows, rows) / len(rows)
    inner = model.inner(x).detach()

    def rest(z: torch.Tensor) -> torch.Tensor:
        return model.head((x + model.mix(torch.relu(z))).flatten(1))

    J = torch.autograd.functional.jacobian(rest, inner)
    p = rest(inner).softmax(1).detach()
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    for sample in range(3):
        for token in range(3):
            own = J[sample, :, sample, token]
            expected = own.mT @ H[sample] @ own
            torch.testing.assert_close(
                found[3 * sample + token], expected, rtol=0.2, atol=0.05 * float(expected.max())
            )


def test_only_maps_of_the_data_itself_are_called_so():
    model, (x, y) = tokens(), batch()
    seen = capture(model, NAMES, x, y, LossMetric(F.cross_entropy), generator=generator())
    assert {name: rows.reads_inputs for name, rows in seen.rows.items()} == {
        "inner": True,
        "mix": False,
        "head": False,
    }


def test_reading_leaves_nothing_behind():
    model, (x, y) = tokens(), batch()
    model.mix.eval()
    before, flags = (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
    )
    state, given = torch.get_rng_state(), x.clone()
    with torch.no_grad():
        capture(model, NAMES, x, y, LossMetric(F.cross_entropy), generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert [module.training for module in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_reduced_precision_is_read_in_float32():
    model, (x, y) = tokens().to(torch.bfloat16), batch()
    seen = capture(
        model, NAMES, x.to(torch.bfloat16), y, LossMetric(F.cross_entropy), generator=generator()
    )
    assert {
        t.dtype for rows in seen.rows.values() for t in (rows.a, rows.output_grad, rows.pseudo_grad)
    } == {torch.float32}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.loose = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.loose(x)
        return self.map(self.map(x))


@pytest.mark.parametrize(
    ("name", "message"), [("unused", "unused was not reached"), ("loose", "do not depend on loose")]
)
def test_a_map_that_makes_no_difference_is_refused_by_name_and_nothing_is_left(
    name: str, message: str
):
    model = Twice()
    with pytest.raises(UnsupportedError, match=message):
        capture(
            model, [name], torch.randn(5, 4), torch.zeros(5, dtype=torch.long), LossMetric(F.cross_entropy),
            generator=generator(),
        )  # fmt: skip
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_a_diverged_network_is_refused():
    model, (x, y) = tokens(), batch()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.inf
    with pytest.raises(SennError, match="diverged or the batch holds bad values"):
        capture(model, NAMES, x, y, LossMetric(F.cross_entropy), generator=generator())


def test_a_map_that_is_used_twice_has_rows_of_both_uses():
    torch.manual_seed(0)
    model, x, y = (
        Twice().double(),
        torch.randn(5, 4, dtype=torch.float64),
        torch.zeros(5, dtype=torch.long),
    )
    rows = capture(model, ["map"], x, y, LossMetric(F.cross_entropy), generator=generator()).rows[
        "map"
    ]
    F.cross_entropy(model(x), y).backward()
    assert rows.locations == 2
    together = rows.output_grad.mT @ rows.a / 5
    torch.testing.assert_close(together[:, :-1], model.map.weight.grad)
    torch.testing.assert_close(together[:, -1], model.map.bias.grad)
