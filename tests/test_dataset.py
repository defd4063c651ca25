"""The dataset contract's own code: what it refuses to open, what it publishes, what it survives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lungkit.cli import BadOptions, Fault
from lungkit.dataset import DatasetWriter, check_same_task, open_dataset, parent_of
from lungkit.files import Output, atomic_path, lock, try_lock, write_json

SPLITS = ("train", "val", "test")


def image_of(index: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)


def make(path: Path, *, size: int = 8, parents: list | None = None, skip: str = "",
         options: dict | None = None, first: int = 0):
    """A dataset of two classes and two images a class and split; `skip` names one file left out."""
    output = Output(path, "dataset.json", options or {"size": size})
    with DatasetWriter(output, stage="test", classes=["a", "b"], image_size=size) as writer:
        for index in range(12):
            split, label = SPLITS[index % 3], "ab"[index // 3 % 2]
            if f"{split}/{label}" != skip:
                writer.add(split, label, index, image_of(first + index, size), group=f"g{index}",
                           masks={"tissue": np.full((size, size), 255, np.uint8)})
        return writer.publish(parents=parents or [], seed=0)


@pytest.fixture
def dataset(tmp_path) -> Path:
    make(tmp_path / "real")
    return tmp_path / "real"


def test_what_was_written_is_read_back(dataset):
    opened = open_dataset(dataset)
    images, labels = opened.load("val", "b")
    rows = opened.select("val", "b")
    assert [row.file_name for row in rows] == ["val/b/000004.png", "val/b/000010.png"]
    assert np.array_equal(images[0], image_of(4)) and labels.tolist() == [1, 1]
    assert opened.mask("tissue", rows[0]).min() == 255 and rows[0].group == "g4"


def test_the_same_content_has_the_same_fingerprint_and_bytes(dataset, tmp_path):
    again = make(tmp_path / "other" / "real")
    assert again.fingerprint == open_dataset(dataset).fingerprint
    files = {path.relative_to(dataset) for path in dataset.rglob("*")}
    assert files == {path.relative_to(again.path) for path in again.path.rglob("*")}
    assert not list(dataset.rglob(".*")), "hidden leftovers were published"


def faults_of(path: Path) -> str:
    with pytest.raises(Fault) as error:
        open_dataset(path)
    return str(error.value)


def test_every_fault_is_named_at_once(dataset):
    (dataset / "train/a/000000.png").unlink()
    content = (dataset / "val/a/000001.png").read_bytes()
    (dataset / "val/a/000001.png").write_bytes(content[:-9])
    shutil.copy(dataset / "test/a/000002.png", dataset / "test/a/000008.png")
    (dataset / "test/c").mkdir()
    (dataset / "train/b/stray.png").write_bytes(content)
    message = faults_of(dataset)
    assert "5 faults" in message
    for part in ("000000.png: missing", "000001.png: no whole PNG", "000008.png: altered",
                 "test/c: not a class", "stray.png: not in metadata.csv"):
        assert part in message


def test_an_image_of_another_size_or_mode_is_a_fault(dataset):
    import cv2

    cv2.imwrite(str(dataset / "train/a/000000.png"), np.zeros((9, 9, 3), np.uint8))
    cv2.imwrite(str(dataset / "train/a/000006.png"), np.zeros((8, 8), np.uint8))
    message = faults_of(dataset)
    assert "000000.png: 9 x 9" in message and "000006.png: 8 x 8, colour type 0" in message


@pytest.mark.parametrize(("change", "words"), [
    (lambda path: (path / "dataset.json").unlink(), "has no dataset.json"),
    (lambda path: (path / "dataset.json").write_text("{"), "is not JSON"),
    (lambda path: (path / "dataset.json").write_text("[]"), "not a JSON object"),
    (lambda path: (path / "dataset.json").write_text('{"schema": "other"}'), "is not a lungkit.dataset/1"),
    (lambda path: (path / "metadata.csv").unlink(), "metadata.csv cannot be read"),
    (lambda path: shutil.rmtree(path), "is not a directory"),
])
def test_a_manifest_that_is_not_one_is_a_fault(dataset, change, words):
    change(dataset)
    assert words in faults_of(dataset)


def test_a_manifest_that_contradicts_the_files_is_a_fault(dataset):
    manifest = json.loads((dataset / "dataset.json").read_text())
    write_json(dataset / "dataset.json", {**manifest, "fingerprint": "0" * 64})
    assert "fingerprint differs" in faults_of(dataset)


def test_a_class_without_images_in_a_split_is_not_published(tmp_path):
    with pytest.raises(Fault, match="test/b"):
        make(tmp_path / "real", skip="test/b")
    assert not (tmp_path / "real").exists()


def test_a_dataset_that_saw_a_test_image_cannot_be_compared(dataset, tmp_path):
    real = open_dataset(dataset)
    leaky = make(tmp_path / "x", parents=[parent_of(real, {"train": ["train", "test"]})],
                 options={"x": 1})
    with pytest.raises(Fault, match="saw test images"):
        check_same_task(leaky, real)
    honest = make(tmp_path / "y", parents=[parent_of(real, {s: [s] for s in SPLITS})])
    check_same_task(honest, real)  # its own test split may come from real's


def test_datasets_of_two_runs_or_sizes_cannot_be_compared(dataset, tmp_path):
    real = open_dataset(dataset)
    parent = {**parent_of(real, {"train": ["train"]}), "fingerprint": "0" * 64}
    with pytest.raises(Fault, match="not made from"):
        check_same_task(make(tmp_path / "x", parents=[parent]), real)
    with pytest.raises(Fault, match="not made from"):  # the same images under another name too
        check_same_task(make(tmp_path / "w", first=50, parents=[
            {"name": "other", "fingerprint": "1" * 64, "splits": {"train": ["test"]}}]), real)
    with pytest.raises(Fault, match="16 px"):
        check_same_task(make(tmp_path / "z", size=16), real)


# ------------------------------------------------------------------ outputs and files

def test_other_options_are_refused_also_when_only_begun(tmp_path):
    output = Output(tmp_path / "out", "m.json", {"a": 1, "b": 2})
    with output.writing():
        pass
    with pytest.raises(BadOptions, match=r"a: 1 there, 3 now"):
        Output(tmp_path / "out", "m.json", {"a": 3, "b": 2}).is_complete()
    assert not Output(tmp_path / "out", "m.json", {"a": 3, "b": 2}, overwrite=True).is_complete()


def test_a_directory_made_by_others_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(Fault, match="not made here"):
        Output(tmp_path / "out", "m.json", {}).is_complete()
    with pytest.raises(Fault, match="not made here"):
        Output(tmp_path / "out", "m.json", {}, overwrite=True).is_complete()
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"new": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x.json") as hidden:
        hidden.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    with lock(tmp_path / "out"):
        assert try_lock(tmp_path / "out") is None
        assert f"pid {os.getpid()}" in (tmp_path / ".out.lock").read_text()
    pid = os.fork()
    if pid == 0:
        try_lock(tmp_path / "out")
        os._exit(0)  # without giving it back, as a killed process
    os.waitpid(pid, 0)
    with lock(tmp_path / "out"):
        pass
    assert not (tmp_path / ".out.lock").exists()


def test_what_a_power_cut_tore_is_written_again(tmp_path):
    """Files are flushed together at the end: an interrupted writer believes only whole ones."""
    image, mask = np.full((8, 8, 3), 7, np.uint8), np.zeros((8, 8), np.uint8)

    def writer():
        return DatasetWriter(Output(tmp_path / "x", "dataset.json", {}), stage="test",
                             classes=["a", "b"], image_size=8)

    with writer() as first:
        for index in range(4):
            first.add("train", "a", index, image, masks={"m": mask})
        torn = first.work_dir
    (torn / "train/a/000000.png").write_bytes(b"")
    (torn / "masks/m/a/000001.png").write_bytes(b"")
    (torn / "masks/m/a/000002.png").unlink()
    with writer() as second:
        assert [second.has("train", "a", index) for index in range(4)] == [False] * 3 + [True]
