"""Records read back from JSON or a checkpoint that somebody else may have written.

`from_dict` builds a dataclass from a mapping and checks every field against its annotation. It is the reader's half of
`dataclasses.asdict`: lists become tuples where a field asks for one, mappings become nested records, and anything that
doesn't fit is one sentence. `reading_state` does the same for state that isn't a record, such as that of a generator.
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NotRequired, TypeVar

from senn import _deprecated
from senn.errors import SennError

Record = TypeVar("Record")

FOREIGN = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
"""Errors that reading state of the wrong shape raises."""


def from_dict(
    cls: type[Record],
    mapping: object,
    what: str,
    *,
    complete: bool = False,
    finite: bool = True,
    renamed: Mapping[str, str] | None = None,
    version: int | None = None,
) -> Record:
    """Build a dataclass from a mapping that may be damaged, or be no such record at all.

    Fields may be annotated with plain types, `Any`, `Literal`, unions, `tuple`, `list`, `dict` and further dataclasses.
    A missing field takes its default. A whole number is accepted for a float; a boolean is neither.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Scale:
    ...     mean: float
    ...     unit: str | None = None
    >>> from_dict(Scale, {"mean": 3}, "the stored scale")
    Scale(mean=3.0, unit=None)
    >>> from_dict(Scale, {"mean": "3"}, "the stored scale")
    Traceback (most recent call last):
    senn.errors.SennError: the stored scale is damaged: 'mean' can't be '3'

    Args:
        cls: the dataclass; fields with `init=False` and those that begin with an underscore aren't read.
        mapping: the record, usually from JSON.
        what: subject of the sentence if it doesn't fit, such as "the stored encoding of the table".
        complete: refuse a record that lacks a field, even one with a default.
        finite: refuse NaN and infinity.
        renamed: old key -> today's, for records of earlier versions; a record may use either.
        version: the newest version that can be read; the record then has a whole number `version`, which is no field.

    Returns:
        The record; `__post_init__` has run.

    Raises:
        SennError: the mapping has an unknown or missing key, a value of another type, or a version that is too new.
    """
    reader = _FieldReader(what, complete=complete, finite=finite)
    return typing.cast(Record, reader.record(cls, mapping, renamed or {}, version))


def check_value(hint: Any, value: object, what: str) -> None:
    """Check a value that was read from a file against an annotation; it stays as it is.

    Fields of a `TypedDict` must have their types; those that it doesn't name may hold anything.

    >>> class Scale(typing.TypedDict):
    ...     mean: float
    >>> check_value(Scale, {"mean": 3, "unit": "m"}, "the scale")
    >>> check_value(Scale, {"mean": "3"}, "the scale")
    Traceback (most recent call last):
    senn.errors.SennError: the scale is damaged: 'mean' can't be '3'

    Args:
        hint: the annotation.
        value: the value, usually from JSON.
        what: subject of the error's sentence.

    Raises:
        SennError: it doesn't fit.
    """
    _FieldReader(what, complete=False, finite=True).value(hint, value, "it")


@contextmanager
def reading_state(what: str) -> Iterator[None]:
    """Turn what state of the wrong shape raises inside into one sentence; memory and interrupts pass as they are.

    Args:
        what: the beginning of the sentence, such as "this isn't the state of a Grower".

    Raises:
        SennError: from any of `FOREIGN`; a SennError from inside passes unchanged.
    """
    try:
        yield
    except SennError:
        raise
    except FOREIGN as error:
        # torch.OutOfMemoryError and its like are RuntimeErrors, and no fault of the state
        if isinstance(error, RuntimeError) and type(error) not in (
            RuntimeError,
            RecursionError,
            NotImplementedError,
        ):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SennError(f"{what}: {reason}") from error


class _FieldReader:
    """Reads values by annotation; `what` begins each sentence."""

    def __init__(self, what: str, *, complete: bool, finite: bool) -> None:
        self.what = what
        self.complete = complete
        self.finite = finite

    def record(
        self, cls: type[Any], mapping: object, renamed: Mapping[str, str], version: int | None
    ) -> Any:
        if not isinstance(mapping, Mapping):
            raise self.damaged(f"{_shown(mapping)} is not a mapping of names to values")
        # keys of an earlier version are translated before anything is compared
        content = {renamed.get(str(key), str(key)): value for key, value in mapping.items()}
        if len(content) < len(mapping):
            raise self.damaged("it has an entry under its old and its new name")
        if version is not None:
            self.check_version(content.pop("version", None), version)
        read = {
            field.name: field
            for field in fields(cls)
            if field.init and not field.name.startswith("_")
        }
        unknown = sorted(content.keys() - read.keys())
        if unknown:
            raise self.damaged(f"it has an unknown entry {unknown[0]!r}")
        missing = [
            name
            for name, field in read.items()
            if name not in content and (self.complete or _is_required(field))
        ]
        if missing:
            raise self.damaged(f"it lacks {missing[0]!r}")
        # annotations are texts under `from __future__ import annotations`
        hints = typing.get_type_hints(cls)
        values = {name: self.value(hints[name], value, name) for name, value in content.items()}
        try:
            # the record's own `__post_init__` checks what types can't say, such as ranges
            return cls(**values)
        except SennError as error:
            raise self.damaged(str(error)) from error

    def check_version(self, found: object, newest: int) -> None:
        if type(found) is not int or found < 1:
            raise self.damaged(f"its version is {_shown(found)}")
        if found > newest:
            raise SennError(
                f"{self.what} has version {found}, and this senn reads up to {newest}: update senn"
            )

    def value(self, hint: Any, value: object, name: str) -> Any:
        origin = typing.get_origin(hint)
        if hint is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return self.union(typing.get_args(hint), value, name)
        if origin is Literal:
            if any(
                type(value) is type(choice) and value == choice for choice in typing.get_args(hint)
            ):
                return value
        elif is_dataclass(hint) and isinstance(hint, type):
            return self.record(hint, value, {}, None)
        elif typing.is_typeddict(hint):
            return self.listed_fields(hint, value)
        elif origin is not None:
            return self.container(hint, value, name)
        elif hint in _PLAIN:
            if _PLAIN[hint](value) and not (
                isinstance(value, float) and self.finite and not math.isfinite(value)
            ):
                return float(value) if hint is float else value  # type: ignore[arg-type]
        elif isinstance(hint, type) and isinstance(value, hint):
            return value
        raise self.damaged(f"{name!r} can't be {_shown(value)}")

    def listed_fields(self, cls: Any, mapping: object) -> Any:
        if not isinstance(mapping, Mapping):
            raise self.damaged(f"{_shown(mapping)} is not a mapping of names to values")
        hints, required = _fields_of(cls)
        for name in sorted(required - mapping.keys()):
            raise self.damaged(f"it lacks {name!r}")
        for name, hint in hints.items():
            if name in mapping:
                self.value(hint, mapping[name], name)
        return mapping

    def union(self, choices: tuple[Any, ...], value: object, name: str) -> Any:
        # the value's own type first: 3 is an int of `float | int`, and True is neither
        exact = [choice for choice in choices if choice is type(value)]
        for choice in exact or choices:
            try:
                return self.value(choice, value, name)
            except SennError:
                continue
        raise self.damaged(f"{name!r} can't be {_shown(value)}")

    def container(self, hint: Any, value: object, name: str) -> Any:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if issubclass(origin, Mapping) and isinstance(value, Mapping):
            key, item = inner
            # keys are checked as values are: JSON has only texts
            return {self.value(key, k, name): self.value(item, v, name) for k, v in value.items()}
        if issubclass(origin, list | tuple) and isinstance(value, list | tuple):
            # list[X] and tuple[X, ...] repeat their one type; tuple[X, Y] has one for each item
            each = inner * len(value) if origin is list else inner
            if origin is tuple and inner[-1] is Ellipsis:
                each = inner[:1] * len(value)
            if len(each) == len(value):
                return origin(self.value(one, v, name) for one, v in zip(each, value, strict=True))
        raise self.damaged(f"{name!r} can't be {_shown(value)}")

    def damaged(self, reason: str) -> SennError:
        return SennError(f"{self.what} is damaged: {reason}")


@cache
def _fields_of(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the annotations of a `TypedDict`, and which of its fields must be there."""
    plain = typing.get_type_hints(cls)
    full = typing.get_type_hints(cls, include_extras=True)
    optional = {name for name, hint in full.items() if typing.get_origin(hint) is NotRequired}
    return plain, frozenset(plain) - optional


_PLAIN: dict[Any, Callable[[object], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: (
        isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
    ),
    types.NoneType: lambda value: value is None,
}


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def current_keys(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a record that version 0.1 may have written to a run folder or a checkpoint.

    Args:
        cls: the record's class, whose old names count.
        record: the record by the names of its time; those of today stay.
    """
    renamed = _deprecated.MEMBERS.get(cls.__name__, {})
    return {renamed.get(key, key): value for key, value in record.items()}
