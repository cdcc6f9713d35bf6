"""Records, density and docstrings of the source, as CONTRIBUTING.md asks for them."""

import ast
import importlib
import importlib.util
import re

import pytest
from source_trees import ROOT, SOURCE, tree_of, trees

Function = ast.FunctionDef | ast.AsyncFunctionDef

# -- records and density


def test_no_call_with_seven_positional_arguments():
    calls = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path, tree in trees() for node in ast.walk(tree)
        if isinstance(node, ast.Call) and len(node.args) >= 7
    ]  # fmt: skip
    assert calls == []


def statement_sizes(tree):
    """Yield (line, AST nodes) of each statement inside functions; of a compound one that of its head."""
    for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
        for node in ast.walk(function):
            if not isinstance(node, ast.stmt) or isinstance(
                node, Function | ast.ClassDef | ast.Try
            ):
                continue
            queue, size = [node], 0
            while queue:
                one = queue.pop()
                size += isinstance(one, ast.expr | ast.stmt)
                queue += [
                    c
                    for c in ast.iter_child_nodes(one)
                    if not isinstance(c, ast.stmt | ast.match_case)
                ]
            yield node.lineno, size


def test_no_statement_is_packed():
    packed = [
        (f"{path.relative_to(SOURCE)}:{line}", size)
        for path, tree in trees() for line, size in statement_sizes(tree) if size > 60
    ]  # fmt: skip
    assert packed == []


# -- docstrings


def public_functions(node):
    """Yield functions of a module and methods of its public classes whose names have no underscore in front."""
    for one in node.body:
        if isinstance(one, ast.ClassDef) and not one.name.startswith("_"):
            yield from public_functions(one)
        elif isinstance(one, Function) and not (one.name.startswith("_") or is_overload(one)):
            yield one


def is_overload(function):
    return any("overload" in ast.unparse(decorator) for decorator in function.decorator_list)


def lacks_args(function):
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    parameters = [one.arg for one in every if one.arg not in ("self", "cls")]
    return len(parameters) >= 2 and not re.search(
        r"^\s*Args:", ast.get_docstring(function) or "", re.M
    )


def test_public_functions_describe_their_arguments():
    functions = [(path, one) for path, tree in trees() for one in public_functions(tree)]
    lacking = [
        f"{path.relative_to(SOURCE)}:{one.name}" for path, one in functions if lacks_args(one)
    ]
    wide = [one for _, one in functions if len(one.args.args) + len(one.args.kwonlyargs) >= 2]
    assert len(lacking) <= 0.05 * len(wide), lacking


# -- scripts


LOCAL = (*(ROOT / name for name in ("benchmarks", "docs", "examples", "tests/helpers")), ROOT)
OPTIONAL = {"playwright", "gromo", "lightgbm", "xgboost", "catboost", "pytabkit"}
SCRIPTS = sorted(
    p for name in ("benchmarks", "docs", "examples") for p in (ROOT / name).glob("*.py")
)


def names_in(path):
    """Names that a module of ours defines or imports, or those of the modules in a folder."""
    if path.is_dir():
        start = path / "__init__.py"
        return {one.stem for one in path.iterdir()} | (names_in(start) if start.exists() else set())
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for t in targets for one in ast.walk(t) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def missing(path):
    """Imports of a script that lead nowhere."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        top, *inner = (node.module or "").split(".")
        paths = [folder.joinpath(top, *inner) for folder in LOCAL]
        # files first: there is a folder `results` too
        own = [p for p in (*(one.with_suffix(".py") for one in paths), *paths) if p.exists()]
        if top in ("senn", "senn_reproduce"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    try:
                        importlib.import_module(f"{node.module}.{alias.name}")
                    except ImportError:
                        yield f"{node.module}.{alias.name}"
        elif own:
            known = names_in(own[0])
            yield from (f"{node.module}.{a.name}" for a in node.names if a.name not in known)
        elif top not in OPTIONAL and importlib.util.find_spec(top) is None:
            yield node.module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports_of_scripts_lead_somewhere(path):
    assert [*missing(path)] == []


def test_an_import_that_leads_nowhere_is_seen(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from zoo.transformer import NoNet\nfrom nowhere import x\nfrom senn.graph import nothing\n"
    )
    assert [*missing(script)] == ["zoo.transformer.NoNet", "nowhere", "senn.graph.nothing"]
