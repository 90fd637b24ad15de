"""Recording, on a made-up host: what is set up, what is kept, and that everything is restored."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from interleaf.ftrace import record as recording
from interleaf.ftrace.reader import Trace
from interleaf.ftrace.record import EVENTS, PROBES, Host, Recording, expect_kvm, record
from interleaf.ftrace.tracefs import Missing, Tracefs, find_tracefs
from tests.ftrace.carried import trace_of

KNOWN = {
    "svm_load_mmu_pgd",
    "__kvm_set_memory_region",
    "kvm_mmu_zap_all",
    "kvm_zap_gfn_range",
    "kvm_arch_pre_set_memory_attributes",
}


class FakeTracefs(Tracefs):
    """A folder that behaves as the kernel's: instances come with files, probes only for functions that exist."""

    def __init__(self, root: Path, text: bytes, functions: set[str]) -> None:
        super().__init__(root)
        self.text = text
        self.functions = functions
        self.refused: set[str] = set()
        self.history: list[tuple[str, str]] = []

    def make_instance(self, path: str) -> None:
        super().make_instance(path)
        for name in ("tracing_on", "trace_clock", "buffer_size_kb"):
            (self.root / path / name).write_text("1\n")
        (self.root / path / "trace_pipe").write_bytes(self.text)
        for event in (self.root / "events").glob("*/*"):
            self._offer(path, event.parent.name, event.name)

    def remove_instance(self, path: str) -> None:
        if path in self.refused:
            raise OSError(16, "Device or resource busy")
        for file in sorted((self.root / path).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        super().remove_instance(path)

    def write(self, path: str, text: str) -> None:
        self.history.append((path, text))
        super().write(path, text)

    def append(self, path: str, text: str) -> None:
        if text.startswith("p:"):
            name, function = text[2:].split()[:2]
            if function not in self.functions:
                raise FileNotFoundError(2, "No such file or directory")
            folder = self.root / "events" / name
            folder.mkdir(parents=True)
            (folder / "format").write_text(f'name: {folder.name}\nprint fmt: "(%lx)", REC->__probe_ip\n')
            for instance in (self.root / "instances").iterdir():
                self._offer(f"instances/{instance.name}", *name.split("/"))
        self.history.append((path, text))
        super().append(path, text)

    def _offer(self, instance: str, system: str, event: str) -> None:
        folder = self.root / instance / "events" / system / event
        folder.mkdir(parents=True)
        (folder / "enable").write_text("0\n")


def make_host(root: Path) -> Host:
    for module, name, value in (("kvm", "tdp_mmu", "Y"), ("kvm_amd", "npt", "1"), ("kvm_amd", "npt", "Y")):
        folder = root / "sys/module" / module / "parameters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return Host(root, "Linux test 6.12", "x86_64")


def make_tracefs(root: Path, text: bytes = b"", functions: set[str] | None = None) -> FakeTracefs:
    tracing = root / "sys/kernel/tracing"
    (tracing / "instances").mkdir(parents=True)
    (tracing / "kprobe_events").write_text("p:somebody/elses do_sys_open\n")
    formats = trace_of("6.12/runA/w01_demand").parent / "formats"
    for file in formats.glob("kvm*.format"):
        system, _, event = file.stem.partition("__")
        (tracing / "events" / system / event).mkdir(parents=True)
        (tracing / "events" / system / event / "format").write_text(file.read_text())
    return FakeTracefs(tracing, text, KNOWN if functions is None else functions)


def run(host: Host, tracefs: Tracefs, folder: Path, megabytes: int = 10, seconds: float = 0.05) -> Recording:
    return record(host, folder, seconds, megabytes, 64, lambda _size, _seconds: None, lambda _root: tracefs)


def text_of(name: str) -> bytes:
    return gzip.decompress(trace_of(name).read_bytes())


def test_what_is_recorded_can_be_read_and_everything_is_restored(tmp_path: Path) -> None:
    text = text_of("6.12/runA/w09_mmio")
    tracefs = make_tracefs(tmp_path, text)
    result = run(make_host(tmp_path), tracefs, tmp_path / "out")
    assert (result.size, result.ended, result.leftovers) == (len(text), "the time is over", [])
    assert result.missing == [
        "no event kvm/kvm_set_spte_hva",
        "no event kvm/kvm_dirty_ring_push",
        "no event kvm/kvm_dirty_ring_reset",
        "no event kvm/kvm_dirty_ring_exit",
    ]
    assert gzip.decompress((tmp_path / "out/trace.gz").read_bytes()) == text
    assert sum(1 for _ in Trace(tmp_path / "out/trace.gz", strict=True)) == 209
    assert (tmp_path / "out/formats/kvmmmu__kvm_tdp_mmu_spte_changed.format").is_file()
    assert (tmp_path / "out/params.txt").read_text().splitlines() == [
        "/sys/module/kvm/parameters/tdp_mmu = Y",
        "/sys/module/kvm_amd/parameters/npt = Y",
    ]
    assert (tmp_path / "out/uname.txt").read_text() == "Linux test 6.12\n"
    assert list((tracefs.root / "instances").iterdir()) == []
    group = f"interleaf_{os.getpid()}"
    probes = (tracefs.root / "kprobe_events").read_text().splitlines()
    assert probes[0] == "p:somebody/elses do_sys_open"
    assert sorted(line for line in probes if line.startswith("-:")) == [
        f"-:{group}/load_pgd",
        f"-:{group}/set_attributes",
        f"-:{group}/set_memory_region",
        f"-:{group}/zap_all",
        f"-:{group}/zap_range",
    ]
    assert [line for line in (tmp_path / "out/kprobe_events.txt").read_text().splitlines() if "load_pgd" in line] == [
        f"p:{group}/load_pgd svm_load_mmu_pgd vcpu=%di:x64 root=%si:x64 level=%dx:x32"
    ]


def test_only_the_instance_is_switched_on_and_what_was_switched_on_is_switched_off(tmp_path: Path) -> None:
    tracefs = make_tracefs(tmp_path)
    run(make_host(tmp_path), tracefs, tmp_path / "out")
    instance = f"instances/interleaf-{os.getpid()}/"
    writes = [(path, text) for path, text in tracefs.history if path != "kprobe_events"]
    assert all(path.startswith(instance) for path, _ in writes)
    enabled = [path for path, text in writes if path.endswith("/enable") and text == "1"]
    disabled = [path for path, text in writes if path.endswith("/enable") and text == "0"]
    assert sorted(enabled) == sorted(disabled)
    assert len(enabled) == len(EVENTS) - 4 + len(PROBES)
    switches = [text for path, text in writes if path.endswith("tracing_on")]
    assert switches == ["0", "1", "0", "0"]


def test_ctrl_c_keeps_what_was_recorded_and_restores(tmp_path: Path) -> None:
    tracefs = make_tracefs(tmp_path, text_of("6.12/runA/w09_mmio"))
    calls = []

    def tell(size: int, _seconds: float) -> None:
        calls.append(size)
        if size:
            raise KeyboardInterrupt

    result = record(make_host(tmp_path), tmp_path / "out", 60.0, 10, 64, tell, lambda _root: tracefs)
    assert result.ended == "interrupted"
    assert sum(1 for _ in Trace(tmp_path / "out/trace.gz")) == 209
    assert list((tracefs.root / "instances").iterdir()) == []


def test_the_size_is_bounded(tmp_path: Path) -> None:
    text = b"x" * (recording.CHUNK * 40)
    result = run(make_host(tmp_path), make_tracefs(tmp_path, text), tmp_path / "out", megabytes=1, seconds=60.0)
    assert result.ended == "the size is reached"
    assert result.size == 1 << 20
    assert len(gzip.decompress((tmp_path / "out/trace.gz").read_bytes())) == result.size


def test_a_full_disk_ends_the_recording_and_what_cannot_be_restored_is_told_then_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracefs = make_tracefs(tmp_path, text_of("6.12/runA/w09_mmio"))
    instance = f"instances/interleaf-{os.getpid()}"
    tracefs.refused.add(instance)

    class Full(gzip.GzipFile):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(gzip, "open", Full)
    result = run(make_host(tmp_path), tracefs, tmp_path / "out")
    assert result.failure == f"{tmp_path / 'out/trace.gz'}: No space left on device"
    assert result.leftovers == [f"rmdir {tracefs.root}/{instance}   # Device or resource busy"]
    assert (tracefs.root / instance / "tracing_on").read_text() == "0\n"


def test_what_the_kernel_refuses_is_told_with_its_file_and_nothing_is_left(tmp_path: Path) -> None:
    class LittleMemory(FakeTracefs):
        def write(self, path: str, text: str) -> None:
            if path.endswith("buffer_size_kb"):
                raise OSError(12, "Cannot allocate memory", str(self.root / path))
            super().write(path, text)

    made = make_tracefs(tmp_path)
    result = run(make_host(tmp_path), LittleMemory(made.root, b"", set()), tmp_path / "out")
    assert result.failure.endswith("buffer_size_kb: Cannot allocate memory")
    assert list((made.root / "instances").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_file_of_tracefs_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        Tracefs(tmp_path).write("full", "1")
    assert error.value.filename == str(tmp_path / "full")


def test_ctrl_c_while_probes_are_set_removes_them(tmp_path: Path) -> None:
    class Interrupted(FakeTracefs):
        def append(self, path: str, text: str) -> None:
            super().append(path, text)
            if text.startswith("p:") and "/zap_all" in text:
                raise KeyboardInterrupt

    made = make_tracefs(tmp_path)
    result = run(make_host(tmp_path), Interrupted(made.root, b"", KNOWN), tmp_path / "out")
    assert (result.ended, result.size, result.leftovers) == ("interrupted", 0, [])
    probes = (made.root / "kprobe_events").read_text().splitlines()
    set_ones = {line[2:].split()[0] for line in probes if line.startswith("p:interleaf")}
    assert set_ones == {line[2:] for line in probes if line.startswith("-:")}
    assert len(set_ones) == 3
    assert list((made.root / "instances").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_second_ctrl_c_ends_what_is_still_read_and_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracefs = make_tracefs(tmp_path, text_of("6.12/runA/w09_mmio"))

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "_chunk", interrupt)
    result = record(make_host(tmp_path), tmp_path / "out", 60.0, 10, 64, lambda *_: None, lambda _root: tracefs)
    assert (result.ended, result.leftovers) == ("interrupted", [])
    assert gzip.decompress((tmp_path / "out/trace.gz").read_bytes()) == b""
    assert list((tracefs.root / "instances").iterdir()) == []


def test_what_cannot_be_restored_is_told_with_what_to_do(tmp_path: Path) -> None:
    tracefs = make_tracefs(tmp_path)
    instance = f"instances/interleaf-{os.getpid()}"
    tracefs.refused.add(instance)
    result = run(make_host(tmp_path), tracefs, tmp_path / "out")
    assert result.leftovers == [f"rmdir {tracefs.root}/{instance}   # Device or resource busy"]


def test_missing_probes_are_told(tmp_path: Path) -> None:
    result = run(make_host(tmp_path), make_tracefs(tmp_path, functions=set()), tmp_path / "out")
    assert [text for text in result.missing if "event" not in text] == [
        "which root a vCPU uses: neither vmx_load_mmu_pgd nor svm_load_mmu_pgd can be probed",
        "memslot changes: neither __kvm_set_memory_region nor kvm_set_memory_region can be probed",
        "the end of a VM: neither kvm_mmu_zap_all nor kvm_tdp_mmu_zap_all can be probed",
        "ranges that are zapped: kvm_zap_gfn_range cannot be probed",
        "memory that becomes private, or shared: kvm_arch_pre_set_memory_attributes cannot be probed",
    ]


@pytest.mark.parametrize(
    ("module", "name", "value", "expected"),
    [
        ("kvm", "tdp_mmu", "N", "the TDP MMU is off"),
        ("kvm_amd", "npt", "N", "two-dimensional paging"),
    ],
)
def test_a_host_without_the_tdp_mmu_is_refused(
    tmp_path: Path, module: str, name: str, value: str, expected: str
) -> None:
    host = make_host(tmp_path)
    (tmp_path / "sys/module" / module / "parameters" / name).write_text(value)
    with pytest.raises(Missing, match=expected):
        expect_kvm(host)


def test_other_hosts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="KVM is not loaded"):
        expect_kvm(Host(tmp_path, "", "x86_64"))
    with pytest.raises(Missing, match="aarch64"):
        expect_kvm(Host(tmp_path, "", "aarch64"))
    with pytest.raises(Missing, match="mount -t tracefs"):
        find_tracefs(tmp_path)


def test_a_kernel_without_the_event_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    tracefs = make_tracefs(tmp_path)
    (tracefs.root / "events/kvmmmu/kvm_tdp_mmu_spte_changed/format").unlink()
    (tracefs.root / "events/kvmmmu/kvm_tdp_mmu_spte_changed").rmdir()
    with pytest.raises(Missing, match=r"older than 5\.12"):
        run(make_host(tmp_path), tracefs, tmp_path / "out")
    assert tracefs.history == []
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(Missing, match="not empty"):
        run(make_host(tmp_path), make_tracefs(tmp_path), tmp_path / "out")


def test_a_host_on_which_nothing_may_be_written_is_refused(tmp_path: Path) -> None:
    class Unwritable(FakeTracefs):
        def make_instance(self, path: str) -> None:
            raise PermissionError(13, "Permission denied", path)

    made = make_tracefs(tmp_path)
    with pytest.raises(Missing, match="needs root"):
        run(make_host(tmp_path), Unwritable(made.root, b"", set()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
