"""The layout of docs/architecture.md and its names: imports, circles, sizes of files, vocabulary, doubled names."""

import ast
import collections
import functools
import pathlib
import re

import pytest
from source_trees import FILES, ROOT, SOURCE, tree_of, trees

PAGE = (ROOT / "docs" / "architecture.md").read_text()

# From the ground up: a package imports from lower layers only, or from itself. The page has them from the roof down.
_LIST = PAGE.partition("Import direction:")[2].partition("\n\n")[2].partition("\n\n")[0]
LAYERS = tuple(set(line.strip().split(", ")) for line in reversed(_LIST.splitlines()))
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}

# What a package must not know although it lies lower: the table in docs/architecture.md.
STRANGERS = {
    "graph": {"kfac", "optim"},
    "kfac": {"graph", "policies"},
    "verification": {"scoring", "policies"},
    "candidates": {"policies", "optim"},
    "scoring": {"optim"},
    "policies": {"kfac", "graph", "torch"},
    "surgery": {"scoring"},
    "distributed": {"policies"},
    "optim": {"graph", "surgery"},
    "checkpoint": {"training"},
    "data": {"nn", "torch"},
    "viz": {"nn", "torch"},
    "cli": {"integrations"},
}

MODULES = sorted(
    path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[:2] != "__"
)


def package_of(path: pathlib.Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_packages(tree: ast.Module) -> set[str]:
    """Packages of senn, and `torch`, that a module's import statements name, wherever they stand."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            is_root = node.module == "senn"
            names += (
                [f"senn.{alias.name}" for alias in node.names] if is_root else [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    packages = {name.split(".")[1] for name in names if name.startswith("senn.")} - {"__version__"}
    return packages | {"torch" for name in names if name.split(".")[0] == "torch"}


def complaints(package: str, packages: set[str]) -> list[str]:
    upward = [
        other
        for other in packages - {package, "torch"}
        if RANK.get(other, len(LAYERS)) >= RANK[package]
    ]
    return [
        f"{package} imports {other}"
        for other in sorted({*upward, *(packages & STRANGERS.get(package, set()))})
    ]


def test_imports_point_downward():
    assert {package_of(path) for path in MODULES} <= set(RANK), "no place in the layers"
    found = {
        path: complaints(package_of(path), imported_packages(tree_of(path))) for path in MODULES
    }
    assert nonempty(found) == {}


def nonempty(found):
    """What is wrong, by file."""
    return {str(path.relative_to(ROOT)): wrong for path, wrong in found.items() if wrong}


def test_every_layer_exists():
    assert {package_of(path) for path in MODULES} == set(RANK)
    assert LAYERS[0] == {"errors"}


def test_every_package_is_described():
    described = set(re.findall(r"`senn/(\w+)(?:\.py|/)`", PAGE))
    assert described >= set(RANK) - {"errors"}


def test_paths_on_the_page_exist():
    paths = re.findall(r"`(senn/[\w/]+(?:\.py|/))`", PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (SOURCE.parent / path).exists()] == []


@pytest.mark.parametrize(
    ("package", "source", "complaint"),
    [
        ("surgery", "def f():\n    from senn.grower import Grower", "surgery imports grower"),
        ("cli", "import senn.integrations.sklearn", "cli imports integrations"),
        ("data", "from torch import nn", "data imports torch"),
        ("kfac", "from senn import graph", "kfac imports graph"),
        ("scoring", "from senn.cellar import wine", "scoring imports cellar"),
    ],
)
def test_a_wrong_import_is_found(package, source, complaint):
    assert complaints(package, imported_packages(ast.parse(source))) == [complaint]


def test_files_stay_short():
    paths = [*MODULES, *sorted((ROOT / "reproduce").rglob("*.py"))]
    lengths = {path: len(path.read_text().splitlines()) for path in paths}
    assert nonempty({path: length for path, length in lengths.items() if length > 400}) == {}


# -- vocabulary

CURRENT = [path for path in FILES if path.name != "_deprecated.py"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Words of a former, private vocabulary, each with the field's term. A plain word may be no part of an identifier or a
# file's name; one with "=" in front may not be the name of a function, class, field or file.
RETIRED = {
    "=Space": "ChannelGroup", "=Slot": "CoupledDim", "=Site": "InsertionPoint", "=quantum": "granularity",
    "=Structure": "DependencyGraph", "=analyse": "analyze", "carrier": "elementwise",
    "=taps": "kernel_numel", "coat": "label_map", "worn": "labels_of", "dress": "set_labels", "=Held": "WeightView",
    "=Guard": "SizeGuard", "=World": "SizeAssignment", "=Number": "SymbolicInt", "=Shaped": "TensorMeta",
    "=Seen": "RecordedCall", "=tried": "verify_groups", "disturb": "perturb_parameters", "widened": "widen",
    "asked": "checks", "=leaves": "module_rules", "untouched": "preserve", "=words": "summary",
    "survey": "scoring session", "=Look": "BatchStatistics", "=together": "fail_together",
    "=exactly": "full_precision", "menu": "candidate pool", "=Option": "ScoredCandidate", "ledger": "layer gains",
    "=Account": "ResidualStatistics", "beside": "stream candidates", "=lay_out": "build_column_layout",
    "=arranged": "permuted", "=Proposals": "CandidateConfig", "=Draw": "CandidateSet", "drawn": "html",
    "drawing": "sampling", "=Hill": "GainObjective", "climb": "value_and_grad", "ascend": "optimize_candidates",
    "legible": "infer_batch_layouts", "=reads_of": "layer_inputs", "=Reading": "BatchLayout",
    "=Moments": "KroneckerFactors", "=Own": "LocalSlice", "=few": "head", "=some": "select",
    "=Rowwise": "PerSampleFactors", "=Summed": "PerSampleGrads", "=along": "directional", "=full": "upcast",
    "=bound": "gain_lower_bound or score_limit", "=limit": "score_limit", "=heldout": "held_out_gain",
    "=agreed": "cross_fold_gain", "=nat": "loss_per_nat", "=promise": "expected_decrease",
    "=promised": "expected_decrease", "=realised": "realized_decrease", "=Verdict": "Decision",
    "=Consideration": "GrowthRound", "=Journal": "UndoLog", "=carry_out": "apply_moves", "=afterwards": "reindex",
    "=held": "optimizer_param_names", "=hold": "rebind_optimizer", "=Parts": "ModuleSnapshot", "regrow": "resize",
    "sealed": "write_checksummed_json", "=opened": "read_checksummed_json", "=marked": "verify_file",
    "=mark": "file_digest", "=draft": "atomic_write", "=Ranks": "Communicator", "=alone": "is_single",
    "=decided": "broadcast_object", "=agree": "assert_equal", "=collected": "all_gather", "=summed": "all_reduce",
    "companion": "GrowthSession", "=Keeper": "Checkpointer", "keeping": "checkpointing",
    "=Follower": "WorkerCheckpointer", "=no_more": "ignore_further", "=near": "needs_batch", "=Recipe": "TrainConfig",
    "=Rounds": "GrowthSchedule", "=Learner": "TrainStep", "=Online": "IncrementalTrainer",
    "=pass_over": "partial_fit", "told": "run_report", "=given": "options", "=as_kept": "options",
    "pasted": "templates", "room": "package",
}  # fmt: skip
BRITISH = (
    "analys(e|ed|es|ing)|normalis|realis|standardis|labell(ed|ing)|cent(re|red)|colour|neighbour|licen[c]e|optimis|"
    "recognis|initialis|summaris|quantis|serialis|organis|behaviour|favour|catalogue|parametris|visualis"
)
TWICE = {"SelfExpansion": "one for each library's loop"}
"""Class names that stand in several modules, and why."""


def identifiers(tree):
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield value.rpartition(".")[2]


def defined(tree):
    """Yield the functions, classes and fields that a tree defines."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (one.target.id for one in node.body if isinstance(one, ast.AnnAssign))


@functools.cache
def words_of(name):
    """Return the lower-case words of an identifier, plurals without their s too."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
    return words | {word.removesuffix("s") for word in words}


def retired(tree, stem):
    """Return the retired words in a module, with what to write instead."""
    names = {*identifiers(tree), stem}
    found = RETIRED.keys() & set().union(*map(words_of, names))
    found |= {f"={name}" for name in {*defined(tree), stem} if f"={name}" in RETIRED}
    return {word: RETIRED[word] for word in sorted(found)}


def test_no_word_of_the_former_vocabulary():
    assert nonempty({path: retired(tree_of(path), path.stem) for path in CURRENT}) == {}


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("menu = 3", "menu"),
        ("class Space: ...", "=Space"),
        ("x.coats", "coat"),
        ("def f(asked): ...", "asked"),
    ],
)
def test_a_retired_word_is_seen(source, word):
    assert word in retired(ast.parse(source), "module")


def test_an_ordinary_variable_of_that_name_is_none():
    assert retired(ast.parse("held = some = torch.full((2,), 1.0)"), "module") == {}


def test_american_spelling():
    found = {path: british(path.read_text()) for path in CURRENT}
    assert nonempty(found) == {}
    assert british("it was analysed, in two colours") == ["analysed", "colours"]


def british(text):
    """Return the words of British spelling in a text."""
    return [word for word in re.findall(r"\w+", text) if re.search(BRITISH, word, re.I)]


# -- names


def doubled(pairs):
    places = collections.defaultdict(set)
    for name, place in pairs:
        places[name].add(place)
    return {name: sorted(where) for name, where in places.items() if len(where) > 1}


def test_a_class_name_stands_once():
    classes = [
        (node.name, str(path.relative_to(SOURCE)))
        for path, tree in trees() for node in tree.body if isinstance(node, ast.ClassDef)
    ]  # fmt: skip
    assert set(doubled(classes)) == set(TWICE)


def test_few_file_names_stand_twice():
    stems = [(path.stem, str(path)) for path in FILES if not path.stem.startswith("__")]
    assert len(doubled(stems)) <= 4


# -- imports


def modules_of(path):
    """Return the modules of senn that one imports anywhere: at run time, for types only, or inside a function."""
    known, found = known_modules(), set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from senn import pytree` needs nothing that the package's own file defines
            found |= inner if node.module == "senn" and inner <= known else inner | {node.module}
    return (found & known) - {module_name(path)}


@functools.cache
def known_modules():
    return {module_name(path) for path in FILES}


def module_name(path):
    return ".".join(["senn", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )


def circles(graph):
    """Return the strongly connected components of two or more nodes, by repeated removal of what leads nowhere."""
    reach = {node: set(others) for node, others in graph.items()}
    while True:
        more = {
            node: others.union(*(reach.get(one, set()) for one in others))
            for node, others in reach.items()
        }
        if more == reach:
            break
        reach = more
    found = {
        frozenset({node, *(one for one in reach[node] if node in reach.get(one, ()))})
        for node in reach
    }
    return sorted(sorted(one) for one in found if len(one) > 1)


def test_no_import_circle_of_any_kind():
    assert circles({module_name(path): modules_of(path) for path in FILES}) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
