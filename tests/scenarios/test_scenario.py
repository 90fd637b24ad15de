"""How a function becomes a scenario, and how one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from interleaf.kvm.design import Design
from interleaf.runtime import ModelError
from interleaf.scenarios import Parameter, library, load, scenario


def test_a_scenario_is_named_and_described_by_its_function() -> None:
    @scenario("Two things happen", vcpus=2)
    def two_things(design: Design, *, vcpus: int = 3, pages: int = 1) -> None:
        """First this,
        then that.
        """

    assert two_things.name == "two-things"
    assert two_things.title == "Two things happen"
    assert two_things.text == "First this,\nthen that."
    assert two_things.parameters == (Parameter("vcpus", 3, 2), Parameter("pages", 1, 1))


def test_a_scenario_says_what_it_is_about() -> None:
    with pytest.raises(ModelError, match="no docstring"):

        @scenario("Nothing")
        def nothing(design: Design) -> None:
            pass


def test_parameters_are_keywords_with_defaults() -> None:
    with pytest.raises(ModelError, match=r"write `\*, pages: int = 2`"):

        @scenario("Wrong")
        def wrong(design: Design, pages: int) -> None:
            """Wrong."""


def test_a_scenario_takes_the_design() -> None:
    with pytest.raises(ModelError, match=r"takes no design: write `def wrong\(design: Design\)`"):

        @scenario("Wrong")
        def wrong(*, pages: int = 1) -> None:
            """Wrong."""


def test_a_minimum_belongs_to_a_parameter() -> None:
    with pytest.raises(ModelError, match="no parameter tasks"):

        @scenario("Wrong", tasks=2)
        def wrong(design: Design, *, pages: int = 1) -> None:
            """Wrong."""


def test_the_library_is_found_by_name() -> None:
    for name, found in library().items():
        assert found.name == name
        assert load(name) is found


def test_a_wrong_name_is_answered_with_what_is_close() -> None:
    with pytest.raises(ModelError, match="Did you mean last-put-vs-unmap"):
        load("last-put-vs-umap")
    with pytest.raises(ModelError, match="There are: memslot-delete-vs-unmap, "):
        load("xyzzy")


ONE = '''
from interleaf.scenarios import scenario

@scenario("One")
def one(design):
    """One."""
'''
TWO = (
    ONE
    + '''
@scenario("Two")
def and_two(design):
    """Two."""
'''
)


def test_a_file_with_one_scenario_needs_no_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ONE)
    assert load(str(file)).title == "One"
    assert load(f"{file}:one").title == "One"


def test_a_file_with_two_scenarios_needs_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TWO)
    with pytest.raises(ModelError, match=r"but has 2; write .*mine\.py:NAME for one of one, and-two"):
        load(str(file))
    assert load(f"{file}:and_two").title == "Two"
    assert load(f"{file}:and-two").title == "Two"
    with pytest.raises(ModelError, match="has no scenario 'three'"):
        load(f"{file}:three")


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("x = 1", "but has 0"), ("import nothing_like_this", "cannot be imported: ModuleNot")],
)
def test_a_file_that_is_no_scenario_says_why(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelError, match=message):
        load(str(file))
