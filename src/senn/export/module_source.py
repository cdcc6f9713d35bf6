"""A network as the source of a class that needs nothing but PyTorch."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from senn.errors import SennError, UnsupportedError
from senn.export.class_source import KNOWN, about, forward, helper, helper_name, parts, stages
from senn.export.codegen import Group, call, lay_out, literal
from senn.export.signatures import Name, explicit_arguments, is_layer, source_arguments
from senn.nn import ConvNet, Rational

_PARAMETERS = (nn.ParameterList, nn.ParameterDict)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, *_PARAMETERS)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def python_source(model: nn.Module, name: str = "Net") -> str:
    """The architecture of a model as plain PyTorch source, to paste: a class that is built without arguments.

    It imports torch only, has the names of the model's parameters, so that `Net().load_state_dict(model.state_dict())`
    works, and computes the same. Inserted layers are in it as what they are. The numbers are not.

    Args:
        model: of layers of torch.nn and senn.nn.
        name: of the class.

    Returns:
        The source, lines of 100 columns at most.

    Raises:
        UnsupportedError: part of the model is of another class, which only its owner can write, or has been altered
            in a way that no constructor would.
        SennError: the name can't be that of a class.

    >>> print(python_source(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    from torch import nn
    <BLANKLINE>
    <BLANKLINE>
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(2, 3), nn.ReLU())
    <BLANKLINE>
    """
    if not isinstance(model, nn.Module):
        raise SennError(f"python_source needs an nn.Module, not a {type(model).__name__}")
    taken = {"nn", "torch", "F", "OrderedDict", *(cls.__name__ for cls in KNOWN)}
    if not name.isidentifier() or keyword.iskeyword(name) or name in taken:
        raise SennError(f"{name!r} can't be the name of the network's class")
    try:
        return _written(model, name)
    except RecursionError as error:
        raise SennError(f"a {type(model).__name__} is nested too deeply to be written as source") from error


def built(source: str, name: str = "Net") -> nn.Module:
    """A fresh model of the class in a source that `python_source` made, on the device that is the default one."""
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(source, "<python_source>", "exec"), namespace)
    model: nn.Module = namespace[name]()
    return model


def _written(model: nn.Module, name: str) -> str:
    writer = _SourceWriter(model=model, name=name)
    with torch.device("meta"):
        twin = built(writer.source(), name)
        while paths := [path for path in _different(twin, model) if path not in writer.replaced]:
            for path in paths:
                writer.replace(path)
            twin = built(writer.source(), name)
    if wrong := _different(twin, model) or _unlike(twin, model):
        raise UnsupportedError(f"{wrong[0]!r} has been altered in a way that no constructor knows")
    return writer.source()


@dataclass(eq=False, kw_only=True)
class _SourceWriter:
    """Writes one model.

    Attributes:
        model: the model.
        name: of its class.
        helpers: sources of the classes that it needs, by name.
        replaced: paths of what takes the place of a part that a layer's constructor makes, and the lines for it.
        after: further lines at the end of its constructor.
    """

    model: nn.Module
    name: str
    helpers: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _refuse_altered(self.model)
        self._shared()
        self._type()

    def replace(self, path: str) -> None:
        """Give a part of a layer the place of what that layer's constructor makes."""
        value = self.expression(self.model.get_submodule(path), path)
        self.replaced[path] = lay_out(value, 8, f"{self.access(path)} = ")

    def _end(self) -> list[str]:
        return [*(line for lines in self.replaced.values() for line in lines), *self.after]

    def source(self) -> str:
        """All of it."""
        body = self._class()
        whole = "\n\n".join(["", *self.helpers.values(), "\n".join(body) + "\n"])
        imports = [
            *(["from collections import OrderedDict", ""] if "OrderedDict(" in whole else []),
            *(["import torch"] if "torch." in whole else []),
            "from torch import nn",
            *(["from torch.nn import functional as F"] if "F." in whole else []),
        ]
        return "\n".join(imports) + "\n" + whole

    def _class(self) -> list[str]:
        model, cls = self.model, type(self.model)
        start = ["    def __init__(self):"]
        if is_layer(model) or cls is Rational:
            value = self.expression(model, "")
            assert isinstance(value, Group)
            base = value.head.removesuffix("(")
            value = replace(value, head="super().__init__(")
            return [f"class {self.name}({base}):", *start, *lay_out(value, 8), *self._end()]
        _refuse_foreign(model, "")
        lines = [
            f"class {self.name}(nn.Module):",
            f'    """{about(model)}"""',
            "",
            *start,
            "        super().__init__()",
        ]
        for part, child in parts(model).items():
            notes = stages(child) if cls is ConvNet and part == "body" and type(child) is nn.Sequential else {}
            lines += lay_out(self.expression(child, part, notes), 8, f"self.{part} = ")
        return [*lines, *self._end(), "", "    def forward(self, x):", *(f"        {line}" for line in forward(model))]

    def expression(self, module: nn.Module, path: str, notes: dict[int, str] | None = None) -> Group:
        """What makes a module like this one."""
        _refuse_foreign(module, path)
        if type(module) in _CONTAINERS:
            return self._container(module, path, notes or {})
        if type(module) is Rational:
            self.helpers["Rational"] = helper("Rational", module)
            return call("Rational", [str(module.v.shape[0])])
        if type(module) in KNOWN:
            name = helper_name(module)
            self.helpers[name] = helper(name, module)
            inner = [self.expression(child, _join(path, part)) for part, child in parts(module).items()]
            return call(name, inner)
        positional, keywords = explicit_arguments(module)
        return call(
            f"nn.{type(module).__name__}",
            [self._value(module, value, path) for value in positional],
            {key: self._value(module, value, path) for key, value in keywords.items()},
        )

    def _value(self, layer: nn.Module, value: Any, path: str) -> Group | str:
        if isinstance(value, nn.Module):
            return self.expression(value, path)
        text = value if isinstance(value, Name) else literal(value)
        if text is None:
            raise UnsupportedError(f"{path!r}: {value!r} can't be written as an argument of a {type(layer).__name__}")
        return text

    def _container(self, module: nn.Module, path: str, notes: dict[int, str]) -> Group:
        inner: dict[str, Group | str]
        if type(module) in _PARAMETERS:
            inner = {key: f"torch.zeros({tuple(tensor.shape)})" for key, tensor in module.named_parameters()}
        else:
            inner = {key: self.expression(child, _join(path, key)) for key, child in parts(module).items()}
        name = f"nn.{type(module).__name__}"
        if type(module) in (nn.ModuleDict, nn.ParameterDict):
            return call(name, [Group("{", [(f"{literal(key)}: ", part) for key, part in inner.items()], tail="}")])
        in_order = list(inner) == list(map(str, range(len(inner))))
        if type(module) in (nn.ModuleList, nn.ParameterList):
            return call(name, [Group("[", [("", part) for part in inner.values()], tail="]", spread=len(inner) > 2)])
        if in_order:
            return Group(f"{name}(", [("", part) for part in inner.values()], spread=len(inner) > 2, notes=notes)
        if all(key.isidentifier() and not keyword.iskeyword(key) for key in inner):
            return call(name, [Group("OrderedDict(", [(f"{key}=", part) for key, part in inner.items()])])
        pairs = [("", Group(f"({literal(key)}, ", [("", part)])) for key, part in inner.items()]
        return call(name, [Group("OrderedDict(", [("", Group("[", pairs, tail="]"))])])

    def access(self, path: str) -> str:
        """How the constructor calls something in the model."""
        text, holder = "self", self.model
        for key in path.split("."):
            if type(holder) in (nn.Sequential, nn.ModuleList) and list(parts(holder))[int(key)] == key:
                text += f"[{key}]"
            elif type(holder) is nn.ModuleDict and key in parts(holder):
                text += f"[{literal(key)}]"
            else:
                text += f".{key}" if key.isidentifier() else f"._modules[{literal(key)}]"
            holder = getattr(holder, key)
        return text

    def _shared(self) -> None:
        """Modules and tensors that stand in several places are assigned to the later ones."""
        modules: dict[int, str] = {}
        inside: list[str] = []
        for path, module in self.model.named_modules(remove_duplicate=False):
            first = modules.setdefault(id(module), path)
            if first != path and not any(path.startswith(f"{outer}.") for outer in inside):
                inside.append(path)
                self.after.append(f"        {self.access(path)} = {self.access(first)}")
        tensors: dict[int, str] = {}
        for path, tensor in self.model.named_parameters(remove_duplicate=False):
            first = tensors.setdefault(id(tensor), path)
            if first != path and not any(path.startswith(f"{outer}.") for outer in inside):
                self.after.append(f"        {self.access(path)} = {self.access(first)}")

    def _type(self) -> None:
        """Other numbers than the usual ones of 32 bits."""
        types = {tensor.dtype for tensor in _state(self.model).values() if tensor.is_floating_point()}
        if len(types) > 1 or any(tensor.is_complex() for tensor in _state(self.model).values()):
            names = ", ".join(sorted(map(str, types)))
            raise UnsupportedError(f"a model with numbers of several types ({names}) can't be written as source")
        if types - {torch.float32}:
            self.after.append(f"        self.to({types.pop()})")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refuse_foreign(module: nn.Module, path: str) -> None:
    """Only what is known by its class can be written."""
    cls = type(module)
    if not is_layer(module) and cls not in KNOWN:
        name, where = f"{cls.__module__}.{cls.__qualname__}", f" at {path!r}" if path else ""
        raise UnsupportedError(f"the class {name}{where} is neither torch's nor senn's: its source is its owner's")


def _refuse_altered(model: nn.Module) -> None:
    """Only what does as its class says can be written."""
    for path, module in model.named_modules():
        if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
            name, where = type(module).__name__, f" at {path!r}" if path else ""
            raise UnsupportedError(f"the {name}{where} has hooks or a forward of its own, which no source can say")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _different(twin: nn.Module, model: nn.Module, path: str = "") -> list[str]:
    """Paths of the modules that differ from those of the model, the outermost ones."""
    if path and not _alike(twin, model):
        return [path]
    own = [{key: x.shape for key, x in one._parameters.items() if x is not None} for one in (twin, model)]
    made, wanted = parts(twin), parts(model)
    if own[0] != own[1] or list(made) != list(wanted):
        return [path or type(model).__name__]
    pairs = ((_join(path, name), made[name], child) for name, child in wanted.items())
    return [found for name, fresh, child in pairs for found in _different(fresh, child, name)]


def _alike(twin: nn.Module, model: nn.Module) -> bool:
    """Whether both are of one class, constructed with the same; what is inside is compared for itself."""
    if type(model) in KNOWN:
        return type(twin).__name__ == helper_name(model)
    if type(twin) is not type(model):
        return False
    if not is_layer(model) or type(model) in _CONTAINERS:
        return True
    ours, theirs = (
        {k: v for k, v in source_arguments(one).items() if not isinstance(v, nn.Module)} for one in (model, twin)
    )
    return ours == theirs


def _unlike(twin: nn.Module, model: nn.Module) -> list[str]:
    """Names of tensors in the states that differ in being there, shape or type."""
    made, wanted = ({name: (x.shape, x.dtype) for name, x in _state(one).items()} for one in (twin, model))
    return [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
