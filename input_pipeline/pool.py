"""Tasks over processes, with one progress bar and a clean end when a worker or the parent is killed."""

import collections
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar, runtime_checkable

from input_pipeline.errors import RetryError
from input_pipeline.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")


@runtime_checkable
class Advance(Protocol):
    """How a task says that it goes on."""

    def __call__(self, count: int, *, kept: bool = False) -> None:
        """Takes the number of items done since the last call; `kept` says that they were done by an earlier run."""
        ...


def run_tasks(
    work: Callable[[Task, Advance], Result], tasks: Sequence[Task], workers: int, progress: Progress
) -> Iterator[Result]:
    """Results in the order of the tasks; each is forgotten once it was taken.

    Args:
      work: a function of a module, called with a task and with an `Advance`.
      tasks: pickled to the workers.
      workers: processes; 1 works in this one.
      progress: shows the items of all tasks.

    Raises:
      RetryError: a worker was killed.
    """
    workers = min(workers, len(tasks))
    return _in_processes(work, tasks, workers, progress) if workers > 1 else _here(work, tasks, progress)


def _here(work: Callable[[Task, Advance], Result], tasks: Sequence[Task], progress: Progress) -> Iterator[Result]:
    done = earlier = 0

    def advance(count: int, *, kept: bool = False) -> None:
        nonlocal done, earlier
        done += count
        earlier += count if kept else 0
        progress.update(done, kept=earlier)

    for task in tasks:
        yield work(task, advance)


def _in_processes(
    work: Callable[[Task, Advance], Result], tasks: Sequence[Task], workers: int, progress: Progress
) -> Iterator[Result]:
    """Spawned, not forked: the caller may hold threads and an accelerator."""
    context = multiprocessing.get_context("spawn")
    done_count, kept_count = context.Value("q", 0), context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (done_count, kept_count))
    try:
        futures = collections.deque(pool.submit(_work, work, task) for task in tasks)
        while futures:
            done, _ = concurrent.futures.wait(futures, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION)
            progress.update(done_count.value, kept=kept_count.value)
            for future in done:
                future.result()
            done.clear()
            while futures and futures[0].done():
                yield futures.popleft().result()
    except BrokenProcessPool:
        raise RetryError("a worker was killed (out of memory?); run again to continue, with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


_counters: tuple[Any, ...] = ()


def _start_worker(*counters: Any) -> None:
    """Keeps the shared counters, and ends the worker when its parent is killed: it would wait for work for ever."""
    global _counters
    _counters = counters
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work(work: Callable[[Task, Advance], Result], task: Task) -> Result:
    def advance(count: int, *, kept: bool = False) -> None:
        for counter in _counters[: 1 + kept]:
            with counter.get_lock():
                counter.value += count

    return work(task, advance)
