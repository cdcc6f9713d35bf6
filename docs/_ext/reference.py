"""The reference of the public names: one page for each public module of senn, written anew at each build.

A module is public if it has an `__all__`, and no part of its name starts with an underscore; its public names are those
of its `__all__`. A name that several modules offer is described once, where it is shortest, and the others link there.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import senn


def inner_classes() -> Iterator[str]:
    """Classes of senn's, by full name: signatures may name one that has no page."""
    root = Path(senn.__file__).parent
    for path in sorted(root.rglob("*.py")):
        module = ".".join(["senn", *path.relative_to(root).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        yield from (
            f"{module}.{name}" for name in re.findall(r"^class (\w+)", path.read_text(), re.M)
        )


@dataclass(frozen=True)
class Name:
    """A public name: `shown` is where it is described, `real` where it is defined."""

    name: str
    value: Any
    shown: str
    real: str

    @property
    def directive(self) -> str:
        """What describes it."""
        if inspect.isclass(self.value):
            return "autoexception" if issubclass(self.value, BaseException) else "autoclass"
        if inspect.ismodule(self.value):
            return "automodule"
        if inspect.isroutine(self.value):
            return "autofunction"
        # Without a docstring of its own, Sphinx would show that of its type.
        return "autodata" if self._has_docstring() else "py:data"

    def _has_docstring(self) -> bool:
        analyzer = ModuleAnalyzer.for_module(self.shown.rpartition(".")[0])
        return ("", self.name) in analyzer.find_attr_docs()


def public_modules(package: ModuleType = senn) -> list[ModuleType]:
    """The package and its public modules, in the order in which names are looked for."""
    root = Path(package.__path__[0])
    found = []
    for path in root.rglob("*.py"):
        if re.search(r"^__all__ = ", path.read_text(), re.M):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join([package.__name__, *parts]).removesuffix(".__init__")
            if not any(part.startswith("_") for part in name.split(".")):
                found.append(name)
    return [
        package,
        *(importlib.import_module(name) for name in sorted(found) if name != package.__name__),
    ]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Names that a module offers, and what they stand for."""
    for name in module.__all__:
        if not name.startswith("__"):
            yield name, getattr(module, name)


def describe(modules: list[ModuleType]) -> dict[str, list[Name]]:
    """By module, its names; those described elsewhere have another `shown`."""
    first: dict[int, str] = {}
    pages: dict[str, list[Name]] = {}
    for module in modules:
        pages[module.__name__] = []
        for name, value in public(module):
            full = f"{module.__name__}.{name}"
            if inspect.ismodule(value):
                continue  # has a page
            shared = inspect.isclass(value) or inspect.isroutine(value)
            shown = first.setdefault(id(value), full) if shared else full
            real = f"{value.__module__}.{value.__qualname__}" if shared else full
            pages[module.__name__].append(Name(name, value, shown, real))
    return pages


def page(module: ModuleType, names: list[Name]) -> str:
    """The page of one module, in reStructuredText."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    own = [name for name in names if name.shown == f"{title}.{name.name}"]
    tabled = [
        name.name for name in own if inspect.isroutine(name.value) or inspect.isclass(name.value)
    ]
    if len(tabled) > 1:
        lines += [".. autosummary::", "", *(f"   {name}" for name in tabled), ""]
    elsewhere = [f":py:obj:`{name.name} <{name.shown}>`" for name in names if name not in own]
    if elsewhere:
        lines += [f"Also here: {', '.join(elsewhere)}.", ""]
    for name in own:
        lines += [
            f".. {name.directive}:: {name.name if name.directive == 'py:data' else name.shown}"
        ]
        if inspect.isclass(name.value):
            lines += [
                "   :members:",
                *(["   :show-inheritance:"] if name.value.__bases__ != (object,) else []),
            ]
        lines += [""]
    return "\n".join(lines)


INDEX = """Reference
=========

Every public name, with shapes, units and errors. A name that isn't here may change in any version.

"""


def index(modules: list[ModuleType]) -> str:
    """The page of all modules, each with the first sentence of its docstring."""
    lines = []
    for module in modules:
        about = (inspect.getdoc(module) or "").partition("\n\n")[0]
        lines.append(f":doc:`{module.__name__}`\n   {' '.join(about.split())}\n")
    names = "".join(f"   {module.__name__}\n" for module in modules)
    return "\n".join([INDEX, *lines, ".. toctree::", "   :hidden:", "", names])


def write(folder: Path) -> None:
    """Write all pages, and remove those of modules that are no more."""
    folder.mkdir(exist_ok=True)
    modules = public_modules()
    pages = describe(modules)
    texts = {module.__name__: page(module, pages[module.__name__]) for module in modules}
    texts["index"] = index(modules)
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:  # an untouched page isn't built again
            path.write_text(text)
    for path in folder.glob("*.rst"):
        if path.stem not in texts:
            path.unlink()


def undocumented(pages: Mapping[str, list[Name]]) -> Iterator[str]:
    """Public names, and public methods of public classes, without a docstring of their own."""
    for module, names in pages.items():
        if not inspect.getdoc(importlib.import_module(module)):
            yield f"{module} has no docstring"
        for name in names:
            if name.directive in ("autodata", "py:data"):
                continue
            if not name.value.__doc__ or (inspect.isclass(name.value) and _generated(name.value)):
                yield f"{name.shown} has no docstring"
            if inspect.isclass(name.value):
                yield from _undocumented_members(name)


def _generated(cls: type) -> bool:
    """Whether a dataclass has only the docstring that its signature makes."""
    return (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def _undocumented_members(name: Name) -> Iterator[str]:
    for attribute, value in vars(name.value).items():
        if attribute.startswith("_"):
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isroutine(function) and not inspect.getdoc(getattr(name.value, attribute)):
            yield f"{name.shown}.{attribute} has no docstring"


def literal_blocks(lines: list[str]) -> list[str]:
    """Docstring lines in which an indented paragraph of the text, as for formulas and commands, is a literal block."""
    out: list[str] = []
    inside = False  # a section such as Args:, whose indentation means something else
    for number, line in enumerate(lines):
        if line and not line[0].isspace():
            inside = bool(
                re.fullmatch(
                    r"(Args|Attributes|Returns|Raises|Yields|Example|Examples|Note):", line
                )
            )
        fresh = (
            number > 0
            and not lines[number - 1].strip()
            and line[:1].isspace()
            and bool(line.strip())
        )
        if fresh and not inside and not line.lstrip().startswith(("- ", "* ", ">>>")):
            before = next((one for one in reversed(out) if one.strip()), "")
            if before and not before[:1].isspace() and not before.endswith("::"):
                out += ["::", ""]
        out.append(line)
    return out


_VALUES = ("attribute", "data", "property")


class _AsRst:
    """Autodoc's hooks: docstrings are plain text with backticks and indented formulas."""

    def __init__(self) -> None:
        self.plain: dict[str, list[str]] = {}

    def before(
        self, _app: Any, what: str, name: str, _obj: Any, _options: Any, lines: list[str]
    ) -> None:
        """Before napoleon reads sections."""
        lines[:] = [
            re.sub(r"(?<!`)(`[^`]+`)(?=\w)", r"\1\\ ", line) for line in literal_blocks(lines)
        ]
        if what in _VALUES:
            self.plain[name] = list(lines)

    def after(
        self, app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
    ) -> None:
        """After it, which takes what stands before a colon in the first line of a value's docstring for its type."""
        if what in _VALUES:
            lines[:] = GoogleDocstring(
                self.plain.pop(name), app.config, app, "function", name, obj, options
            ).lines()


def signature(
    _app: Any,
    _what: str,
    _name: str,
    _obj: Any,
    _options: Any,
    arguments: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Autodoc's hook: leave out a dataclass's private fields, and what can't be read as Python."""
    if arguments is not None:
        arguments = re.sub(
            r",\s*_\w+: [^=]*= ?[^,()]*(?=[,)])", "", arguments.replace("<factory>", "...")
        )
    return arguments, returns


def skip(_app: Any, _what: str, _name: str, obj: Any, skipped: bool, _options: Any) -> bool:
    """Autodoc's hook: leave out methods that another library puts into a class."""
    home = getattr(obj, "__module__", None)
    return skipped or (
        isinstance(home, str) and inspect.isroutine(obj) and not home.startswith("senn")
    )


def elsewhere(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Sphinx's hook: a name by which a second module offers something leads to where it is described."""
    if node.get("refdomain") != "py" or not hasattr(env, "senn_aliases"):
        return None
    shown = env.senn_aliases.get(node["reftarget"])
    if shown is None:
        return None
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, "obj", shown, node, content
    )


def prepare(app: Any) -> None:
    """Sphinx's hook: write the pages before sources are looked for."""
    write(Path(app.srcdir) / "api")
    pages = describe(public_modules())
    app.env.senn_aliases = {
        f"{module}.{one.name}": one.shown for module, names in pages.items() for one in names
    }


def setup(app: Any) -> dict[str, bool]:
    """Register the hooks."""
    app.connect("builder-inited", prepare, priority=100)
    app.connect("missing-reference", elsewhere)
    docstrings = _AsRst()
    app.connect("autodoc-process-docstring", docstrings.before, priority=100)
    app.connect("autodoc-process-docstring", docstrings.after, priority=900)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
