"""What the patch says about itself, claim by claim, and which searches decide whether it is true.

The patch is "KVM: x86/mmu: Take TDP MMU roots off list when invalidating all roots" (19 Nov 2021, 15 of 28); its
claims stand in its commit message, its comments and its WARNs. A claim names programs (a scenario on a design) and
rules; what the searches of these programs find decides, so no answer is written down here.
"""

from __future__ import annotations

from dataclasses import dataclass

PATCH = "20211120045046.3940942-16-seanjc@google.com"


@dataclass(frozen=True, slots=True)
class Trial:
    """One program: a scenario and a design, as `scenarios.load` and `designs.load` take them."""

    scenario: str
    design: str

    def __str__(self) -> str:
        return f"{self.scenario} on {self.design}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that the patch says of itself.

    It *fails* if a search of the `posted` programs finds a violation of one of `rules`. It is *vacuous* if these
    searches never came to where one of `exercised` is decided. Where the claim is that something is needed, or rests
    on something, that is left out in `changed`: then the search must find a violation of one of `rules`. If it
    does not, a claim that something is `needed` fails, and any other is vacuous, because its searches would have
    found nothing in any case.
    """

    number: int
    text: str
    reason: str
    """Why it should be true, as the patch sees it."""
    source: str
    """Where the patch says so."""
    rules: tuple[str, ...]
    """The rules and properties that tell whether it is true, the most telling first."""
    posted: tuple[Trial, ...]
    exercised: tuple[str, ...]
    changed: tuple[Trial, ...] = ()
    needed: bool = False
    """Does the claim say that what `changed` leaves out is needed?"""
    remedy: tuple[Trial, ...] = ()
    """The programs in which it fails, with a defect of the base repaired that may be to blame."""
    vacuous: str = ""
    """Why nothing can come to `exercised`, if that is so."""
    part: str = ""
    """A letter, where one claim needs several answers."""

    @property
    def label(self) -> str:
        return f"{self.number}{self.part}"

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All programs to search."""
        return (*self.posted, *self.changed, *self.remedy)


def _on(*scenarios: str, design: str = "off-list") -> tuple[Trial, ...]:
    return tuple(Trial(scenario, design) for scenario in scenarios)


REPAIRED = "off-list with iter-yielded"
"""The posted patch on a base in which a walk goes on where it yielded, as later kernels have it (3a0f64de479c)."""

FAR = "invalidate-vs-put-far"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        1,
        "No reference is ever taken on an invalid root: the WARN in kvm_tdp_mmu_get_root() cannot fire.",
        "An invalid root is off the list, so that only those who have a reference already know it.",
        "kvm_tdp_mmu_get_root",
        ("get-root-invalid",),
        _on("invalidate-vs-walk", "invalidate-vs-walk-and-create", "invalidate-vs-put"),
        ("get-root-invalid",),
        changed=_on("invalidate-vs-walk", design="off-list without invalidate-under-write-lock"),
    ),
    Claim(
        2,
        "The invalidation never meets a root that is invalid already: its WARN cannot fire.",
        "It is the only one that invalidates, slots_lock makes it the only one at a time, and it takes what it "
        "invalidates off the list.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("invalidate-invalid-root",),
        _on("invalidate-vs-invalidate", "invalidate-vs-put", FAR),
        ("invalidate-invalid-root",),
    ),
    Claim(
        3,
        "When a walk finds its previous root invalid, it may start again at the head: all roots on the list were added "
        "after the invalidation, and no root that was valid throughout is missed.",
        "A root is invalidated only together with all others, and all leave the list in that moment.",
        "tdp_mmu_next_root",
        ("walk-restart-sees-only-new-roots", "walk-misses-no-valid-root"),
        _on("invalidate-vs-walk-and-create"),
        ("walk-restart-sees-only-new-roots", "walk-misses-no-valid-root"),
        changed=_on("invalidate-vs-walk", design="off-list without invalidate-under-write-lock"),
    ),
    Claim(
        4,
        "The put of an invalid root with mmu_lock held for read never reports that a flush is needed: the WARN in "
        "kvm_tdp_mmu_put_root() cannot fire.",
        "Whatever was under the root has been zapped by its invalidator.",
        "kvm_tdp_mmu_put_root",
        ("put-invalid-root-flush",),
        _on("invalidate-vs-put", FAR, design="off-list with roots-under-read-lock"),
        ("put-invalid-root-flush",),
        vacuous="an atomic zap flushes by itself, so zap_gfn_range() never reports a pending flush and the WARN is "
        "never evaluated",
        part="a",
    ),
    Claim(
        4,
        "The put of an invalid root with mmu_lock held for write never reports that a flush is needed: the WARN in "
        "kvm_tdp_mmu_put_root() cannot fire.",
        "Whatever was under the root has been zapped by its invalidator.",
        "kvm_tdp_mmu_put_root",
        ("put-invalid-root-flush",),
        _on("invalidate-vs-put", FAR),
        ("put-invalid-root-flush",),
        remedy=_on(FAR, design=REPAIRED),
        part="b",
    ),
    Claim(
        5,
        "A plain list_add() is enough when a root is made.",
        "mmu_lock is held for write then, and whoever reads the list holds it in some way.",
        "kvm_tdp_mmu_get_vcpu_root_hpa",
        ("data-race", "list-corruption", "use-after-free"),
        _on("create-vs-walk", "invalidate-vs-walk-and-create"),
        ("list-corruption", "data-race"),
        changed=_on("create-vs-walk", design="off-list with roots-under-read-lock"),
    ),
    Claim(
        6,
        "list_del_rcu() is needed in kvm_tdp_mmu_put_root().",
        "A walk may be looking at the root for the next one, under mmu_lock held for read.",
        "kvm_tdp_mmu_put_root",
        ("list-corruption", "data-race", "use-after-free"),
        _on("walks-vs-last-put"),
        ("list-corruption", "data-race"),
        changed=_on("walks-vs-last-put", design="off-list without rcu-list-del"),
        needed=True,
    ),
    Claim(
        7,
        "The walk over the invalidated roots must be a safe one.",
        "The root is freed by its put: there is no RCU reader around the walk.",
        "kvm_tdp_mmu_zap_invalidated_roots",
        ("use-after-free",),
        _on("invalidate-vs-put"),
        ("use-after-free",),
        changed=_on("invalidate-vs-put", design="off-list without safe-invalidated-walk"),
        needed=True,
    ),
    Claim(
        8,
        "The reference that is taken on each invalidated root is needed, to keep a vCPU from tearing the whole "
        "structure down.",
        "A vCPU that puts the last reference has to zap what is under the root.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("vcpu-tears-down-root", "put-invalid-root-flush", "use-after-free"),
        _on("invalidate-vs-put"),
        ("vcpu-tears-down-root",),
        changed=_on("invalidate-vs-put", design="off-list without invalidate-takes-reference"),
        needed=True,
        part="a",
    ),
    Claim(
        8,
        "With the reference that is taken on each invalidated root, no vCPU ever has to tear one down.",
        "The invalidator zaps the root before it puts its reference.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("vcpu-tears-down-root",),
        _on("invalidate-vs-put", FAR),
        ("vcpu-tears-down-root",),
        remedy=_on(FAR, design=REPAIRED),
        part="b",
    ),
    Claim(
        9,
        "No TLB flush is needed when invalidated roots are zapped.",
        "No vCPU can be using an invalid root: all are requested to take another one, and flush when they do.",
        "kvm_tdp_mmu_zap_invalidated_roots",
        ("I9", "I2", "I1", "use-after-free"),
        _on(
            "invalidate-vs-guest",
            "fault-vs-memslot-delete",
            design="off-list without atomic-zap-flushes without removed-pt-flushes",
        ),
        ("I9", "I2", "I1"),
        changed=_on(
            "invalidate-vs-guest",
            design="off-list without atomic-zap-flushes without removed-pt-flushes without invalidate-requests-reload",
        ),
    ),
    Claim(
        10,
        "Finding the next root needs the RCU read lock, although the previous one is referenced.",
        "The reference keeps the previous root on the list, but not the one behind it.",
        "tdp_mmu_next_root",
        ("use-after-free",),
        _on("walks-vs-last-put"),
        ("use-after-free",),
        changed=_on("walks-vs-last-put", design="off-list without next-root-rcu"),
        needed=True,
    ),
    Claim(
        11,
        "mmu_lock must be held for write while roots are moved off the list, and then that is safe.",
        "From a list with RCU readers entries may be deleted, but not moved; the lock keeps all readers out.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("list-corruption", "data-race", "I5", "get-root-invalid", "walk-misses-no-valid-root", "use-after-free"),
        _on("invalidate-vs-walk", "invalidate-vs-walk-and-create"),
        ("list-corruption", "data-race", "I5"),
        changed=_on("invalidate-vs-walk", design="off-list without invalidate-under-write-lock"),
        needed=True,
    ),
    Claim(
        12,
        "slots_lock is needed, and makes the invalidator the only one.",
        "Two memslot updates at once would each take a part of the roots, and each return without the other's.",
        "kvm_mmu_zap_all_fast",
        ("I7", "invalidate-invalid-root", "list-corruption", "use-after-free", "data-race"),
        _on("invalidate-vs-invalidate"),
        ("I7", "invalidate-invalid-root"),
        changed=_on("invalidate-vs-invalidate", design="off-list without zap-all-takes-slots-lock"),
        needed=True,
    ),
    Claim(
        13,
        "A root on the list with a reference count of zero may be skipped by the invalidation.",
        "It is being torn down already.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("I7", "I5", "use-after-free"),
        _on("invalidate-vs-put", FAR, "invalidate-vs-walk", "invalidate-vs-invalidate"),
        ("invalidate-skips-unreferenced-root",),
        vacuous="the invalidation never meets such a root: the last put takes it off the list before mmu_lock is given "
        "up",
        part="a",
    ),
    Claim(
        13,
        "A root whose last reference has been put need not be waited for by the invalidation.",
        "It is being torn down already.",
        "kvm_tdp_mmu_invalidate_all_roots",
        ("I7",),
        _on(FAR, design=REPAIRED),
        ("I7",),
        part="b",
    ),
)
