"""Splits larger than memory: mapped from a file that is whole, built once, and of this making."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from arms import fork, signal_when
from lungkit.data import cache
from lungkit.data.dataset import SPLITS, open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.run.faults import Fault
from lungkit.run.output import Output, lock


def write(path: Path, first: int = 0):
    """A dataset of two classes, one of which sorts before the other's folder by its dash."""
    output = Output(path, "dataset.json", {"first": first}, overwrite=True)
    with DatasetWriter(output, stage="test", classes=["a", "a-b"], image_size=8) as writer:
        for index in range(24):
            image = np.random.default_rng(first + index).integers(0, 256, (8, 8, 3), np.uint8)
            writer.add(SPLITS[index % 3], ("a", "a-b")[index // 3 % 2], index, image)
        return writer.publish(parents=[], seed=0)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The dataset "real"; its splits are of 1536 bytes, which is more than memory has."""
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1535)
    write(tmp_path / "real")
    return open_dataset(tmp_path / "real")


def file_of(data, split: str = "train") -> Path:
    return data.path.parent / f".{data.name}.cache" / data.fingerprint / f"{split}.npy"


def is_mapped(images: np.ndarray) -> bool:
    while isinstance(images, np.ndarray):
        if isinstance(images, np.memmap):
            return True
        images = images.base
    return False


def test_a_large_split_is_mapped_and_is_what_a_small_one_is(data, monkeypatch):
    large = {(split, label): data.load(split, label)
             for split in SPLITS for label in (None, "a", "a-b")}
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1536)
    for key, (images, labels) in large.items():
        small, same = data.load(*key)
        assert np.array_equal(images, small) and images.dtype == np.uint8 and len(images) > 0
        assert labels.tolist() == same.tolist()
        assert is_mapped(images) and not is_mapped(small) and not images.flags.writeable


def test_a_small_split_leaves_no_file(data, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1536)
    data.load("train")
    assert not file_of(data).parent.exists()


def test_the_file_is_built_once_and_lies_hidden_beside_the_dataset(data, monkeypatch, capfd):
    data.load("train")
    assert [path.name for path in file_of(data).parent.iterdir()] == ["train.npy"]
    assert f"once into {file_of(data)}" in capfd.readouterr().err
    monkeypatch.setattr(type(data), "image", None)
    data.load("train")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None])
def test_a_file_that_is_not_whole_is_built_again(content, data):
    images = np.array(data.load("val")[0])  # no map: its file is cut short below
    whole = file_of(data, "val").read_bytes()
    file_of(data, "val").write_bytes(whole[:-1] if content is None else content)
    assert np.array_equal(data.load("val")[0], images)
    assert file_of(data, "val").read_bytes() == whole


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(data, monkeypatch):
    image = type(data).image
    monkeypatch.setattr(type(data), "image",
                        lambda self, row: (time.sleep(0.05), image(self, row))[1])
    folder = file_of(data).parent
    pid = fork(lambda: data.load("train") and 0)
    status = signal_when(pid, lambda: bool(list(folder.glob(".train.*.tmp.npy"))))
    assert status == -signal.SIGKILL and not file_of(data).exists()
    monkeypatch.setattr(type(data), "image", image)
    assert np.array_equal(data.load("train")[0][0], data.image(data.select("train")[0]))
    assert [path.name for path in folder.iterdir()] == ["train.npy"], "leftovers of the kill"


def test_of_two_builders_one_builds_and_the_other_waits(data, tmp_path, monkeypatch, capfd):
    image, log = type(data).image, tmp_path / "log"

    def logged(self, row):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.02)
        return image(self, row)

    monkeypatch.setattr(type(data), "image", logged)
    monkeypatch.setattr(cache, "WAIT_SEC", 0.01)
    pids = [fork(lambda: int(len(data.load("train")[0]) != 8)) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert len(set(log.read_text().split())) == 1 and len(log.read_text().split()) == 8


def test_a_stop_while_waiting_is_heard(data, monkeypatch):
    from lungkit.run import faults

    monkeypatch.setattr(faults, "_stop_signal", [signal.SIGTERM])
    with lock(file_of(data)), pytest.raises(faults.Stopped):
        data.load("train")


def test_the_cache_of_an_older_making_is_deleted_and_not_read(data):
    data.load("train")
    old = file_of(data)
    again = write(data.path, first=100)
    images, _ = again.load("train")
    assert np.array_equal(images[0], again.image(again.select("train")[0]))
    assert file_of(again).exists() and not old.exists()


def test_where_nothing_may_be_written_beside_it_lies_elsewhere(data, tmp_path, monkeypatch):
    (tmp_path / ".real.cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    data.load("train")
    assert (tmp_path / "xdg" / "lungkit" / data.fingerprint / "train.npy").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    data.load("train")
    [place] = (tmp_path / "tmp").glob("lungkit-*")
    assert (place / data.fingerprint / "train.npy").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(Fault, match="the train split of .*real is too large for memory"):
        data.load("train")


@pytest.fixture
def planted(data, tmp_path, monkeypatch) -> Path:
    """A cache file below XDG_CACHE_HOME that holds black images, and is private."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = tmp_path / "xdg" / "lungkit" / data.fingerprint / "train.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((8, 8, 8, 3), np.uint8))
    for own in (path, *path.parents[:2]):
        own.chmod(0o700)
    return path


def test_a_private_file_is_believed_elsewhere(planted, data):
    assert not data.load("train")[0].any() and not file_of(data).exists()


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize("what", [0, 1, 2], ids=["file", "folder", "folder_above"])
def test_what_others_may_write_is_not_believed_elsewhere(what, mode, planted, data):
    (planted, *planted.parents)[what].chmod(mode)
    assert data.load("train")[0].any() and file_of(data).exists()


def test_what_another_owns_is_not_believed_elsewhere(planted, data, monkeypatch):
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert data.load("train")[0].any() and file_of(data).exists()


def test_nothing_is_built_where_others_may_write_but_the_next_place_is_taken(
        planted, data, tmp_path, monkeypatch):
    (tmp_path / ".real.cache").write_text("in the way")
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    planted.parents[1].chmod(0o770)
    assert data.load("train")[0].any()
    assert list((tmp_path / "tmp").glob("lungkit-*/*/train.npy"))


def test_what_is_built_elsewhere_is_private_whatever_the_umask(data, tmp_path, monkeypatch):
    (tmp_path / ".real.cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = os.umask(0)
    try:
        assert is_mapped(data.load("train")[0])
    finally:
        os.umask(before)
    path = tmp_path / "xdg" / "lungkit" / data.fingerprint / "train.npy"
    assert [at.stat().st_mode & 0o777 for at in (path, *path.parents[:3])] \
        == [0o600, 0o700, 0o700, 0o700]


def test_a_full_disk_is_a_fault_in_words(data, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(data), "image", full)
    with pytest.raises(Fault, match="cannot be made .*No space left.*make room"):
        data.load("train")
    assert list(file_of(data).parent.iterdir()) == []
