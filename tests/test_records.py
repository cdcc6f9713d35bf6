"""Records built from mappings that somebody else wrote: every field is checked, and what doesn't fit is named."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from senn._records import from_dict, reading_state
from senn.errors import SennError

WHAT = "the stored point"


@dataclass(frozen=True, kw_only=True)
class Unit:
    name: str
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    count: int
    flag: bool
    kind: Literal["a", "b"]
    unit: Unit
    labels: tuple[str | int | float | bool, ...] = ()
    pair: tuple[int, str] = (0, "")
    sizes: list[int] = field(default_factory=list)
    units: dict[str, Unit] = field(default_factory=dict)
    extra: Any = None
    note: str | None = None
    _undo: Any = None

    def __post_init__(self):
        if self.count < 0:
            raise SennError("count must not be negative")


POINT = Point(
    x=1.5, count=3, flag=True, kind="b", unit=Unit(name="mm", factor=0.001), labels=("1", 1, 1.0, True), pair=(2, "z"),
    sizes=[4, 5], units={"m": Unit(name="m")}, extra={"any": [1]}, note="n",
)  # fmt: skip


def record(**changes):
    stored = {key: value for key, value in asdict(POINT).items() if key != "_undo"}
    return {**stored, "labels": list(POINT.labels), "pair": list(POINT.pair), **changes}


def test_what_asdict_wrote_comes_back_equal():
    back = from_dict(Point, record(), WHAT)
    assert back == POINT
    assert [type(label) for label in back.labels] == [str, int, float, bool]
    assert isinstance(from_dict(Point, record(x=2), WHAT).x, float)


def test_a_missing_field_takes_its_default():
    least = {
        key: value
        for key, value in record().items()
        if key in ("x", "count", "flag", "kind", "unit")
    }
    assert from_dict(Point, least, WHAT) == Point(
        x=1.5, count=3, flag=True, kind="b", unit=POINT.unit
    )


def test_a_record_can_be_required_to_be_complete():
    assert from_dict(Point, record(), WHAT, complete=True) == POINT
    with pytest.raises(SennError, match="it lacks 'factor'"):
        from_dict(Unit, {"name": "m"}, WHAT, complete=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": "1.5"}, "'x' can't be '1.5'"),
        ({"x": True}, "'x' can't be True"),
        ({"x": 10**400}, r"'x' can't be 10+\.\.\."),
        ({"x": float("nan")}, "'x' can't be nan"),
        ({"count": 3.0}, "'count' can't be 3.0"),
        ({"count": -1}, "count must not be negative"),
        ({"flag": 1}, "'flag' can't be 1"),
        ({"kind": "c"}, "'kind' can't be 'c'"),
        ({"unit": "mm"}, "'mm' is not a mapping of names to values"),
        ({"unit": {"name": 3}}, "'name' can't be 3"),
        ({"units": {"m": {}}}, "it lacks 'name'"),
        ({"labels": "abc"}, "'labels' can't be 'abc'"),
        ({"labels": [None]}, "'labels' can't be None"),
        ({"pair": [1]}, r"'pair' can't be \[1\]"),
        ({"sizes": {"4": 5}}, "'sizes' can't be {'4': 5}"),
        ({"sizes": [4, "5"]}, "'sizes' can't be '5'"),
        ({"note": 3}, "'note' can't be 3"),
        ({"colour": "red"}, "it has an unknown entry 'colour'"),
        ({"_undo": None}, "it has an unknown entry '_undo'"),
        ({"extra": "x" * 99, "x": "y" * 99}, r"'x' can't be 'y+\.\.\."),
    ],
)
def test_what_does_not_fit_is_named(changes, reason):
    with pytest.raises(SennError, match=rf"^{WHAT} is damaged: {reason}$"):
        from_dict(Point, record(**changes), WHAT)


@pytest.mark.parametrize("mapping", [None, 3, "x", [1], [["x", 1]]])
def test_what_is_no_mapping_is_refused(mapping):
    with pytest.raises(SennError, match="is not a mapping of names to values"):
        from_dict(Point, mapping, WHAT)


def test_a_lacking_field_is_named():
    with pytest.raises(SennError, match=f"^{WHAT} is damaged: it lacks 'kind'$"):
        from_dict(Point, {key: value for key, value in record().items() if key != "kind"}, WHAT)


def test_infinity_comes_back_where_it_may():
    assert from_dict(
        Unit, {"name": "m", "factor": float("inf")}, WHAT, finite=False
    ).factor == float("inf")


def test_a_key_of_an_earlier_version_is_understood():
    assert from_dict(Unit, {"title": "m"}, WHAT, renamed={"title": "name"}) == Unit(name="m")
    assert from_dict(Unit, {"name": "m"}, WHAT, renamed={"title": "name"}) == Unit(name="m")
    with pytest.raises(SennError, match="under its old and its new name"):
        from_dict(Unit, {"name": "m", "title": "m"}, WHAT, renamed={"title": "name"})


def test_versions():
    assert from_dict(Unit, {"version": 1, "name": "m"}, WHAT, version=2) == Unit(name="m")
    with pytest.raises(
        SennError, match=f"^{WHAT} has version 3, and this senn reads up to 2: update senn$"
    ):
        from_dict(Unit, {"version": 3, "name": "m"}, WHAT, version=2)
    for version in (None, 0, True, "1"):
        with pytest.raises(SennError, match="its version is"):
            from_dict(Unit, {"version": version, "name": "m"}, WHAT, version=2)
    with pytest.raises(SennError, match="its version is None"):
        from_dict(Unit, {"name": "m"}, WHAT, version=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(key=st.sampled_from([*record(), "other"]), value=JSON)
def test_any_json_is_the_record_or_one_sentence(key, value):
    stored = record(**{key: value})
    expected = rf"^{WHAT} is damaged: [^\n]+$"
    try:
        back = from_dict(Point, stored, WHAT)
    except SennError:
        with pytest.raises(SennError, match=expected):
            from_dict(Point, stored, WHAT)
    else:
        again = {name: value for name, value in asdict(back).items() if name != "_undo"}
        assert from_dict(Point, again, WHAT) == back


def test_state_of_the_wrong_shape_is_one_sentence():
    for broken in (
        lambda: {}["blocks"],
        lambda: [][0],
        lambda: None.x,
        lambda: int("x"),
        lambda: torch.Generator().set_state(torch.zeros(3)),
    ):
        with (
            pytest.raises(SennError, match=r"^this isn't a state: \w+: [^\n]+$"),
            reading_state("this isn't a state"),
        ):
            broken()


def test_errors_of_our_own_and_of_memory_pass_as_they_are():
    with pytest.raises(SennError, match=r"^own$"), reading_state("this isn't a state"):
        raise SennError("own")
    with pytest.raises(torch.OutOfMemoryError), reading_state("this isn't a state"):
        raise torch.OutOfMemoryError("no memory")
    with pytest.raises(KeyboardInterrupt), reading_state("this isn't a state"):
        raise KeyboardInterrupt
