"""The map over processes: the order of map, a bounded look-ahead, errors passed on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import pytest

from arms import fork, signal_when
from lungkit.run import faults
from lungkit.run.faults import Fault, Stopped
from lungkit.run.workers import AHEAD, mapper


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    with mapper(workers) as mapped:
        assert list(mapped(abs, range(-50, 0), chunk=3)) == list(range(50, 0, -1))
        assert list(mapped(str, iter(range(100)))) == [str(number) for number in range(100)]
        assert list(mapped(abs, [-1])) == [1] and list(mapped(abs, [])) == []


def test_no_more_is_begun_than_can_wait(forked_workers):
    begun = []

    def items():
        for number in range(100):
            begun.append(number)
            yield number

    with mapper(2) as mapped:
        results = mapped(abs, items(), chunk=2)
        next(results)
        assert len(begun) <= AHEAD * 2 * 2 + 2 < 100
        assert len(list(results)) == 99


def test_an_error_of_a_worker_reaches_the_caller(forked_workers):
    with mapper(2) as mapped, pytest.raises(ValueError, match="invalid literal"):
        list(mapped(int, ["1"] * 12 + ["x"] * 8))


def test_a_killed_worker_is_said_and_nobody_waits_for_it(forked_workers):
    with pytest.raises(Fault, match="worker process was killed"), mapper(2) as mapped:
        list(mapped(die_at_seven, range(60), chunk=1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("stop", "error"), [([], Fault), ([signal.SIGTERM], Stopped)])
def test_a_worker_killed_before_more_is_sent_is_said_too(stop, error, monkeypatch,
                                                         forked_workers):
    """The pool refuses what is submitted once it has noticed."""
    submitted, submit = [], ProcessPoolExecutor.submit

    def noted(*arguments):
        submitted.append(submit(*arguments))
        return submitted[-1]

    def items():
        yield 7
        assert isinstance(submitted[0].exception(timeout=300), BrokenProcessPool)
        monkeypatch.setattr(faults, "_stop_signal", stop)
        yield 8

    monkeypatch.setattr(ProcessPoolExecutor, "submit", noted)
    with pytest.raises(error), mapper(2) as mapped:
        list(mapped(die_at_seven, items(), chunk=1))
    assert len(submitted) == 1 and not multiprocessing.active_children()


def test_a_signal_is_heard_while_workers_are_busy(monkeypatch, tmp_path, forked_workers):
    with pytest.raises(Stopped), mapper(2) as mapped:
        results = mapped(wait_unless_ready, [Path("/")] * 4 + [tmp_path / "never"] * 4, chunk=1)
        next(results)
        monkeypatch.setattr(faults, "_stop_signal", [signal.SIGTERM])
        list(results)
    assert not multiprocessing.active_children()


def test_a_worker_has_one_thread(monkeypatch):
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    for name in names:
        monkeypatch.setenv(name, "7")
    with mapper(2) as mapped:
        assert list(mapped(os.getenv, names)) == ["1"] * 3
    assert [os.environ[name] for name in names] == ["7"] * 3


def test_thread_settings_that_were_not_there_are_not_there_after(monkeypatch, forked_workers):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with mapper(2) as mapped:
        assert list(mapped(os.getenv, ["MKL_NUM_THREADS"] * 2)) == ["1", "1"]
    assert not {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ)


def test_one_process_has_one_thread_of_opencv_and_gives_the_others_back():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        with mapper(1) as mapped:
            assert list(mapped(threads_of_opencv, [0, 0])) == [1, 1]
            assert not multiprocessing.active_children()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_worker_leaves_signals_to_its_parent():
    """Ctrl-C reaches every process of the terminal, and Slurm's warning may."""
    numbers = [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT]
    with mapper(2) as mapped:
        assert list(mapped(signal_itself, numbers, chunk=1)) == numbers
        assert list(mapped(threads_of_opencv, [0, 0], chunk=1)) == [1, 1]


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    def parent() -> int:
        with mapper(2) as mapped:
            list(mapped(note_and_sleep, [tmp_path, tmp_path], chunk=1))
        return 0

    status = signal_when(fork(parent), lambda: len(list(tmp_path.iterdir())) == 2)
    assert status == -signal.SIGKILL
    workers = [Path("/proc", path.name, "stat") for path in tmp_path.iterdir()]
    end = time.monotonic() + 60
    while any(map(lives, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    orphans = [int(stat.parent.name) for stat in workers if lives(stat)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert not orphans, "the workers go on"


def lives(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def threads_of_opencv(_: object) -> int:
    return cv2.getNumThreads()


def wait_unless_ready(path: Path) -> None:
    end = time.monotonic() + 60  # far more than hearing a signal takes
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def signal_itself(number: int) -> int:
    os.kill(os.getpid(), number)
    return number


def note_and_sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
