"""Work queues: what runs how often, and what a flush waits for."""

from __future__ import annotations

from interleaf.linux.bug import BUG_ON
from interleaf.linux.mutex import mutex, mutex_lock, mutex_unlock
from interleaf.linux.slab import kfree, kmem_cache_alloc
from interleaf.linux.workqueue import (
    INIT_WORK,
    alloc_workqueue,
    destroy_workqueue,
    flush_workqueue,
    queue_work,
    work_struct,
    workqueue_struct,
)
from interleaf.runtime import Embedded, Marked, Object, Plain, container_of, spawn, the

from .program import Corpus

CORPUS = Corpus()


class Job(Object):
    """Carries a work item."""

    freeable = True
    work = Embedded(work_struct)


class Global(Object):
    """Two work items that live for ever."""

    work = Embedded(work_struct)
    other = Embedded(work_struct)
    lock = Embedded(mutex)
    runs = Plain(0)
    inside = Marked(0)
    met = Marked(False)
    queued = Marked(0)


def work_once(work: work_struct) -> None:
    container_of(work, Global).runs += 1


def work_inside(work: work_struct) -> None:
    shared = container_of(work, Global)
    if shared.inside:
        shared.met = True
    shared.inside = 1
    shared.inside = 0


def work_and_queue_other(work: work_struct) -> None:
    shared = container_of(work, Global)
    INIT_WORK(shared.other, work_once)
    queue_work(the_queue(), shared.other)


def work_and_flush(work: work_struct) -> None:
    flush_workqueue(the_queue())


def work_under_lock(work: work_struct) -> None:
    shared = container_of(work, Global)
    mutex_lock(shared.lock)
    mutex_unlock(shared.lock)


def work_and_free(work: work_struct) -> None:
    kfree(container_of(work, Job))


class Queue(Object):
    """Where the queue is."""

    wq = Marked[workqueue_struct | None](None)


def the_queue() -> workqueue_struct:
    wq = the(Queue).wq
    assert wq is not None
    return wq


def start() -> workqueue_struct:
    wq = alloc_workqueue("wq")
    the(Queue).wq = wq
    INIT_WORK(the(Global).work, work_once)
    return wq


def queue_and_flush(wq: workqueue_struct) -> None:
    queue_work(wq, the(Global).work)
    flush_workqueue(wq)
    BUG_ON(the(Global).runs == 0, "the work has not run")


def queue_and_look(wq: workqueue_struct) -> None:
    queue_work(wq, the(Global).work)
    BUG_ON(the(Global).runs == 0, "the work has not run")


def queue_twice(wq: workqueue_struct) -> None:
    work = the(Global).work
    first = queue_work(wq, work)
    second = queue_work(wq, work)
    flush_workqueue(wq)
    BUG_ON(not first or the(Global).runs != first + second, "runs are not what queue_work() said")
    the(Global).queued = first + second


def queue_inside_twice(wq: workqueue_struct) -> None:
    work = the(Global).work
    INIT_WORK(work, work_inside)
    queue_work(wq, work)
    queue_work(wq, work)


def queue_uninitialised(wq: workqueue_struct) -> None:
    queue_work(wq, the(Global).other)


def queue_and_destroy(wq: workqueue_struct) -> None:
    INIT_WORK(the(Global).work, work_and_queue_other)
    queue_work(wq, the(Global).work)
    destroy_workqueue(wq)


def queue_chain_and_flush(wq: workqueue_struct) -> None:
    INIT_WORK(the(Global).work, work_and_queue_other)
    queue_work(wq, the(Global).work)
    flush_workqueue(wq)
    the(Global).queued = 1


def just_queue(wq: workqueue_struct) -> None:
    queue_work(wq, the(Global).work)


def just_destroy(wq: workqueue_struct) -> None:
    destroy_workqueue(wq)


def queue_a_flusher(wq: workqueue_struct) -> None:
    INIT_WORK(the(Global).work, work_and_flush)
    queue_work(wq, the(Global).work)


def queue_and_flush_under_lock(wq: workqueue_struct) -> None:
    INIT_WORK(the(Global).work, work_under_lock)
    queue_work(wq, the(Global).work)
    mutex_lock(the(Global).lock)
    flush_workqueue(wq)
    mutex_unlock(the(Global).lock)


def queue_under_lock_and_flush(wq: workqueue_struct) -> None:
    INIT_WORK(the(Global).work, work_under_lock)
    mutex_lock(the(Global).lock)
    queue_work(wq, the(Global).work)
    mutex_unlock(the(Global).lock)
    flush_workqueue(wq)


def queue_job(wq: workqueue_struct) -> None:
    job = kmem_cache_alloc(Job)
    INIT_WORK(job.work, work_and_free)
    queue_work(wq, job.work)
    flush_workqueue(wq)


def queue_job_and_free(wq: workqueue_struct) -> None:
    job = kmem_cache_alloc(Job)
    INIT_WORK(job.work, work_and_free)
    queue_work(wq, job.work)
    kfree(job)


@CORPUS.good(Global, runs={1})
def flushing_waits_for_the_work() -> None:
    spawn(queue_and_flush, start(), name="a")


@CORPUS.bad("BUG")
def queueing_does_not_wait() -> None:
    spawn(queue_and_look, start(), name="a")


@CORPUS.good(Global, queued={1, 2})
def queueing_what_is_pending_does_nothing() -> None:
    spawn(queue_twice, start(), name="a")


@CORPUS.good(Global, met={False})
def a_work_item_never_meets_itself() -> None:
    spawn(queue_inside_twice, start(), name="a")


@CORPUS.bad("workqueue")
def queueing_without_init_work() -> None:
    spawn(queue_uninitialised, start(), name="a")


@CORPUS.good(Global, runs={1})
def destroying_waits_for_what_the_work_queues() -> None:
    spawn(queue_and_destroy, start(), name="a")


@CORPUS.good(Global, queued={1})
def flushing_does_not_wait_for_what_the_work_queues() -> None:
    spawn(queue_chain_and_flush, start(), name="a")


@CORPUS.bad("workqueue", "use-after-free")
def queueing_while_destroying() -> None:
    wq = start()
    spawn(just_queue, wq, name="a")
    spawn(just_destroy, wq, name="b")


@CORPUS.bad("lockdep")
def flushing_in_the_work() -> None:
    spawn(queue_a_flusher, start(), name="a")


@CORPUS.bad("lockdep", "deadlock")
def flushing_under_a_lock_that_the_work_takes() -> None:
    spawn(queue_and_flush_under_lock, start(), name="a")


@CORPUS.good()
def flushing_after_releasing_the_lock() -> None:
    spawn(queue_under_lock_and_flush, start(), name="a")


@CORPUS.good()
def work_that_frees_itself() -> None:
    spawn(queue_job, start(), name="a")


@CORPUS.bad("use-after-free")
def freeing_pending_work() -> None:
    spawn(queue_job_and_free, start(), name="a")
