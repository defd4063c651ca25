"""The command line every stage shares: option types, presets, exit statuses, signals, devices."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from lungkit.learn import device
from lungkit.run import cli, faults

# ------------------------------------------------------------------ exit statuses

def call(run, *argv: str) -> int:
    parser = cli.stage_parser("stage.py", "What it makes.")
    parser.add_argument("--steps", type=cli.positive_int)
    return cli.main(parser, run, list(argv))


def raising(error: BaseException):
    def run(**options):
        raise error
    return run


@pytest.mark.parametrize(("error", "status", "words"), [
    (faults.Fault("no images in\n/a"), 1, "stage.py: error: no images in\\n/a"),
    (faults.BadOptions("--x and --y"), 2, "stage.py: error: --x and --y"),
    (faults.Stopped("stopped"), 75, "stage.py: stopped"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), 1,
     "No such file: '/a/b': check that"),
    (PermissionError(errno.EACCES, "Permission denied", "/a\nb"), 1, "'/a\\nb'"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a"), 1, "Not a directory: '/a'"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/a"), 1, "Is a directory: '/a'"),
    (OSError(errno.ENOSPC, "No space left"), 1, "No space left: while writing: free some space"),
    (OSError(errno.EDQUOT, "Quota exceeded", "/a"), 1, "Quota exceeded: /a: free some space"),
    (OSError(errno.EROFS, "Read-only", "/a"), 1, "choose another --output"),
    (OSError(errno.ELOOP, "Too many links", "/a"), 1, "look at this file or its disk")])
def test_a_fault_is_one_line_and_a_status(error, status, words, capsys):
    assert call(raising(error)) == status
    captured = capsys.readouterr()
    line, = captured.err.splitlines()
    assert words in line and captured.out == ""
    assert ("error" in line) == (status != 75)


def too_large_array():
    np.empty(2**50, np.uint8)


def too_large_tensor():
    import torch

    torch.empty(2**50, dtype=torch.uint8)


def too_large_for_the_gpu():
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


@pytest.mark.parametrize("allocate", [too_large_array, too_large_tensor, too_large_for_the_gpu])
@pytest.mark.parametrize(("options", "cure"), [
    (("--batch-size", "--workers"), "lower --batch-size or --workers, or give it more"),
    (("--workers",), "lower --workers, or give it more"),
    ((), "give this stage a machine with more")])
def test_too_little_memory_names_what_to_lower(allocate, options, cure, capsys):
    parser = cli.stage_parser("stage.py", "What it makes.")
    for option in options:
        parser.add_argument(option)
    assert cli.main(parser, lambda **given: allocate(), []) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("stage.py: error: out of memory (") and cure in line


def test_too_little_memory_names_what_helps_where_that_is_known(capsys):
    def run(**options):
        with faults.cured_by("lower --all"), faults.cured_by("lower --this"):
            too_large_for_the_gpu()

    parser = cli.stage_parser("stage.py", "What it makes.")
    parser.add_argument("--batch-size")
    assert cli.main(parser, run, []) == 1
    assert "): lower --this, or give it more" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    ValueError("a bug"), KeyError("a bug"), OSError(errno.EPIPE, "Broken pipe"),
    FileNotFoundError("no name")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        call(raising(error))


def test_complete_is_0_and_bad_words_are_2(capsys):
    seen = []
    assert call(lambda **options: seen.append(options), "--steps", "3") == 0
    assert seen == [{"steps": 3}]
    for words in (["--steps", "0"], ["--step", "3"], ["--steps"], ["3"], ["--unknown"]):
        assert call(raising(AssertionError()), *words) == 2
    assert call(raising(AssertionError()), "--help") == 0
    assert "What it makes." in capsys.readouterr().out


# ------------------------------------------------------------------ signals

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_where_the_work_is_saved(number, capsys):
    def before(*arguments):
        reached.append("the caller's own handler")

    first, reached = signal.signal(number, before), []

    def run(**options):
        assert not faults.stop_requested()
        faults.check_stop()
        os.kill(os.getpid(), number)
        assert faults.stop_requested()
        reached.append("end of the item")
        faults.check_stop()
        reached.append("the next item")

    try:
        assert call(run) == 75 and reached == ["end of the item"]
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, first)
    line, = capsys.readouterr().err.splitlines()
    assert signal.Signals(number).name in line and "same command again to resume" in line


def test_a_signal_ends_the_run_it_was_meant_for_only():
    def stopped(**options):
        os.kill(os.getpid(), signal.SIGTERM)
        faults.check_stop()

    assert call(stopped) == 75 and not faults.stop_requested()
    assert call(lambda **options: faults.check_stop()) == 0


@pytest.mark.parametrize(("first", "second", "now"), [
    (signal.SIGINT, signal.SIGINT, True), (signal.SIGTERM, signal.SIGINT, True),
    (signal.SIGTERM, signal.SIGTERM, False), (signal.SIGINT, signal.SIGUSR2, False)])
def test_only_a_second_ctrl_c_means_now(first, second, now):
    def run(**options):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        faults.check_stop()

    if now:
        with pytest.raises(KeyboardInterrupt):
            call(run)
    else:
        assert call(run) == 75


def test_a_stage_runs_in_another_thread_too():
    status = []
    thread = threading.Thread(target=lambda: status.append(call(lambda **options: None)))
    thread.start()
    thread.join()
    assert status == [0]


# ------------------------------------------------------------------ options

PRESETS = {"demo": {"steps": 3, "rate": 0.5, "ema": True}, "full": {"steps": 900}}


@pytest.mark.parametrize(("given", "filled"), [
    ({"preset": "demo", "steps": None, "rate": None, "ema": None},
     {"preset": "demo", "steps": 3, "rate": 0.5, "ema": True}),
    ({"preset": "demo", "steps": 0, "rate": 0.0, "ema": False},
     {"preset": "demo", "steps": 0, "rate": 0.0, "ema": False}),
    ({"preset": "full", "steps": None, "rate": None, "other": None},
     {"preset": "full", "steps": 900, "rate": None, "other": None})])
def test_a_preset_fills_gaps_and_an_explicit_option_wins(given, filled):
    assert cli.fill_preset(given, PRESETS) == filled


@pytest.mark.parametrize(("kind", "text", "value"), [
    (cli.positive_int, "1", 1), (cli.positive_int, "0", None), (cli.positive_int, "-1", None),
    (cli.positive_int, "1.5", None), (cli.positive_int, "", None),
    (cli.non_negative_int, "0", 0), (cli.non_negative_int, "-1", None),
    (cli.non_negative_int, "x", None),
    (cli.positive_float, "1e-9", 1e-9), (cli.positive_float, "0", None),
    (cli.positive_float, "inf", None),
    (cli.positive_float, "nan", None), (cli.positive_float, "x", None),
    (cli.non_negative_float, "0", 0.0), (cli.non_negative_float, "-0.1", None),
    (cli.non_negative_float, "inf", None), (cli.non_negative_float, "nan", None),
    (cli.fraction, "0", 0.0), (cli.fraction, "1", 1.0), (cli.fraction, "1.01", None),
    (cli.fraction, "-0.01", None), (cli.fraction, "nan", None), (cli.fraction, "half", None),
    (cli.repeat_range, "3", range(3)), (cli.repeat_range, "2-4", range(2, 5)),
    (cli.repeat_range, "4-4", range(4, 5)), (cli.repeat_range, "4-3", None),
    (cli.repeat_range, "0", None), (cli.repeat_range, "-3", None), (cli.repeat_range, "1-", None),
    (cli.directory, "a/b", Path("a/b")), (cli.directory, "", None), (cli.directory, "a\nb", None)])
def test_option_types(kind, text, value):
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    else:
        assert kind(text) == value and isinstance(kind(text), type(value))


def test_the_common_options_are_spelled_and_preset_alike():
    parser = cli.stage_parser("stage.py", "What it makes.\n\n  as it is written")
    cli.add_common(parser, presets=PRESETS)
    assert vars(parser.parse_args([])) == {"preset": "demo", "seed": 0, "device": "auto",
                                           "overwrite": False, "dry_run": False}
    given = ["--preset", "full", "--seed", "7", "--device", "cpu", "--overwrite", "--dry-run"]
    assert vars(parser.parse_args(given)) == {"preset": "full", "seed": 7, "device": "cpu",
                                              "overwrite": True, "dry_run": True}
    for bad in (["--preset", "big"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(bad)
    text = parser.format_help()
    assert "\n\n  as it is written" in text
    assert "(default: 0)" in text and "default: None" not in text and "default: False" not in text
    few = cli.stage_parser("stage.py", "")
    cli.add_common(few, seed=False, device=False, overwrite=False)
    assert vars(few.parse_args([])) == {"dry_run": False}


def test_an_options_file_means_its_content(tmp_path):
    assert cli.file_sha256(None, "--weights") is None
    (tmp_path / "w").write_bytes(b"weights")
    expected = subprocess.run(["sha256sum", tmp_path / "w"], capture_output=True, text=True).stdout
    assert cli.file_sha256(tmp_path / "w", "--weights") == expected.split()[0]
    with pytest.raises(faults.Fault, match=r"--weights .*/missing is not a file"):
        cli.file_sha256(tmp_path / "missing", "--weights")


# ------------------------------------------------------------------ devices

@pytest.fixture
def torch(monkeypatch):
    """torch with two CUDA devices or none, that notes the threads: torch.cuda_devices, .set."""
    import torch

    torch.cuda_devices, torch.threads_set = 0, []
    monkeypatch.setattr(torch, "set_num_threads", torch.threads_set.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch.cuda_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: torch.cuda_devices)
    yield torch
    del torch.cuda_devices, torch.threads_set


@pytest.mark.parametrize(("name", "devices", "expected"), [
    ("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda"),
    ("cuda:1", 2, "cuda:1"), ("cuda:2", 2, "only 2 CUDA devices"),
    ("cuda", 0, "sees no CUDA device"),
    ("gpu", 0, "is not a device"), ("meta", 0, "is not a device"), ("cpux", 0, "is not a device"),
    ("cuda:", 2, "is not a device"), ("cuda:-1", 2, "is not a device")])
def test_a_device_is_there_or_a_bad_option(name, devices, expected, torch):
    torch.cuda_devices = devices
    if " " in expected:
        with pytest.raises(faults.BadOptions, match=expected):
            device.use_device(name)
    else:
        assert str(device.use_device(name)) == expected


@pytest.mark.parametrize(("environment", "threads", "expected"), [
    ({"OMP_NUM_THREADS": "3", "SLURM_CPUS_PER_TASK": "5"}, None, 3),
    ({"SLURM_CPUS_PER_TASK": "5"}, None, 5), ({}, None, 7), ({"OMP_NUM_THREADS": "3"}, 2, 2)])
def test_threads_are_those_given_or_this_process_share(
        environment, threads, expected, torch, monkeypatch):
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    device.use_device("cpu", threads=threads)
    assert torch.threads_set == [expected]
