"""The dataset contract's own code: what it refuses to open, what it publishes, what it survives."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lungkit.data.dataset import Dataset, Row, check_same_task, fingerprint, open_dataset, parent_of
from lungkit.data.png import decode_png, encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import atomic_path, write_json
from lungkit.run.output import Output, lock, try_lock

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
    assert "000000.png: 9 x 9" in message and "000006.png: 8 x 8, 8 bit, colour type 0" in message


@pytest.mark.parametrize(("change", "words"), [
    (lambda path: (path / "dataset.json").unlink(), "has no dataset.json"),
    (lambda path: (path / "dataset.json").write_text("{"), "is not JSON"),
    (lambda path: (path / "dataset.json").write_text("[]"), "not a JSON object"),
    (lambda path: (path / "dataset.json").write_text('{"schema": "other"}'),
     "is not a lungkit.dataset/2"),
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


# ------------------------------------------------------------------ after it was looked at

LEFT_BEHIND = ("@eaDir/a.jpg", "#recycle/1.png", "$RECYCLE.BIN/x", "lost+found/x", ".Trashes/x",
               "__MACOSX/x.png", "Thumbs.db", "desktop.ini", ".DS_Store", "._000000.png",
               ".ipynb_checkpoints/x.png")


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.mark.parametrize("place", [".", "train", "train/a", "masks", "masks/tissue",
                                   "masks/tissue/a"])
def test_what_a_system_leaves_in_a_finished_dataset_is_ignored(dataset, place):
    before = open_dataset(dataset)
    for name in LEFT_BEHIND:
        put(dataset / place / name)
    after = open_dataset(dataset)
    assert after.rows == before.rows and after.masks == before.masks
    assert Output(dataset, "dataset.json", {"size": 8}).is_complete()


def test_what_a_system_leaves_is_no_mask_of_version_1_either(dataset):
    manifest = json.loads((dataset / "dataset.json").read_text())
    write_json(dataset / "dataset.json", {**manifest, "schema": "lungkit.dataset/1"})
    for name in LEFT_BEHIND:
        put(dataset / "masks" / name)
        put(dataset / "masks/tissue/a" / name)
    assert open_dataset(dataset).masks == {"tissue": "binary"}
    assert open_dataset(dataset).manifest["mask_counts"] == {"tissue": 12}


@pytest.mark.parametrize(("names", "words"), [
    (["train/a/notes.txt"], ["train/a/notes.txt", "remove it"]),
    (["train/a/.hidden.png"], ["train/a/.hidden.png", "remove it"]),
    (["val/extra/1.png"], ["val/extra", "remove them"]),
    (["masks/mine/1.png"], ["masks/mine", "remove it"]),
    (["train/a/copy.png", "masks/mine/1.png"], ["train/a/copy.png", "masks/mine", "remove them"])])
def test_of_what_others_added_it_says_what_to_remove(dataset, names, words):
    for name in names:
        put(dataset / name)
    message = faults_of(dataset)
    assert all(word in message for word in words) and "--overwrite" not in message
    (dataset / "test/a/000002.png").unlink()
    assert "restore the files" in faults_of(dataset)


def test_a_folder_that_holds_only_what_a_system_left_is_free(tmp_path):
    for name in LEFT_BEHIND:
        put(tmp_path / "real" / name)
    assert not Output(tmp_path / "real", "dataset.json", {}).is_complete()
    assert open_dataset(make(tmp_path / "real").path).name == "real"


def test_a_dataset_whose_name_a_file_system_spelt_anew_is_the_same(tmp_path):
    make(tmp_path / "Dr\u00fcse")
    (tmp_path / "Dr\u00fcse").rename(tmp_path / "Dru\u0308se")
    assert open_dataset(tmp_path / "Dru\u0308se").name == "Dr\u00fcse"


def test_class_folders_that_a_copy_spelt_anew_are_named(tmp_path):
    with DatasetWriter(Output(tmp_path / "x", "dataset.json", {}), stage="test",
                       classes=["a", "Dr\u00fcse"], image_size=8) as writer:
        for index in range(6):
            writer.add(SPLITS[index % 3], ("a", "Dr\u00fcse")[index // 3], index, image_of(index),
                       masks={"m": image_of(index)[..., 0]})
        writer.publish(parents=[], seed=0)
    for folder in (tmp_path / "x").glob("**/Dr*"):
        folder.rename(folder.with_name("Dru\u0308se"))
    message = faults_of(tmp_path / "x")
    assert r"train/'Dru\u0308se' to 'Dr\xfcse'" in message and "masks/m/'Dru" in message
    assert "--overwrite" not in message and "missing" not in message


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


# ------------------------------------------------------------------ what is recorded

def test_metadata_is_sorted_and_keeps_every_column_given(tmp_path):
    with DatasetWriter(Output(tmp_path / "x", "dataset.json", {}), stage="test", classes=["b", "a"],
                       image_size=8) as writer:
        for index in (5, 4, 3, 2, 1, 0):
            writer.add(SPLITS[index % 3], "ab"[index // 3], index, image_of(index), seed=7,
                       prompt="p, q", source=f"s{index}",
                       **({"num_nuclei": 3} if index == 4 else {}))
        writer.publish(parents=[], seed=0)
    lines = (tmp_path / "x" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,label,split,group,source,prompt,seed,sha256,num_nuclei"
    names = [line.split(",")[0] for line in lines[1:]]
    assert names == sorted(names) and len(names) == 6
    row = open_dataset(tmp_path / "x").select("val", "b")[0]
    assert (row.seed, row.prompt, row.source, row.extra) == ("7", "p, q", "s4", {"num_nuclei": "3"})
    assert open_dataset(tmp_path / "x").select("val", "a")[0].extra == {"num_nuclei": ""}


def test_labels_are_numbered_in_the_order_of_the_manifest(tmp_path):
    with DatasetWriter(Output(tmp_path / "x", "dataset.json", {}), stage="test", classes=["b", "a"],
                       image_size=8) as writer:
        for index in range(6):
            writer.add(SPLITS[index % 3], "ab"[index // 3], index, image_of(index))
        writer.publish(parents=[], seed=0)
    opened = open_dataset(tmp_path / "x")
    images, labels = opened.load("test")
    assert opened.classes == ["b", "a"] and labels.tolist() == [1, 0] and labels.dtype == np.int64
    assert np.array_equal(images, np.stack([image_of(2), image_of(5)]))
    assert opened.load("test", "b")[1].tolist() == [0] and len(opened.load("test", "b")[0]) == 1
    assert opened.counts == {split: {"b": 1, "a": 1} for split in SPLITS}


def test_the_manifest_says_what_the_dataset_is(tmp_path):
    warnings, parents = ["few groups"], [{"name": "real", "fingerprint": "0", "splits": {}}]
    with DatasetWriter(Output(tmp_path / "arm", "dataset.json", {"rank": 4}), stage="arm_seg",
                       classes=["a", "b"], image_size=8) as writer:
        for index in range(12):
            writer.add(SPLITS[index % 3], "ab"[index // 3 % 2], index, image_of(index))
        writer.publish(parents=parents, seed=9, warnings=warnings, copy_audit={"images": 12})
    manifest = json.loads((tmp_path / "arm" / "dataset.json").read_text())
    lines = []
    for row in open_dataset(tmp_path / "arm").rows:
        digest = hashlib.sha256((tmp_path / "arm" / row.file_name).read_bytes()).hexdigest()
        lines.append(f"{row.file_name}\t{row.label}\t{digest}")
    assert manifest.pop("versions")["python"] and manifest.pop("command")
    assert {manifest.pop("commit"), manifest.pop("dirty")}
    assert manifest == {
        "schema": "lungkit.dataset/2", "name": "arm", "stage": "arm_seg", "classes": ["a", "b"],
        "image_size": 8, "channels": 3, "bits": 8, "modality": None, "um_per_px": None,
        "intensity": None, "symmetries": 8, "masks": {}, "mask_counts": {}, "targets": {},
        "seed": 9, "parents": parents, "warnings": warnings,
        "counts": {split: {"a": 2, "b": 2} for split in SPLITS}, "copy_audit": {"images": 12},
        "fingerprint": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest(),
        "parameters": {"rank": 4}}


@pytest.mark.parametrize("change", [
    {"file_name": "train/a/000009.png"}, {"label": "b"}, {"sha256": "9"}])
def test_the_fingerprint_is_of_names_labels_and_contents_in_any_order(change):
    rows = [Row(f"train/a/{i:06d}.png", "a", "train", sha256=str(i)) for i in range(3)]
    known = fingerprint(rows)
    assert fingerprint(rows[::-1]) == known
    assert fingerprint([*rows[:2], replace(rows[2], **change)]) != known
    assert fingerprint([replace(row, group="g", seed="1", source="s") for row in rows]) == known


@pytest.mark.parametrize(("parents", "seen"), [
    ({"train": ["train"], "val": ["val"], "test": ["test"]}, ["train", "val"]),
    ({"train": ["train"], "val": ["test"]}, ["test", "train"]),
    ({"train": ["val", "train"], "val": ["train"]}, ["train", "val"]),
    ({"test": ["test"]}, [])])
def test_a_model_has_seen_what_train_and_val_were_made_from(parents, seen, tmp_path):
    made = make(tmp_path / "arm", parents=[{"name": "real", "fingerprint": "f", "splits": parents}])
    assert made.trained_on() == [
        {"name": "arm", "fingerprint": made.fingerprint, "splits": ["train", "val"]},
        {"name": "real", "fingerprint": "f", "splits": seen}]


def test_rgb_and_grey_survive_the_png():
    image, mask = image_of(3), image_of(4)[..., 0]
    assert np.array_equal(decode_png(encode_png(image)), image)
    assert np.array_equal(decode_png(encode_png(mask)), mask)
    with pytest.raises(ValueError, match="not an image"):
        decode_png(b"no image")


# ------------------------------------------------------------------ checking

def rewrite(path: Path, line: int, old: str, new: str) -> None:
    lines = (path / "metadata.csv").read_text().splitlines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    (path / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("old", "new"), [
    (",a,test", ",c,test"), (",a,test", ",b,test"),
    (",a,test", ",a,train"), (",a,test", ",a,spare")])
def test_an_image_listed_under_another_class_or_split_is_a_fault(old, new, dataset):
    rewrite(dataset, 1, old, new)
    assert "test/a/000002.png: listed with unknown class or split" in faults_of(dataset)


def test_an_image_that_is_not_listed_is_a_fault(dataset):
    lines = (dataset / "metadata.csv").read_text().splitlines()
    (dataset / "metadata.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "val/b/000010.png: not in metadata.csv" in faults_of(dataset)


@pytest.mark.parametrize(("change", "words"), [
    ({"counts": {split: {"a": 3, "b": 2} for split in SPLITS}}, "counts differ"),
    ({"image_size": 9}, "8 x 8, 8 bit, colour type 2, not an RGB PNG of 9 x 9"),
    ({"classes": ["a"]}, "listed with unknown class")])
def test_a_manifest_that_says_otherwise_than_the_files_is_a_fault(change, words, dataset):
    manifest = json.loads((dataset / "dataset.json").read_text())
    write_json(dataset / "dataset.json", {**manifest, **change})
    assert words in faults_of(dataset)


@pytest.mark.parametrize(("image", "words"), [
    (np.zeros((8, 8, 3), np.uint16), "16 bit, colour type 2"),
    (np.zeros((8, 8, 4), np.uint8), "8 bit, colour type 6"),
    (np.zeros((8, 8), np.uint8), "8 bit, colour type 0")])
def test_an_image_of_another_depth_or_colour_type_is_a_fault(image, words, dataset):
    import cv2

    cv2.imwrite(str(dataset / "train/a/000000.png"), image)
    assert f"000000.png: 8 x 8, {words}" in faults_of(dataset)


def test_of_splits_that_are_not_opened_no_file_is_looked_at(dataset):
    for folder in ("val", "test", "masks"):
        shutil.rmtree(dataset / folder)
        (dataset / folder).write_text("no folder")
    opened = open_dataset(dataset, ["train"])
    assert {row.split for row in opened.rows} == {"train"} and opened.rows and not opened.masks
    with pytest.raises(Fault, match="missing or unreadable"):
        open_dataset(dataset)
    next((dataset / "train").glob("*/*.png")).write_bytes(b"")
    with pytest.raises(Fault, match="1 fault: train/"):
        open_dataset(dataset, ["train"])


def test_many_faults_are_counted_and_the_first_ones_shown(dataset):
    for path in dataset.glob("train/*/*.png"):
        path.unlink()
    for path in dataset.glob("val/*/*.png"):
        path.unlink()
    message = faults_of(dataset)
    assert "has 8 faults" in message and message.count(": missing") == 5 and "and 3 more" in message


@pytest.mark.parametrize("key", [
    "name", "classes", "image_size", "counts", "parents", "fingerprint"])
def test_a_manifest_without_a_key_is_refused_by_its_name(key, dataset):
    manifest = json.loads((dataset / "dataset.json").read_text())
    del manifest[key]
    write_json(dataset / "dataset.json", manifest)
    assert f"(no {key})" in faults_of(dataset)


@pytest.mark.parametrize(("splits", "words"), [
    ({"train": ["train"], "val": ["train"], "test": ["train"]}, None),
    ({"train": ["train"], "val": ["test"], "test": ["train"]}, "saw test images"),
    ({"train": ["test"]}, "saw test images"),
    ({"train": ["train"], "val": ["val"], "test": ["test"]}, None)])
def test_what_saw_a_test_image_in_train_or_val_is_refused(splits, words, dataset, tmp_path):
    real = open_dataset(dataset)
    arm = make(tmp_path / "arm", parents=[parent_of(real, splits)], first=100)
    if words is None:
        check_same_task(arm, real)
    else:
        with pytest.raises(Fault, match=words):
            check_same_task(arm, real)


def test_real_compares_with_itself_and_not_with_a_real_made_anew(dataset, tmp_path):
    real = open_dataset(dataset)
    check_same_task(real, real)
    train_only = {split: ["train"] for split in SPLITS}
    other = make(tmp_path / "other" / "real", first=50)
    mixed = make(tmp_path / "mixed", first=100, parents=[
        parent_of(real, train_only), parent_of(other, train_only)])
    for left in (other, mixed):
        with pytest.raises(Fault, match="not made from"):
            check_same_task(left, real)


def test_classes_in_another_order_are_another_task(dataset, tmp_path):
    real = open_dataset(dataset)
    with DatasetWriter(Output(tmp_path / "arm", "dataset.json", {}), stage="test",
                       classes=["b", "a"], image_size=8) as writer:
        for index in range(12):
            writer.add(SPLITS[index % 3], "ab"[index // 3 % 2], index, image_of(index))
        arm = writer.publish(parents=[parent_of(real, {s: ["train"] for s in SPLITS})], seed=0)
    with pytest.raises(Fault, match="classes"):
        check_same_task(arm, real)


# ------------------------------------------------------------------ writing and resuming

def begun(path: Path, plan: str = "", stage: str = "test") -> DatasetWriter:
    return DatasetWriter(Output(path / "x", "dataset.json", {}), stage=stage, classes=["a", "b"],
                         image_size=8, plan=plan)


def test_another_whole_png_is_not_the_one_that_was_begun(tmp_path):
    with begun(tmp_path) as writer:
        for index in range(3):
            writer.add("train", "a", index, image_of(index), masks={"m": image_of(9)[..., 0]})
        work_dir = writer.work_dir
    (work_dir / "train/a/000001.png").write_bytes(encode_png(image_of(77)))
    with begun(tmp_path) as writer:
        assert [writer.has("train", "a", index) for index in range(4)] == [True, False, True, False]


def test_the_line_that_a_kill_cut_short_is_written_again(tmp_path):
    with begun(tmp_path) as writer:
        for index in range(2):
            writer.add("train", "a", index, image_of(index), group=f"g{index}")
        records = writer.work_dir / ".records.jsonl"
    content = records.read_text()
    records.write_text(content[:-20])
    with begun(tmp_path) as writer:
        assert [writer.has("train", "a", index) for index in range(2)] == [True, False]
        writer.add("train", "a", 1, image_of(1), group="g1")
    assert records.read_text() == content


def test_an_interrupted_dataset_of_another_plan_is_begun_anew(tmp_path):
    with begun(tmp_path, "one") as writer:
        writer.add("train", "a", 0, image_of(0), masks={"m": image_of(0)[..., 0]})
    with begun(tmp_path, "one") as writer:
        assert writer.has("train", "a", 0)
    with begun(tmp_path, "two") as writer:
        assert not writer.records
        assert not [path for path in writer.work_dir.rglob("*.png")], "an image of the other plan"
        writer.add("test", "a", 1, image_of(1))
    with begun(tmp_path, "two") as writer:
        assert set(writer.records) == {"test/a/000001.png"}


@pytest.mark.parametrize(("image", "masks"), [
    (np.zeros((9, 9, 3), np.uint8), None), (np.zeros((8, 8), np.uint8), None),
    (np.zeros((8, 8, 3), np.uint16), None),
    (image_of(0), {"m": np.zeros((8, 9), np.uint8)}), (image_of(0), {"m": image_of(0)})])
def test_an_image_or_mask_of_another_form_is_not_written(image, masks, tmp_path):
    with begun(tmp_path) as writer:
        with pytest.raises(AssertionError):
            writer.add("train", "a", 0, image, masks=masks)
        assert not writer.has("train", "a", 0) and not list(writer.work_dir.rglob("train/a/*.png"))


def test_the_manifest_comes_last_after_metadata_and_a_flush_of_every_file(
        dataset, tmp_path, monkeypatch):
    steps = []

    def note(step: str, work_dir: Path) -> None:
        lines = (work_dir / "metadata.csv").read_text().splitlines() \
            if (work_dir / "metadata.csv").exists() else []
        steps.append((step, len(lines), (work_dir / "dataset.json").exists(), work_dir.name))

    publish = Output.publish
    monkeypatch.setattr("os.sync", lambda: note("sync", tmp_path / ".late.partial"))
    monkeypatch.setattr(Output, "publish", lambda output, manifest: (
        note("publish", output.work_dir), publish(output, manifest)))
    make(tmp_path / "late")
    assert steps == [("sync", 13, False, ".late.partial"), ("publish", 13, False, ".late.partial")]


def test_an_item_given_as_a_png_is_kept_as_it_is(tmp_path):
    import cv2

    content = cv2.imencode(".png", image_of(1), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    with begun(tmp_path) as writer:
        writer.add("train", "a", 0, content)
        assert (writer.work_dir / "train/a/000000.png").read_bytes() == content
        assert writer.records["train/a/000000.png"]["sha256"] == hashlib.sha256(content).hexdigest()


GRADES = {"kind": "ordinal", "values": [1, 2, 3]}


@pytest.mark.parametrize(("classes", "targets", "wanted"), [
    (["grade_1", "grade_2", "grade_3"], {"grade": GRADES}, True),
    (["grade_1", "grade_3"], {"grade": GRADES, "diameter_mm": {"kind": "number", "values": []}},
     True),  # one that no image has
    (["grade_2", "grade_1"], {"grade": GRADES}, False),
    (["benign", "malignant"], {"grade": GRADES}, False),
    (["grade_1", "grade_2", "other"], {"grade": GRADES}, False),
    (["grade_1", "grade_2"], {"grade": {"kind": "class", "values": [1, 2]}}, False),
    (["grade_1", "grade_2"], {}, False)])
def test_classes_are_grades_where_an_ordinal_target_names_them_in_its_order(classes, targets,
                                                                            wanted):
    found = SimpleNamespace(classes=classes, targets=targets)
    assert Dataset.is_ordinal.fget(found) is wanted
