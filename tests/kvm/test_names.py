"""Every function, field and constant of the kernel that matters is in the model, or left out for a reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import interleaf

SOURCE = Path(interleaf.__file__).parent
NAMES = tomllib.loads(Path(__file__).with_name("names.toml").read_text())
WORDS = {word for path in SOURCE.rglob("*.py") for word in re.findall(r"\w+", path.read_text())}


def test_what_is_modelled_is_there_by_its_name() -> None:
    assert [name for name in NAMES["named"] if name not in WORDS] == []


def test_what_has_another_name_is_there_by_that() -> None:
    assert [name for name in NAMES["called"].values() if name not in WORDS] == []


def test_what_is_left_out_is_not_there_and_has_a_reason() -> None:
    assert [name for name in NAMES["left_out"] if name in WORDS] == []
    assert all(NAMES["left_out"].values())
