"""mix_seg.py: nested subsets by group, val and test untouched, provenance, trained on whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cnn_classify
import mix_seg
from arms import content
from lungkit.audit import leaks
from lungkit.data.dataset import SPLITS, Dataset, check_same_task, open_dataset, parent_of
from lungkit.data.writer import DatasetWriter
from lungkit.run.faults import Stopped
from lungkit.run.output import Output

SHARES = (0.25, 0.5, 0.75)


def run(real: Path, output: Path, *more: object) -> int:
    return mix_seg.main(["--real", str(real), "--output", str(output), *map(str, more)])


def fault_of(capsys) -> str:
    line, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


@pytest.fixture(scope="module", params=["real_dataset", "ct_dataset"])
def real(request) -> Dataset:
    return open_dataset(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def arm(real, tmp_path_factory) -> Dataset:
    """An arm of twice as many training images: real's train images, dark and bright negatives."""
    return write_arm(real, tmp_path_factory.mktemp("arm") / "prompt")


def write_arm(real: Dataset, path: Path, **more) -> Dataset:
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=real.classes,
                       image_size=real.image_size, channels=real.channels) as writer:
        for row in real.select("train"):
            for times, level in enumerate((255, 200)):
                image = (level - real.image(row).clip(0, level)).astype("uint8")
                writer.add("train", row.label, 2 * int(row.stem) + times, image, prompt="a tile",
                           seed=f"7:{row.stem}")
        for place, split in enumerate(("val", "test")):
            for number, label in enumerate(real.classes):
                row = real.select("train", label)[place]
                writer.add(split, label, 10_000 + 10 * place + number, 255 - real.image(row))
        return writer.publish(
            parents=[parent_of(real, {split: ["train"] for split in SPLITS})], seed=0,
            modality=real.modality, symmetries=real.symmetries, intensity=real.intensity,
            warnings=["drawn"], **more)


def mixed(real: Dataset, arm: Dataset | None, share: float, dose: float, seed: int = 0):
    """The training images of a mixture: (dataset, file)."""
    return {(data.name, row.file_name) for data, row, _ in
            mix_seg.plan(real, arm, share, dose, seed) if row.split == "train"}


def test_smaller_shares_lie_within_larger_ones_by_whole_groups(real):
    train = real.select("train")
    group_of = {row.file_name: row.group for row in train}
    before: set = set()
    for share in (*SHARES, 1.0):
        chosen = mixed(real, None, share, 0)
        assert before <= chosen
        groups = {group_of[name] for _, name in chosen}
        assert {("real", row.file_name) for row in train if row.group in groups} == chosen
        assert {name.split("/")[1] for _, name in chosen} == set(real.classes)
        assert abs(len(chosen) - share * len(train)) <= 3 + len(real.classes)
        before = chosen
    assert len(before) == len(train) > len(mixed(real, None, 0.5, 0)) > 0


def test_another_seed_takes_other_groups_and_the_same_seed_the_same(real):
    chosen = [mixed(real, None, 0.5, 0, seed) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1] and chosen.count(chosen[0]) < 5


def test_an_arm_s_images_are_nested_over_doses_and_the_same_beside_any_real(real, arm):
    per_class = real.counts["train"]
    doses = [mixed(real, arm, 0, dose) for dose in (0.5, 1, 1.5, 2)]
    assert all(small < large for small, large in zip(doses, doses[1:]))
    for dose, chosen in zip((0.5, 1, 1.5, 2), doses):
        for label, number in per_class.items():
            assert sum(f"/{label}/" in name for _, name in chosen) == round(dose * number)
    beside = mixed(real, arm, 0.5, 1)
    assert {each for each in beside if each[0] == "prompt"} == doses[1]
    assert {each for each in beside if each[0] == "real"} == mixed(real, None, 0.5, 0)


@pytest.fixture(scope="module")
def made(real, arm, tmp_path_factory) -> Dataset:
    """All of real and half as many of the arm's."""
    path = tmp_path_factory.mktemp("mix") / "mix-real-1-prompt-0.5"
    assert run(real.path, path, "--real-share", 1, "--synthetic", arm.path, "--dose", 0.5) == 0
    return open_dataset(path)


def test_val_and_test_are_real_s_and_every_image_says_whose_it_is(real, arm, made):
    for split in ("val", "test"):
        assert [(row.file_name, row.sha256, row.group) for row in made.select(split)] \
            == [(row.file_name, row.sha256, row.group) for row in real.select(split)]
    hashes = {(data.name, row.file_name): row.sha256 for data in (real, arm) for row in data.rows}
    for row in made.rows:
        assert row.sha256 == hashes[row.extra["made_of"], row.source]
        assert (row.prompt == "a tile") == (row.extra["made_of"] == "prompt")
    assert len({row.stem for row in made.rows}) == len(made.rows)
    number = len(real.select("train"))
    assert made.manifest["mix"] == {"real": 1.0, "dose": 0.5, "synthetic": "prompt",
                                    "num_real": number, "num_synthetic": number // 2}
    assert made.warnings == [*real.warnings, "drawn"]


def test_it_competes_with_real_and_says_what_its_train_images_come_from(real, arm, made, tmp_path):
    check_same_task(made, real)
    assert {entry["name"]: entry["splits"] for entry in made.trained_on()} == {
        made.name: ["train", "val"], "real": ["train", "val"], "prompt": ["train"]}
    assert run(real.path, tmp_path / "m", "--synthetic", arm.path, "--dose", 1) == 0
    alone = open_dataset(tmp_path / "m")
    assert alone.manifest["parents"][0]["splits"] == {"train": ["train"], "val": ["val"],
                                                      "test": ["test"]}
    assert {row.extra["made_of"] for row in alone.select("train")} == {"prompt"}


@pytest.mark.parametrize("real", ["real_dataset"], indirect=True)
def test_test_images_in_the_arm_are_found_in_the_mixture(real, tmp_path):
    assert run(real.path, tmp_path / "m", "--real-share", 0.5) == 0
    data = open_dataset(tmp_path / "m")
    assert leaks.same_files(data, real) == {}
    stolen = [row for row in real.select("test")][0]
    rows = [*data.rows, type(stolen)(f"train/{stolen.label}/9.png", stolen.label, "train",
                                     sha256=stolen.sha256)]
    assert stolen.file_name in leaks.same_files(Dataset(data.path, data.manifest, rows), real)


@pytest.mark.parametrize("real", ["real_dataset"], indirect=True)
def test_a_mixture_is_trained_on_whole_with_the_steps_of_all(real, arm, made, tmp_path):
    assert cnn_classify.main([
        "--data", str(made.path), str(arm.path), "--real", str(real.path), "--results",
        str(tmp_path / "results"), "--repeats", "1", "--steps", "1", "--batch-size", "4",
        "--device", "cpu"]) == 0
    records = {name: json.loads((tmp_path / "results" / name / "replicate_000/repeat_0000.json")
                                .read_text()) for name in (made.name, "prompt")}
    number = len(real.select("train"))
    mix = records[made.name]
    assert mix["num_train_images"] == mix["num_pool_images"] == number + number // 2
    assert "draws" not in mix and mix["mix"] == made.manifest["mix"]
    assert (records["prompt"]["num_train_images"], records["prompt"]["draws"]) == (number, 2)
    assert mix["settings"] == records["prompt"]["settings"]


def test_a_dry_run_writes_nothing_and_the_same_command_again_changes_nothing(
        real, arm, made, tmp_path, capsys):
    call = ["--real-share", 1, "--synthetic", arm.path, "--dose", 0.5]
    assert run(real.path, tmp_path / "m", *call, "--dry-run") == 0
    assert not list(tmp_path.iterdir())
    before = content(made.path)
    assert run(real.path, made.path, *call) == 0 and "already complete" in capsys.readouterr().out
    assert run(real.path, made.path, *call[:-1], 1) == 2 and "dose" in fault_of(capsys)
    assert content(made.path) == before


def test_stopped_and_run_again_it_is_what_it_would_have_been(real, arm, made, tmp_path,
                                                             monkeypatch):
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Stopped("a signal")

    monkeypatch.setattr(mix_seg.faults, "check_stop", stop)
    path = tmp_path / made.name
    call = ["--real-share", 1, "--synthetic", arm.path, "--dose", 0.5]
    assert run(real.path, path, *call) == 75 and not path.exists()
    assert run(real.path, path, *call) == 0 and content(path) == content(made.path)


@pytest.mark.parametrize(("more", "code", "words"), [
    (["--real-share", 1], 2, ["real itself"]),
    ([], 2, ["is nothing"]),
    (["--dose", 1], 2, ["--synthetic", "go together"]),
    (["--synthetic", "ARM"], 2, ["go together"]),
    (["--synthetic", "ARM", "--dose", 3], 1, ["24 are asked for", "POOL"]),
    (["--synthetic", "CONTROL", "--dose", 1], 1, ["is a control or a mixture"]),
    (["--synthetic", "CT", "--dose", 1], 1, ["has classes"]),
])
def test_what_cannot_be_mixed_is_one_line(real_dataset, ct_dataset, tmp_path, capsys, more, code,
                                          words):
    real = open_dataset(real_dataset)
    places = {"CT": ct_dataset}
    if "ARM" in more:
        places["ARM"] = write_arm(real, tmp_path / "prompt").path
    if "CONTROL" in more:
        places["CONTROL"] = write_arm(real, tmp_path / "c", control={
            "name": "copy", "expected": "nothing"}).path
    assert run(real_dataset, tmp_path / "out", *(places.get(word, word) for word in more)) == code
    line = fault_of(capsys)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_an_image_of_real_keeps_its_group_in_a_mixture(real, made):
    groups = {row.file_name: row.group for row in real.rows}
    kept = [row for row in made.select("train") if row.extra["made_of"] == "real"]
    assert kept and all(row.group == groups[row.source] for row in kept)


def test_the_groups_kept_are_those_nearest_to_the_share():
    sizes = {"a": 1, "b": 1, "c": 10}
    rows = [SimpleNamespace(group=group, file_name=f"{group}{i}", label="x")
            for group, size in sizes.items() for i in range(size)]
    kept = []
    for seed in range(12):
        possible = {len(mix_seg.some_groups(rows, share, seed))
                    for share in np.linspace(0.01, 0.99, 50)}
        kept.append(len(mix_seg.some_groups(rows, 0.25, seed)))
        assert abs(kept[-1] - 3) == min(abs(number - 3) for number in possible)
    assert {1, 2} <= {*kept}  # not 12 or 11, the first that are enough
