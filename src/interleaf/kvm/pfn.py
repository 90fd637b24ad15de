"""What KVM does to the host's pages by frame number: references, and the write-back of dirty and accessed state.

kvm_set_pfn_dirty() and kvm_set_pfn_accessed() are what makes a forgotten SPTE dangerous: whoever zaps it writes to
a page that the host may have given to somebody else. (virt/kvm/kvm_main.c, v6.12)
"""

from __future__ import annotations

from interleaf.mm.page import Page, ZeroPage, mark_page_accessed, page_at, put_page, set_page_dirty


def kvm_is_ad_tracked_page(page: Page) -> bool:
    """Does the host want to know whether the page is used? Not of the page of zeros, which is reserved."""
    return not isinstance(page, ZeroPage)


def kvm_set_pfn_dirty(pfn: int) -> None:
    """The guest has written to the page: tell the host. Violates I1 if the page is freed."""
    page = page_at(pfn)
    if kvm_is_ad_tracked_page(page):
        set_page_dirty(page)


def kvm_set_pfn_accessed(pfn: int) -> None:
    """The guest has used the page: tell the host. Violates I1 if the page is freed."""
    page = page_at(pfn)
    if kvm_is_ad_tracked_page(page):
        mark_page_accessed(page)


def kvm_release_pfn_clean(pfn: int) -> None:
    """Put the reference on the page that looking it up has taken."""
    put_page(page_at(pfn))
