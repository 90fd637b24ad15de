"""Module parameters of the traced host: lines `/sys/module/kvm/parameters/NAME = VALUE` (Y, N or a number)."""

from __future__ import annotations

import re
from pathlib import Path

from interleaf.kvm.kvm_host import KvmParams

from .source import Unreadable

_LINE = re.compile(r"/sys/module/\w+/parameters/(\w+) = (.*)")
_YES, _NO = frozenset({"Y", "1", "auto", "force"}), frozenset({"N", "0", "off", "never"})
_NEEDED = "tdp_mmu", "npt", "ept"
"""Without any of these the host's page tables are not the TDP MMU's."""


def read_parameters(path: Path) -> KvmParams:
    """What the host's administrator has chosen for each VM. Raises Unreadable."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path}: the module parameters cannot be read: {error}.") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            found[match[1]] = match[2].strip()
        elif line.strip():
            raise Unreadable(
                f"{path}:{number}: expected `/sys/module/MODULE/parameters/NAME = VALUE`, found {line[:80]!r}. "
                "Give the file that was written beside the trace."
            )
    if not found:
        raise Unreadable(f"{path}: there are no module parameters in it.")
    for name in _NEEDED:
        if not _is_on(path, found, name, True):
            raise Unreadable(f"{path}: {name} is {found[name]}, so what is traced is not the TDP MMU.")
    return KvmParams(
        eager_page_split=_is_on(path, found, "eager_page_split", True),
        mmio_caching=_is_on(path, found, "mmio_caching", True),
        disable_nx_huge_pages=not _is_on(path, found, "nx_huge_pages", True),
    )


def _is_on(path: Path, found: dict[str, str], name: str, default: bool) -> bool:
    value = found.get(name)
    if value is None:
        return default
    if value not in _YES | _NO:
        raise Unreadable(f"{path}: {name} is {value!r}, which is neither Y nor N.")
    return value in _YES
