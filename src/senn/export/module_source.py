"""A network as the source code of a class that needs nothing but PyTorch."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from senn.checkpoint.schema import join
from senn.errors import SennError, UnsupportedError
from senn.export.class_source import (
    KNOWN,
    buffer_lines,
    forward_lines,
    helper_class,
    helper_name,
    parts,
    stage_notes,
    summary_of,
)
from senn.export.codegen import Bracketed, call, format_lines, literal
from senn.export.signatures import Name, explicit_arguments, is_layer
from senn.export.source_check import (
    CONTAINERS,
    PARAMETER_LISTS,
    differing_modules,
    differing_tensors,
    state_tensors,
)
from senn.nn import ConvNet, Rational

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# Lists of up to two layers stay on one line if they fit; longer ones read better with a line for each.
_MOST_ON_ONE_LINE = 2


def python_source(model: nn.Module, name: str = "Net") -> str:
    """Write the architecture of a model as plain PyTorch source: a class that is built without arguments.

    It imports torch only, computes the same, and has parameters of the same names, so that
    `Net().load_state_dict(model.state_dict())` works. Inserted layers are in it as what they are. The numbers are not.

    Args:
        model: made of layers of torch.nn and senn.nn.
        name: of the class.

    Returns:
        The source, in lines of 100 columns at most.

    Raises:
        UnsupportedError: a part of the model is of another class, which only its owner can write, or was altered in a
            way that no constructor would.
        SennError: the class can't have that name.

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
        return _write_source(model, name)
    except RecursionError as error:
        raise SennError(
            f"a {type(model).__name__} is nested too deeply to be written as source"
        ) from error


def build_from_source(source: str, name: str = "Net") -> nn.Module:
    """Execute source that `python_source` wrote, and build a fresh model on the default device.

    Args:
        source: the source.
        name: of the class in it.

    Returns:
        The model.
    """
    # A name of its own, so that `if __name__ == "__main__"` doesn't run.
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(source, "<python_source>", "exec"), namespace)
    model: nn.Module = namespace[name]()
    return model


def _write_source(model: nn.Module, name: str) -> str:
    """Write the source, build a model from it, and assign what came out different, until nothing does.

    A layer's constructor makes its parts itself (the layers of a TransformerEncoder, all alike), and growth may have
    changed each of them.
    """
    writer = _SourceWriter(model=model, name=name)
    # Without memory or random numbers: only classes, arguments and shapes are compared.
    with torch.device("meta"):
        twin = build_from_source(writer.source(), name)
        while True:
            paths = [path for path in differing_modules(twin, model) if path not in writer.replaced]
            if not paths:
                break
            for path in paths:
                writer.replace(path)
            twin = build_from_source(writer.source(), name)
    wrong = differing_modules(twin, model) or differing_tensors(twin, model)
    if wrong:
        raise UnsupportedError(f"{wrong[0]!r} has been altered in a way that no constructor knows")
    return writer.source()


@dataclass(eq=False, kw_only=True)
class _SourceWriter:
    """Writes the source of one model.

    Attributes:
        model: the model.
        name: of its class.
        helpers: name -> source of the classes that it needs.
        replaced: path of a part that a layer's constructor makes otherwise -> lines that replace it.
        after: further lines at the end of the constructor.
    """

    model: nn.Module
    name: str
    helpers: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _refuse_altered(self.model)
        self._assign_shared()
        self._convert_dtype()

    def replace(self, path: str) -> None:
        """Add lines that replace a part of a layer, which that layer's constructor makes otherwise."""
        value = self.expression(self.model.get_submodule(path), path)
        self.replaced[path] = format_lines(value, 8, f"{self.access(path)} = ")

    def source(self) -> str:
        """Return the source: imports, helper classes, the network's class."""
        body = "\n".join(self._network_class()) + "\n"
        whole = "\n\n".join(["", *self.helpers.values(), body])
        # An unused import would be a flaw in the reader's linter, so each stands only where the text needs it.
        imports: list[str] = []
        if "OrderedDict(" in whole:
            imports += ["from collections import OrderedDict", ""]
        if "torch." in whole:
            imports.append("import torch")
        imports.append("from torch import nn")
        if "F." in whole:
            imports.append("from torch.nn import functional as F")
        return "\n".join(imports) + "\n" + whole

    def _network_class(self) -> list[str]:
        """Write the class: a subclass of the model's own if that is torch's, else an nn.Module with a forward."""
        model, cls = self.model, type(self.model)
        start = ["    def __init__(self):"]
        # A subclass of the model's own class has the same names of parameters, indices and forward.
        if is_layer(model) or cls is Rational:
            value = self.expression(model, "")
            base = value.head.removesuffix("(")
            value = replace(value, head="super().__init__(")
            head = f"class {self.name}({base}):"
            return [head, *start, *format_lines(value, 8), *self._end()]
        _refuse_foreign(model, "")
        lines = [f"class {self.name}(nn.Module):", f'    """{summary_of(model)}"""', "", *start]
        lines.append("        super().__init__()")
        for part, child in parts(model).items():
            has_stages = cls is ConvNet and part == "body" and type(child) is nn.Sequential
            value = self.expression(child, part, stage_notes(child) if has_stages else None)
            lines += format_lines(value, 8, f"self.{part} = ")
        lines += [f"        {line}" for line in buffer_lines(model)]
        lines += [*self._end(), "", "    def forward(self, x):"]
        return [*lines, *(f"        {line}" for line in forward_lines(model))]

    def _end(self) -> list[str]:
        # Replacements first: what is shared must be assigned from what stands at its first place in the end.
        replacements = [line for lines in self.replaced.values() for line in lines]
        return [*replacements, *self.after]

    def expression(
        self,
        module: nn.Module,
        path: str,
        notes: dict[int, str] | None = None,
    ) -> Bracketed:
        """Write the expression that makes a module like this one.

        Args:
            module: the module.
            path: its path in the model.
            notes: comments above the children of a Sequential, by their number; None for none.

        Returns:
            The expression; classes that it needs are among the helpers.

        Raises:
            UnsupportedError: its class is neither torch's nor senn's, or one of its arguments has no source.
        """
        _refuse_foreign(module, path)
        if type(module) in CONTAINERS:
            return self._container(module, path, notes or {})
        if type(module) is Rational:
            self.helpers["Rational"] = helper_class("Rational", module)
            return call("Rational", [str(module.v.shape[0])])
        # Networks of senn are written with their children as arguments: their own constructors take sizes, which can't
        # say what growth has inserted.
        if type(module) in KNOWN:
            name = helper_name(module)
            self.helpers[name] = helper_class(name, module)
            return call(name, list(self._children(module, path).values()))
        positional, keywords = explicit_arguments(module)
        return call(
            f"nn.{type(module).__name__}",
            [self._argument(module, value, path) for value in positional],
            {key: self._argument(module, value, path) for key, value in keywords.items()},
        )

    def _argument(
        self,
        layer: nn.Module,
        value: Any,
        path: str,
    ) -> Bracketed | str:
        if isinstance(value, nn.Module):
            return self.expression(value, path)
        text = value if isinstance(value, Name) else literal(value)
        if text is None:
            raise UnsupportedError(
                f"{path!r}: {value!r} can't be written as an argument of a {type(layer).__name__}"
            )
        return text

    def _children(self, module: nn.Module, path: str) -> dict[str, Bracketed | str]:
        """Write the expressions of a module's children, or of the parameters that a list of them holds."""
        if type(module) in PARAMETER_LISTS:
            return {
                key: f"torch.zeros({tuple(tensor.shape)})"
                for key, tensor in module.named_parameters()
            }
        return {
            key: self.expression(child, join(path, key)) for key, child in parts(module).items()
        }

    def _container(
        self,
        module: nn.Module,
        path: str,
        notes: dict[int, str],
    ) -> Bracketed:
        children = self._children(module, path)
        name = f"nn.{type(module).__name__}"
        in_order = [("", child) for child in children.values()]
        spread = len(in_order) > _MOST_ON_ONE_LINE
        if type(module) in (nn.ModuleDict, nn.ParameterDict):
            entries = [(f"{literal(key)}: ", child) for key, child in children.items()]
            return call(name, [Bracketed("{", entries, tail="}")])
        if type(module) in (nn.ModuleList, nn.ParameterList):
            return call(name, [Bracketed("[", in_order, tail="]", spread=spread)])
        if list(children) == list(map(str, range(len(children)))):
            return Bracketed(f"{name}(", in_order, spread=spread, notes=notes)
        return call(name, [_ordered_dict(children)])

    def access(self, path: str) -> str:
        """Write how the constructor refers to a part of the model: `self.body[0].weight`."""
        text, holder = "self", self.model
        for key in path.split("."):
            # A Sequential is indexed by position: only while its names are 0, 1, ... do both agree.
            is_list = type(holder) in (nn.Sequential, nn.ModuleList)
            if is_list and list(parts(holder))[int(key)] == key:
                text += f"[{key}]"
            elif type(holder) is nn.ModuleDict and key in parts(holder):
                text += f"[{literal(key)}]"
            elif key.isidentifier():
                text += f".{key}"
            else:
                text += f"._modules[{literal(key)}]"
            holder = getattr(holder, key)
        return text

    def _assign_shared(self) -> None:
        """Add lines that assign modules and tensors which stand in several places to the later ones."""
        modules: dict[int, str] = {}
        inside: list[str] = []
        for path, module in self.model.named_modules(remove_duplicate=False):
            first = modules.setdefault(id(module), path)
            # What is inside a shared module is shared along with it.
            if first != path and not _is_inside(path, inside):
                inside.append(path)
                self.after.append(f"        {self.access(path)} = {self.access(first)}")
        tensors: dict[int, str] = {}
        for path, tensor in self.model.named_parameters(remove_duplicate=False):
            first = tensors.setdefault(id(tensor), path)
            if first != path and not _is_inside(path, inside):
                self.after.append(f"        {self.access(path)} = {self.access(first)}")

    def _convert_dtype(self) -> None:
        """Add a line for a model in another floating-point type than float32."""
        tensors = state_tensors(self.model).values()
        # Layers are constructed in float32 and converted together; for mixed types each would need a line of its own.
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if len(dtypes) > 1 or any(tensor.is_complex() for tensor in tensors):
            names = ", ".join(sorted(map(str, dtypes)))
            raise UnsupportedError(
                f"a model with numbers of several types ({names}) can't be written as source"
            )
        if dtypes - {torch.float32}:
            self.after.append(f"        self.to({dtypes.pop()})")


def _ordered_dict(children: dict[str, Bracketed | str]) -> Bracketed:
    """Write the names of a Sequential's layers: as keywords if all of them can be, else as pairs."""
    if all(key.isidentifier() and not keyword.iskeyword(key) for key in children):
        return Bracketed("OrderedDict(", [(f"{key}=", child) for key, child in children.items()])
    pairs: list[tuple[str, Bracketed | str]] = []
    for key, child in children.items():
        pairs.append(("", Bracketed(f"({literal(key)}, ", [("", child)])))
    rows = Bracketed("[", pairs, tail="]")
    return Bracketed("OrderedDict(", [("", rows)])


def _is_inside(path: str, outer_paths: list[str]) -> bool:
    return any(path.startswith(f"{outer}.") for outer in outer_paths)


def _refuse_foreign(module: nn.Module, path: str) -> None:
    """Refuse a class that is neither torch's nor senn's."""
    cls = type(module)
    if not is_layer(module) and cls not in KNOWN:
        name = f"{cls.__module__}.{cls.__qualname__}"
        where = f" at {path!r}" if path else ""
        raise UnsupportedError(
            f"the class {name}{where} is neither torch's nor senn's: its source is its owner's"
        )


def _refuse_altered(model: nn.Module) -> None:
    """Refuse modules that don't do what their class says."""
    for path, module in model.named_modules():
        # Neither belongs to a class: source that leaves them out would compute something else without a word.
        if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
            name = type(module).__name__
            where = f" at {path!r}" if path else ""
            raise UnsupportedError(
                f"the {name}{where} has hooks or a forward of its own, which no source can say"
            )
