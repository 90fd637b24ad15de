"""Random programs of what a host does to its memory, with a second user of the address space beside it.

After each step, references and mappings are what they must be by the page tables; what the second user uses without
asking is what the host maps (tests/mm/secondary.py checks it at each access); in the end every page is freed.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from interleaf.hw.frames import is_allocated
from interleaf.hw.page_table import PG_LEVEL_2M
from interleaf.mm.fork import fork
from interleaf.mm.huge_memory import split_folio
from interleaf.mm.khugepaged import collapse_huge_page
from interleaf.mm.ksm import try_to_merge_two_pages
from interleaf.mm.migrate import migrate_page
from interleaf.mm.mm import AddressSpace, Kind, Mm, MmKernel, Prot, Pte, PteKind, get_user_page, mm_alloc, mmap
from interleaf.mm.mprotect import mprotect
from interleaf.mm.mremap import mremap
from interleaf.mm.page import CompoundPage, Page, ZeroPage, put_page
from interleaf.mm.shmem import shmem_fallocate_punch_hole
from interleaf.mm.unmap import madvise_dontneed, mmput, munmap, oom_reap_task_mm
from interleaf.mm.vmscan import madvise_pageout, shrink_list
from interleaf.runtime import Memory, new, operation
from tests.linux.drive import Drive, run
from tests.mm.secondary import Secondary, access, attach

PROVIDED, ANONYMOUS, SHARED, HUGE = 0x10, 0x20, 0x30, 0x400
HVAS = (PROVIDED, PROVIDED + 1, ANONYMOUS, ANONYMOUS + 1, SHARED, SHARED + 1, HUGE, HUGE + 1, HUGE + 7)
TO = 0x1000

Step = tuple[str, int, int]
STEPS = (
    *("read", "write", "read", "write", "child-write", "dontneed", "munmap", "read-only", "no-access", "read-write"),
    *("pageout", "shrink", "migrate", "merge", "fork", "child-exit", "split", "collapse", "punch", "mremap", "oom"),
)
PROGRAMS = st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(HVAS), st.integers(1, 2)), max_size=14).map(tuple)


def _do(step: Step, mm: Mm, user: Secondary, child: Mm | None, file: AddressSpace, moved: int) -> Mm | None:
    """One step of a program; returns the child that there is then."""
    what, hva, npages = step
    match what:
        case "read" | "write":
            access(user, hva, what == "write")
        case "child-write":
            found = get_user_page(child, hva, True) if child is not None else None
            if found is not None:
                put_page(found.page)
        case "dontneed":
            madvise_dontneed(mm, hva, npages)
        case "munmap":
            munmap(mm, hva, npages)
        case "read-only" | "no-access" | "read-write":
            mprotect(mm, hva, npages, {"read-only": Prot.READ, "no-access": Prot.NONE}.get(what, Prot.WRITE))
        case "pageout":
            madvise_pageout(mm, hva, npages)
        case "shrink":
            shrink_list(mm, hva, npages)
        case "migrate":
            migrate_page(mm, hva)
        case "merge":
            try_to_merge_two_pages(mm, hva, HVAS[npages])
        case "fork" if child is None:
            return fork(mm)
        case "child-exit" if child is not None:
            mmput(child)
            return None
        case "split" if child is None:
            split_folio(mm, (PG_LEVEL_2M, HUGE))
        case "collapse":
            collapse_huge_page(mm, HUGE)
        case "punch":
            shmem_fallocate_punch_hole(file, hva & 1, npages)
        case "mremap":
            mremap(mm, hva, npages, TO + moved)
        case "oom" if npages == 2:
            oom_reap_task_mm(mm)
    return child


@operation(marked=False)
def _expect_counted(memory: Memory) -> None:
    """Each reference is that of an entry, a file or the swap cache, and each page without one is freed."""
    references: Counter[Page] = Counter()
    mapped: Counter[Page] = Counter()
    for cell in memory.world.cells:
        value = memory.values[cell.index]
        if isinstance(value, Pte) and value.page is not None:
            references[value.page] += 1
            mapped[value.page] += value.kind is PteKind.PRESENT
            assert value.kind in (PteKind.PRESENT, PteKind.SWAP), value
        elif isinstance(value, Page) and isinstance(cell.owner, AddressSpace):
            references[value] += 1
    for page in memory.world.objects.values():
        if not isinstance(page, Page) or isinstance(page, ZeroPage):
            continue
        if not is_allocated(memory, page):
            assert page not in references, f"{page} is freed, but still in use"
            continue
        assert memory.look(Page.refcount.cell(page)) == references[page], page
        assert memory.look(Page.mapcount.cell(page)) == mapped[page], page
        assert references[page] or isinstance(page, CompoundPage), f"{page} leaks"


def _program(steps: tuple[Step, ...], kernel: MmKernel) -> None:
    file = new(AddressSpace)
    mm = mm_alloc(1, kernel)
    mmap(mm, PROVIDED, 2)
    mmap(mm, ANONYMOUS, 2, Kind.ANONYMOUS, populate=False)
    mmap(mm, SHARED, 2, Kind.SHMEM, file=file)
    mmap(mm, HUGE, 512, Kind.ANONYMOUS, level=PG_LEVEL_2M, hvas=(HUGE, HUGE + 1, HUGE + 7))
    user = attach(mm)
    child: Mm | None = None
    for number, step in enumerate(steps):
        child = _do(step, mm, user, child, file, number * 0x400)
        _expect_counted()
    if child is not None:
        mmput(child)
    mmput(mm)
    shmem_fallocate_punch_hole(file, 0, 2)
    _expect_counted()
    assert user.mapped == ()


@settings(max_examples=150, deadline=None)
@given(PROGRAMS, st.booleans())
def test_references_are_counted_and_what_is_used_is_mapped(steps: tuple[Step, ...], old: bool) -> None:
    kernel = MmKernel(True, False, False) if old else MmKernel()
    drive: Drive = run(lambda: _program(steps, kernel))
    assert drive.rules == []
    assert drive.unfinished == []
