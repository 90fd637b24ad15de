"""What a task of a random scenario can do: the same functions of the model that scenarios of the library use."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Lane(enum.Enum):
    """Whose action it is. The actions of one lane follow each other in one task (of vCPUs, one task each)."""

    VCPU = "vcpu"
    HOST = "host"
    """What happens to the process's memory with its mmap_lock held: system calls, KSM, khugepaged, the OOM reaper."""
    RECLAIM = "reclaim"
    """What the kernel does to pages, wherever they are mapped, without that lock."""
    SLOTS = "slots"
    """Userspace changes the memslots, asks for the dirty log, or makes memory private."""
    ADMIN = "admin"
    """What the kernel or the administrator does to the whole VM."""
    EXIT = "exit"
    """The process ends. None of its threads can be in a system call then: not beside VCPU, HOST and SLOTS."""


ALIVE = frozenset({Lane.VCPU, Lane.HOST, Lane.SLOTS})
"""Lanes that need the process."""


class Facts(enum.Flag):
    """What is the case where an action is to be done: what it needs, gives, and takes."""

    NONE = 0
    MEMORY = enum.auto()
    """Memslot 0, which the guest's memory is in, exists."""
    MOVED = enum.auto()
    """It is a page above its first place."""
    SMM_MEMORY = enum.auto()
    """A memslot shows the same memory in system management mode."""
    DUMMY = enum.auto()
    """Memslot 1, which nobody accesses, exists."""
    LOGGED = enum.auto()
    """Dirty pages of memslot 0 are logged."""
    MANUAL = enum.auto()
    """Getting the dirty log protects no pages, clearing it does."""
    RING = enum.auto()
    """Dirty pages are logged in rings."""
    PRIVATE = enum.auto()
    """The guest may have private memory."""
    TRACKED = enum.auto()
    """Writes to the first page are tracked."""
    HUGE = enum.auto()
    """The memory is a huge page."""
    PAIR = enum.auto()
    """There are two pages."""
    AWAY = enum.auto()
    """A page was moved to another address."""
    NESTED = enum.auto()
    """The vCPU runs a nested guest."""
    SMM = enum.auto()
    """The vCPU is in system management mode."""


MODES = Facts.NESTED | Facts.SMM
"""What is a fact of one vCPU, not of the VM."""

SLOT_ENDS = Facts.MEMORY | Facts.MOVED | Facts.LOGGED | Facts.TRACKED


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the table. `call` is Python, in which `kvm` is there. `{vcpu}` is the vCPU, `{gfn}` and `{hva}` are of
    the page drawn, `{base}` and `{start}` of the first one of `{npages}`, `{next}` is the hva of the other one."""

    name: str
    lane: Lane
    call: str
    needs: Facts = Facts.NONE
    lacks: Facts = Facts.NONE
    """It cannot be done where any of these is the case."""
    gives: Facts = Facts.NONE
    takes: Facts = Facts.NONE

    def possible(self, facts: Facts) -> bool:
        return self.needs in facts and not facts & self.lacks


_RUN = "kvm_arch_vcpu_ioctl_run({{vcpu}}, {})"
_LOG = "kvm_vm_set_slot_flags(kvm, 0, {})"
_PRIVATE = "kvm_vm_set_mem_attributes(kvm, {{gfn}}, {{gfn}} + 1, {})"
_SMM_SLOT = "kvm_create_memslot(kvm, 2, {base}, {npages}, {start}, as_id=1)"

ACTIONS = (
    Action("read", Lane.VCPU, _RUN.format("read({gfn})")),
    Action("write", Lane.VCPU, _RUN.format("write({gfn})")),
    Action("execute", Lane.VCPU, _RUN.format("execute({gfn})")),
    Action("enter L2", Lane.VCPU, _RUN.format("enter_l2()"), lacks=Facts.NESTED, gives=Facts.NESTED),
    Action("exit L2", Lane.VCPU, _RUN.format("exit_l2()"), needs=Facts.NESTED, takes=Facts.NESTED),
    Action("SMI", Lane.VCPU, _RUN.format("smi()"), needs=Facts.SMM_MEMORY, lacks=Facts.SMM, gives=Facts.SMM),
    Action("RSM", Lane.VCPU, _RUN.format("rsm()"), needs=Facts.SMM, takes=Facts.SMM),
    Action("toggle CR0.WP", Lane.VCPU, _RUN.format("toggle_cr0_wp()")),
    Action("toggle paging", Lane.VCPU, _RUN.format("toggle_paging()")),
    Action("prefault", Lane.VCPU, "kvm_vcpu_pre_fault_memory({vcpu}, {gfn}, 1)"),
    Action("munmap", Lane.HOST, "munmap(kvm.mm, {hva}, 1)"),
    Action("MADV_DONTNEED", Lane.HOST, "madvise_dontneed(kvm.mm, {hva}, 1)"),
    Action("mprotect to read", Lane.HOST, "mprotect(kvm.mm, {hva}, 1, Prot.READ)"),
    Action("mprotect to write", Lane.HOST, "mprotect(kvm.mm, {hva}, 1, Prot.WRITE)"),
    Action("mremap", Lane.HOST, "mremap(kvm.mm, {hva}, 1, 0x800)", lacks=Facts.AWAY, gives=Facts.AWAY),
    Action("fork", Lane.HOST, "fork(kvm.mm)"),
    Action("merge", Lane.HOST, "try_to_merge_two_pages(kvm.mm, {hva}, {next})", needs=Facts.PAIR),
    Action("khugepaged", Lane.HOST, "collapse_huge_page(kvm.mm, {hva})", needs=Facts.HUGE),
    Action("split the huge page", Lane.HOST, "split_folio(kvm.mm, block_of(PG_LEVEL_2M, {hva}))", needs=Facts.HUGE),
    # beside the reaper of a huge page a fault could map it again: the model has no mmap_lock
    Action("OOM reaper", Lane.HOST, "oom_reap_task_mm(kvm.mm)", lacks=Facts.HUGE),
    Action("migrate", Lane.RECLAIM, "migrate_page(kvm.mm, {hva})"),
    Action("reclaim", Lane.RECLAIM, "madvise_pageout(kvm.mm, {hva}, 1)"),
    Action("shrink", Lane.RECLAIM, "shrink_list(kvm.mm, {hva}, 1)"),
    Action("age", Lane.RECLAIM, "damon_young(kvm.mm, {hva})"),
    Action("idle", Lane.RECLAIM, "page_idle_clear_pte_refs(kvm.mm, {hva})"),
    Action(
        "log dirty pages",
        Lane.SLOTS,
        _LOG.format("KVM_MEM_LOG_DIRTY_PAGES"),
        needs=Facts.MEMORY,
        lacks=Facts.LOGGED,
        gives=Facts.LOGGED,
    ),
    Action("log no dirty pages", Lane.SLOTS, _LOG.format("0"), needs=Facts.LOGGED, takes=Facts.LOGGED),
    Action("get the dirty log", Lane.SLOTS, "kvm_get_dirty_log(kvm, 0)", needs=Facts.LOGGED, lacks=Facts.RING),
    Action(
        "clear the dirty log",
        Lane.SLOTS,
        "kvm_clear_dirty_log(kvm, 0, ({gfn},))",
        needs=Facts.LOGGED | Facts.MANUAL,
        lacks=Facts.MOVED,
    ),
    Action("reset the dirty rings", Lane.SLOTS, "kvm_vm_ioctl_reset_dirty_pages(kvm)", needs=Facts.RING),
    Action("delete memslot 0", Lane.SLOTS, "kvm_delete_memslot(kvm, 0)", needs=Facts.MEMORY, takes=SLOT_ENDS),
    Action(
        "create memslot 0",
        Lane.SLOTS,
        "kvm_create_memslot(kvm, 0, {base}, {npages}, {start})",
        lacks=Facts.MEMORY,
        gives=Facts.MEMORY,
    ),
    Action(
        "move memslot 0",
        Lane.SLOTS,
        "kvm_move_memslot(kvm, 0, {base} + 1)",
        needs=Facts.MEMORY,
        lacks=Facts.MOVED | Facts.TRACKED,
        gives=Facts.MOVED,
    ),
    Action("move memslot 0 back", Lane.SLOTS, "kvm_move_memslot(kvm, 0, {base})", needs=Facts.MOVED, takes=Facts.MOVED),
    Action("create memslot 2", Lane.SLOTS, _SMM_SLOT, lacks=Facts.SMM_MEMORY, gives=Facts.SMM_MEMORY),
    Action(
        "delete memslot 2",
        Lane.SLOTS,
        "kvm_delete_memslot(kvm, 2, as_id=1)",
        needs=Facts.SMM_MEMORY,
        takes=Facts.SMM_MEMORY,
    ),
    Action("delete memslot 1", Lane.SLOTS, "kvm_delete_memslot(kvm, 1)", needs=Facts.DUMMY, takes=Facts.DUMMY),
    Action(
        "create memslot 1",
        Lane.SLOTS,
        "kvm_create_memslot(kvm, 1, DUMMY_GFN, 1, DUMMY_HVA)",
        lacks=Facts.DUMMY,
        gives=Facts.DUMMY,
    ),
    Action("make private", Lane.SLOTS, _PRIVATE.format("KVM_MEMORY_ATTRIBUTE_PRIVATE"), needs=Facts.PRIVATE),
    Action("make shared", Lane.SLOTS, _PRIVATE.format("0"), needs=Facts.PRIVATE),
    Action(
        "track writes",
        Lane.SLOTS,
        "kvm_write_track_add_gfn(kvm, {base})",
        needs=Facts.MEMORY,
        lacks=Facts.TRACKED | Facts.MOVED,
        gives=Facts.TRACKED,
    ),
    Action(
        "track no writes",
        Lane.SLOTS,
        "kvm_write_track_remove_gfn(kvm, {base})",
        needs=Facts.TRACKED,
        takes=Facts.TRACKED,
    ),
    Action("write nx_huge_pages", Lane.ADMIN, "set_nx_huge_pages()"),
    Action("switch nx_huge_pages on", Lane.ADMIN, "set_nx_huge_pages(True)"),
    Action("recover huge pages", Lane.ADMIN, "kvm_recover_nx_huge_pages(kvm)"),
    Action("zap a gfn range", Lane.ADMIN, "kvm_zap_gfn_range(kvm, {gfn}, {gfn} + 1)"),
    Action("zap all gfns", Lane.ADMIN, "kvm_zap_gfn_range(kvm, {base}, {base} + {npages})"),
    Action("exit", Lane.EXIT, "mmput(kvm.mm)"),
)

BY_NAME = {action.name: action for action in ACTIONS}

_NAMES = {
    "interleaf.hw.page_table": "PG_LEVEL_2M",
    "interleaf.kvm.attributes": "KVM_MEMORY_ATTRIBUTE_PRIVATE kvm_vm_set_mem_attributes",
    "interleaf.kvm.dirty_log": "kvm_clear_dirty_log kvm_get_dirty_log kvm_vm_set_slot_flags",
    "interleaf.kvm.dirty_ring": "kvm_vm_ioctl_reset_dirty_pages",
    "interleaf.kvm.kvm_host": "KVM_MEM_LOG_DIRTY_PAGES Kvm KvmParams",
    "interleaf.kvm.memslots": "kvm_create_memslot kvm_delete_memslot kvm_move_memslot",
    "interleaf.kvm.nx_recovery": "kvm_recover_nx_huge_pages",
    "interleaf.kvm.page_track": "kvm_write_track_add_gfn kvm_write_track_remove_gfn",
    "interleaf.kvm.prefault": "kvm_vcpu_pre_fault_memory",
    "interleaf.kvm.vcpu": (
        "kvm_arch_vcpu_ioctl_run read write execute enter_l2 exit_l2 smi rsm toggle_cr0_wp toggle_paging"
    ),
    "interleaf.kvm.zap": "kvm_zap_gfn_range set_nx_huge_pages",
    "interleaf.mm.fork": "fork",
    "interleaf.mm.khugepaged": "collapse_huge_page",
    "interleaf.mm.ksm": "try_to_merge_two_pages",
    "interleaf.mm.huge_memory": "split_folio",
    "interleaf.mm.migrate": "migrate_page",
    "interleaf.mm.mm_types": "Prot block_of",
    "interleaf.mm.mprotect": "mprotect",
    "interleaf.mm.mremap": "mremap",
    "interleaf.mm.unmap": "madvise_dontneed mmput munmap oom_reap_task_mm",
    "interleaf.mm.vmscan": "damon_young madvise_pageout page_idle_clear_pte_refs shrink_list",
    "interleaf.scenarios": "DUMMY_GFN DUMMY_HVA FAR_GFN GUEST_HVA HUGE_HVA destroy_after make_vm scenario",
    "interleaf.hw.platform": "EPT NPT EPT_PML EPT_NO_AD EPT_5_LEVEL",
    "interleaf.kvm.design": "Design",
    "interleaf.runtime": "spawn",
}
"""Where the names that a scenario file may use come from."""

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def imports_of(code: str) -> dict[str, list[str]]:
    """By module, in order, the names that `code` uses."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(re.findall(r"\b[A-Za-z_]\w*", code)) & set(_MODULE_OF)):
        found.setdefault(_MODULE_OF[name], []).append(name)
    return dict(sorted(found.items()))


def possible(lane: Lane, facts: Facts) -> tuple[Action, ...]:
    """What a task of this lane can do where `facts` are the case."""
    return tuple(action for action in ACTIONS if action.lane is lane and action.possible(facts))
