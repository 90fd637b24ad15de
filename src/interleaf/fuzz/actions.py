"""What a task of a random scenario can do: the same functions of the model that scenarios of the library use."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Lane(enum.Enum):
    """Whose action it is. The actions of one lane follow each other in one task (of vCPUs, one task each)."""

    VCPU = "vcpu"
    HOST = "host"
    """The host takes, moves, or looks at the memory."""
    SLOTS = "slots"
    """Userspace changes the memslots, or asks for the dirty log."""
    ADMIN = "admin"
    """What the kernel or the administrator does to the whole VM."""


class Slots(enum.Flag):
    """What is the case in the lane SLOTS: what an action there needs, gives, and takes."""

    NONE = 0
    MEMORY = enum.auto()
    """Memslot 0, which the guest's memory is in, exists."""
    DUMMY = enum.auto()
    """Memslot 1, which nobody accesses, exists."""
    LOGGED = enum.auto()
    """Dirty pages of memslot 0 are logged."""
    MANUAL = enum.auto()
    """Getting the dirty log protects no pages, clearing it does."""


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the table. `call` is Python: `vcpu` and `kvm` are there, `{gfn}` and `{hva}` are of the page drawn."""

    name: str
    lane: Lane
    call: str
    module: str
    """Where the function that it calls comes from."""
    also: tuple[tuple[str, str], ...] = ()
    """Further names that it needs, each with its module."""
    needs: Slots = Slots.NONE
    gives: Slots = Slots.NONE
    takes: Slots = Slots.NONE

    @property
    def imports(self) -> tuple[tuple[str, str], ...]:
        """Module and name of all that the call uses."""
        return ((self.module, self.call.partition("(")[0]), *self.also)


_VCPU = "interleaf.kvm.vcpu"
_SLOTS = "interleaf.kvm.memslots"
_MM = "interleaf.mm.unmap"
_RUN = "kvm_arch_vcpu_ioctl_run(vcpu, {})"

ACTIONS = (
    Action("read", Lane.VCPU, _RUN.format("read({gfn})"), _VCPU, ((_VCPU, "read"),)),
    Action("write", Lane.VCPU, _RUN.format("write({gfn})"), _VCPU, ((_VCPU, "write"),)),
    Action("execute", Lane.VCPU, _RUN.format("execute({gfn})"), _VCPU, ((_VCPU, "execute"),)),
    Action(
        "write from a nested guest",
        Lane.VCPU,
        _RUN.format("enter_l2(), write({gfn}), exit_l2()"),
        _VCPU,
        ((_VCPU, "enter_l2"), (_VCPU, "exit_l2"), (_VCPU, "write")),
    ),
    Action(
        "toggle CR0.WP",
        Lane.VCPU,
        _RUN.format("toggle_cr0_wp()"),
        _VCPU,
        ((_VCPU, "toggle_cr0_wp"),),
    ),
    Action("reset the MMU", Lane.VCPU, "kvm_mmu_reset_context(vcpu)", "interleaf.kvm.mmu"),
    Action("munmap", Lane.HOST, "munmap(kvm.mm, {hva}, 1)", _MM),
    Action(
        "MADV_DONTNEED",
        Lane.HOST,
        "madvise_dontneed(kvm.mm, {hva}, 1)",
        _MM,
    ),
    Action(
        "migrate",
        Lane.HOST,
        "migrate_page(kvm.mm, {hva})",
        "interleaf.mm.migrate",
    ),
    Action(
        "reclaim",
        Lane.HOST,
        "madvise_pageout(kvm.mm, {hva}, 1)",
        "interleaf.mm.vmscan",
    ),
    Action("age", Lane.HOST, "damon_young(kvm.mm, {hva})", "interleaf.mm.vmscan"),
    Action("fork", Lane.HOST, "fork(kvm.mm)", "interleaf.mm.fork"),
    Action(
        "clear the dirty log",
        Lane.SLOTS,
        "kvm_clear_dirty_log(kvm, 0, ({gfn},))",
        "interleaf.kvm.dirty_log",
        needs=Slots.MEMORY | Slots.LOGGED | Slots.MANUAL,
    ),
    Action(
        "delete memslot 0",
        Lane.SLOTS,
        "kvm_delete_memslot(kvm, 0)",
        _SLOTS,
        needs=Slots.MEMORY,
        takes=Slots.MEMORY | Slots.LOGGED,
    ),
    Action("delete memslot 1", Lane.SLOTS, "kvm_delete_memslot(kvm, 1)", _SLOTS, needs=Slots.DUMMY, takes=Slots.DUMMY),
    Action(
        "log dirty pages",
        Lane.SLOTS,
        "kvm_vm_set_slot_flags(kvm, 0, KVM_MEM_LOG_DIRTY_PAGES)",
        "interleaf.kvm.dirty_log",
        (("interleaf.kvm.kvm_host", "KVM_MEM_LOG_DIRTY_PAGES"),),
        needs=Slots.MEMORY,
        gives=Slots.LOGGED,
    ),
    Action(
        "log no dirty pages",
        Lane.SLOTS,
        "kvm_vm_set_slot_flags(kvm, 0, 0)",
        "interleaf.kvm.dirty_log",
        needs=Slots.MEMORY | Slots.LOGGED,
        takes=Slots.LOGGED,
    ),
    Action(
        "get the dirty log",
        Lane.SLOTS,
        "kvm_get_dirty_log(kvm, 0)",
        "interleaf.kvm.dirty_log",
        needs=Slots.MEMORY | Slots.LOGGED,
    ),
    Action("write nx_huge_pages", Lane.ADMIN, "set_nx_huge_pages()", "interleaf.kvm.zap"),
    Action("switch nx_huge_pages on", Lane.ADMIN, "set_nx_huge_pages(True)", "interleaf.kvm.zap"),
    Action("recover huge pages", Lane.ADMIN, "kvm_recover_nx_huge_pages(kvm)", "interleaf.kvm.nx_recovery"),
    Action(
        "zap a gfn range",
        Lane.ADMIN,
        "kvm_zap_gfn_range(kvm, {gfn}, {gfn} + 1)",
        "interleaf.kvm.zap",
    ),
)

BY_NAME = {action.name: action for action in ACTIONS}


def possible(lane: Lane, state: Slots) -> tuple[Action, ...]:
    """What a task of this lane can do where `state` is the case."""
    return tuple(
        action
        for action in ACTIONS
        if action.lane is lane and action.needs in state and (not action.gives or action.gives not in state)
    )
