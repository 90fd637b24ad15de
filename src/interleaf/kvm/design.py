"""A design: one way in which the TDP MMU is (or was, or might be) built, as a value.

A `Design` holds the functions that differ between kernels, under the kernel's names, and the *rules* that it
follows: named differences so small that they are a line or two inside a function, each of which can be dropped
(or added) by itself to see what breaks. The code of `kvm/` knows only the design of the VM at hand
(`kvm.design`), never a version number. The values live in `interleaf.designs`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from interleaf.runtime import ModelError

if TYPE_CHECKING:
    from .kvm_host import Kvm, KvmGfnRange, KvmMmuPage, KvmVcpu


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a design does, and that it could leave out."""

    name: str
    text: str
    """What is done, and why, in one sentence."""
    commit: str
    """The kernel commit (or mail) that introduced it."""
    removed: str = ""
    """The kernel commit (or version, or mail) that took it out again; empty if nothing has."""


LISTED = "`interleaf list rules` says which there are, and which designs follow them."

RULES: dict[str, Rule] = {}
"""Every rule that any imported module declares, by name."""


def rule(name: str, text: str, commit: str, removed: str = "") -> Rule:
    """Declare a rule, beside the code that follows it. A name can be declared once only."""
    if name in RULES:
        raise ModelError(f"the rule {name!r} is declared twice: {RULES[name].text!r} and {text!r}.")
    declared = RULES[name] = Rule(name, text, commit, removed)
    return declared


@dataclass(frozen=True, slots=True)
class Design:
    """One way in which the TDP MMU is built. All functions have the kernel's names and calling context."""

    name: str
    summary: str
    """What is special about it, in one sentence."""
    commits: tuple[str, ...]
    """The kernel commits (or mails) that made it what it is, compared with its older neighbour."""
    rules: frozenset[str]
    """Names of the rules that it follows."""

    shadow_nonpresent_value: int
    """SPTE value of an entry that maps nothing: 0, from 6.10 on bit 63 (suppress #VE)."""
    removed_spte: int
    """SPTE value of a frozen entry: 0x5a0, from 6.10 on with bit 63."""

    kvm_mmu_init_tdp_mmu: Callable[[Kvm], None]
    """Set up the TDP MMU of a new VM."""
    kvm_mmu_uninit_tdp_mmu: Callable[[Kvm], None]
    """Take the TDP MMU of a VM down that nobody uses any more. No lock held."""
    kvm_tdp_mmu_get_vcpu_root_hpa: Callable[[KvmVcpu], KvmMmuPage]
    """Find or make the root for the vCPU's role, and take a reference on it.

    mmu_lock is held in the mode in which the design allocates roots: for read if it follows
    "roots-under-read-lock", otherwise for write.
    """
    kvm_tdp_mmu_get_root: Callable[[Kvm, KvmMmuPage], bool]
    """Take a reference on a root that somebody keeps alive; False if it must not be used. mmu_lock held."""
    kvm_tdp_mmu_put_root: Callable[[Kvm, KvmMmuPage, bool], None]
    """Give a reference back; `shared`: mmu_lock is held for read, else for write."""
    tdp_mmu_next_root: Callable[[Kvm, KvmMmuPage | None, bool, bool], KvmMmuPage | None]
    """(kvm, prev, shared, only_valid): the root after `prev` with a reference; puts `prev`. mmu_lock held."""
    kvm_tdp_mmu_invalidate_all_roots: Callable[[Kvm, Any], None]
    """Make all roots unusable; the second argument is the caller's list of invalidated roots, where there is one."""
    kvm_tdp_mmu_zap_invalidated_roots: Callable[[Kvm, Any], None]
    """Zap what `kvm_tdp_mmu_invalidate_all_roots` invalidated and give its references back.

    mmu_lock held as the design's kvm_mmu_zap_all_fast calls it.
    """
    kvm_mmu_zap_all_fast: Callable[[Kvm], None]
    """Invalidate all roots, make all vCPUs take new ones, zap the old ones. slots_lock held, no mmu_lock."""
    kvm_tdp_mmu_unmap_gfn_range: Callable[[Kvm, KvmGfnRange, bool], bool]
    """The unmap notifier: zap the range in all roots; returns whether a flush is needed. mmu_lock held for write."""
    kvm_tdp_mmu_zap_leafs: Callable[[Kvm, int, int, bool], bool]
    """Zap [start, end) for good (kvm_zap_gfn_range); returns whether a flush is needed. mmu_lock held for write."""
    kvm_tdp_mmu_zap_all: Callable[[Kvm], None]
    """Zap everything: the mm goes away. mmu_lock held for write."""
    fault_event_names_vcpu: bool = True
    """Does the event kvm_page_fault say which vCPU it is about, and where its guest was (from 6.0 on)?"""

    def obeys(self, asked: Rule) -> bool:
        """Does this design follow the rule?"""
        return asked.name in self.rules

    def without(self, name: str) -> Self:
        """This design with one of its rules dropped."""
        return self._change(name, self.rules - {name}, "without", self.rules, "does not follow the rule")

    def adding(self, name: str) -> Self:
        """This design with one more of the known rules."""
        others = frozenset(RULES) - self.rules
        return self._change(name, self.rules | {name}, "with", others, "already follows the rule")

    def swapping(self, function: str, other: Design) -> Self:
        """This design with one of its functions as `other` has it.

        Raises ModelError if designs have no such function, or if both have the same one.
        """
        known = functions()
        if function not in known:
            close = difflib.get_close_matches(function, known, 3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"They have {', '.join(known)}."
            raise ModelError(f"designs have no function {function!r}. {hint}")
        if getattr(self, function) is getattr(other, function):
            raise ModelError(f"{self.name} and {other.name} have the same {function}.")
        changed = {"name": f"{self.name} swap {function}={other.name}", function: getattr(other, function)}
        return dataclasses.replace(self, **changed)

    def derive(
        self,
        name: str,
        summary: str,
        commits: tuple[str, ...],
        *,
        obeys: Iterable[Rule] = (),
        drops: Iterable[Rule] = (),
        **differences: Any,
    ) -> Self:
        """A neighbour of this design: rules gained and lost, and the functions and values that differ.

        Raises ModelError for a rule gained that is there already, or lost that is not, and for an unknown field.
        """
        gained = {gain.name for gain in obeys}
        lost = {loss.name for loss in drops}
        if wrong := sorted((gained & self.rules) | (lost - self.rules)):
            raise ModelError(
                f"{name} differs from {self.name} in {', '.join(wrong)}, but {self.name} has it so already."
            )
        known = [field.name for field in dataclasses.fields(self)]
        if unknown := sorted(set(differences) - set(known)):
            raise ModelError(f"{name}: a design has no {', '.join(unknown)}; it has {', '.join(known)}.")
        rules = (self.rules | gained) - lost
        return dataclasses.replace(self, name=name, summary=summary, commits=commits, rules=rules, **differences)

    def _change(self, name: str, rules: frozenset[str], how: str, possible: frozenset[str], why_not: str) -> Self:
        if name not in possible:
            if name in RULES:
                raise ModelError(f"{self.name} {why_not} {name!r}; {LISTED}")
            close = difflib.get_close_matches(name, RULES, 3)
            hint = f". Did you mean {' or '.join(close)}?" if close else f"; {LISTED}"
            raise ModelError(f"there is no rule {name!r}{hint}")
        return dataclasses.replace(self, name=f"{self.name} {how} {name}", rules=rules)


def functions() -> tuple[str, ...]:
    """The names of the functions in which designs may differ."""
    return tuple(field.name for field in dataclasses.fields(Design) if str(field.type).startswith("Callable["))
