"""What a thread is taken to do that reacts although nothing in the trace says what was done to KVM."""

from interleaf.designs import load
from interleaf.ftrace import records
from interleaf.ftrace.drive import Thread
from interleaf.ftrace.follow import LiveDriver
from interleaf.ftrace.lookups import Flow
from interleaf.ftrace.stimuli import Slots
from interleaf.ftrace.unmarked import Unmarked
from interleaf.hw.platform import NPT
from interleaf.kvm import trace as model
from interleaf.kvm.kvm_host import KvmParams, KvmVcpu

NEW_ROOT = records.Event(
    1,
    0,
    records.Task("vcpu0", 2, None, 0, ""),
    "kvm_mmu_get_page",
    records.KvmMmuPage(0, 0, 4, 0, True, "wux", False, False, 1, False, True),
)


def machine() -> tuple[LiveDriver, Thread, KvmVcpu]:
    """A machine with a VM whose vCPU has a root, and a thread that does nothing."""
    driver = LiveDriver(load("v6.12"), NPT)
    thread = driver.thread()
    driver.create_vm(thread, KvmParams(), False)
    vcpu = driver.vcpu(0)
    driver.begin(thread, "enter", vcpu)
    assert driver.advance(thread)
    driver.reaction(thread)
    assert driver.finish(thread)
    return driver, thread, vcpu


def test_a_new_root_is_no_change_of_mode_while_everything_is_zapped() -> None:
    driver, zapper, vcpu = machine()
    unmarked, flow = Unmarked(driver, Slots(), (), (False,)), Flow(driver.thread(), vcpu=0)
    changes_mode = "change mode", vcpu, 0, True
    assert unmarked.command(flow, NEW_ROOT) == changes_mode
    driver.begin(zapper, "write nx_huge_pages", False)
    assert driver.advance(zapper)
    assert isinstance(driver.reaction(zapper).record, model.ZapAllFast)
    forget = unmarked.keep()
    unmarked.everything_zapped(zapper)
    assert not driver.must_prepare(vcpu)
    assert unmarked.command(flow, NEW_ROOT) == ("enter", vcpu)
    forget()
    assert unmarked.command(flow, NEW_ROOT) == changes_mode
    unmarked.everything_zapped(zapper)
    while driver.advance(zapper):
        driver.reaction(zapper)
    driver.begin(flow.thread, "enter", vcpu)
    while driver.advance(flow.thread):
        driver.reaction(flow.thread)
    driver.begin(zapper, "get dirty log", driver.kvm, 0, 0)
    assert not driver.must_prepare(vcpu)
    assert unmarked.command(flow, NEW_ROOT) == changes_mode
