"""The installed command, end to end: results, exit codes, and bad input of every kind. Never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.test_campaign import ENDLESS, ENDLESS_SET_UP, HEADER, LONG, NONDETERMINISTIC

COMMAND = Path(sys.executable).with_name("interleaf")
MODELS = Path(__file__).parent / "report" / "models.py"
USE_AFTER_FREE = f"{MODELS}:use_after_free"

RAISES = f'''{HEADER}
@scenario("A set-up that raises")
def raises(design):
    """It divides by zero."""
    return 1 // 0
'''

RAISES_IN_TASK = f'''{HEADER}
def step():
    the(Counter).value = 1
    raise KeyError("nothing here")

@scenario("A task that raises")
def raises(design):
    """It looks up what is not there."""
    spawn(step, name="one")
'''

DEADLOCKED_SET_UP = f'''{HEADER}
from interleaf.linux.spinlock import spin_lock, spinlock_t
from interleaf.runtime import Embedded, join

def nothing():
    pass

@scenario("A set-up that waits for ever")
def waits(design):
    """It joins a task that cannot run yet."""
    join(spawn(nothing, name="one"))
'''

NO_TASK = f'''{HEADER}
@scenario("Nobody")
def nobody(design):
    """It forgets to spawn."""
    new(Counter)
'''

PRINTS = f'''{HEADER}
def step():
    check("small", the(Counter).value != 0, "it is zero")

@scenario("A scenario that says what it does")
def prints(design):
    """It is being debugged."""
    print("here I am")
    spawn(step, name="one")
'''

MISSING_IMPORT = f"{HEADER}\nimport no_such_module\n"

SYNTAX_ERROR = "def broken(:\n"

EXITS = f"{HEADER}\nimport sys\nsys.exit(0)\n"


def start(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in output + errors, output + errors
    return process.returncode, output, errors


def interleaf(*arguments: object, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    return finish(start(*arguments, cwd=cwd, **environment))


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """The complaint about arguments that are bad; the command must not begin to search."""
    code, output, errors = interleaf(*arguments, cwd=cwd)
    assert code == 2
    assert output == ""
    return " ".join(errors.replace("│", " ").split())


def user_file(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_proof_exits_with_0() -> None:
    code, output, errors = interleaf("check", "fault-vs-unmap", "--design", "v6.12")
    assert code == 0
    assert output.startswith("fault-vs-unmap on v6.12: holds\n")
    assert "vacuous" in output
    assert "proved by states" in output
    assert "\x1b" not in output + errors


def test_a_violation_exits_with_1_and_is_told(tmp_path: Path) -> None:
    files = tmp_path / "found"
    code, output, _ = interleaf(
        "check", "fault-vs-unmap", "--design", "v6.12", "--drop", "notifier-retry", "--findings", files
    )
    assert code == 1
    assert "fault-vs-unmap on v6.12 without notifier-retry: violated" in output
    assert "kvm_handle_hva_range():" in output
    assert "\x1b" not in output
    first = files / "fault-vs-unmap-v6.12-notifier-retry-I1.json"
    assert f"replay it: interleaf show {first}" in output
    code, shown, errors = interleaf("show", first)
    assert code == 1
    assert errors == ""
    story = output[output.index("set-up:") : output.index("replay it:")].strip()
    assert story in shown


def test_a_bound_exits_with_3() -> None:
    code, output, _ = interleaf("check", "fault-vs-unmap", "--design", "v6.12", "--states", "50", "--workers", "1")
    assert code == 3
    assert "the bound of 50 states was reached" in output


def test_a_matrix_has_scenarios_and_designs(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, output, errors = interleaf(
        "check", "fault-vs-unmap", USE_AFTER_FREE, "--design", "v6.12", "--design", "v5.18", "--json", file
    )
    assert code == 1
    assert output.splitlines()[0].split() == ["v6.12", "v5.18"]
    assert "2 hold, 2 violated, in " in output
    assert output.count("use-after-free: read of Inode0.size") == 1
    assert f"found as well: {USE_AFTER_FREE} on v5.18" in " ".join(output.split())
    assert f"replay it: interleaf show {file} --finding 1" in output
    assert sorted(line[:5] for line in errors.splitlines()) == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    document = json.loads(file.read_text())
    assert [(cell["scenario"], cell["design"], cell["verdict"]) for cell in document["cells"]] == [
        ("fault-vs-unmap", "v6.12", "holds"),
        ("fault-vs-unmap", "v5.18", "holds"),
        ("use-after-free", "v6.12", "violated"),
        ("use-after-free", "v5.18", "violated"),
    ]
    assert {found["property"] for found in document["findings"]} == {"use-after-free"}
    assert interleaf("show", file, "--finding", 1)[0] == 1


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    for cell in document["cells"]:
        del cell["seconds"]
    return document


def test_the_json_is_the_same_each_time_and_for_any_number_of_workers() -> None:
    documents = []
    for workers in (1, 3):
        code, output, _ = interleaf(
            "check", "fault-vs-unmap", USE_AFTER_FREE, "--design", "v6.12", "--json", "-", "--workers", workers
        )
        assert code == 1
        documents.append(without_times(json.loads(output)))
    assert documents[0] == documents[1]


def test_json_on_standard_output_is_alone_there() -> None:
    code, output, errors = interleaf("check", "fault-vs-unmap", "--design", "v6.12", "--json", "-")
    assert code == 0
    assert json.loads(output)["schema"] == "interleaf/check/1"
    assert "fault-vs-unmap on v6.12: holds" in errors


def test_the_hunt_is_deterministic() -> None:
    arguments = ("check", USE_AFTER_FREE, "--design", "v6.12", "--engine", "hunt", "--executions", "20", "--json", "-")
    outputs = [interleaf(*arguments, "--seed", "3") for _ in range(2)]
    assert [code for code, _, _ in outputs] == [1, 1]
    assert len({json.dumps(without_times(json.loads(output))) for _, output, _ in outputs}) == 1


def test_no_color_and_no_terminal_give_plain_text() -> None:
    _, output, errors = interleaf("check", USE_AFTER_FREE, "--design", "v6.12", NO_COLOR="1")
    assert "\x1b" not in output + errors


def test_an_encoding_without_symbols_is_no_trouble() -> None:
    code, output, _ = interleaf(
        "check", USE_AFTER_FREE, "--design", "v6.12", "--design", "v5.18", PYTHONIOENCODING="ascii:replace"
    )
    assert code == 1
    assert "x violated" in output


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("scenarios", "fault-vs-unmap"),
        ("designs", "v6.12"),
        ("properties", "I1"),
        ("bugs", "B01  A notifier does not see invalid roots (use-after-free)"),
    ],
)
def test_lists(what: str, line: str) -> None:
    code, output, _ = interleaf("list", what)
    assert code == 0
    assert line in output.splitlines()


def test_rules_are_a_table_with_designs_across() -> None:
    code, output, _ = interleaf("list", "rules")
    assert code == 0
    lines = output.splitlines()
    designs = [line.split()[-1] for line in lines[: lines.index(" | | | | | | | | v6.12") + 2]]
    assert designs[0] == "v5.13"
    assert designs[-1] == "v6.18"
    [row] = [line for line in lines if "iter-yielded (" in line]
    marks = dict(zip(designs, row.partition("  ")[0].split(), strict=True))
    assert marks["v5.13"] == marks["off-list"] == "."
    assert marks["v5.16"] == marks["v6.12"] == "+"


def test_a_bug_is_put_back_where_it_shows() -> None:
    code, output, _ = interleaf("check", "--bug", "B21")
    assert code == 1
    assert "unmap-in-two-roots on v6.12 bug B21: violated" in output


def test_rules_and_functions_are_changed() -> None:
    code, output, _ = interleaf(
        "check", "unmap-in-two-roots", "--design", "v5.18", "--swap", "kvm_tdp_mmu_zap_all=off-list", "--with",
        "zap-small-first", "--drop", "flush-across-roots",
    )  # fmt: skip
    assert code == 1
    changes = "v5.18 with zap-small-first swap kvm_tdp_mmu_zap_all=off-list"
    assert f"unmap-in-two-roots on {changes} without flush-across-roots: violated" in " ".join(output.split())


def test_help_tells_the_exit_codes() -> None:
    code, output, _ = interleaf("check", "--help")
    assert code == 0
    assert "Exit codes: 0 all properties hold" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("fault-vs-unmapp",), "there is no scenario 'fault-vs-unmapp' in the library. Did you mean fault-vs-unmap"),
        (("missing.py",), "there is no scenario file 'missing.py'"),
        (("--design", "v6.13"), "there is no design 'v6.13'; there are v5.13, v5.16"),
        (("--design", "missing.py:Mine"), "there is no design file 'missing.py'"),
        (("--with", "notifier-retri"), "there is no rule 'notifier-retri'; did you mean notifier-retry"),
        (("--with", "notifier-retry"), "there is no design in which with notifier-retry changes anything"),
        (("--bug", "B99"), "there is no bug 'B99'; did you mean"),
        (("--swap", "kvm_tdp_mmu_put_root"), "expected FUNCTION=DESIGN"),
        (("--swap", "kvm_tdp_mmu_put_root=v9"), "there is no design 'v9'"),
        (("--swap", "put_root=v5.18"), "designs have no function 'put_root'; did you mean"),
        (("--drop", "notifier-retri"), "there is no rule 'notifier-retri'; did you mean notifier-retry"),
        (
            ("--design", "v6.12", "--drop", "notifier-retri"),
            "there is no rule 'notifier-retri'. Did you mean notifier-retry",
        ),
        (("--engine", "stats"), "there is no engine 'stats'; did you mean states"),
        (("--engine", "hunt", "--preemptions", "2"), "--preemptions cannot be honoured with --engine hunt"),
        (("--engine", "steps", "--preemptions", "2"), "--preemptions cannot be honoured with --engine steps"),
        (("--engine", "hunt", "--states", "2"), "--states cannot be honoured with --engine hunt"),
        (("--engine", "both", "--states", "2"), "--states cannot be honoured with --engine both"),
        (("--preemptions", "2", "--seed", "2"), "--seed cannot be honoured with --preemptions 2"),
        (("--engine", "steps", "--seed", "2"), "--seed cannot be honoured with --engine steps"),
        (("fault-vs-unmap", "--set", "pagse=2"), "has no parameter 'pagse'; did you mean pages?"),
        (("fault-vs-unmap", "--set", "pages=0"), "pages of the scenario fault-vs-unmap must be at least 1, not 0"),
        (("fault-vs-unmap", "--set", "pages"), "expected NAME=NUMBER"),
        (("fault-vs-unmap", "--set", "pages=two"), "'two' is no whole number"),
        (("fault-vs-unmap", "--set", "pages=2", "--set", "pages=3"), "--set gives pages more than one value"),
        (("--design", "v6.12", "--drop", "x"), "there is no rule 'x'; `interleaf list rules` says which"),
        (("--seconds", "inf"), "--seconds inf: leave it out"),
        (("--states", "0"), "Invalid value for '--states'"),
        (("--workers", "none"), "Invalid value for '--workers'"),
        (("--json", "missing/out.json"), "there is no directory missing"),
        (("--json", "."), ". is a directory"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_bad_usage_is_refused_before_the_search(arguments: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    assert complaint in refused("check", *arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (RAISES, "it raises ZeroDivisionError: integer division or modulo by zero (mine.py:12 in raises)"),
        (RAISES_IN_TASK, "it raises KeyError: 'nothing here' (mine.py:11 in step)"),
        (DEADLOCKED_SET_UP, "the set-up waits for ever in join"),
        (MISSING_IMPORT, "No module named 'no_such_module' (mine.py:9 in <module>)"),
        (SYNTAX_ERROR, "mine.py"),
        (EXITS, "SystemExit"),
        (NONDETERMINISTIC, "The model has state that is not in a model object"),
        (HEADER, "was expected to have one function with @scenario"),
    ],
    ids=["raises", "task raises", "deadlock", "import", "syntax", "exit", "nondeterministic", "empty"],
)
def test_a_scenario_at_fault_costs_its_own_cell_only(text: str, complaint: str, tmp_path: Path) -> None:
    user_file(tmp_path, text)
    code, output, _ = interleaf(
        "check", "mine.py", "fault-vs-unmap", "--design", "v6.12", "--json", "out.json", cwd=tmp_path
    )
    assert code == 2
    assert "1 holds, 1 in error" in output
    complaints = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(complaints) == 1
    assert complaints[0].startswith("error: mine.py on v6.12: ")
    assert complaint in complaints[0]
    assert "mine.py" in complaints[0].removeprefix("error: mine.py on v6.12: ") or "audit" in complaints[0]
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert [cell["verdict"] for cell in cells] == ["incomplete", "holds"]
    assert complaint in cells[0]["error"]
    assert cells[1]["error"] is None


def test_a_scenario_without_tasks_does_not_hold(tmp_path: Path) -> None:
    user_file(tmp_path, NO_TASK)
    code, output, _ = interleaf("check", "mine.py", "--design", "v6.12", cwd=tmp_path)
    assert code == 2
    assert "error: mine.py on v6.12: the set-up spawns no task, so nothing was checked" in output


@pytest.mark.parametrize(
    ("text", "where"),
    [(ENDLESS, "after 5 s it is still at mine.py:1"), (ENDLESS_SET_UP, "")],
    ids=["task", "set-up"],
)
def test_a_scenario_that_never_ends_is_ended(text: str, where: str, tmp_path: Path) -> None:
    user_file(tmp_path, text)
    code, output, _ = interleaf("check", "mine.py", "--design", "v6.12", "--seconds", "1", cwd=tmp_path)
    assert code == 2
    assert f"mine.py on v6.12: it does not end: {where}" in output


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a finding."""
    folder = tmp_path_factory.mktemp("found")
    assert interleaf("check", USE_AFTER_FREE, "--design", "v6.12", "--findings", folder)[0] == 1
    return folder / "models-v6.12-use-after-free.json"


def test_a_finding_of_another_model_warns_and_replays(found: Path, tmp_path: Path) -> None:
    document = json.loads(found.read_text())
    document["finding"]["digest"] = "0" * 16
    path = tmp_path / "it.json"
    path.write_text(json.dumps(document))
    code, output, errors = interleaf("show", path)
    assert code == 1
    assert "is not what the finding was made with; trying anyway" in errors
    assert "used by reader:" in output


def test_a_finding_that_does_not_replay_says_where(found: Path, tmp_path: Path) -> None:
    document = json.loads(found.read_text())
    document["finding"]["schedule"].insert(0, ["nobody", [], 0])
    path = tmp_path / "it.json"
    path.write_text(json.dumps(document))
    assert "the replay diverges at step 0: task nobody should run" in refused("show", path)


def test_a_finding_that_has_gone_says_so(found: Path, tmp_path: Path) -> None:
    document = json.loads(found.read_text())
    document["finding"]["schedule"] = document["finding"]["schedule"][:1]
    path = tmp_path / "it.json"
    path.write_text(json.dumps(document))
    code, output, errors = interleaf("show", path)
    assert code == 2
    assert "The replay does not show this violation." in output
    assert "use-after-free is not violated any more" in errors


def test_a_finding_of_a_design_that_is_not_there(found: Path, tmp_path: Path) -> None:
    document = json.loads(found.read_text())
    document["finding"]["design"] = "mine.py:Mine"
    path = tmp_path / "it.json"
    path.write_text(json.dumps(document))
    assert "there is no file 'mine.py'" in refused("show", path, cwd=tmp_path)


def test_files_that_are_no_findings(found: Path, tmp_path: Path) -> None:
    text = found.read_text()
    path = tmp_path / "it.json"
    for content, complaint in (
        (text[:300], "is cut off"),
        ("no json", "is not JSON"),
        (text.replace("finding/1", "finding/2"), "has the schema interleaf/finding/2"),
        ("{}", "no finding"),
    ):
        path.write_text(content)
        assert complaint in refused("show", path)
    assert "is a directory" in refused("show", tmp_path)
    assert "No such file" in refused("show", tmp_path / "missing.json")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_scenario_prints_is_not_in_the_result(workers: int, tmp_path: Path) -> None:
    user_file(tmp_path, PRINTS)
    code, output, errors = interleaf(
        "check", "mine.py", "--design", "v6.12", "--json", "-", "--workers", workers, cwd=tmp_path
    )
    assert code == 1
    assert [finding["property"] for finding in json.loads(output)["findings"]] == ["small"]
    assert "here I am" in errors


def test_a_full_disk_is_told() -> None:
    code, output, errors = interleaf("check", USE_AFTER_FREE, "--design", "v6.12", "--json", "/dev/full")
    assert code == 2
    assert output == ""
    assert "/dev/full cannot be written: No space left on device. 1 violated." in errors


def test_a_full_disk_under_standard_output_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [COMMAND, "check", USE_AFTER_FREE, "--design", "v6.12"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    kept = tmp_path / "old.json"
    kept.write_text("old")
    if os.geteuid() != 0:
        kept.chmod(0o400)
        assert "cannot be written to" in refused("check", "--json", kept)
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file / 'folder'}: Not a directory" in refused("check", "--findings", file / "folder")
    assert f"{file} is no folder" in refused("check", "--findings", file)
    assert kept.read_text() == "old"


@pytest.mark.parametrize("command", [["check", "last-put-vs-unmap", "--design", "v6.12"], ["list", "rules"]])
def test_a_reader_that_goes_away_does_not_make_it_a_violation(command: list[str]) -> None:
    process = start(*command)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 2
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_a_terminal_without_the_characters_of_a_story_gets_others() -> None:
    code, output, errors = interleaf("check", "last-put-vs-unmap", "--design", "off-list", PYTHONIOENCODING="ascii")
    assert code == 1
    assert "? 8 operations" in output
    assert "interleaf:" not in errors


def test_a_complaint_that_nobody_can_read_is_still_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([COMMAND, "check", "no-such"], stderr=full, check=False).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_keeps_what_was_found(number: int, workers: int, tmp_path: Path) -> None:
    user_file(tmp_path, LONG)
    (tmp_path / "out.json").write_text("old")
    process = start(
        *("check", "fault-vs-unmap", "mine.py", "--design", "v6.12", "--design", "v5.18"),
        *("--json", "out.json", "--findings", "found", "--workers", workers),
        cwd=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/4]"):
            break
    time.sleep(2)
    process.send_signal(number)
    code, output, _ = finish(process)
    assert code == 1
    assert "interrupted by" in output
    document = json.loads((tmp_path / "out.json").read_text())
    assert [cell["verdict"] for cell in document["cells"]][:3] == ["holds", "holds", "violated"]
    assert not document["cells"][2]["exhaustive"]
    assert [found["property"] for found in document["findings"]] == ["small"]
    assert len(list((tmp_path / "found").iterdir())) == 1


def test_an_interrupt_with_nothing_found_is_incomplete(tmp_path: Path) -> None:
    user_file(tmp_path, LONG.replace("< 1", ">= 0"))
    process = start("check", "mine.py", "fault-vs-unmap", "--design", "v6.12", "--workers", "1", cwd=tmp_path)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    code, output, _ = finish(process)
    assert code == 3
    assert "incomplete: mine.py on v6.12: interrupted by Ctrl-C" in output
    assert "incomplete: fault-vs-unmap on v6.12: it was not begun: interrupted by Ctrl-C" in output


def children(pid: int) -> list[int]:
    """The worker processes of the command (not multiprocessing's resource tracker)."""
    candidates = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in candidates if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the workers")
def test_a_killed_worker_costs_its_own_cell_only(tmp_path: Path) -> None:
    user_file(tmp_path, LONG)
    process = start(
        *("check", "mine.py", "fault-vs-unmap", USE_AFTER_FREE, "last-put-vs-unmap", "--design", "v6.12"),
        *("--workers", "2", "--json", "out.json"),
        cwd=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[3/4]"):
            break
    for child in children(process.pid):
        busy = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if int(busy[11]) > 0:
            os.kill(child, signal.SIGKILL)
    code, output, _ = finish(process)
    assert code == 1
    assert "incomplete: mine.py on v6.12: its worker process was killed" in output
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert [cell["verdict"] for cell in cells] == ["incomplete", "holds", "violated", "holds"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the workers")
def test_workers_do_not_outlive_the_command(tmp_path: Path) -> None:
    user_file(tmp_path, LONG)
    process = start("check", "mine.py", "--design", "v6.12", "--design", "v5.18", cwd=tmp_path)
    workers: list[int] = []
    while len(workers) < 2:
        time.sleep(0.1)
        workers = children(process.pid)
    time.sleep(1)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
