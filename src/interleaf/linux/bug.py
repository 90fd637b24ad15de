"""WARN_ON, WARN_ON_ONCE and BUG_ON (include/asm-generic/bug.h).

A WARN is a violation after which the execution goes on; a BUG ends it.
"""

from __future__ import annotations

from interleaf.runtime import check, warn


def WARN_ON(condition: bool, text: str) -> bool:
    """Report a violation of `WARN` if `condition`; returns `condition`, as the kernel's does."""
    return warn("WARN", bool(condition), f"WARN_ON({text})")


def WARN_ON_ONCE(condition: bool, text: str) -> bool:
    """As WARN_ON(). "Once" is about the kernel's log; each execution is a boot of its own."""
    return warn("WARN", bool(condition), f"WARN_ON_ONCE({text})")


def BUG_ON(condition: bool, text: str) -> None:
    """Report a violation of `BUG` if `condition`, and end the execution there."""
    check("BUG", not condition, f"BUG_ON({text})")
