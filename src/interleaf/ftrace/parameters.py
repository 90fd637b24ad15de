"""What is written of the traced host beside a trace: the module parameters, as lines
`/sys/module/kvm/parameters/NAME = VALUE` (Y, N or a number), and what `uname` says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from interleaf.kvm.kvm_host import DEFAULT_PARAMS, KvmParams

from .source import Unreadable

_LINE = re.compile(r"/sys/module/\w+/parameters/(\w+) = (.*)")
_RELEASE = re.compile(r"\d+\.\d+")
_YES, _NO = frozenset({"Y", "1", "auto", "force"}), frozenset({"N", "0", "off", "never"})
_NEEDED = "tdp_mmu", "npt", "ept"
"""Without any of these the host's page tables are not the TDP MMU's."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the host's administrator has chosen."""

    vm: KvmParams = DEFAULT_PARAMS
    """For each VM."""
    nx_huge_pages: bool = False
    """Huge pages are not executable."""
    ad_bits: bool | None = None
    """The host's EPT has A and D bits. None: nobody has said so."""
    pml: bool | None = None
    """The processor logs pages whose D bit it sets."""


def read_parameters(path: Path) -> Parameters:
    """The parameters in a file. Raises Unreadable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Unreadable(f"{path}: the module parameters cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError:
        raise Unreadable(f"{path}: the module parameters cannot be read: it is not text in UTF-8.") from None
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
    return Parameters(
        KvmParams(
            eager_page_split=_is_on(path, found, "eager_page_split", True),
            mmio_caching=_is_on(path, found, "mmio_caching", True),
        ),
        nx_huge_pages=_is_on(path, found, "nx_huge_pages", False),
        ad_bits=_is_on(path, found, "eptad", True) if "eptad" in found else None,
        pml=_is_on(path, found, "pml", True) if "pml" in found else None,
    )


def read_release(path: Path) -> str | None:
    """The kernel's release, such as 6.12.117, in a file of what `uname -a` says; None if there is none."""
    try:
        words = path.read_text().split(maxsplit=3)
    except (OSError, UnicodeDecodeError):
        return None
    return words[2] if len(words) > 2 and _RELEASE.match(words[2]) else None


def _is_on(path: Path, found: dict[str, str], name: str, default: bool) -> bool:
    value = found.get(name)
    if value is None:
        return default
    if value not in _YES | _NO:
        raise Unreadable(f"{path}: {name} is {value!r}, which is neither Y nor N.")
    return value in _YES
