"""On random nets, every claimed group agrees with impulses sent through the net.

The oracle knows nothing of labels: hooks hold every linear map's output at its value, except for one unit of one
map that gets an impulse; the columns of the linear maps' inputs that then change are the ones that read that unit.
"""

import torch
from exhaustive import EVERYTHING
from graph_nets import batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from senn.graph import analyze
from senn.nn import Rational

FEATURES, SAMPLES, TOKENS = 3, 4, 2


class Program(nn.Module):
    """Carries out steps (operation, operands, size); operand i is the value of i steps before."""

    def __init__(self, steps: list[tuple[str, list[int], int]]):
        super().__init__()
        self.steps = steps
        self.parts = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, (operation, operands, size) in enumerate(self.steps):
            chosen = [values[-1 - i % len(values)] for i in operands]
            values.append(getattr(self, operation)(f"{operation}{number}", size, *chosen))
        return self.linear("out", 2, values[-1])

    def part(self, name: str, make) -> nn.Module:
        """The module of a step, made to measure and filled with random numbers when the step first runs."""
        if name not in self.parts:
            self.parts[name] = make().double()
            for tensor in self.parts[name].state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_((0.5 + torch.rand(tensor.shape)) / tensor.shape[-1] ** 0.5)
        return self.parts[name]

    def linear(self, name, size, x, *_):
        return self.part(name, lambda: nn.Linear(x.shape[-1], size))(x)

    def norm(self, name, _, x, *__):
        return self.part(name, lambda: nn.BatchNorm1d(x.shape[1]))(x)

    def rational(self, name, _, x, *__):
        return self.part(name, lambda: Rational(x.shape[-1]))(x)

    def wave(self, name, _, x, *__):
        return torch.sin(x)

    def fitting(self, name, x, y):
        """`y`, made as wide as `x` by a linear map if it wasn't in the first run; a number if that isn't enough."""
        if name in self.parts or (self.training and x.shape[-1] != y.shape[-1]):
            y = self.linear(name, x.shape[-1], y)
        return y if x.shape == y.shape else torch.zeros(())

    def add(self, name, _, x, y):
        return x + self.fitting(name, x, y)

    def gate(self, name, _, x, y):
        return x * self.fitting(name, x, y).cos()

    def join(self, name, _, x, y):
        return torch.cat([x, y], -1) if x.shape[:-1] == y.shape[:-1] else x

    def flat(self, name, size, x, *_):
        return (x if size % 2 else x.transpose(1, -1)).flatten(1)

    def write(self, name, _, x, y):
        if x.shape[:-1] != y.shape[:-1]:
            return x
        joined = torch.zeros(*x.shape[:-1], x.shape[-1] + y.shape[-1], dtype=x.dtype)
        joined[..., : y.shape[-1]] += y
        joined[..., y.shape[-1] :] = x
        return joined


OPERATIONS = [
    "norm",
    "rational",
    "wave",
    "add",
    "add",
    "gate",
    "join",
    "flat",
    "write",
    *["linear"] * 5,
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS),
        st.lists(st.integers(0, 4), min_size=2, max_size=2).map(sorted),
        st.integers(1, 3),
    ),
    min_size=2,
    max_size=10,
).map(lambda steps: [("linear", [0, 0], 3), *steps])


def inputs_of_maps(model: nn.Module, x: Tensor, held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of all linear maps in a forward pass in which their outputs are the held ones."""
    inputs: dict[str, Tensor] = {}

    def hook_of(name: str):
        def hook(module, args, output):
            inputs[name] = args[0].reshape(-1, args[0].shape[-1])
            return held.get(name, output)

        return hook

    handles = [
        m.register_forward_hook(hook_of(n))
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return inputs


def readers(
    model: nn.Module, x: Tensor, held: dict[str, Tensor], makers: list[str], unit: int
) -> dict[str, set[int]]:
    """The input columns of each linear map that an impulse in one unit of any of the makers reaches directly."""
    calm = inputs_of_maps(model, x, held)
    reached: dict[str, set[int]] = {}
    for maker in makers:
        impulse = held[maker].clone()
        impulse[..., unit] += 0.37
        for name, moved in inputs_of_maps(model, x, {**held, maker: impulse}).items():
            columns = ((moved - calm[name]).abs() > 1e-9).any(0).nonzero().flatten().tolist()
            reached[name] = reached.get(name, set()) | set(columns)
    return {name: columns for name, columns in reached.items() if columns}


@settings(
    max_examples=20 if EVERYTHING else 8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(steps=STEPS, tokens=st.booleans(), seed=st.integers(0, 99))
def test_claimed_columns_are_those_that_impulses_reach(steps, tokens, seed):
    torch.manual_seed(seed)
    model = Program(steps)
    x = batch(SAMPLES, TOKENS, FEATURES).double() if tokens else batch(SAMPLES, FEATURES).double()
    with torch.no_grad():
        model(x)  # makes the parts
        model.eval()
        graph = analyze(model, x)
        outputs: dict[str, Tensor] = {}
        maps = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }
        handles = [
            m.register_forward_hook(lambda *a, n=n: outputs.update({n: a[2]}))
            for n, m in maps.items()
        ]
        model(x)
        for handle in handles:
            handle.remove()
        for group in graph.groups:
            makers = [
                coupled.module
                for coupled in group.dims_of("producer")
                if coupled.tensor == "weight"
            ]
            for unit in range(group.width):
                claimed = {
                    coupled.module: set(coupled.index[unit].tolist())
                    for coupled in group.dims_of("consumer")
                }
                assert readers(model, x, outputs, makers, unit) == claimed
    assert graph.scored_maps == tuple(outputs)
    assert "parts.out" in {refusal.place for refusal in graph.refusals}
