"""Ways to put a bug back that are more than a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from interleaf.kvm.design import Design


def with_functions(**functions: Any) -> Callable[[Design], Design]:
    """A deviation: some functions of the design are others, which stand beside the bug."""

    def deviate(design: Design) -> Design:
        return dataclasses.replace(design, **functions)

    return deviate


def taking(other: Design, *functions: str) -> Callable[[Design], Design]:
    """A deviation: these functions are as another design has them."""
    return with_functions(**{name: getattr(other, name) for name in functions})
