"""Folders that others made: adopted as they are, or refused in one line that says why."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungkit.audit import leaks
from lungkit.data.dataset import SPLITS, check_same_task, open_dataset
from lungkit.data.png import encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.phantom.paint import draw_tile
from lungkit.run.files import sha256_file
from lungkit.run.output import Output
from lungkit.tools import adopt

SIZE, CLASSES = 48, ["a", "b"]


@pytest.fixture(scope="module")
def tiles():
    return [draw_tile("lung_n", patient=n, index=n, image_size=SIZE).image for n in range(12)]


@pytest.fixture(scope="module")
def real(tiles, tmp_path_factory):
    output = Output(tmp_path_factory.mktemp("x") / "real", "dataset.json", {})
    with DatasetWriter(output, stage="test", classes=CLASSES, image_size=SIZE) as writer:
        for n, tile in enumerate(tiles[:6]):
            writer.add(SPLITS[n // 2], CLASSES[n % 2], n, tile)
        writer.publish(parents=[], seed=0, modality="he", um_per_px=2.0)
    return output.output_dir


@pytest.fixture
def folder(tiles, tmp_path):
    """Six images as others make them: one name in every split, no manifest."""
    for n, tile in enumerate(tiles[6:]):
        path = tmp_path / "vendor" / SPLITS[n // 2] / CLASSES[n % 2] / "img 1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(tile))
    return tmp_path / "vendor"


def call(folder, real, *more, said=("nothing",)) -> int:
    return adopt.main(["--data", str(folder), "--real", str(real), "--trained-on", *said, *more])


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*.png")}


def refusal(capsys) -> str:
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m lungkit.tools.adopt: error: ")
    return error


@pytest.mark.parametrize("said", [("nothing",), ("train",), ("train", "val")])
def test_a_folder_is_adopted_as_it_is_and_compares_with_real(said, folder, real, capsys):
    before = hashes(folder)
    assert call(folder, real, "--name", "vendor", said=said) == 0
    assert "adopted, 6 images of 2 classes" in capsys.readouterr().out
    made, yardstick = open_dataset(folder), open_dataset(real)
    check_same_task(made, yardstick)
    seen = [] if said == ("nothing",) else list(said)
    assert made.trained_on()[1] == {"name": "real", "fingerprint": yardstick.fingerprint,
                                    "splits": seen}
    assert made.manifest["adopted"]["trained_on"] == seen and hashes(folder) == before
    assert (made.name, made.modality, made.um_per_px) == ("vendor", "he", 2.0)
    assert len(made.warnings) == 1 and "adopted: vendor was made by others" in made.warnings[0]
    assert made.load("test")[0].shape == (2, SIZE, SIZE, 3)


def test_what_a_system_left_in_the_folder_is_not_adopted(folder, real):
    label = next((folder / "train").iterdir()).name
    for name in ("train/@eaDir/x.jpg", f"train/{label}/._0.png", f"test/{label}/Thumbs.db",
                 f"val/{label}/@eaDir/x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert call(folder, real) == 0
    assert not [row for row in open_dataset(folder).rows if "@" in row.file_name
                or "._" in row.file_name]


def test_again_nothing_changes_and_another_statement_is_refused(folder, real, capsys):
    assert call(folder, real) == 0
    made = (folder / "dataset.json").read_text()
    assert call(folder, real) == 0 and "already" in capsys.readouterr().out
    assert call(folder, real, said=["train"]) == 2
    assert "made from nothing of" in refusal(capsys)
    assert (folder / "dataset.json").read_text() == made
    assert call(folder, real, "--overwrite", said=["train"]) == 0
    assert open_dataset(folder).trained_on()[1]["splits"] == ["train"]


def test_a_dry_run_writes_nothing(folder, real):
    assert call(folder, real, "--dry-run") == 0
    assert not (folder / "dataset.json").exists() and not (folder / "metadata.csv").exists()


@pytest.mark.parametrize(("said", "words"), [
    (["unknown"], "ask who made the images"), (["train", "test"], "saw REAL's test images"),
    (["nothing", "train"], "it is nothing, or it is something")])
def test_provenance_that_is_missing_or_a_leak_is_refused(said, words, folder, real, capsys):
    assert call(folder, real, said=said) == 2
    assert words in refusal(capsys) and not (folder / "dataset.json").exists()


def test_provenance_must_be_said(folder, real, capsys):
    assert adopt.main(["--data", str(folder), "--real", str(real)]) == 2
    assert "--trained-on" in refusal(capsys)


def jpeg(folder):
    cv2.imwrite(str(folder / "train/a/2.jpg"), np.zeros((SIZE, SIZE, 3), np.uint8))


def image(where: str, shape: tuple, dtype=np.uint8):
    return lambda folder: cv2.imwrite(str(folder / where), np.zeros(shape, dtype))


def text(where: str, content: str):
    def write(folder):
        (folder / where).parent.mkdir(exist_ok=True)
        (folder / where).write_text(content)
    return write


FAULTS = {
    "another size": (image("train/a/2.png", (9, 9, 3)), "train/a/2.png: 9 x 9"),
    "no PNG": (jpeg, "train/a/2.jpg: no whole PNG"),
    "an alpha channel": (image("val/b/2.png", (SIZE, SIZE, 4)), "val/b/2.png: 48 x 48, 8 bit"),
    "sixteen bits": (image("val/b/2.png", (SIZE, SIZE, 3), np.uint16), "16 bit"),
    "one grey": (image("val/b/2.png", (SIZE, SIZE)), "colour type 0, not 48 x 48"),
    "a folder in a class": (text("val/b/more/x.txt", ""), "val/b/more: no whole PNG"),
    "another class": (text("test/c/x.txt", ""), "test/c: no class of"),
    "a split without a class": (lambda folder: shutil.rmtree(folder / "val/b"), "val/b: no image"),
    "masks": (text("masks/x", ""), "masks: only images are adopted"),
    "a table without names": (text("metadata.csv", "name\nx\n"), "lacks the column file_name"),
    "a table of other files": (text("metadata.csv", "file_name\nx.png\n"), "x.png is not there"),
    "a broken table": (text("metadata.csv", "file_name\na,b\n"), "line 2 has 2 cells"),
    "a torn image": (lambda folder: (folder / "train/a/img 1.png").write_bytes(
        (folder / "train/a/img 1.png").read_bytes()[:60] + b"\0" * 40 + b"IEND\xaeB`\x82"),
        "cannot be decoded"),
    "a foreign manifest": (text("dataset.json", "{}"), "is not a lungkit.dataset/2 manifest"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_cannot_be_adopted_is_refused_in_one_line(kind, folder, real, capsys):
    spoil, words = FAULTS[kind]
    spoil(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert call(folder, real) == 1
    assert words in refusal(capsys)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "words"), [("other", "rename it to other"), ("real", "has the")])
def test_a_dataset_is_called_as_its_folder_and_not_as_real(name, words, folder, real, capsys):
    if name == "real":
        folder = folder.rename(folder.with_name("real"))
    assert call(folder, real, *(["--name", name] if name != "real" else [])) == 2
    assert words in refusal(capsys)


def test_a_copy_of_a_test_image_is_refused_and_nothing_is_written(folder, real, tiles, capsys):
    matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, 10, 1)
    turned = cv2.warpAffine(tiles[4], matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
    (folder / "val/a/2.png").write_bytes(encode_png(turned))
    assert call(folder, real) == 1
    assert f"val/a/2.png is {leaks.COPY} of test/a/000004.png" in refusal(capsys)
    assert not (folder / "dataset.json").exists()


def test_what_a_table_says_is_kept(folder, real):
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file_name", "text", "group", "label"],
                          ["train/a/img 1.png", "a, b", "p7", "wrong"]])
    assert call(folder, real) == 0
    rows = {row.file_name: row for row in open_dataset(folder).rows}
    named, other = rows["train/a/img 1.png"], rows["train/b/img 1.png"]
    assert (named.group, named.label, named.extra) == ("p7", "a", {"text": "a, b"})
    assert (other.group, other.label, other.extra) == ("", "b", {"text": ""})


def test_an_older_manifest_is_kept_in_the_new_one(folder, real):
    (folder / "dataset.json").write_text('{"stage": "theirs"}')
    for _ in range(2):
        assert call(folder, real, "--overwrite") == 0
        kept = json.loads((folder / "dataset.json").read_text())["adopted"]["before"]
        assert kept == {"stage": "theirs"}


def test_grey_images_are_adopted_as_grey(folder, real):
    for path in folder.rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert call(folder, real) == 0
    assert open_dataset(folder).channels == 1
