"""Files that are whole or absent, one writer per output, and what a rerun finds."""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import socket
import time
from pathlib import Path

import pytest

from arms import fork
from lungkit.run import cli, faults, files, heartbeat, output as output_module
from lungkit.run.faults import BadOptions, Fault, Overtaken, Stopped
from lungkit.run.files import atomic_path
from lungkit.run.output import Output, holder as holder_of, lock, release, try_lock


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ------------------------------------------------------------------ one file

@pytest.mark.parametrize("flush", [True, False])
def test_a_file_is_flushed_before_it_gets_its_name(flush, tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(source, target):
        assert Path(source).read_bytes() == b"whole" and not Path(target).exists()
        done.append(("renamed", str(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_bytes(tmp_path / "a/b.png", b"whole", flush=flush)
    hidden = done[-1][1]
    assert done == [("flushed", hidden)] * flush + [("renamed", hidden)]
    assert (tmp_path / "a/b.png").read_bytes() == b"whole"


def test_a_file_in_the_making_is_hidden_beside_its_place(tmp_path):
    """The suffix stays last, by which writers choose the format; processes do not collide."""
    with atomic_path(tmp_path / "image.png") as hidden:
        hidden.write_bytes(b"half")
        assert hidden.parent == tmp_path and hidden.name.startswith(".")
        assert hidden.suffix == ".png" and str(os.getpid()) in hidden.name
        assert hidden.match(".*.tmp*"), "what a kill leaves is found by this pattern"
        assert not (tmp_path / "image.png").exists()
    assert names(tmp_path) == ["image.png"]


def test_json_is_sorted_readable_utf8_and_ends_its_line(tmp_path):
    files.write_json(tmp_path / "x.json", {"b": [1], "a": "µm"})
    assert (tmp_path / "x.json").read_bytes() == \
        '{\n  "a": "µm",\n  "b": [\n    1\n  ]\n}\n'.encode()
    assert files.read_json(tmp_path / "x.json") == {"a": "µm", "b": [1]}


@pytest.mark.parametrize("content", [float("nan"), float("inf")])
def test_json_without_a_number_for_it_is_refused(content, tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"loss": content})
    assert names(tmp_path) == []


@pytest.mark.parametrize(("content", "words"), [
    (None, "is missing"), (b"{", "is not JSON"), (b"\xff\xfe{", "is not JSON"),
    (b"[1]", "holds a list, not a JSON object")])
def test_json_that_cannot_be_read_is_a_fault(content, words, tmp_path):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Fault, match=words) as fault:
        files.read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(fault.value)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_of_a_file_is_that_of_its_content(size, tmp_path):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest() \
        == files.sha256(content)


# ------------------------------------------------------------------ one writer

def test_a_second_writer_is_told_who_holds_the_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    left = "what a killed process with a very long host name left\n"
    (tmp_path / ".out.lock").write_text(left * 9)
    holder = f"host {socket.gethostname()} pid {os.getpid()} job 4711"
    with lock(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text() == holder + "\n"
        stop_while_waiting(monkeypatch)
        with pytest.raises(Stopped), lock(tmp_path / "out"):
            pytest.fail("two writers")
    told, = capsys.readouterr().err.splitlines()
    assert told == (f"{tmp_path / 'out'} is being written by another process ({holder}): "
                    "waiting for it")
    assert names(tmp_path) == []


def stop_while_waiting(monkeypatch) -> None:
    """The first time a process waits for a lock a signal comes."""
    monkeypatch.setattr(output_module.time, "sleep", lambda seconds: faults.note_signal(15, None))


@pytest.fixture(autouse=True)
def no_signal():
    yield
    faults.forget_signals()


def test_a_lock_is_given_back_when_its_holder_fails(tmp_path):
    with pytest.raises(RuntimeError), lock(tmp_path / "out"):
        raise RuntimeError
    assert names(tmp_path) == []
    with lock(tmp_path / "out"):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_not_believed(tmp_path, monkeypatch):
    """Its last holder unlinks the file: whoever opened it before must not lock a ghost."""
    path, taken = tmp_path / ".out.lock", []

    def flock(file, operation):
        if not taken:
            path.unlink()
        elif len(taken) == 1:
            path.unlink()
            path.touch()
        taken.append(file)

    monkeypatch.setattr(fcntl, "flock", flock)
    file = try_lock(tmp_path / "out")
    assert len(taken) == 3
    assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
    release(file, tmp_path / "out")


def test_a_lock_is_held_until_its_file_is_gone(tmp_path, monkeypatch):
    """Freed first, another could lock the file that is then removed: two writers."""
    unlink = Path.unlink

    def noted(path, **options):
        assert try_lock(tmp_path / "out") is None
        unlink(path, **options)

    file = try_lock(tmp_path / "out")
    monkeypatch.setattr(Path, "unlink", noted)
    release(file, tmp_path / "out")
    assert names(tmp_path) == [] and file.closed


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_has_another(number, tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "a/out"):
        assert names(tmp_path) == ["a", "a/.out.lock.held"]
        assert try_lock(tmp_path / "a/out") is None
        assert f"pid {os.getpid()}" in holder_of(tmp_path / "a/out")
    assert names(tmp_path) == ["a"]
    told, = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'a'} has no file locks (No locks available)" in told


GONE = heartbeat.GONE_SEC


@pytest.mark.parametrize(("named", "silent_sec", "is_free"), [
    ("host elsewhere pid 1 job 7", 0, False), ("host elsewhere pid 1 job 7", GONE - 30, False),
    ("host elsewhere pid 1 job 7", GONE + 30, True),
    ("host {here} pid {dead} job none", 0, True), ("host {here} pid {alive} job none", 0, False),
    ("host {here} pid {alive} job none", GONE + 30, True),  # its number went to another process
    ("", 0, False), ("", GONE + 30, True)])
def test_a_lock_is_taken_over_from_a_holder_that_is_gone(named, silent_sec, is_free, tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    path = tmp_path / "x.held"
    path.write_text(named.format(here=socket.gethostname(), dead=pid, alive=os.getppid()))
    os.utime(path, (time.time() - silent_sec,) * 2)
    held = heartbeat.hold(path, "host me pid 1 job 2\n", why=OSError(37, "none"))
    assert (held is not None) == is_free
    if held is not None:
        assert path.read_text() == "host me pid 1 job 2\n"
        held.close()
    assert names(tmp_path) == ([] if is_free else ["x.held"])


def test_a_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SEC", 0.01)
    path = tmp_path / "x.held"
    held = heartbeat.hold(path, "me", why=OSError(37, "none"))
    os.utime(path, (1, 1))
    end = time.monotonic() + 10
    while path.stat().st_mtime == 1:
        assert time.monotonic() < end, "no heartbeat"
        time.sleep(0.01)
    path.write_text("another, that took it over")
    held.close()
    assert path.read_text() == "another, that took it over"


@pytest.mark.parametrize(("text", "time_sec"), [("the quicker one", 1), ("dead", 2)])
@pytest.mark.parametrize("has_links", [True, False])
def test_a_lock_that_another_took_over_just_before_is_left_to_it(
        text, time_sec, has_links, tmp_path, monkeypatch):
    """A new file may have the number of the one just removed: so here, where it is the same."""
    path, rename = tmp_path / "x.held", os.rename
    path.write_text("dead")
    os.utime(path, (1, 1))

    def quicker(source, target):
        monkeypatch.setattr(os, "rename", rename)
        path.write_text(text)
        os.utime(path, (time_sec, time_sec))
        rename(source, target)

    def no_link(source, target):
        raise PermissionError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "rename", quicker)
    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    assert heartbeat.hold(path, "me", why=OSError(37, "none")) is None
    assert path.read_text() == text and names(tmp_path) == ["x.held"]


def test_a_lock_put_back_does_not_replace_a_third(tmp_path, monkeypatch):
    path, rename = tmp_path / "x.held", os.rename
    path.write_text("dead")
    os.utime(path, (1, 1))

    def quicker(source, target):
        monkeypatch.setattr(os, "rename", rename)
        (tmp_path / "other").write_text("the quicker one")
        rename(tmp_path / "other", path)
        rename(source, target)
        path.write_text("a third")

    monkeypatch.setattr(os, "rename", quicker)
    assert heartbeat.hold(path, "me", why=OSError(37, "none")) is None
    assert path.read_text() == "a third" and names(tmp_path) == ["x.held"]


# ------------------------------------------------------------------ an output directory

OPTIONS = {"size": 64, "path": Path("/a"), "seed": 0}


def output(folder: Path, *, overwrite: bool = False, **changed: object) -> Output:
    options = {name: value for name, value in {**OPTIONS, **changed}.items() if value is not None}
    return Output(folder / "out", "m.json", options, overwrite=overwrite)


def begin(target: Output, name: str = "kept.png") -> None:
    with target.writing() as work_dir:
        files.write_text(work_dir / "train" / name, "image")


def complete(target: Output, name: str = "kept.png") -> None:
    with target.writing() as work_dir:
        files.write_text(work_dir / "train" / name, "image")
        target.publish({"counts": 1})


def test_the_same_options_resume_what_was_begun(tmp_path):
    begin(output(tmp_path))
    assert names(tmp_path) == [".out.partial", ".out.partial/.options.json", ".out.partial/train",
                               ".out.partial/train/kept.png"]
    assert not output(tmp_path).is_complete()
    with output(tmp_path).writing() as work_dir:
        assert names(work_dir) == [".options.json", "train", "train/kept.png"]


@pytest.mark.parametrize(("changed", "words"), [
    ({"size": 32}, r"\(size: 64 there, 32 now\)"),
    ({"seed": 7, "size": 1}, "seed: 0 there, 7 now; size"),
    ({"new": 3}, "new: None there, 3 now"), ({"seed": None}, "seed: 0 there, None now")])
@pytest.mark.parametrize("make", [begin, complete])
def test_other_options_are_refused_and_each_is_named(make, changed, words, tmp_path):
    make(output(tmp_path))
    before = names(tmp_path)
    with pytest.raises(BadOptions, match=words) as refusal:
        output(tmp_path, **changed).is_complete()
    assert "--overwrite" in str(refusal.value) and "path" not in str(refusal.value).split("(")[1]
    assert names(tmp_path) == before


@pytest.mark.parametrize(("changed", "left"), [({}, ["kept.png"]), ({"size": 32}, [])])
def test_overwrite_discards_what_other_options_began_and_resumes_its_own(changed, left, tmp_path):
    begin(output(tmp_path))
    again = output(tmp_path, overwrite=True, **changed)
    assert not again.is_complete()
    with again.writing() as work_dir:
        assert [path.name for path in work_dir.glob("*/*")] == left
        assert files.read_json(work_dir / ".options.json") == again.options


def test_overwrite_replaces_the_complete_one_at_the_end_only(tmp_path):
    complete(output(tmp_path))
    again = output(tmp_path, overwrite=True, size=32)
    assert not again.is_complete() and not again.matches() and output(tmp_path).matches()
    begin(again, "new.png")
    assert (tmp_path / "out/train/kept.png").exists()
    complete(again, "newer.png")
    assert names(tmp_path) == ["out", "out/m.json", "out/train", "out/train/new.png",
                               "out/train/newer.png"]
    assert again.matches() and again.is_complete() is False and not output(tmp_path).matches()


def test_what_a_kill_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    begin(output(tmp_path))
    train = tmp_path / ".out.partial/train"
    (train / ".half.77.tmp.png").touch()
    (tmp_path / ".out.partial/.m.77.tmp.json").touch()
    (train / ".other").touch()
    (train / "x.tmp.png").touch()
    with output(tmp_path).writing() as work_dir:
        assert names(work_dir) == [".options.json", "train", "train/.other", "train/kept.png",
                                   "train/x.tmp.png"]


def test_an_output_has_one_writer(tmp_path, monkeypatch):
    stop_while_waiting(monkeypatch)
    with output(tmp_path).writing(), pytest.raises(Stopped):
        begin(output(tmp_path))


@pytest.mark.parametrize(("changed", "expected"), [({}, 0), ({"size": 32}, 2)])
def test_who_waited_looks_again(changed, expected, tmp_path, monkeypatch):
    """Complete meanwhile: it ends well. Begun otherwise meanwhile: nothing is mixed."""
    held = try_lock(tmp_path / "out")

    def sleep(seconds):
        monkeypatch.undo()
        release(held, tmp_path / "out")
        (complete if expected == 0 else begin)(output(tmp_path))

    def run(**changed):
        target = output(tmp_path, **changed)
        if not target.is_complete():
            begin(target, "again.png")

    monkeypatch.setattr(output_module.time, "sleep", sleep)
    parser = argparse.ArgumentParser(prog="stage")
    for name, value in changed.items():
        parser.set_defaults(**{name: value})
    assert cli.main(parser, run, []) == expected
    assert not list(tmp_path.rglob("again.png"))


def test_an_output_completed_meanwhile_is_not_written_again(tmp_path):
    complete(output(tmp_path))
    with pytest.raises(Overtaken, match="completed by another process just now"):
        begin(output(tmp_path))
    assert names(tmp_path) == ["out", "out/m.json", "out/train", "out/train/kept.png"]


def test_the_manifest_is_there_before_the_output_has_its_name(tmp_path, monkeypatch):
    """Killed right after the renaming, the output is complete; right before, it is not there."""
    target, replace = output(tmp_path), os.replace
    published = []

    def noted(source, destination):
        replace(source, destination)
        if Path(destination) == target.output_dir:
            published.append(json.loads((target.output_dir / "m.json").read_text()))

    monkeypatch.setattr(os, "replace", noted)
    complete(target)
    assert published == [{"counts": 1, "parameters": {"size": 64, "path": "/a", "seed": 0}}]
    assert target.is_complete() and target.matches()


@pytest.mark.parametrize("renaming", [1, 2])
def test_a_kill_while_replacing_loses_neither(renaming, tmp_path):
    complete(output(tmp_path), "old.png")
    again = output(tmp_path, overwrite=True, size=32)

    def killed() -> int:
        count, replace = [], os.replace

        def replace_or_die(source, target):
            if Path(source).is_dir():
                count.append(source)
                if len(count) == renaming:
                    os._exit(9)
            replace(source, target)

        os.replace = replace_or_die
        complete(again, "new.png")
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(fork(killed), 0)[1]) == 9
    kept = [name for name in names(tmp_path) if name.endswith("m.json")]
    assert kept == [[".out.partial/m.json", "out/m.json"],
                    [".out.old/m.json", ".out.partial/m.json"]][renaming - 1]
    complete(again, "new.png")
    assert names(tmp_path) == ["out", "out/m.json", "out/train", "out/train/new.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_never_replaced(kind, overwrite, tmp_path):
    if kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(Fault, match="not made here"):
        output(tmp_path, overwrite=overwrite).is_complete()


def test_an_empty_folder_is_no_obstacle(tmp_path):
    (tmp_path / "out").mkdir()
    assert not output(tmp_path).is_complete()
    complete(output(tmp_path))
    assert names(tmp_path) == ["out", "out/m.json", "out/train", "out/train/kept.png"]
