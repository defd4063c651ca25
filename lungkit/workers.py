"""A `map` over processes: in order, bounded in memory, ended with its parent, blind to signals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized

CHUNK = 8  # most items sent to a process at a time: sending costs about a millisecond
AHEAD = 3  # chunks per process begun before the first is taken: results wait, and must not pile up


def _start_worker() -> None:
    """Leave signals to the parent, and end with it however it ends."""
    import multiprocessing
    import os
    import signal
    import threading

    import cv2

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _run_chunk(function: Callable, items: list) -> list:
    return [function(item) for item in items]


def in_this_process(function: Callable, items: Iterable, *, chunk: int | None = None,
                    ahead: int = AHEAD) -> Iterator:
    """What `mapper` yields where one process is enough: `map`, that takes the same options."""
    return map(function, items)


@contextlib.contextmanager
def mapper(workers: int) -> Iterator[Callable]:
    """A `map` over `workers` processes of one thread, in order; in this process if one is enough.

    It may be called many times: starting a process costs about a second. The function and the
    items must pickle: a function of a module, or a partial of one. Memory does not grow with the
    number of items: at most `ahead` chunks per process are begun before the first is taken.

    mapped(function, items, *, chunk=None, ahead=AHEAD); chunk: items sent at a time; None: up to
    CHUNK, fewer where some process would have none.
    """
    if workers <= 1:
        import cv2

        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # on images this small a second one gains a twentieth
        try:
            yield in_this_process
        finally:
            cv2.setNumThreads(threads)
        return
    import multiprocessing
    from collections import deque
    from concurrent.futures import ProcessPoolExecutor
    from itertools import islice

    # spawn: a forked child would hold the output's lock after this process was killed
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:

        def mapped(function: Callable, items: Iterable, *, chunk: int | None = None,
                   ahead: int = AHEAD) -> Iterator:
            num_items = len(items) if isinstance(items, Sized) else CHUNK * 4 * workers
            if num_items <= 1:
                yield from map(function, items)
                return
            chunk = chunk or max(1, min(CHUNK, num_items // (4 * workers)))
            waiting, rest = deque(), iter(items)
            while True:
                while len(waiting) < ahead * workers and (part := list(islice(rest, chunk))):
                    waiting.append(pool.submit(_run_chunk, function, part))
                if not waiting:
                    return
                yield from waiting.popleft().result()

        try:
            yield mapped
        finally:
            pool.shutdown(cancel_futures=True)
