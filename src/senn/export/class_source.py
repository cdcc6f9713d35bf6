"""Plain PyTorch source of senn's own layers and networks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from senn.nn import MLP, ConvNet, DenseConvNet, Ensemble, Rational, Residual, SinhOutput

# These repeat the forwards of `senn.nn`; tests/export/test_export_source.py compares their outputs bit for bit.
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

# Kept by hand: `inspect.getsource` would bring type annotations and imports of senn along.
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
    Ensemble: ("return torch.stack([member(x) for member in self.members]).mean(0)",),
    SinhOutput: (
        "argument = (self.mean + self.scale * self.network(x)).clamp(-80, 80)",
        "return self.center + self.spread * argument.sinh()",
    ),
}
_SUMMARIES: Mapping[type[nn.Module], str] = {
    MLP: "A multilayer perceptron, (..., features) to (..., outputs).",
    ConvNet: "Convolutions, the mean over the image, and a linear map: (N, C, H, W) to (N, outputs).",
    DenseConvNet: "Blocks in which each layer reads all earlier ones, (N, C, H, W) to (N, outputs).",
    Residual: "x + branch(x).",
    Ensemble: "Networks whose outputs are averaged.",
    SinhOutput: "A network whose targets are known by their inverse hyperbolic sine.",
}

KNOWN = (*_FORWARDS, Rational)


def parts(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of a module by name."""
    return {name: child for name, child in module._modules.items() if child is not None}


def buffer_lines(module: nn.Module) -> list[str]:
    """Return the lines of a constructor that make a network's own buffers, of the right shapes."""
    return [
        f'self.register_buffer("{name}", torch.zeros({", ".join(map(str, one.shape))}))'
        for name, one in module.named_buffers(recurse=False)
    ]


def _has_shortcut(module: nn.Module) -> bool:
    return isinstance(module, MLP) and module.shortcut is not None


def forward_lines(module: nn.Module) -> tuple[str, ...]:
    """Return the lines of the forward of one of senn's own networks."""
    if _has_shortcut(module):
        return ("return self.body(x) + self.shortcut(x)",)
    return _FORWARDS[type(module)]


def summary_of(module: nn.Module) -> str:
    """Return the docstring of the class that is written for one of senn's own networks."""
    return _SUMMARIES[type(module)]


def helper_class(name: str, module: nn.Module) -> str:
    """Write the class that stands for one of senn's layers or networks inside another one.

    Args:
        name: of the class.
        module: the layer or network.

    Returns:
        The source of the class. That of a network takes its children as arguments.
    """
    # A layer is made by its number of units, a network by its children, which may have grown apart.
    if type(module) is Rational:
        return _RATIONAL
    names = list(parts(module))
    lines = [
        f"class {name}(nn.Module):",
        f'    """{summary_of(module)}"""',
        "",
        f"    def __init__(self, {', '.join(names)}):",
        "        super().__init__()",
    ]
    lines += [f"        self.{part} = {part}" for part in names]
    lines += [f"        {line}" for line in buffer_lines(module)]
    lines += ["", "    def forward(self, x):"]
    lines += [f"        {line}" for line in forward_lines(module)]
    return "\n".join(lines) + "\n"


def helper_name(module: nn.Module) -> str:
    """Return the name of that class; an MLP with a shortcut has another forward, hence another class."""
    return type(module).__name__ + "WithShortcut" * _has_shortcut(module)


def stage_notes(body: nn.Module) -> dict[int, str]:
    """Return comments for a `ConvNet`'s body: number of the first layer of each stage -> the stage's name."""
    pools = [at for at, layer in enumerate(body.children()) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *pools]
    return {at: f"stage {number}" for number, at in enumerate(starts, start=1)}
