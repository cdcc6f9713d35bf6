"""Random models from all kinds of parts, grown, pruned and taken back in random order.

`SENN_EXAMPLES=5000 pytest tests/test_structure_random.py` tries more.
"""

from __future__ import annotations

import copy
import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_zoo import widening
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import randomised

from senn.structure import Structure, analyse
from senn.surgery import Prune, operate
from senn.surgery.verify import output_change, outputs

EXAMPLES = int(os.environ.get("SENN_EXAMPLES", "300"))
PARTS = (
    *("conv", "norm", "residual", "concat", "depthwise", "gate", "squeeze", "twice", "group", "shuffle", "strided"),
    *("branches", "prelu", "channels last"),
)


class Part(nn.Module):
    """One step of a random model: (n, width, h, w) to (n, out, h, w)."""

    def __init__(self, kind: str, width: int, out: int) -> None:
        super().__init__()
        self.kind, self.out = kind, out
        if kind in ("residual", "depthwise", "squeeze", "norm", "prelu", "group", "channels last"):
            self.out = out = width
        if kind == "concat":
            self.out = width + out
        rest = {"gate": 2 * out, "shuffle": 4 * out, "twice": width}.get(kind, out)
        self.main = nn.Conv2d(width, rest, 1 if kind == "branches" else 3, padding=0 if kind == "branches" else 1)
        self.norm = nn.BatchNorm2d(width)
        self.slope = nn.PReLU(width)
        self.groups = nn.GroupNorm(2 if width % 2 == 0 else 1, width)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Linear(width, 3), nn.Linear(3, width)
        self.last = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.kind.replace(' ', '_')}")(x)

    def _conv(self, x):
        return F.relu(self.main(x))

    def _norm(self, x):
        return torch.tanh(self.norm(x))

    def _residual(self, x):
        return x + F.gelu(self.main(x))

    def _concat(self, x):
        return torch.cat([self.main(x).sigmoid(), x], 1)

    def _depthwise(self, x):
        return F.silu(self.depth(x))

    def _gate(self, x):
        value, gate = self.main(x).chunk(2, dim=1)
        return value * gate.sigmoid()

    def _squeeze(self, x):
        return x * self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]

    def _twice(self, x):
        return self.last(torch.tanh(self.main(torch.tanh(self.main(x)))))

    def _group(self, x):
        return self.groups(self.main(x))

    def _shuffle(self, x):
        return F.avg_pool2d(F.pixel_shuffle(self.main(x), 2).tanh(), 2)

    def _strided(self, x):
        return F.interpolate(F.max_pool2d(F.leaky_relu(self.main(x)), 2), size=x.shape[-2:])

    def _branches(self, x):
        return self.main(x).relu() + self.last(x)

    def _prelu(self, x):
        return self.slope(self.main(x))

    def _channels_last(self, x):
        return self.up(self.down(x.permute(0, 2, 3, 1)).tanh()).permute(0, 3, 1, 2)


class Random(nn.Module):
    """Random parts between a convolution and a linear head."""

    def __init__(self, kinds: list[tuple[str, int]], start: int, flat: bool) -> None:
        super().__init__()
        self.stem, self.flat = nn.Conv2d(2, start, 3, padding=1), flat
        parts, width = [], start
        for kind, out in kinds:
            parts.append(Part(kind, width, out))
            width = parts[-1].out
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(width * 16 if flat else width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(x.flatten(1) if self.flat else x.amax((2, 3)))


MODELS = st.builds(
    Random,
    st.lists(st.tuples(st.sampled_from(PARTS), st.integers(2, 5)), min_size=1, max_size=3),
    st.integers(2, 5),
    st.booleans(),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=MODELS, steps=st.lists(st.sampled_from(("widen", "prune", "undo")), min_size=1, max_size=3), data=st.data()
)
def test_random_models_in_random_orders(model: Random, steps: list[str], data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = randomised(model).double()
    inputs = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    structure = analyse(model, inputs)
    assert structure.spaces or structure.refused
    optimizer = torch.optim.Adam(model.parameters())
    for step in steps:
        if structure.spaces:
            structure = _carried_out(step, model, inputs, structure, optimizer, data)
    names = {space.name: space.width for space in structure.spaces}
    again = {space.name: space.width for space in analyse(model, inputs).spaces}
    assert {name: again.get(name, 1) for name in names} == names  # a single unit may be undecidable


def _carried_out(step, model, inputs, structure: Structure, optimizer, data) -> Structure:
    before, held = outputs(model, inputs), copy.deepcopy(model.state_dict())
    if step == "prune":
        wide = [space for space in structure.spaces if space.width > 2]
        if not wide:
            return structure
        space = data.draw(st.sampled_from(wide))
        moves = [Prune(space.name, (data.draw(st.integers(0, space.width - 1)),))]
    else:
        move = data.draw(st.sampled_from(widening(model, structure, data.draw(st.integers(1, 2)))))
        moves = [move]
    receipt = operate(model, moves, structure, optimizer=optimizer, probe=inputs)
    if step != "prune":
        assert output_change(before, outputs(model, inputs)) <= 1e-10
    if step == "undo":
        receipt.undo()
        assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())
        return structure
    model(inputs).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert receipt.structure is not None
    return receipt.structure
