"""Ranges of public settings, declared as data and checked by one set of functions.

A class lists a `Rule` for each of its settings and calls `check_fields` or `check_arguments`. Anything out of range (a
wrong type, NaN, a bool for a number, a string for a sequence) raises one sentence that names the setting, its range and
the value. The scheme follows scikit-learn's `_parameter_constraints`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from senn.errors import SennError

_LONGEST = 80
"""Most characters of a refused value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Range of one setting.

    Attributes:
        expected: the range in words, which follow "must be".
        allows: function that returns True for a value in range.
    """

    expected: str
    allows: Callable[[Any], bool]

    def or_none(self) -> Rule:
        """Build the same rule, with None allowed too."""
        if self.allows(None):  # "or None" isn't said twice
            return self
        comma = "," if "," in self.expected else ""
        words = f"{self.expected}{comma} or None"
        return Rule(expected=words, allows=lambda value: value is None or self.allows(value))


def check(name: str, value: Any, rule: Rule) -> None:
    """Refuse a value that its rule doesn't allow.

    Args:
        name: name of the setting, as the user knows it.
        value: value of the setting.
        rule: range of the setting.

    Raises:
        SennError: the value is out of range.

    >>> check("units", 0, whole(low=1))
    Traceback (most recent call last):
    senn.errors.SennError: units must be a whole number of at least 1, not 0
    """
    if not rule.allows(value):
        raise SennError(f"{name} must be {rule.expected}, not {_shown(value)}")


def check_arguments(rules: Mapping[str, Rule], arguments: Mapping[str, Any]) -> None:
    """Refuse the first argument that is out of range.

    Args:
        rules: ranges by name of the argument.
        arguments: arguments by name, at least those with a rule: `locals()` at the beginning of a function.

    Raises:
        SennError: an argument is out of range.
    """
    # Over the rules, not the arguments: `locals()` also holds `self`, and a rule without an argument is a mistake.
    for name, rule in rules.items():
        check(name, arguments[name], rule)


def check_fields(record: object, rules: Mapping[str, Rule]) -> None:
    """Refuse a record with a field out of range; call it in `__post_init__`.

    Args:
        record: any object with the fields as attributes.
        rules: ranges by name of the field.

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
    """Build the rule for real numbers, NumPy's scalars included; bools and NaN are refused.

    Args:
        low: smallest value; -inf for no limit.
        high: largest value; inf for no limit.
        open_low: True to refuse `low` itself.
        open_high: True to refuse `high` itself.
        infinite: True to allow infinity on a side without a limit.
    """

    def allows(value: Any) -> bool:
        # A bool is a Real, too.
        if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(value):
            return False
        size = float(value)
        if math.isinf(size) and not infinite:
            return False
        return (low < size if open_low else low <= size) and (
            size < high if open_high else size <= high
        )

    return Rule(
        expected=f"a number{_range_in_words(low, high, open_low, open_high)}", allows=allows
    )


def positive() -> Rule:
    """Build the rule for finite numbers above 0."""
    return number(low=0, open_low=True)


def fraction(high: float = 1.0, *, open_low: bool = False, open_high: bool = False) -> Rule:
    """Build the rule for numbers from 0 to `high`.

    Args:
        high: largest value.
        open_low: True to refuse 0.
        open_high: True to refuse `high`.
    """
    return number(low=0, high=high, open_low=open_low, open_high=open_high)


def whole(low: int | None = None) -> Rule:
    """Build the rule for whole numbers of at least `low`; bools are refused."""

    def allows(value: Any) -> bool:
        return (
            isinstance(value, Integral)
            and not isinstance(value, bool)
            and (low is None or int(value) >= low)
        )

    return Rule(
        expected="a whole number" + ("" if low is None else f" of at least {low}"), allows=allows
    )


def a_seed() -> Rule:
    """Build the rule for seeds of `torch.Generator.manual_seed`."""
    return Rule(
        expected="a whole number of at most 64 bits",
        allows=lambda value: whole().allows(value) and -(2**63) <= int(value) < 2**64,
    )


def flag() -> Rule:
    """Build the rule for True and False, NumPy's included."""
    # By the class's name: importing NumPy for its bool isn't worth it, and NumPy 2 renamed that.
    return Rule(
        expected="True or False",
        allows=lambda v: isinstance(v, bool) or type(v).__name__ in ("bool", "bool_"),
    )


def one_of(*choices: str | None) -> Rule:
    """Build the rule for the given strings, and None if it is one of them."""

    def allows(value: Any) -> bool:
        # Strings only: comparing an array with a string gives no truth value.
        return (value is None or isinstance(value, str)) and value in choices

    return Rule(expected=f"one of {', '.join(map(repr, choices))}", allows=allows)


def text() -> Rule:
    """Build the rule for nonempty strings."""
    return Rule(expected="a name", allows=lambda value: isinstance(value, str) and value != "")


def instance_of(*classes: type, called: str) -> Rule:
    """Build the rule for instances of classes, described by `called`."""
    return Rule(expected=called, allows=lambda value: isinstance(value, classes))


def callable_(called: str) -> Rule:
    """Build the rule for callables, described by `called`."""
    return Rule(expected=called, allows=callable)


def each(rule: Rule, *, kind: type[Collection[Any]] = Collection, nonempty: bool = False) -> Rule:
    """Build the rule for collections; strings and mappings are refused.

    Args:
        rule: range of each item.
        kind: class of the collection.
        nonempty: True to refuse collections without an item.
    """
    name = "sequence" if kind is Collection else kind.__name__

    def allows(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, str | bytes | Mapping):
            return False
        try:
            items = [*value]
        except TypeError:  # a scalar of NumPy's or torch's, which only looks like a collection
            return False
        return all(rule.allows(item) for item in items) and (bool(items) or not nonempty)

    return Rule(
        expected=f"a {'nonempty ' if nonempty else ''}{name}, each item {rule.expected}",
        allows=allows,
    )


def _range_in_words(low: float, high: float, open_low: bool, open_high: bool) -> str:
    """Describe a range in words: " above 0", " from 0 to 1", " of at least 0 and below 1"."""
    if not open_low and not open_high and math.isfinite(low) and math.isfinite(high):
        return f" from {low:g} to {high:g}"
    lower = f" {'above' if open_low else 'of at least'} {low:g}" if math.isfinite(low) else ""
    upper = f" {'below' if open_high else 'of at most'} {high:g}" if math.isfinite(high) else ""
    return f"{lower} and{upper}" if lower and upper else lower or upper


def _shown(value: Any) -> str:
    """Return a refused value's repr on one line, truncated."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
