"""controls_seg.py: what each control is made of, and that nothing takes it for an arm."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import controls_seg
import tumor_seg
from arms import content
from lungkit.audit import leaks
from lungkit.data.controls import EXPECTED, control_of
from lungkit.data.dataset import SPLITS, check_same_task, open_dataset
from lungkit.data.png import encode_png
from lungkit.formats import sources
from lungkit.run.faults import Fault, Stopped

pytestmark = pytest.mark.usefixtures("found_once")

OF_REAL = [name for name in EXPECTED if name not in controls_seg.OUTSIDE]


def run(control: str, real: Path, output: Path, *more: object) -> int:
    return controls_seg.main(["--control", control, "--real", str(real), "--output", str(output),
                              *map(str, more)])


def fault_of(capsys) -> str:
    line, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


@pytest.fixture(scope="module", params=["few_real", "ct_dataset"])
def real(request):
    return open_dataset(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def made(real, tmp_path_factory):
    """Every control of real's own images, by name."""
    root = tmp_path_factory.mktemp("controls")
    assert [run(name, real.path, root / f"control-{name}") for name in OF_REAL] == [0] * 5
    return {name: open_dataset(root / f"control-{name}") for name in OF_REAL}


@pytest.mark.parametrize("name", OF_REAL)
def test_a_control_has_real_s_counts_says_what_it_is_and_trains_on_no_test_image(name, real, made):
    data = made[name]
    assert data.counts == real.counts and data.manifest["stage"] == "controls_seg"
    assert data.manifest["control"]["name"] == name
    assert data.manifest["control"]["expected"] == EXPECTED[name]
    assert (data.modality, data.channels, data.symmetries, data.intensity) == \
        (real.modality, real.channels, real.symmetries, real.intensity)
    check_same_task(data, real)
    assert any(text.startswith(f"control: {name} is no arm") for text in data.warnings)


@pytest.mark.parametrize("real", ["few_real"], indirect=True)
def test_no_control_of_real_s_images_trains_on_copies_of_its_test_images(real, made):
    for name in ("copy", "photocopier"):
        assert leaks.find_leaks(made[name], real) == {}


def test_copy_is_real_again(real, made):
    assert sorted((row.label, row.split, row.sha256, row.group) for row in made["copy"].rows) \
        == sorted((row.label, row.split, row.sha256, row.group) for row in real.rows)


def test_a_photocopy_is_of_train_alone_and_every_one_is_flagged(real, made):
    data = made["photocopier"]
    assert {row.source.split("/")[0] for row in data.rows} == {"train"}
    assert data.manifest["control"]["flagged"] == 1.0
    assert data.manifest["copy_audit"]["share_registered"] >= 0.9
    assert data.manifest["parents"][0]["splits"] == {split: ["train"] for split in SPLITS}
    assert not {row.sha256 for row in data.rows} & {row.sha256 for row in real.rows}


def test_shuffled_labels_are_each_class_s_in_proportion(real, made):
    pairs = Counter((row.split, row.source.split("/")[1], row.label)
                    for row in made["shuffled"].rows)
    for split in SPLITS:
        rows = real.select(split)
        for true in real.classes:
            for label in real.classes:
                even = (sum(row.label == true for row in rows)
                        * sum(row.label == label for row in rows) / len(rows))
                assert abs(pairs[split, true, label] - even) <= 1
    sources_of = [row.source for row in made["shuffled"].rows]
    assert sorted(sources_of) == [row.file_name for row in real.rows]


def test_a_control_of_the_same_images_has_real_s_file_names(real, made):
    for name in ("copy", "colour-only", "noise"):
        assert [(row.file_name, row.group) for row in made[name].rows] \
            == [(row.file_name, row.group) for row in real.rows]


def test_another_seed_shuffles_otherwise(real):
    labels = [[item.label for item in controls_seg.plan("shuffled", real, None, seed)]
              for seed in (0, 0, 1)]
    assert labels[0] == labels[1] != labels[2]


def test_colour_only_keeps_mean_and_contrast_of_a_channel_and_no_shape():
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        image = rng.normal(120, 10 + 10 * np.arange(channels), (64, 64, channels))
        image = image.clip(0, 255).astype(np.uint8)
        drawn = controls_seg.colour_only(image, rng, 8)
        assert drawn.shape == image.shape and drawn.dtype == np.uint8
        assert np.allclose(drawn.mean((0, 1)), image.mean((0, 1)), atol=0.5)
        assert np.allclose(drawn.std((0, 1)), image.std((0, 1)), atol=0.7)
        moved = np.roll(image, 17, axis=0)  # other shapes, the same colours
        assert (controls_seg.colour_only(moved, rng, 8) == drawn).all()
        assert len(np.unique(drawn.reshape(-1, channels), axis=0)) == 2


def test_noise_says_nothing_and_is_another_in_every_image(made):
    images = [made["noise"].image(row) for row in made["noise"].rows]
    assert len({image.tobytes() for image in images}) == len(images)
    assert all(abs(image.mean() - 127.5) < 10 for image in images)


def test_a_dry_run_writes_nothing_and_the_same_command_again_changes_nothing(
        real, made, tmp_path, capsys):
    assert run("noise", real.path, tmp_path / "noise", "--dry-run") == 0
    assert not list(tmp_path.iterdir())
    path = made["noise"].path
    before = content(path)
    assert run("noise", real.path, path) == 0 and "already complete" in capsys.readouterr().out
    assert run("noise", real.path, path, "--seed", 1) == 2 and "seed" in fault_of(capsys)
    assert run("copy", real.path, path) == 2 and "control" in fault_of(capsys)
    assert content(path) == before


def test_stopped_and_run_again_it_is_what_it_would_have_been(real, made, tmp_path, monkeypatch):
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Stopped("a signal")

    monkeypatch.setattr(controls_seg.faults, "check_stop", stop)
    path = tmp_path / "control-photocopier"
    assert run("photocopier", real.path, path) == 75 and not path.exists()
    assert run("photocopier", real.path, path) == 0
    assert content(path) == content(made["photocopier"].path)


# ------------------------------------------------------------------ images that real does not hold

@pytest.fixture(scope="module")
def halves(sample_dir, tmp_path_factory):
    """Both halves of the groups, each a real dataset."""
    root = tmp_path_factory.mktemp("halves")
    for half in "12":
        assert tumor_seg.main(["--input", str(sample_dir / "images"), "--output",
                               str(root / half / "real"), "--half", half, "--image-size", "64",
                               "--groups", str(sample_dir / "groups.csv")]) == 0
    return root


def test_halves_share_no_group_and_hold_every_image(halves, few_real, sample_dir):
    one, two = (open_dataset(halves / half / "real") for half in "12")
    assert not {row.group for row in one.rows} & {row.group for row in two.rows}
    assert sorted(row.source for row in [*one.rows, *two.rows]) \
        == sorted(path.relative_to(sample_dir / "images").as_posix()
                  for path in (sample_dir / "images").glob("*/*"))
    assert one.manifest["parameters"]["half"] == 1
    table = (halves / "1/real/qc.csv").read_text()
    assert not [row.source for row in two.rows if row.source in table]
    assert "half" not in open_dataset(few_real).manifest["parameters"]


def test_the_other_half_is_of_no_split_of_real(halves, tmp_path):
    real, other = halves / "1/real", halves / "2/real"
    output = tmp_path / "control-other-half"
    assert run("other-half", real, output, "--other", other) == 0
    data, half = open_dataset(output), open_dataset(other)
    assert sorted((row.label, row.split, row.sha256, row.group) for row in data.rows) \
        == sorted((row.label, row.split, row.sha256, row.group) for row in half.rows)
    check_same_task(data, open_dataset(real))
    assert [entry["splits"] for entry in data.trained_on()] == [["train", "val"], []]
    assert data.manifest["control"]["of"]["fingerprint"] == half.fingerprint


@pytest.mark.parametrize(("control", "more", "code", "words"), [
    ("other-half", [], 2, ["--other", "--half 1"]),
    ("other-half", ["--other", "REAL"], 1, ["shares 6 groups", "--half 1"]),
    ("other-half", ["--other", "CT"], 1, ["differ in classes, channels, modality"]),
    ("oracle", [], 2, ["--other", "another seed"]),
    ("oracle", ["--other", "REAL"], 2, ["--samples"]),
    ("oracle", ["--other", "REAL", "--samples", "SAMPLE", "REAL"], 1, ["no simulated sample"]),
    ("oracle", ["--other", "REAL", "--samples", "SAMPLE", "SAMPLE"], 1, ["of one seed, 3"]),
    ("copy", ["--other", "REAL"], 2, ["made of real's own images"]),
    ("noise", ["--samples", "SAMPLE", "SAMPLE"], 2, ["other images have no oracle"]),
])
def test_what_a_control_cannot_be_made_of_is_one_line(
        halves, ct_dataset, sample_dir, tmp_path, capsys, control, more, code, words):
    places = {"REAL": halves / "1/real", "CT": ct_dataset, "SAMPLE": sample_dir}
    given = [places.get(word, word) for word in more]
    assert run(control, places["REAL"], tmp_path / "out", *given) == code
    line = fault_of(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_images_without_a_group_are_no_other_half(few_real, tmp_path, capsys):
    other = tmp_path / "real"
    shutil.copytree(few_real, other)
    table = other / "metadata.csv"
    lines = table.read_text().splitlines()
    place = lines[0].split(",").index("group")
    table.write_text("\n".join([lines[0], *(
        ",".join("" if i == place else cell for i, cell in enumerate(line.split(",")))
        for line in lines[1:])]) + "\n")
    assert run("other-half", few_real, tmp_path / "out", "--other", other) == 1
    assert "12 images" in (line := fault_of(capsys)) and "no group" in line


def write_sample(path: Path, seed: int, grey: int) -> SimpleNamespace:
    """A tiny folder as the simulation leaves it, and what was made of it."""
    for label in ("a", "b"):
        file = path / "images" / label / "0.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(encode_png(np.full((8, 8, 3), grey, np.uint8)))
    (path / "sample.json").write_text(json.dumps({"parameters": {"seed": seed}}))
    found = sources.fingerprint(sources.find_sources(path / "images")[0])
    return SimpleNamespace(path=path / "real", modality="he",
                           manifest={"parameters": {"input": found}})


def test_an_oracle_is_of_two_samples_of_two_seeds(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    real, other = write_sample(one, 0, 10), write_sample(two, 1, 20)
    controls_seg.check_simulated(real, other, [one, two])
    with pytest.raises(Fault, match="was not made of the images of"):
        controls_seg.check_simulated(real, other, [two, one])


def test_an_oracle_of_chests_is_known_by_the_folder_of_one_format(tmp_path):
    (tmp_path / "LIDC-IDRI/a").mkdir(parents=True)
    (tmp_path / "LIDC-IDRI/a/1.dcm").write_bytes(b"1")
    (tmp_path / "LUNA16").mkdir()
    (tmp_path / "LUNA16/1.mhd").write_bytes(b"2")
    from ct_seg import identity

    options = dict.fromkeys(("diagnoses", "images", "nodules", "patients", "split_from", "fold"))
    for name in ("LIDC-IDRI", "LUNA16"):
        assert identity(options, tmp_path / name)["input"] in controls_seg.inputs_of(tmp_path, "ct")


# ------------------------------------------------------------------ the manifest

@pytest.mark.parametrize("said", ["copy", {"name": "copy"}, {"name": 3, "expected": ""}, []])
def test_a_control_that_nobody_can_read_is_refused(said):
    with pytest.raises(Fault, match="control without a name"):
        control_of({"name": "x", "control": said})
    assert control_of({"name": "x"}) is None


def test_a_photocopier_s_test_images_are_of_many_training_images(real):
    sources = {item.row.file_name for item in controls_seg.plan("photocopier", real, None, 0)
               if item.split != "train"}
    trained = [row.file_name for row in real.select("train")]
    first = {real.select("train", label)[0].file_name for label in real.classes}
    assert sources <= {*trained} and not sources <= first
