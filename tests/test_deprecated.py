"""Every old name works, warns with the new one, and is listed in the changelog; the library itself uses none."""

import functools
import importlib
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from torch.nn import functional as F

import senn
from senn import _deprecated
from senn.policies import Candidate

ROOT = Path(__file__).parents[1]
NAMES = [
    (module, old, new) for module, names in _deprecated.NAMES.items() for old, new in names.items()
]
MEMBERS = [
    (cls, old, new) for cls, names in _deprecated.MEMBERS.items() for old, new in names.items()
]


@functools.cache
def classes():
    """Return every class of senn by its name."""
    found = {}
    for path in (ROOT / "src" / "senn").rglob("*.py"):
        module = ".".join(["senn", *path.relative_to(ROOT / "src" / "senn").with_suffix("").parts])
        for name in re.findall(r"^class (\w+)", path.read_text(), re.M):
            if (
                name in _deprecated.MEMBERS and "skorch" not in module
            ):  # its callback has no such member
                found[name] = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize(("module", "old", "new"), NAMES)
def test_an_old_name_is_the_new_one_and_warns(module, old, new):
    found = importlib.import_module(module)
    with pytest.warns(
        DeprecationWarning, match=rf"{module}\.{old} is now {module}\.{new}; .* in 0\.3\.0"
    ):
        assert getattr(found, old) is getattr(found, new)


@pytest.mark.parametrize(("old", "new"), _deprecated.MODULES.items())
def test_an_old_module_imports_and_warns(old, new):
    for name in [name for name in sys.modules if name in _deprecated.MODULES]:
        del sys.modules[name]
    with warnings.catch_warnings(record=True) as caught:  # the module around it warns too
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    assert f"{old} is now {new}; the old name goes in 0.3.0" in [str(one.message) for one in caught]
    known = importlib.import_module(new)
    public = getattr(known, "__all__", None) or [
        name for name in vars(known) if not name.startswith("_")
    ]
    assert all(getattr(module, name) is getattr(known, name) for name in public)


@pytest.mark.parametrize(("cls", "old", "new"), MEMBERS)
def test_an_old_member_is_there(cls, old, new):
    owner = classes()[cls]
    assert isinstance(inspect.getattr_static(owner, old), _deprecated.Renamed)
    known = (
        set(dir(owner))
        | set(getattr(owner, "__dataclass_fields__", ()))
        | set(getattr(owner, "__annotations__", ()))
    )
    known |= set(re.findall(r"self\.(\w+)\b.* = ", inspect.getsource(owner)))
    assert new in known


def test_old_modules_are_attributes_too():
    sys.modules.pop("senn.scores", None)
    vars(senn).pop("scores", None)
    with pytest.warns(DeprecationWarning, match=r"senn\.scores is now senn\.scoring\.formulas"):
        assert senn.scores.width_gain is senn.scoring.formulas.width_gain


def candidate(**changed):
    figures = {"kind": "widen", "place": "0", "detail": "", "units": 1, "width": 3, "parameters": 5, "gain": 0.4,
               "gain_lower_bound": 0.3, "held_out_gain": 0.2, "held_out_stderr": 0.1, "eta": 1.0, "score_limit": 2.0,
               "samples": 100, "key": ("widen", "0", None, "held-out")}  # fmt: skip
    names = inspect.signature(Candidate).parameters
    return Candidate(
        **{
            name: value
            for name, value in {**figures, **changed}.items()
            if name in {*names, *changed}
        }
    )


def test_old_attributes_of_a_record_read_the_new_ones():
    one = candidate()
    with pytest.warns(DeprecationWarning, match="Candidate.heldout is now Candidate.held_out_gain"):
        assert one.heldout == 0.2
    with pytest.warns(DeprecationWarning, match="Candidate.promise is now"):
        assert one.promise == one.expected_decrease


def test_old_keywords_are_understood():
    with pytest.warns(
        DeprecationWarning,
        match=r"CandidateConfig\(ascent=\) is now CandidateConfig\(ascent_steps=\)",
    ):
        assert senn.CandidateConfig(ascent=3).ascent_steps == 3
    with pytest.warns(DeprecationWarning, match="PricePolicy"):
        assert senn.PricePolicy(keep=2.0).retention_factor == 2.0


FUNCTIONS_IN = (
    "surgery",
    "verification",
    "kfac.factors",
    "graph",
    "training",
    "training.image_training",
)


@pytest.mark.parametrize("name", _deprecated.KEYWORDS)
def test_old_keywords_of_functions_are_understood(name):
    homes = [importlib.import_module(f"senn.{module}") for module in FUNCTIONS_IN]
    function = next(getattr(home, name) for home in homes if hasattr(home, name))
    known = inspect.signature(function).parameters
    for old, new in _deprecated.KEYWORDS[name].items():
        assert new in known
        assert old not in known
        said = rf"{name}\({old}=\) is now {name}\({new}=\)"
        with pytest.warns(DeprecationWarning, match=said), pytest.raises(TypeError):
            function(**{old: None}, no_such_argument=1)


def test_a_keyword_under_both_names_is_refused():
    with (
        pytest.warns(DeprecationWarning, match="ascent"),
        pytest.raises(senn.SennError, match=r"ascent or ascent_steps"),
    ):
        senn.CandidateConfig(ascent=3, ascent_steps=4)


def test_policies_that_override_an_old_name_are_heard():
    with pytest.warns(DeprecationWarning, match=r"Policy\.floor is now Policy\.min_decrease"):

        class Old(senn.Policy):
            def floor(self, kind, parameters, samples):
                return 7.0

    assert Old().min_decrease("widen", 1, 1) == 7.0


def test_british_spellings_stay_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert senn.analyse is senn.analyze


def test_a_warning_points_at_the_caller():
    with pytest.warns(DeprecationWarning, match="Proposals") as caught:
        senn.Proposals()
    assert caught[0].filename == __file__


def test_the_changelog_lists_every_old_name():
    table = (ROOT / "CHANGELOG.md").read_text()
    olds = [*_deprecated.MODULES, *(old for _, old, _ in NAMES), *(old for _, old, _ in MEMBERS)]
    olds += [old for names in _deprecated.KEYWORDS.values() for old in names]
    assert [old for old in olds if f"`{old}`" not in table] == []


def test_old_names_go_with_the_version_that_was_said():
    assert tuple(map(int, senn.__version__.split(".")[:2])) < tuple(
        map(int, _deprecated.GONE_IN.split(".")[:2])
    )


def test_a_grower_answers_to_old_names():
    model = senn.nn.MLP(2, (3,), 2)
    with pytest.warns(DeprecationWarning, match=r"Grower\(proposals=\)"):
        grower = senn.Grower(model, loss=F.cross_entropy, proposals=senn.CandidateConfig(units=4))
    with pytest.warns(DeprecationWarning, match=r"Grower\.consideration is now Grower\.last_round"):
        assert grower.consideration is None


def test_an_old_module_can_be_imported_before_torch():
    code = "import senn.estimators, senn.skorch; from senn.training import train"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
