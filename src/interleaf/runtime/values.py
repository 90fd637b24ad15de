"""Canonical values: what a model function may take, return, or store in a shared field.

The state of a task is known by what its functions were called with and what their operations returned. That
is only sound if those values can never change behind the checker's back and look the same in every
execution. So: numbers, strings, enums, types, functions without mutable closures, model objects (which are
handles; their state lives in cells) and tuples, frozensets and frozen dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from typing import Any, TypeAlias

from .findings import ModelError

Value: TypeAlias = Any
"""A canonical value. `canonical()` is the check; the type system cannot say it."""

_SCALARS: tuple[type, ...] = (int, str, bytes, bool, type(None), type, enum.Enum)


def canonical(value: Value, where: str) -> Value:
    """Return `value` unchanged if it is canonical; raise ModelError naming `where` otherwise."""
    if isinstance(value, _SCALARS) or getattr(value, "_is_handle", False):
        return value
    if isinstance(value, (tuple, frozenset)):
        for item in value:
            canonical(item, where)
        return value
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            canonical(cell.cell_contents, f"{where}, closure of {value.__qualname__}")
        return value
    if isinstance(value, types.MethodType):
        canonical(value.__self__, where)
        return value
    if isinstance(value, functools.partial):
        canonical((value.func, value.args, *value.keywords.items()), where)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise ModelError(
                f"{where}: {type(value).__name__} is a dataclass that is not frozen. Hidden mutable state "
                "would make the search unsound; declare it with frozen=True."
            )
        for field in dataclasses.fields(value):
            canonical(getattr(value, field.name), where)
        return value
    raise ModelError(
        f"{where}: a value of type {type(value).__name__} ({value!r:.60}) is not canonical. Pass numbers, "
        "strings, enums, model objects, or tuples and frozen dataclasses of these; keep changing state in "
        "the fields of a model object."
    )
