"""Operations of forward passes, against PyTorch's counter and by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn.flops import count_forward, forward_flops


class Attends(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.heads = nn.Linear(8, 24), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).movedim(-2, -3)
        return F.scaled_dot_product_attention(q, k, v)


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), (8,), 8 * 5 + 5 * 3),
    # 9 x 9 pixels, of which 7 x 7 and then 3 x 3 are left
    "conv": (
        nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 3, 2, 2)),
        (2, 9, 9),
        49 * 4 * 9 + 9 * 3 * 4 * 4,
    ),
    "transposed": (nn.ConvTranspose1d(2, 3, 4), (2, 7), 7 * 2 * 3 * 4),
    "gru": (nn.GRU(8, 4, batch_first=True), (5, 8), 5 * (8 + 4) * 12),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inference", [False, True])
def test_a_product_and_a_sum_are_counted_for_each_use_of_a_weight(name, inference):
    model, shape, products = MODELS[name]
    with torch.inference_mode(inference):
        found = count_forward(model, torch.zeros(3, *shape))
    assert (found.flops, found.unknown) == (3 * 2 * products, ())
    assert forward_flops(model, torch.zeros(2, *shape)) == 2 * products


def test_attention_counts_on_the_cpu_too():
    tokens, width, projections = 5, 8, 2 * 5 * 8 * 24
    products = 2 * 2 * tokens * tokens * width  # of queries with keys, and with values
    assert forward_flops(Attends(), torch.zeros(1, 5, 8)) == projections + products


@pytest.mark.parametrize(
    ("model", "flops"),
    [
        (nn.LSTM(8, 4, batch_first=True), 5 * 2 * (8 + 4) * 16),
        # projections in and out, two products of attention, two layers
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            5 * 2 * (8 * 32 + 2 * 8 * 16) + 800,
        ),
    ],
    ids=["lstm", "encoder"],
)
def test_fused_kernels_hide_nothing(model, flops):
    assert forward_flops(model.eval(), torch.zeros(1, 5, 8)) == flops


def test_what_has_no_formula_is_named():
    found = count_forward(nn.Bilinear(2, 2, 3), (torch.zeros(4, 2), torch.zeros(4, 2)))
    assert found.unknown == ("aten._trilinear",)


def test_a_count_leaves_modes_buffers_and_random_state_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    model[1].eval()  # frozen
    before, state = model[1].running_mean.clone(), torch.get_rng_state()
    forward_flops(model, senn.Arguments(torch.ones(6, 3)))
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(model[1].running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
