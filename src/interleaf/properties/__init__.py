"""What must hold: each property once, with its reason and its source.

Properties are checked where the model does what they speak of (`check("I9", ...)` in the vCPU loop), or by the
building blocks (a refcount that goes below zero), or by the search (deadlock); an invariant may consist of several
such rules. This folder says what each of them means, why it must hold, and where that is written; and what a patch
claims about itself.
"""

from __future__ import annotations

from .catalogue import MADE_OF, NAMES, PROPERTIES, Property, property_of

__all__ = ["MADE_OF", "NAMES", "PROPERTIES", "Property", "property_of"]
