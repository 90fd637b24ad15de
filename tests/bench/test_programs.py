"""The programs that are measured do what they say, at sizes that take no time; peers too, where they are there."""

import dataclasses
import shutil

import pytest

from bench import alone, ingredients, measure, programs, python_peers, spin
from bench.alone import Job
from interleaf.explore.states import Options

PEERS = measure.SCRATCH / "peers" / "complete"


@pytest.mark.parametrize(("tasks", "rounds"), [(2, 2), (3, 4)])
def test_the_lock_benchmark_has_one_state_for_each_choice_of_rounds_done(tasks: int, rounds: int) -> None:
    record = alone.search(Job(("locks", str(tasks), str(rounds))))
    assert (record["states"], record["exhaustive"], record["found"]) == ((rounds + 1) ** tasks, True, "")


def test_the_racy_variant_has_a_data_race_and_a_wrong_sum() -> None:
    assert alone.search(Job(("racy", "2", "2"), first=True))["found"] == "data-race"
    record = alone.search(Job(("racy", "2", "2")))
    assert (record["found"], record["exhaustive"]) == ("data-race", True)
    assert int(record["findings"] or 0) >= 2


@pytest.mark.parametrize("engine", ["states", "steps", "hunt"])
def test_every_engine_runs(engine: str) -> None:
    record = alone.search(Job(("locks", "2", "2"), engine=engine, executions=5))
    assert 0 < int(record["executions"] or 0) <= 5


@pytest.mark.parametrize("without", ingredients.INGREDIENTS)
def test_every_ingredient_can_be_left_out(without: str) -> None:
    assert alone.search(Job(("locks", "2", "2"), without=(without,)))["exhaustive"]


def test_every_option_of_the_search_is_an_ingredient() -> None:
    assert set(ingredients.INGREDIENTS) == {field.name for field in dataclasses.fields(Options)}


@pytest.mark.parametrize("words", [words for words in programs.MEASURED if words[0] == "scenario"])
def test_scenarios_that_are_measured_exist(words: tuple[str, ...]) -> None:
    record = alone.search(Job(words, states=20))
    assert record["states"] == 20


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no program 'nothing'"):
        programs.load(("nothing",))


def test_a_job_runs_in_a_process_of_its_own() -> None:
    record = alone.measured(Job(("locks", "2", "2")))
    assert record["states"] == 9
    assert float(record["process"] or 0) > float(record["seconds"] or 0)
    assert int(record["peak"] or 0) > int(record["before"] or 0) > 1_000_000


def test_a_failing_process_tells_what_it_said() -> None:
    with pytest.raises(measure.Unavailable, match="false ended with 1 and said: nothing"):
        measure.run(["false"])
    assert measure.run(["false"], expected=(1,)).output == ""


def test_the_median_run_is_kept_whole() -> None:
    runs = iter([{"seconds": 3.0, "states": 3}, {"seconds": 1.0, "states": 1}, {"seconds": 2.0, "states": 2}])
    assert measure.median(3, lambda: dict(next(runs))) == {"seconds": 2.0, "states": 2, "runs": 3}


VERIFIER = """
State-vector 36 byte, depth reached 54, errors: 1
     1711 states, stored
      757 states, matched
     2468 transitions (= stored+matched)
    0.286	actual memory usage for states
  133.536	total actual memory usage
"""


def test_what_the_verifier_says_is_understood() -> None:
    assert spin.parse(VERIFIER) == {"states": 1711, "transitions": 2468, "errors": 1, "peak": 133_536_000}
    with pytest.raises(measure.Unavailable, match="depth limit"):
        spin.parse("error: max search depth too small\n" + VERIFIER)
    with pytest.raises(measure.Unavailable, match="did not say"):
        spin.parse("Segmentation fault")


@pytest.mark.skipif(not (shutil.which("spin") and shutil.which("gcc")), reason="SPIN is not installed")
@pytest.mark.parametrize(
    ("model", "macros", "errors"),
    [
        ("locks.pml", {"T": 2, "K": 2, "WHOLE": None}, 0),
        ("locks.pml", {"T": 2, "K": 2, "RACY": None}, 1),
        ("memslot_delete_vs_unmap.pml", {"OFF_LIST": None}, 1),
        ("memslot_delete_vs_unmap.pml", {"WHOLE": None}, 0),
    ],
)
def test_models_for_spin(model: str, macros: dict[str, int | None], errors: int) -> None:
    assert spin.verify(model, macros)["errors"] == errors


@pytest.mark.skipif(not PEERS.exists(), reason="the environment of the Python peers has not been made")
def test_drivers_of_python_peers() -> None:
    assert python_peers.drive("musil", 3, 4, "safe")["states"] == 1025
    assert python_peers.drive("musil", 2, 2, "racy")["errors"] == 1
    safe = python_peers.drive("frontrun", 2, 2, "safe", "dpor", 5)
    assert (safe["errors"], int(safe["executions"] or 0) > 0) == (0, True)
    assert python_peers.drive("frontrun", 3, 4, "racy", "dpor", 100)["errors"] == 1
