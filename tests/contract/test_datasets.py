"""What every form of dataset keeps: it loads elsewhere as it is, is trained on and drawn from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lungkit.data import cache
from lungkit.data.dataset import SPLITS, open_dataset
from lungkit.data.manifest import DEFAULTS, REQUIRED
from lungkit.data.result import read_record
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")
SIZE = 32
# how a dataset of each form is written: of the writer, of an item, of the manifest
FORMS = {
    "grey": ({"channels": 1}, lambda index: {},
             {"modality": "ct", "um_per_px": 700.0, "symmetries": 2,
              "intensity": {"unit": "HU", "window": [-1000, 400]}}),
    "second label": ({"targets": {"grade": {"kind": "ordinal", "values": [1, 2, 3]}}},
                     lambda index: {"grade": index % 3 + 1}, {}),
    "two kinds of masks": ({"mask_forms": {"cells": "labels"}}, lambda index: {"masks": {
        "tissue": np.full((SIZE, SIZE), 255, np.uint8),
        "cells": np.full((SIZE, SIZE), index, np.uint8)}}, {"modality": "he"}),
}


@pytest.fixture(scope="module", params=list(FORMS))
def made(request, tmp_path_factory) -> Path:
    """A dataset "real" of the form, two classes with two images a split. Read only."""
    of_writer, of_item, of_manifest = FORMS[request.param]
    path = tmp_path_factory.mktemp("forms") / "real"
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a", "b"],
                       image_size=SIZE, **of_writer) as writer:
        for index in range(12):
            image = np.random.default_rng(index).integers(
                0, 256, (SIZE, SIZE, writer.channels), np.uint8)
            writer.add(SPLITS[index % 3], "ab"[index // 3 % 2], index, image,
                       group=f"g{index}", **of_item(index))
        writer.publish(parents=[], seed=0, **of_manifest)
    return path


def train(data: Path, real: Path, results: Path) -> dict:
    import cnn_classify

    assert cnn_classify.main([
        "--data", str(data), "--real", str(real), "--results", str(results), "--repeats", "1",
        "--steps", "2", "--batch-size", "4", "--device", "cpu"]) == 0
    return json.loads((results / data.name / "replicate_000" / "repeat_0000.json").read_text())


def test_torchvision_reads_it_as_it_is(made):
    from torchvision.datasets import ImageFolder

    dataset = open_dataset(made)
    for split in SPLITS:
        folder = ImageFolder(made / split)
        assert folder.classes == dataset.classes
        names = [Path(path).relative_to(made).as_posix() for path, _ in folder.samples]
        assert names == [row.file_name for row in dataset.select(split)]
        first = np.asarray(folder[0][0])  # RGB, whatever is on disk
        assert np.array_equal(first, np.broadcast_to(dataset.load(split)[0][0], first.shape))


def test_hugging_face_reads_it_as_it_is(made, tmp_path):
    datasets = pytest.importorskip("datasets", reason="tests/requirements.txt has it")
    dataset = open_dataset(made)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(made), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation", "test"}
    for split in SPLITS:
        table = loaded["validation" if split == "val" else split]
        assert table.features["label"].names == dataset.classes
        assert len(table) == len(dataset.select(split)) == 4


def test_a_cnn_is_trained_on_it_mapped_or_in_memory_alike(made, tmp_path, monkeypatch):
    small = train(made, made, tmp_path / "small")
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 0)
    large = train(made, made, tmp_path / "large")
    assert list(made.parent.glob(".real.cache/*/train.npy"))
    for name in ("accuracy_real", "accuracy_val", "train_loss", "dataset_fingerprint"):
        assert small[name] == large[name]


def test_an_image_is_turned_only_as_the_dataset_allows(made, tmp_path, monkeypatch):
    import cnn_classify

    drawn, plan_batches = [], cnn_classify.plan_batches
    monkeypatch.setattr(cnn_classify, "plan_batches",
                        lambda *given: drawn.append(plan_batches(*given)) or drawn[-1])
    train(made, made, tmp_path)
    allowed = open_dataset(made).symmetries
    assert 0 <= drawn[0]["symmetry"].min() and drawn[0]["symmetry"].max() < allowed


def test_diagrams_are_drawn_of_it_and_carry_what_they_share_with_it(made, tmp_path):
    import voronoi_seg

    argv = ["--real", str(made), "--output", str(tmp_path / "voronoi"), "--modality", "he"]
    assert voronoi_seg.main(argv) == 0
    real, drawn = open_dataset(made), open_dataset(tmp_path / "voronoi")
    assert (drawn.channels, drawn.masks) == (3, {"nuclei": "binary"})
    assert (drawn.symmetries, drawn.targets) == (real.symmetries, real.targets)
    assert real.um_per_px in (None, drawn.um_per_px)
    for name in real.targets:
        assert [row.extra[name] for row in drawn.rows] == [row.extra[name] for row in real.rows]
    assert train(drawn.path, made, tmp_path / "results")["dataset"] == "voronoi"


def test_a_renamed_dataset_is_refused_by_the_first_dry_run(made, tmp_path, capfd):
    import shutil

    import cnn_classify
    import voronoi_seg

    moved = tmp_path / "reell"
    shutil.copytree(made, moved)
    assert voronoi_seg.main(["--real", str(moved), "--output", str(tmp_path / "x"),
                             "--dry-run"]) == 1
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert cnn_classify.main(["--data", str(moved), "--real", str(moved), "--results",
                              str(tmp_path / "r"), "--repeats", "1", "--dry-run"]) == 1
    for line in (said, capfd.readouterr().err.strip().splitlines()[-1]):
        assert "renamed after it was made" in line and "'real'" in line


# ------------------------------------------------------------------ the written contract

def documented() -> set[str]:
    """The manifest's keys that docs/dataset.md has in the first column of a table."""
    return {name for line in PAGE.splitlines() if line.startswith("| `")
            for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def keys_read() -> set[str]:
    """The keys of dataset.json that code reads or fills in, by how the code calls a manifest."""
    found = {*REQUIRED, *DEFAULTS}
    other_manifests = {"wilcoxon_test.py", "pretrain_base_model.py", "sample.py"}
    for path in [*ROOT.glob("*.py"), *(ROOT / "lungkit").rglob("*.py")]:
        if path.name not in other_manifests:
            found |= set(re.findall(r'manifest(?:\.get\(|\.pop\(|\[)"(\w+)"',
                                    path.read_text(encoding="utf-8")))
    return found


def test_every_key_that_is_read_is_in_the_written_contract():
    of_version_1 = {"field_um"}
    assert len(keys_read()) > 15 and keys_read() - of_version_1 <= documented()


def test_every_key_and_column_that_is_written_is_in_the_written_contract(few_real, made):
    for path in (few_real, made):
        manifest = json.loads((path / "dataset.json").read_text())
        assert set(manifest) <= documented()
        for column in (path / "metadata.csv").read_text().splitlines()[0].split(","):
            assert column in manifest["targets"] or f"`{column}`" in PAGE


def test_the_example_of_the_written_contract_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, nodules = np.full((64, 64, 1), 7, np.uint8), np.zeros((64, 64), np.uint8)
    crops = [(split, label, image, nodules) for split in SPLITS
             for label in ("benign", "malignant")]
    found = {"crops": crops}
    exec(PAGE.split("```python")[1].split("```")[0], found)
    assert found["images"].shape == (2, 64, 64, 1) and open_dataset(tmp_path / "ct").targets


def test_results_of_version_1_are_read(tmp_path):
    root = ROOT / "tests" / "fixtures" / "v1" / "results"
    records = [read_record(path) for path in sorted(root.glob("*/*/*.json"))]
    assert len(records) == 4 and {record["dataset"] for record in records} == {"real", "voronoi"}
