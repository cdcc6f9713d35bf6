"""senn's own layers as plain PyTorch: classes to be written once, and what the whole of a known network looks like."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from senn.nn import MLP, ConvNet, DenseConvNet, Rational, Residual

_RATIONAL = '''\
class Rational(nn.Module):
    """(l x + (c + 2 v x) / (1 + x^2)) / sqrt(v^2 + c^2 + l^2); each unit has its v, c and l."""

    def __init__(self, num_parameters):
        super().__init__()
        self.v = nn.Parameter(torch.zeros(num_parameters))
        self.c = nn.Parameter(torch.zeros(num_parameters))
        self.l = nn.Parameter(torch.ones(num_parameters))

    def forward(self, x):
        square = self.v**2 + self.c**2 + self.l**2
        length = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        return (self.l * x + (self.c + 2 * self.v * x) / (1 + x**2)) / length
'''

_FORWARDS: Mapping[type[nn.Module], tuple[str, ...]] = {
    MLP: ("return self.body(x)",),
    ConvNet: ("return self.head(self.body(x).mean((2, 3)))",),
    DenseConvNet: (
        "for block in self.blocks:",
        "    seen = [x]",
        "    for layer in block:",
        "        seen.append(F.silu(layer(torch.cat(seen, 1))))",
        "    x = F.max_pool2d(seen[-1], 3, stride=2, padding=1)",
        "return self.head(x.mean((2, 3)))",
    ),
    Residual: ("return x + self.branch(x)",),
}
_ABOUT: Mapping[type[nn.Module], str] = {
    MLP: "A multilayer perceptron, (..., features) to (..., outputs).",
    ConvNet: "Convolutions, the mean over the image, and a linear map: (N, C, H, W) to (N, outputs).",
    DenseConvNet: "Blocks in which each layer reads all earlier ones, (N, C, H, W) to (N, outputs).",
    Residual: "x + branch(x).",
}

KNOWN = (*_FORWARDS, Rational)


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a module, by name."""
    return {name: child for name, child in module._modules.items() if child is not None}


def forward(module: nn.Module) -> tuple[str, ...]:
    """The lines of its forward."""
    if isinstance(module, MLP) and module.shortcut is not None:
        return ("return self.body(x) + self.shortcut(x)",)
    return _FORWARDS[type(module)]


def about(module: nn.Module) -> str:
    """What the class's docstring says."""
    return _ABOUT[type(module)]


def helper(name: str, module: nn.Module) -> str:
    """The source of the class that stands for a known one inside of something, which is given its parts."""
    if type(module) is Rational:
        return _RATIONAL
    names = list(parts(module))
    lines = [f"class {name}(nn.Module):", f'    """{about(module)}"""', ""]
    lines += [f"    def __init__(self, {', '.join(names)}):", "        super().__init__()"]
    lines += [f"        self.{part} = {part}" for part in names]
    lines += ["", "    def forward(self, x):", *(f"        {line}" for line in forward(module))]
    return "\n".join(lines) + "\n"


def helper_name(module: nn.Module) -> str:
    """What that class is called; a shortcut makes another one of an MLP."""
    with_shortcut = isinstance(module, MLP) and module.shortcut is not None
    return type(module).__name__ + "WithShortcut" * with_shortcut


def stages(body: nn.Module) -> dict[int, str]:
    """Comments on the layers of a `ConvNet`: the first of each stage."""
    pools = [at for at, layer in enumerate(body.children()) if isinstance(layer, nn.MaxPool2d)]
    return {at: f"stage {number}" for number, at in enumerate([0, *(pool for pool in pools)], start=1)}
