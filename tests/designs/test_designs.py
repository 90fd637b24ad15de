"""The designs are values: what they are, what differs, and how they are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from interleaf.designs import OFF_LIST, V5_13, V5_16, V5_18, V6_12, V6_18, library, load
from interleaf.kvm.design import RULES, Design, Rule, functions, rule
from interleaf.runtime import ModelError

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_roots.py"


def test_the_library_is_in_order_of_age() -> None:
    assert list(library()) == [
        "v5.13",
        "v5.16",
        "series-v1",
        "off-list",
        "series-v3",
        "v5.18",
        "v6.1",
        "v6.4",
        "v6.12",
        "v6.18",
    ]


@pytest.mark.parametrize("design", library().values(), ids=lambda design: design.name)
def test_a_design_says_what_it_is_and_follows_declared_rules(design: Design) -> None:
    assert design.summary.endswith(".")
    assert design.commits
    assert design.rules <= set(RULES)


@pytest.mark.parametrize("known", RULES.values(), ids=lambda known: known.name)
def test_a_rule_is_a_sentence_with_a_source_that_some_design_follows(known: Rule) -> None:
    assert known.text.endswith(".")
    assert known.commit
    assert any(known.name in design.rules for design in library().values())


@pytest.mark.parametrize(
    "name",
    [
        "rcu-list-del",
        "safe-invalidated-walk",
        "invalidate-takes-reference",
        "next-root-rcu",
        "invalidate-under-write-lock",
        "zap-all-takes-slots-lock",
        "skip-zero-refcount-roots",
        "plain-list-add",
    ],
)
def test_each_claim_of_the_patch_is_a_rule_of_its_own(name: str) -> None:
    without = OFF_LIST.without(name)
    assert without.name == f"off-list without {name}"
    assert OFF_LIST.rules - without.rules == {name}
    assert without.adding(name).rules == OFF_LIST.rules


def test_a_design_with_other_rules_differs_in_nothing_else() -> None:
    changed = OFF_LIST.without("rcu-list-del")
    assert changed.kvm_tdp_mmu_put_root is OFF_LIST.kvm_tdp_mmu_put_root
    assert changed.commits == OFF_LIST.commits
    assert changed != OFF_LIST


def test_neighbours_differ_where_they_say() -> None:
    gained = {"fast-page-fault", "iter-yielded", "stale-root-check", "removed-pt-flush-start", "special-root-check"}
    assert V5_16.rules - V5_13.rules == gained
    assert V5_13.rules - V5_16.rules == {"full-mmu-seq"}
    assert V5_13.kvm_tdp_mmu_put_root is V5_16.kvm_tdp_mmu_put_root
    assert V5_13.kvm_tdp_mmu_unmap_gfn_range is not V5_16.kvm_tdp_mmu_unmap_gfn_range
    assert V5_18.kvm_tdp_mmu_unmap_gfn_range is V6_12.kvm_tdp_mmu_unmap_gfn_range


def test_an_unknown_rule_is_an_error_that_says_what_was_meant() -> None:
    with pytest.raises(ModelError, match=r"no rule 'rcu-listdel'\. Did you mean rcu-list-del"):
        OFF_LIST.without("rcu-listdel")


def test_a_rule_that_a_design_does_not_follow_cannot_be_dropped() -> None:
    with pytest.raises(ModelError, match=r"v6\.12 does not follow the rule 'rcu-list-del'; `interleaf list rules`"):
        V6_12.without("rcu-list-del")
    with pytest.raises(ModelError, match="off-list already follows the rule"):
        OFF_LIST.adding("rcu-list-del")


def test_a_neighbour_that_claims_a_difference_that_is_none_is_an_error() -> None:
    known = RULES["rcu-list-del"]
    with pytest.raises(ModelError, match="mine differs from off-list in rcu-list-del, but off-list has it so already"):
        OFF_LIST.derive("mine", "Mine.", (), obeys=[known])
    with pytest.raises(ModelError, match="a design has no put_root; it has name"):
        OFF_LIST.derive("mine", "Mine.", (), put_root=None)


def test_a_rule_is_declared_once() -> None:
    with pytest.raises(ModelError, match="'rcu-list-del' is declared twice"):
        rule("rcu-list-del", "Something else.", "")


def test_designs_are_found_by_name_with_rules_changed() -> None:
    assert load("v6.12") is V6_12
    assert load("off-list without rcu-list-del") == OFF_LIST.without("rcu-list-del")
    changed = load("v5.13 with iter-yielded without forward-progress")
    assert changed == V5_13.adding("iter-yielded").without("forward-progress")
    assert load(changed.name) == changed


def test_a_function_is_taken_from_another_design() -> None:
    swapped = load("v6.12 swap kvm_tdp_mmu_put_root=v5.18 without iter-yielded")
    assert swapped.kvm_tdp_mmu_put_root is V5_18.kvm_tdp_mmu_put_root
    assert swapped.kvm_tdp_mmu_zap_all is V6_12.kvm_tdp_mmu_zap_all
    assert load(swapped.name) == swapped


def test_the_functions_in_which_designs_may_differ_are_known() -> None:
    assert "tdp_mmu_next_root" in functions()
    assert not {"name", "rules", "removed_spte", "obeys"} & set(functions())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("v6.12 swap tdp_mmu_put_root=v5.18", "no function 'tdp_mmu_put_root'. Did you mean kvm_tdp_mmu_put_root"),
        ("v6.12 swap kvm_tdp_mmu_put_root", "expected FUNCTION=DESIGN"),
        ("v6.12 swap kvm_tdp_mmu_put_root=v6.1", "v6.12 and v6.1 have the same kvm_tdp_mmu_put_root"),
        ("v6.12 swap kvm_tdp_mmu_put_root=v7", "no design 'v7'"),
        ("v5.81", r"no design 'v5\.81'; there are v5\.13, .*Did you mean v5\.18\?"),
        ("off-list minus rcu-list-del", "is no design: after its name"),
        ("off-list without", "is no design: after its name"),
        ("nowhere.py:Mine", r"there is no file 'nowhere\.py'"),
        ("nowhere.py", r"write FILE\.py:NAME"),
    ],
)
def test_what_is_no_design_is_an_error_that_says_what_there_is(what: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(what)


def test_a_design_is_loaded_from_a_file() -> None:
    mine = load(f"{EXAMPLE}:MY_ROOTS")
    assert mine.name == "my-roots"
    assert mine.kvm_tdp_mmu_unmap_gfn_range is V5_18.kvm_tdp_mmu_unmap_gfn_range
    changed = load(f"{EXAMPLE}:MY_ROOTS without iter-yielded")
    assert "iter-yielded" not in changed.rules


def test_a_file_without_that_design_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no design 'Other'; the designs in it: .*MY_ROOTS"):
        load(f"{EXAMPLE}:Other")
    broken = tmp_path / "broken.py"
    broken.write_text("import nonsense_that_is_not_there\n")
    with pytest.raises(ModelError, match="cannot be loaded: ModuleNotFoundError"):
        load(f"{broken}:Mine")


def test_a_rule_that_was_taken_out_is_followed_by_older_kernels_only() -> None:
    removed = {name for name, known in RULES.items() if known.removed}
    assert removed
    assert not removed & V6_18.rules
    for name in removed:
        assert any(name in design.rules for design in library().values()), name
