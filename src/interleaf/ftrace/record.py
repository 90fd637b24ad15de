"""Recording what KVM's MMU does on a live host: the events and probes that a summary or a comparison needs.

The result is a folder: `trace.gz` as the kernel prints it, `formats/` with the events' format files, `params.txt` with
the parameters of KVM's modules, `uname.txt`, and `kprobe_events.txt`.
"""

from __future__ import annotations

import gzip
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .tracefs import Instance, Missing, Probe, Tracefs, find_tracefs

ESSENTIAL = ("kvmmmu", "kvm_tdp_mmu_spte_changed")

EVENTS = (
    ESSENTIAL,
    ("kvmmmu", "kvm_mmu_spte_requested"),
    ("kvmmmu", "kvm_mmu_set_spte"),
    ("kvmmmu", "kvm_mmu_get_page"),
    ("kvmmmu", "kvm_mmu_prepare_zap_page"),
    ("kvmmmu", "kvm_mmu_zap_all_fast"),
    ("kvmmmu", "fast_page_fault"),
    ("kvmmmu", "kvm_mmu_split_huge_page"),
    ("kvmmmu", "mark_mmio_spte"),
    ("kvmmmu", "check_mmio_spte"),
    ("kvmmmu", "handle_mmio_page_fault"),
    ("kvm", "kvm_page_fault"),
    ("kvm", "kvm_entry"),
    ("kvm", "kvm_exit"),
    ("kvm", "kvm_userspace_exit"),
    ("kvm", "kvm_unmap_hva_range"),
    ("kvm", "kvm_age_hva"),
    ("kvm", "kvm_test_age_hva"),
    ("kvm", "kvm_set_spte_hva"),
    ("kvm", "kvm_dirty_ring_push"),
    ("kvm", "kvm_dirty_ring_reset"),
    ("kvm", "kvm_dirty_ring_exit"),
)
"""System and name. All but the first may be missing: kernels differ."""

_ROOT = "vcpu=%di:x64 root=%si:x64 level=%dx:x32"
_REGION = "slot=+0(%si):u32 flags=+4(%si):u32 gpa=+8(%si):x64 size=+16(%si):x64 hva=+24(%si):x64"
"""struct kvm_userspace_memory_region, and _region2, which begins alike."""

PROBES: tuple[tuple[str, tuple[Probe, ...]], ...] = (
    (
        "which root a vCPU uses",
        (Probe("load_pgd", "vmx_load_mmu_pgd", _ROOT), Probe("load_pgd", "svm_load_mmu_pgd", _ROOT)),
    ),
    (
        "memslot changes",
        (
            Probe("set_memory_region", "__kvm_set_memory_region", _REGION),
            Probe("set_memory_region", "kvm_set_memory_region", _REGION),
        ),
    ),
    (
        "the end of a VM",
        (Probe("zap_all", "kvm_mmu_zap_all", "kvm=%di:x64"), Probe("zap_all", "kvm_tdp_mmu_zap_all", "kvm=%di:x64")),
    ),
    ("ranges that are zapped", (Probe("zap_range", "kvm_zap_gfn_range", "start=%si:x64 end=%dx:x64"),)),
    (
        "memory that becomes private, or shared",
        (Probe("set_attributes", "kvm_arch_pre_set_memory_attributes", "start=+8(%si):x64 end=+16(%si):x64"),),
    ),
)
"""What a probe tells, and the functions that tell it, of which each kernel has one."""

CHUNK = 1 << 16
PAUSE_MS = 100


@dataclass(slots=True)
class Recording:
    """What has been recorded."""

    folder: Path
    size: int = 0
    """Bytes of text, before compression."""
    seconds: float = 0.0
    ended: str = ""
    """Why it ended."""
    failure: str = ""
    """What the kernel or the disk refused, so that it ended; what had been recorded is kept."""
    missing: list[str] = field(default_factory=list)
    """What this kernel could not tell."""
    leftovers: list[str] = field(default_factory=list)
    """What could not be restored, as what to do by hand."""


@dataclass(slots=True)
class Host:
    """The machine to record on."""

    root: Path = Path("/")
    """Where its file system begins."""
    identity: str = field(default_factory=lambda: " ".join(os.uname()))
    machine: str = field(default_factory=lambda: os.uname().machine)

    def parameter(self, module: str, name: str) -> str | None:
        """A parameter of a module; None if there is no such one."""
        path = self.root / "sys/module" / module / "parameters" / name
        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def parameters(self) -> list[str]:
        """All parameters of KVM's modules, as `path = value`."""
        files = [file for module in ("kvm", "kvm_intel", "kvm_amd") for file in self._files(module)]
        return [f"/{file.relative_to(self.root)} = {self._value(file)}" for file in files]

    def _files(self, module: str) -> list[Path]:
        folder = self.root / "sys/module" / module / "parameters"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _value(self, file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            return f"? ({error.strerror})"


def expect_kvm(host: Host) -> None:
    """Raise Missing if the host's KVM does not use the TDP MMU."""
    if host.machine not in ("x86_64", "AMD64"):
        raise Missing(f"this machine is {host.machine}: the TDP MMU is KVM's on x86.")
    if not (host.root / "sys/module/kvm").is_dir():
        raise Missing("KVM is not loaded: load kvm_intel or kvm_amd.")
    paging = host.parameter("kvm_intel", "ept"), host.parameter("kvm_amd", "npt")
    if not {"Y", "1"}.intersection(paging):
        raise Missing(
            "KVM does not use two-dimensional paging here: kvm_intel.ept and kvm_amd.npt are off, or neither is loaded."
        )
    if host.parameter("kvm", "tdp_mmu") == "N":
        raise Missing("the TDP MMU is off: load kvm with tdp_mmu=Y.")


def record(
    host: Host,
    folder: Path,
    seconds: float,
    megabytes: int,
    buffer_kb: int,
    tell: Callable[[int, float], None],
    find: Callable[[Path], Tracefs] = find_tracefs,
) -> Recording:
    """Record into `folder`, which must be new or empty, for so long or until so much text; restores the host.

    `tell` is called now and then with the bytes and the seconds so far. KeyboardInterrupt ends the recording as the
    time does, and so does an error once it has begun. Raises Missing, or OSError if the folder cannot be made.
    """
    expect_kvm(host)
    tracefs = find(host.root)
    if not tracefs.exists("/".join(("events", *ESSENTIAL))):
        raise Missing("this kernel has no event kvmmmu/kvm_tdp_mmu_spte_changed: it is older than 5.12, or has no KVM.")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Missing(f"{folder} is not empty: give a new folder.")
    result = Recording(folder)
    instance = Instance(tracefs, f"interleaf-{os.getpid()}")
    try:
        with instance:
            instance.set("tracing_on", "0")
            instance.set("trace_clock", "mono")
            instance.set("buffer_size_kb", str(buffer_kb))
            _choose(instance, result)
            _describe(host, instance, folder)
            instance.set("tracing_on", "1")
            _copy(instance, result, seconds, megabytes << 20, tell)
    except KeyboardInterrupt:
        result.ended = "interrupted"
    except OSError as error:
        result.failure = f"{error.filename or folder / 'trace.gz'}: {error.strerror or error}"
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()
    result.leftovers = instance.leftovers
    return result


def _choose(instance: Instance, result: Recording) -> None:
    """Switch on all that there is."""
    for system, event in EVENTS:
        if not instance.enable(system, event):
            result.missing.append(f"no event {system}/{event}")
    for what, choices in PROBES:
        if instance.probe(choices) is None:
            functions = tuple(dict.fromkeys(probe.function for probe in choices))
            none = f"neither {' nor '.join(functions)} can" if len(functions) > 1 else f"{functions[0]} cannot"
            result.missing.append(f"{what}: {none} be probed")


def _describe(host: Host, instance: Instance, folder: Path) -> None:
    """Keep what the trace has to be read with."""
    tracefs = instance.tracefs
    formats = folder / "formats"
    formats.mkdir()
    for system, event in (*EVENTS, *((instance.group, probe.name) for probe in instance.probes)):
        source = f"events/{system}/{event}/format"
        if tracefs.exists(source):
            (formats / f"{system}__{event}.format").write_text(tracefs.read(source), encoding="utf-8")
    (folder / "params.txt").write_text("".join(f"{line}\n" for line in host.parameters()), encoding="utf-8")
    (folder / "uname.txt").write_text(f"{host.identity}\n", encoding="utf-8")
    probes = "".join(f"{probe.definition(instance.group)}\n" for probe in instance.probes)
    (folder / "kprobe_events.txt").write_text(probes, encoding="utf-8")


def _copy(
    instance: Instance, result: Recording, seconds: float, limit: int, tell: Callable[[int, float], None]
) -> None:
    """From the instance's pipe into the file, until time or size is reached or Ctrl-C ends it; then what is left."""
    began = time.monotonic()
    pipe = os.open(instance.tracefs.root / instance.folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with gzip.open(result.folder / "trace.gz", "wb", compresslevel=4) as file:
            try:
                while True:
                    result.seconds = time.monotonic() - began
                    tell(result.size, result.seconds)
                    if result.seconds >= seconds:
                        result.ended = "the time is over"
                        break
                    if result.size + CHUNK > limit:
                        result.ended = "the size is reached"
                        break
                    if text := _chunk(pipe):
                        result.size += file.write(text)
                    else:
                        select.select([], [], [], min(PAUSE_MS / 1000, max(0.0, seconds - result.seconds)))
            except KeyboardInterrupt:
                result.ended = "interrupted"
            instance.set("tracing_on", "0")
            while result.size + CHUNK <= limit and (text := _chunk(pipe)):
                result.size += file.write(text)
    finally:
        os.close(pipe)


def _chunk(pipe: int) -> bytes:
    """What the pipe has now; nothing if it is empty."""
    try:
        return os.read(pipe, CHUNK)
    except BlockingIOError:
        return b""
