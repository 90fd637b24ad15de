"""The module parameters of a traced host."""

from pathlib import Path

import pytest

from interleaf.ftrace.parameters import read_parameters, read_release
from interleaf.ftrace.source import Unreadable
from tests.ftrace.carried import TRACES


def test_given_hosts_are_read() -> None:
    for path in sorted({trace.with_name("params.txt") for trace in TRACES}):
        found = read_parameters(path)
        assert found.vm.eager_page_split
        assert found.vm.mmio_caching
        assert not found.nx_huge_pages
        assert found.pml is None


def test_each_parameter_counts(tmp_path: Path) -> None:
    path = tmp_path / "params.txt"
    path.write_text(
        "".join(
            f"/sys/module/kvm/parameters/{name} = {value}\n"
            for name, value in (
                ("eager_page_split", "N"),
                ("mmio_caching", "N"),
                ("nx_huge_pages", "Y"),
                ("eptad", "N"),
            )
        )
    )
    found = read_parameters(path)
    assert (found.vm.eager_page_split, found.vm.mmio_caching) == (False, False)
    assert found.nx_huge_pages
    assert found.ad_bits is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no module parameters"),
        ("SNAP 1 label\n", "found 'SNAP 1 label'"),
        ("/sys/module/kvm/parameters/tdp_mmu = N\n", "not the TDP MMU"),
        ("/sys/module/kvm/parameters/nx_huge_pages = perhaps\n", "neither Y nor N"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.txt"
    path.write_text(text)
    with pytest.raises(Unreadable, match=message):
        read_parameters(path)


def test_a_file_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"none: the module parameters cannot be read: No such file or directory\.$"):
        read_parameters(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Unreadable, match="not text in UTF-8"):
        read_parameters(tmp_path / "binary")


def test_the_kernel_is_read(tmp_path: Path) -> None:
    for path in sorted({trace.with_name("uname.txt") for trace in TRACES}):
        assert (read_release(path) or "").startswith(path.parts[-3] + ".")
    assert read_release(tmp_path / "none.txt") is None
    (tmp_path / "uname.txt").write_text("Linux host\n")
    assert read_release(tmp_path / "uname.txt") is None
