"""Copies among drawn images: listed with their originals, shown, and drawn anew where asked."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from lungkit.audit.memorised import Match
from lungkit.data.dataset import open_dataset
from lungkit.data.png import decode_png
from lungkit.data.writer import DatasetWriter
from lungkit.generate import copied, items
from lungkit.run import faults
from lungkit.run.faults import Fault, Stopped
from lungkit.run.output import Output

pytestmark = pytest.mark.usefixtures("found_once")

COUNTS = {"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}


def picture(*seed: int) -> np.ndarray:
    fields = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return fields.repeat(2, 0).repeat(2, 1)


def writer_at(path) -> DatasetWriter:
    return DatasetWriter(Output(path, "dataset.json", {"seed": 3}), stage="test",
                         classes=["a", "b"], image_size=16)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with writer_at(tmp_path_factory.mktemp("copied") / "real") as writer:
        for item in items.plan_items(COUNTS, ["a", "b"], 1):
            writer.add(item.split, item.label, item.index, picture(item.index))
        writer.publish(parents=[], seed=0)
    return open_dataset(writer.output.output_dir)


def write_drawn(writer, copies=(1, 4)):
    """A set as `real`, image i of (9, i), but for some that are copies of real's."""
    for item in items.plan_items(COUNTS, ["a", "b"], 1):
        image = picture(item.index) if item.index in copies else picture(9, item.index)
        if not writer.has(item.split, item.label, item.index):
            writer.add(item.split, item.label, item.index, image, seed=f"0:{item.index}")


def lines_of(folder) -> list[dict]:
    with open(folder / copied.TABLE, newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def test_every_copy_is_listed_with_its_original_and_the_closest_are_shown(real, tmp_path):
    with writer_at(tmp_path / "x") as writer:
        write_drawn(writer)
        blend = (picture(0).astype(int) + picture(2)) // 2
        writer.add("val", "a", 7, blend.astype(np.uint8))
        said = copied.audit(writer, real)
        made = items.publish(writer, real, said)
    assert [(line["file_name"], line["label"], line["how"], {line["of"], line["and_of"]})
            for line in lines_of(made.path)] == [
        ("train/a/000001.png", "a", "same", {"train/a/000001.png", ""}),
        ("train/b/000004.png", "b", "same", {"train/b/000004.png", ""}),
        ("val/a/000007.png", "a", "blend", {"train/a/000000.png", "train/a/000002.png"})]
    assert said["by_class"] == {"a": {"images": 6, "copies": 2}, "b": {"images": 5, "copies": 1}}
    assert said["share_same"] == round(2 / 11, 4) and "dropped" not in said
    shown = decode_png((made.path / copied.PICTURE).read_bytes())
    assert shown.shape == (3 * 100 + 4, 8 * 100 + 4, 3)  # 96 px an image: drawn, part, part
    one, other = shown[4:100, 4:100], shown[104:200, 4:100]
    assert np.array_equal(one, other) and (shown[204:300, 4:100] == 255).all()
    open_dataset(made.path)


def test_copies_are_shown_before_what_is_merely_alike(real, tmp_path):
    original = ("train/a/000000.png",)
    found = {"train/a/000000.png": Match("", original, (0,), 0.9),
             "train/a/000002.png": Match("registered", original, (0,), 0.2, 0.8),
             "train/a/000003.png": Match("registered", original, (0,), 0.3, 0.9)}
    with writer_at(tmp_path / "x") as writer:
        write_drawn(writer)
        shown = copied.picture(writer, real, found)
    for place, number in enumerate((3, 2, 0)):
        assert np.array_equal(shown[4:100:6, 4 + 100 * place:100 + 100 * place:6],
                              picture(9, number))


def drawn_by(log: list, made=lambda index: picture(8, index)):
    """draw_of: of the first draw of image 1 another copy; log: the indices."""
    def draw_of(label):
        def draw(split, index):
            log.append((label, split, index))
            image = picture(2) if index == 1 + copied.SEEDS_APART else made(index)
            return image, {"seed": f"0:{index}"}
        return draw
    return draw_of


def test_copies_are_drawn_anew_from_other_seeds_until_none_is(real, tmp_path):
    log = []
    with writer_at(tmp_path / "x") as writer:
        write_drawn(writer)
        kept = {name: record["sha256"] for name, record in writer.records.items()}
        said = copied.audit(writer, real, drawn_by(log))
        made = items.publish(writer, real, said)
    apart = copied.SEEDS_APART
    assert log == [("a", "train", 1 + apart), ("a", "train", 1 + 2 * apart),
                   ("b", "train", 4 + apart)]
    assert min(index for *_, index in log) > max(
        item.index for item in items.plan_items(COUNTS, ["a", "b"], 1)), "no other image's seed"
    assert said["share_near_copies"] == 0 and said["dropped"] == 3 and made.counts == COUNTS
    assert lines_of(made.path) == []
    rows = {row.file_name: row for row in open_dataset(made.path).rows}
    changed = {name for name, row in rows.items() if row.sha256 != kept[name]}
    assert changed == {"train/a/000001.png", "train/b/000004.png"}
    assert rows["train/a/000001.png"].seed == f"0:{1 + 2 * apart}"
    assert rows["train/a/000001.png"].extra | {"redrawn": "2", "copied": "train/a/000001.png"} == \
        rows["train/a/000001.png"].extra
    assert rows["train/b/000004.png"].extra["copied"] == "train/b/000004.png"
    assert rows["train/a/000000.png"].extra["redrawn"] == ""


def test_a_stopped_run_goes_on_to_the_same_images(real, tmp_path, monkeypatch):
    with writer_at(tmp_path / "whole") as writer:
        write_drawn(writer)
        copied.audit(writer, real, drawn_by([]))
        whole = {name: record["sha256"] for name, record in writer.records.items()}
    with monkeypatch.context() as patch, writer_at(tmp_path / "x") as writer:
        write_drawn(writer)

        def stop(index):
            if index > 4:
                patch.setattr(faults, "_stop_signal", [15])
            return picture(8, index)

        with pytest.raises(Stopped):
            copied.audit(writer, real, drawn_by([], stop))
    with writer_at(tmp_path / "x") as writer:
        write_drawn(writer)
        assert copied.audit(writer, real, drawn_by([]))["dropped"] == 3
        assert {name: record["sha256"] for name, record in writer.records.items()} == whole


def test_a_generator_that_draws_copies_alone_ends_in_one_line(real, tmp_path):
    log = []
    with writer_at(tmp_path / "x") as writer:
        write_drawn(writer)
        with pytest.raises(Fault, match="10 more draws of each of 1 images of a .train/a/000001.png"
                                        ". are copies of training images, too"):
            copied.audit(writer, real, drawn_by(log, lambda index: picture(3)))
    assert len(log) == copied.MOST_DRAWS and not (tmp_path / "x").exists()


def test_a_grey_set_is_shown_too(tmp_path):
    def write(name, first):
        with DatasetWriter(Output(tmp_path / name, "dataset.json", {"seed": 0}), stage="test",
                           classes=["a"], image_size=16, channels=1) as writer:
            for number, split in enumerate(("train", "train", "val", "test")):
                writer.add(split, "a", number, picture(first + number)[..., :1])
            if name == "real":
                return writer.publish(parents=[], seed=0)
            return items.publish(writer, known, copied.audit(writer, known))

    known = write("real", 0)
    made = write("copies", 0)
    assert [line["how"] for line in lines_of(made.path)] == ["same", "same"]


def test_the_stage_draws_anew_by_its_own_draw_and_says_so_among_its_options(real, monkeypatch,
                                                                            tmp_path):
    """draw_dataset gives draw_of: one image at a time, with real's channels."""
    asked = []
    monkeypatch.setattr(copied, "audit", lambda writer, data, draw_of: asked.append(draw_of) or {
        "share_near_copies": 0})

    def draw(some):
        return (np.stack([picture(9, item.index) for item in some]),
                [{"seed": item.index} for item in some])

    plan = items.plan_items(COUNTS, ["a", "b"], 1)
    for drops in (False, True):
        target = Output(tmp_path / str(drops), "dataset.json", {"seed": 0})
        arm = items.Arm("diffusion_seg", real, plan, target,
                        SimpleNamespace(output_dir=tmp_path), True, SimpleNamespace(type="cpu"), 0,
                        drops_copies=drops)
        items.draw_dataset(arm, lambda label: draw, batch_size=4)
    assert asked[0] is None
    image, columns = asked[1]("b")("val", 77)
    assert np.array_equal(image, picture(9, 77)) and columns == {"seed": 77}
