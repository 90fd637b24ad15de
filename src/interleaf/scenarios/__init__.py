'''The library of scenarios: a VM, and a few tasks that race.

A scenario is a function that builds a VM and spawns the tasks. To write one, put it into a Python file:

    from interleaf.kvm.memslots import kvm_delete_memslot
    from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
    from interleaf.runtime import spawn
    from interleaf.scenarios import destroy_after, make_vm, populate, scenario

    @scenario("A vCPU writes while a memslot is deleted")
    def my_scenario(design, *, pages: int = 1):
        """What races, and why it matters."""
        kvm = make_vm(design, pages=pages, dummies=1)
        populate(kvm)                             # runs alone, before everything else
        vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], write(0), read(0), name="vcpu0")
        memslot = spawn(kvm_delete_memslot, kvm, 1, name="memslot")
        destroy_after(kvm, vcpu, memslot)         # joins both, then puts the last reference on the VM

and check it with `interleaf check my_scenario.py`. What tasks can do: everything in `interleaf.kvm` that userspace
or the administrator can cause (KVM_RUN, memslots, MMU resets, set_nx_huge_pages), and everything in
`interleaf.mm.unmap` that the host does to the memory.

* A task is a function and its arguments, which are numbers, strings, model objects and tuples of these. Tasks share
  nothing but the objects.
* Keyword-only arguments are sizes. They have defaults, and may be lowered (to 1, or to what the decorator says) to
  make the story of a finding shorter.
* Everything that the scenario does before it returns runs alone and costs nothing. Each operation of the tasks after
  that multiplies the number of states: use as few tasks, pages and accesses as show the race.
* Guest memory is at the gfns 0 … pages - 1, in memslot 0; `dummies` adds memslots 1, 2, … that are never accessed.
* End with `destroy_after`, so that it is checked that nothing is left of the VM.
'''

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path

from interleaf.runtime import ModelError

from . import (
    claims,
    dirty_log,
    host,
    huge_pages,
    lifecycle,
    memslots,
    modes,
    nested,
    notifiers,
    pairs,
    unfixed,
    vcpus,
    walks,
)
from .scenario import Parameter, Scenario, scenario, scenarios_of
from .stage import (
    DUMMY_GFN,
    DUMMY_HVA,
    FAR_GFN,
    GUEST_HVA,
    HUGE_HVA,
    destroy_after,
    enter_l2,
    enter_nested,
    load_roots,
    make_vm,
    populate,
)


def library() -> dict[str, Scenario]:
    """All scenarios that come with the project, by name."""
    found: dict[str, Scenario] = {}
    for module in (memslots, notifiers, vcpus, walks, dirty_log, huge_pages, host, modes, nested, lifecycle):
        found |= scenarios_of(module)
    return found


def of_claims() -> dict[str, Scenario]:
    """The scenarios that decide the claims of a patch, by name. They are not in the library, but can be loaded."""
    return scenarios_of(claims)


def of_unfixed() -> dict[str, Scenario]:
    """The scenarios that show what is wrong in every kernel, by name: not in the library, but they can be loaded."""
    return scenarios_of(unfixed)


def of_pairs() -> dict[str, Scenario]:
    """The scenarios of each two activities that can race, by name. They are not in the library, but can be loaded."""
    return pairs.of_pairs()


def load(spec: str) -> Scenario:
    """The scenario called `spec` in the library, the one in `path/file.py`, or `name` in `path/file.py:name`.

    Raises ModelError that says what was expected, and what was found.
    """
    file, _, name = spec.partition(":")
    if not file.endswith(".py"):
        return _pick(
            spec, library() | of_claims() | of_pairs() | of_unfixed(), f"there is no scenario {spec!r} in the library"
        )
    found = _scenarios_in(Path(file))
    if name:
        return _pick(name, found, f"{file} has no scenario {name!r}")
    if len(found) != 1:
        which = f"; write {file}:NAME for one of {', '.join(found)}" if found else ""
        raise ModelError(f"{file} was expected to have one function with @scenario, but has {len(found)}{which}.")
    return next(iter(found.values()))


def _pick(name: str, known: dict[str, Scenario], otherwise: str) -> Scenario:
    wanted = name.replace("_", "-")
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, 3)
    hint = f" Did you mean {' or '.join(close)}?" if close else f" There are: {', '.join(known) or 'none'}."
    raise ModelError(f"{otherwise}.{hint}")


def _scenarios_in(path: Path) -> dict[str, Scenario]:
    if not path.is_file():
        raise ModelError(f"the scenario file {path} does not exist.")
    name = f"interleaf_scenario_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be read as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return scenarios_of(module)


__all__ = [
    "DUMMY_GFN",
    "DUMMY_HVA",
    "FAR_GFN",
    "GUEST_HVA",
    "HUGE_HVA",
    "Parameter",
    "Scenario",
    "destroy_after",
    "enter_l2",
    "enter_nested",
    "library",
    "load",
    "load_roots",
    "make_vm",
    "of_claims",
    "of_pairs",
    "of_unfixed",
    "populate",
    "scenario",
]
