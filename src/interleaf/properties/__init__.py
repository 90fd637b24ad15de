"""What must hold: each property once, with its reason and its source.

Properties are checked where the model does what they speak of (`check("I9", ...)` in the vCPU loop), or by the
building blocks (a refcount that goes below zero), or by the search (deadlock). This folder says what each of
them means, why it must hold, and where that is written.
"""

from __future__ import annotations

from .catalogue import NAMES, PROPERTIES, Property

__all__ = ["NAMES", "PROPERTIES", "Property"]
