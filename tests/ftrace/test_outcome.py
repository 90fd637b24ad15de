"""How an event is told beside a divergence."""

from interleaf.ftrace.outcome import text_of
from interleaf.ftrace.records import Event, Hva, Kprobe, Mark, Record, Task, Unknown


def told(record: Record) -> str:
    return text_of(Event(1, 0, Task("a", 1, None, 0, ""), "name", record))


def test_an_event_is_told_in_words() -> None:
    assert told(Kprobe("svm_load_mmu_pgd", b"vcpu=0x1 root=0x2000")) == "(svm_load_mmu_pgd) vcpu=0x1 root=0x2000"
    assert told(Mark("GT w BEGIN")) == "GT w BEGIN"
    assert told(Unknown(b"a ==> \xff")) == "a ==> \N{REPLACEMENT CHARACTER}"
    assert told(Hva(0x1000)) == "hva 1000"
