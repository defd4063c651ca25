"""A `map` over processes: in order, bounded in memory, ended with its parent, blind to signals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized

from lungkit.run import faults

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
    number of items: at most `ahead` chunks per process are begun before the first is taken. Raises
    Stopped within a second of a signal, and Fault where a process was killed.

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

    others = set(multiprocessing.active_children())
    # spawn: a forked child would hold the output's lock after this process was killed
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)

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
                with _one_thread(), _killed_is_said():
                    waiting.append(pool.submit(_run_chunk, function, part))
            if not waiting:
                return
            yield from _result(waiting.popleft())

    try:
        yield mapped
    except BaseException:
        # they only compute: nothing is lost, and they are deaf to the pool's own way of ending them
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future) -> list:
    """What a worker made of a chunk; looks every second whether a signal asked for an end."""
    from concurrent.futures import TimeoutError

    while True:
        try:
            with _killed_is_said():
                return future.result(timeout=1)
        except TimeoutError:
            if future.done():
                raise  # the function's own
            faults.check_stop()


@contextlib.contextmanager
def _killed_is_said() -> Iterator[None]:
    """A pool broken by a process's death, noticed when work is sent or when it is awaited."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool:
        faults.check_stop()  # the signal reached a worker before it had learnt to leave it
        raise faults.Fault("a worker process was killed, perhaps for lack of memory: give fewer "
                        "--workers or more memory, and run the same command again") from None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What is started in here has one thread of BLAS, as of OpenCV: processes share the cores."""
    import os

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
