"""What the model writes as a trace, the model does again when it is driven by that trace; another kernel's does not.

The trace has what `interleaf trace record` records, and nothing else: events and probes, no marks of a driver.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interleaf.check import Request, program
from interleaf.designs import load
from interleaf.designs.kernels import KERNELS, V6_6
from interleaf.ftrace.compare import compare_trace
from interleaf.ftrace.matching import Rule
from interleaf.ftrace.outcome import Result
from interleaf.ftrace.writing import trace_of
from interleaf.fuzz.actions import BY_NAME
from interleaf.fuzz.plans import Call, Plan, TaskPlan
from interleaf.fuzz.source import load as load_text
from interleaf.fuzz.source import text_of
from interleaf.hw.platform import NPT, Platform
from interleaf.kvm.design import Design
from interleaf.kvm.kvm_host import KVM_MEM_READONLY, Kvm, KvmParams
from interleaf.kvm.memslots import kvm_create_memslot
from interleaf.kvm.vcpu import kvm_arch_vcpu_ioctl_run, read, write
from interleaf.kvm.vm import kvm_create_vm
from interleaf.mm.mm import Mm, mmap
from interleaf.runtime import spawn
from interleaf.scenarios import library, stage
from interleaf.scenarios.stage import DUMMY_HVA, destroy_after, make_vm

UNTOLD = {
    "write-tracking-vs-write": "no event tells that writes to a page are tracked",
    "huge-page-replaces-table": "the same",
    "memslot-create-vs-unmap": "KVM's MMU does nothing",
    "prefault-with-obsolete-root": "it does not come to an end by itself",
    "fault-after-many-invalidations": "the same",
    "nested-fault-recycles-root": "it has shadow pages, of which the TDP MMU's events do not tell",
    "nested-pae-fault-vs-nx-huge-pages": "the same",
    "faults-at-shadow-page-quota": "the same",
    "dirty-log-enable-vs-huge-page": "the model has a few of the entries of a huge page only; see WORKLOADS",
    "fault-below-dirty-log-disable": "the same",
}
"""Scenarios that cannot be compared, and why."""

TOLD = [name for name in library() if name not in UNTOLD]

SOME = [
    "memslot-delete-vs-unmap",
    "memslot-move-vs-read",
    "two-vcpus-fault-same-page",
    "nested-switch-vs-unmap",
    "dirty-log-disable-vs-fault",
    "dirty-log-without-ad-bits",
    "dirty-ring-reset-vs-write",
    "nx-recovery-vs-fault",
    "write-vs-fork",
    "write-vs-merge",
    "write-vs-aging-without-ad-bits",
    "vm-destroy-vs-unmap",
]
"""Those that are compared on all designs."""

DESIGNS = ("v6.1", "v6.4", "v6.12", "v6.18")

APART = DESIGNS if os.environ.get("INTERLEAF_ALL_TRACES") else ("v6.1", "v6.18")
"""Those on which each workload is done: all, or the two that differ most."""

WORKLOADS: dict[str, tuple[dict[str, object], str]] = {
    "fork": ({"pages": 2}, "write 0, write 1, fork 0, read 0, write 0, write 1, fork 0, write 1"),
    "KSM": ({"pages": 2}, "write 0, write 1, merge 0, read 0, write 0, read 1, write 1"),
    "mremap": ({"pages": 2}, "write 0, write 1, mremap 0, write 1"),
    "migrate": ({"pages": 2}, "write 0, migrate 0, read 0, write 0, migrate 0, write 0"),
    "mprotect": ({"pages": 2}, "write 0, mprotect to read 0, read 0, mprotect to write 0, write 0"),
    "reclaim": ({"pages": 2}, "write 0, age 0, read 0, reclaim 0, read 0, write 0, idle 0, shrink 0, write 0"),
    "reclaim without A/D bits": (
        {"pages": 2, "platform": "EPT_NO_AD"},
        "write 0, read 1, age 0, age 1, read 0, write 0, idle 0, write 0, shrink 0, write 0",
    ),
    "khugepaged": (
        {"pages": 2, "huge": True},
        "read 0, split the huge page 0, write 0, read 1, khugepaged 0, read 1, write 0",
    ),
    "huge page with a hole": ({"pages": 2, "huge": True}, "write 0, MADV_DONTNEED 1, write 1, write 0"),
    "NX huge pages": (
        {"pages": 2, "huge": True},
        "switch nx_huge_pages on 0, read 0, execute 1, read 0, write 1, execute 0",
    ),
    "SMM": ({"pages": 2}, "create memslot 2 0, write 0, SMI 0, read 0, write 1, RSM 0, write 1, SMI 0, write 0"),
    "SMM log": (
        {},
        "create memslot 2 0, write 0, SMI 0, write 0, log dirty pages 0, RSM 0, write 0, delete memslot 2 0",
    ),
    "nested": ({"pages": 2}, "write 0, enter L2 0, write 0, write 1, exit L2 0, write 1, toggle paging 0, write 0"),
    "move": ({"pages": 2}, "write 0, write 1, move memslot 0 0, write 1, move memslot 0 back 0, write 0"),
    "delete": ({"pages": 2}, "write 0, delete memslot 0 0, write 0, create memslot 0 0, read 0, write 0"),
    "delete a slot alone": (
        {"pages": 2, "dummy": True, "option": "slot_zap_all=False"},
        "write 0, delete memslot 1 0, write 0, create memslot 1 0, write 1",
    ),
    "dirty log": ({"pages": 2}, "write 0, log dirty pages 0, write 0, get the dirty log 0, write 0, write 1"),
    "dirty log of huge pages": (
        {"pages": 2, "huge": True},
        "write 0, log dirty pages 0, write 1, get the dirty log 0, write 0, log no dirty pages 0, read 1, write 0",
    ),
    "lazy splitting": (
        {"pages": 2, "huge": True, "option": "eager_page_split=False"},
        "write 0, log dirty pages 0, write 1, get the dirty log 0, write 0, log no dirty pages 0, write 1",
    ),
    "dirty log that is cleared": (
        {"pages": 2, "option": "manual_protect=True"},
        "write 0, log dirty pages 0, write 0, write 1, get the dirty log 0, clear the dirty log 1, write 0, write 1",
    ),
    "dirty log with PML": (
        {"pages": 2, "platform": "EPT_PML"},
        "write 0, log dirty pages 0, write 0, get the dirty log 0, write 0, log no dirty pages 0, write 1",
    ),
    "dirty ring": (
        {"pages": 2, "option": "dirty_ring_size=32"},
        "write 0, log dirty pages 0, write 0, write 1, reset the dirty rings 0, write 0, reset the dirty rings 0",
    ),
    "private memory": (
        {"pages": 2, "huge": True, "option": "private_mem=True"},
        "write 0, make private 1, write 0, write 1, make shared 1, write 1",
    ),
    "prefault": ({"pages": 2}, "write 0, prefault 1, write 1"),
    "five levels": ({"pages": 2, "far": True, "platform": "EPT_5_LEVEL"}, "write 0, MADV_DONTNEED 0, read 0, write 1"),
    "MMIO": ({}, "write 0, delete memslot 0 0, read 0, read 0, create memslot 0 0, read 0, write 0"),
    "MMIO with EPT": (
        {"platform": "EPT"},
        "write 0, delete memslot 0 0, read 0, read 0, create memslot 0 0, read 0, write 0",
    ),
}
"""What one thread does to a VM: how that is made, and actions of `interleaf fuzz`, each with the page it is about."""

SEVERAL_WORKERS = ("SMM log", "v6.4")
"""Two roots are zapped by workers that take turns, which one thread of the model does not."""

UNNAMED = {
    **dict.fromkeys(("dirty log", "dirty log that is cleared", "dirty log of huge pages", "dirty log with PML"), 1),
    **dict.fromkeys(("lazy splitting", "NX huge pages", "prefault"), 1),
    **dict.fromkeys(("SMM", "SMM log", "nested", "MMIO with EPT"), 2),
}
"""How many events show alone that something was done which no other event tells of."""

NOTHING = {("prefault", "v6.1"): 0, ("prefault", "v6.4"): 0}
"""These kernels do not prefault."""


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs may map every gfn, so that tables have all their entries, as in a kernel, and not only the used ones."""
    create, named = kvm_create_vm, dict[str, tuple[int, ...] | None]()

    def create_vm(design: Design, mm: Mm, gfns: tuple[int, ...] | None, platform: Platform, params: KvmParams) -> Kvm:
        named["gfns"] = gfns
        kvm: Kvm = create(design, mm, None, platform, params)
        return kvm

    monkeypatch.setattr(stage, "kvm_create_vm", create_vm)
    monkeypatch.setattr(Kvm, "named_gfns", property(lambda _kvm: named["gfns"]))


def written(path: Path, setup: Callable[[Design], object], design: str) -> Path:
    trace = path / "written.trace"
    trace.write_text(trace_of(functools.partial(setup, load(design)), None))
    return trace


def there_and_back(path: Path, setup: Callable[[Design], object], design: str, other: str | None = None) -> Result:
    """The trace of a run with one design beside the model of it, or of another one."""
    return compare_trace(written(path, setup, design), load(other or design))


def scenario(name: str) -> Callable[[Design], object]:
    return lambda design: program(Request(name, design.name))[2]()


def calls_of(text: str) -> Iterator[Call]:
    for part in text.split(", "):
        name, _, page = part.rpartition(" ")
        yield Call(BY_NAME[name], int(page))


def workload(name: str) -> Callable[[Design], object]:
    made, text = WORKLOADS[name]
    plan = Plan((TaskPlan("main", tuple(calls_of(text))),), **{"platform": "NPT", **made})  # type: ignore[arg-type]
    return load_text(text_of(plan)).setup


def expect_the_same(result: Result) -> None:
    assert not result.divergences, result.divergences[0]
    assert result.divergent == 0
    assert not result.gaps
    assert result.matched + sum(result.explained.values()) == result.events > 3


@pytest.mark.parametrize("name", TOLD)
def test_what_a_scenario_writes_it_does_again(tmp_path: Path, name: str) -> None:
    expect_the_same(there_and_back(tmp_path, scenario(name), "v6.12"))


@pytest.mark.parametrize("design", [design for design in DESIGNS if design != "v6.12"])
@pytest.mark.parametrize("name", SOME)
def test_so_it_is_in_other_kernels(tmp_path: Path, name: str, design: str) -> None:
    expect_the_same(there_and_back(tmp_path, scenario(name), design))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("design", APART)
@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_done_again(tmp_path: Path, name: str, design: str) -> None:
    if (name, design) == SEVERAL_WORKERS:
        pytest.skip("nothing tells the workers apart")
    result = there_and_back(tmp_path, workload(name), design)
    expect_the_same(result)
    assert result.explained[Rule.UNNAMED] == NOTHING.get((name, design), UNNAMED.get(name, 0))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", ["delete", "NX huge pages", "reclaim", "lazy splitting"])
def test_a_kernel_between_two_designs_is_one_with_rules_added(tmp_path: Path, name: str) -> None:
    expect_the_same(there_and_back(tmp_path, workload(name), V6_6))


def test_the_docs_have_the_design_of_each_kernel() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    rows = re.findall(r"^\| (\d\S* to \d\S*|\d\S*) \| `\"?(.*?)\"?` \|$", docs, re.MULTILINE)
    assert rows == [(str(kernels), kernels.design) for kernels in KERNELS]


def _read_only_slot(design: Design) -> None:
    kvm = make_vm(design, platform=NPT, spare_gfns=2)
    mmap(kvm.mm, DUMMY_HVA, 2)
    kvm_create_memslot(kvm, 1, 1, 2, DUMMY_HVA, flags=KVM_MEM_READONLY)
    accesses = read(1), write(1), write(2), read(2), write(0)
    vcpu = spawn(kvm_arch_vcpu_ioctl_run, kvm.vcpus[0], *accesses, name="vcpu0")
    destroy_after(kvm, vcpu)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_slot_may_be_read_only(tmp_path: Path, design: str) -> None:
    expect_the_same(there_and_back(tmp_path, _read_only_slot, design))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("design", "other", "name"),
    [
        ("v6.12", "v6.1", "delete"),
        ("v6.1", "v6.4", "lazy splitting"),
        ("v6.4", "v6.12", "fork"),
        ("v6.12", "v6.18", "dirty log of huge pages"),
    ],
)
def test_another_kernel_does_something_else(tmp_path: Path, design: str, other: str, name: str) -> None:
    result = there_and_back(tmp_path, workload(name), design, other)
    assert result.divergent
    assert result.divergences[0].reason
