"""Ranges of public settings: declared as data beside each record, checked where a setting is given.

A class lists a `Rule` for each of its settings, and calls `check_fields` or `check_arguments`. Whatever is out of range
(the wrong type, NaN, a bool for a number, a string for a sequence) becomes one sentence that names the setting, what it
may be and what it was. The scheme is that of scikit-learn's `_parameter_constraints`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from senn.errors import SennError

_LONGEST = 80
"""Characters of a refused value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one setting may be.

    Attributes:
        expected: the range in words, to follow "must be".
        allows: returns True for a value in range.
    """

    expected: str
    allows: Callable[[Any], bool]

    def or_none(self) -> Rule:
        """Build the same rule, with None allowed too."""
        if self.allows(None):
            return self
        comma = "," if "," in self.expected else ""
        words = f"{self.expected}{comma} or None"
        return Rule(expected=words, allows=lambda value: value is None or self.allows(value))


def check(name: str, value: Any, rule: Rule) -> None:
    """Refuse a value that its rule doesn't allow.

    Args:
        name: of the setting, as its user wrote it.
        value: what was given.
        rule: what it may be.

    Raises:
        SennError: the value is out of range; the sentence names the setting, its range and the value.
    """
    if not rule.allows(value):
        raise SennError(f"{name} must be {rule.expected}, not {_shown(value)}")


def check_arguments(rules: Mapping[str, Rule], arguments: Mapping[str, Any]) -> None:
    """Refuse the first argument that is out of range.

    Args:
        rules: by name of an argument.
        arguments: the arguments by name, at least those that have a rule: `locals()` at the beginning of a function.

    Raises:
        SennError: an argument is out of range.
    """
    for name, rule in rules.items():
        check(name, arguments[name], rule)


def check_fields(record: object, rules: Mapping[str, Rule]) -> None:
    """Refuse a record of which a field is out of range; for `__post_init__`.

    Args:
        record: any object with the fields as attributes.
        rules: by name of a field.

    Raises:
        SennError: a field is out of range.
    """
    for name, rule in rules.items():
        check(name, getattr(record, name), rule)


# -- rules


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
    infinite: bool = False,
) -> Rule:
    """Allow real numbers of a range, NumPy's scalars included; never bools or NaN.

    Args:
        low: the least value; -inf for none.
        high: the largest value; inf for none.
        open_low: refuse `low` itself.
        open_high: refuse `high` itself.
        infinite: allow an infinite number where the range has no end.
    """

    def allows(value: Any) -> bool:
        # a bool is a Real, too
        if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
            return False
        size = float(value)
        if math.isinf(size) and not infinite:
            return False
        return (low < size if open_low else low <= size) and (size < high if open_high else size <= high)

    return Rule(expected=f"a number{_range_in_words(low, high, open_low, open_high)}", allows=allows)


def positive() -> Rule:
    """Allow finite numbers above 0."""
    return number(low=0, open_low=True)


def fraction(high: float = 1.0, *, open_low: bool = False, open_high: bool = False) -> Rule:
    """Allow numbers from 0 to `high`; `open_low` and `open_high` refuse the ends."""
    return number(low=0, high=high, open_low=open_low, open_high=open_high)


def whole(low: int | None = None) -> Rule:
    """Allow whole numbers, of at least `low` if given; NumPy's scalars included, bools not."""

    def allows(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and (low is None or int(value) >= low)

    return Rule(expected="a whole number" + ("" if low is None else f" of at least {low}"), allows=allows)


def a_seed() -> Rule:
    """Allow what `torch.Generator.manual_seed` takes."""
    return Rule(
        expected="a whole number of at most 64 bits",
        allows=lambda value: whole().allows(value) and -(2**63) <= int(value) < 2**64,
    )


def flag() -> Rule:
    """Allow True and False, NumPy's too."""
    # NumPy isn't imported for the sake of its bool, whose name changed in NumPy 2
    return Rule(expected="True or False", allows=lambda v: isinstance(v, bool) or type(v).__name__ in ("bool", "bool_"))


def one_of(*choices: str | None) -> Rule:
    """Allow the given strings (and None if it is among them)."""

    def allows(value: Any) -> bool:
        return (value is None or isinstance(value, str)) and value in choices

    return Rule(expected=f"one of {', '.join(map(repr, choices))}", allows=allows)


def text() -> Rule:
    """Allow strings that aren't empty."""
    return Rule(expected="a name", allows=lambda value: isinstance(value, str) and value != "")


def instance_of(*classes: type, called: str) -> Rule:
    """Allow objects of the given classes; `called` says which in words."""
    return Rule(expected=called, allows=lambda value: isinstance(value, classes))


def callable_(called: str) -> Rule:
    """Allow whatever can be called; `called` says how, in words."""
    return Rule(expected=called, allows=callable)


def each(rule: Rule, *, kind: type[Collection[Any]] = Collection, nonempty: bool = False) -> Rule:
    """Allow collections whose every item is in range: neither strings, which are collections too, nor mappings.

    Args:
        rule: what each item may be.
        kind: class that the collection must have.
        nonempty: refuse collections without an item.
    """
    name = "sequence" if kind is Collection else kind.__name__

    def allows(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, str | bytes | Mapping):
            return False
        try:
            items = [*value]
        except TypeError:  # a number of NumPy's or torch's, which only looks like a collection
            return False
        return all(rule.allows(item) for item in items) and (bool(items) or not nonempty)

    return Rule(expected=f"a {'nonempty ' if nonempty else ''}{name}, each item {rule.expected}", allows=allows)


def _range_in_words(low: float, high: float, open_low: bool, open_high: bool) -> str:
    """Describe a range: " above 0", " from 0 to 1", " of at least 0 and below 1"."""
    if not open_low and not open_high and math.isfinite(low) and math.isfinite(high):
        return f" from {low:g} to {high:g}"
    lower = f" {'above' if open_low else 'of at least'} {low:g}" if math.isfinite(low) else ""
    upper = f" {'below' if open_high else 'of at most'} {high:g}" if math.isfinite(high) else ""
    return f"{lower} and{upper}" if lower and upper else lower or upper


def _shown(value: Any) -> str:
    """Show a refused value on one line, cut short."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
