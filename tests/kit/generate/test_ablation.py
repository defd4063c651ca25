"""Prompts against bare names: drawn from the same noise, judged by a classifier of real images."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from adapters import COUNTS, run_arm, write_prompts, write_real
from lungkit.data.dataset import open_dataset
from lungkit.generate import ablation
from lungkit.generate.prompts import Prompts
from lungkit.run.seeds import caption_draws

CHOSEN = {"steps": 3, "guidance_scale": 7.0}
WIDE = np.eye(3).repeat(100, axis=1)  # told apart in spite of the penalty


class Stub:
    """Features of a dataset's images say their class; those of drawn ones their first pixel."""

    identity = {"network": "stub"}
    asked: list[str] = []

    def __init__(self, **options) -> None:
        pass

    def load(self, dataset, split):
        self.asked.append(split)
        labels = np.array([dataset.classes.index(row.label) for row in dataset.select(split)])
        if split == "val":
            return WIDE[np.where(labels == 2, 1, labels)], labels  # the last is mistaken
        return WIDE[labels], labels

    def features(self, images):
        return WIDE[[int(image[0, 0, 0]) for image in images]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """prompt_seg.py with --ablate: prompts show their class, bare names the first class.

    And with --choose-guidance, whose choice is CHOSEN.
    """
    root = tmp_path_factory.mktemp("ablate")
    real, prompts = write_real(root / "real"), write_prompts(root / "p.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "Extractor", Stub)
        patch.setattr(ablation, "as_real", lambda images, channels: images)
        patch.setattr("prompt_seg.check_ablation", lambda: None)
        patch.setattr("lungkit.learn.features.Extractor", Stub)
        measure = ablation.measure

        def measured(arm, words, painter):
            def shows(label):
                paint = painter(label)

                def painted(items, captions, negative):
                    images = paint(items, captions, negative)
                    known = captions[0] != words.name(label)
                    images[:, 0, 0] = arm.data.classes.index(label) if known else 0
                    return images
                return painted
            return measure(arm, words, shows)
        patch.setattr(ablation, "measure", measured)
        record = run_arm("prompt", real, root, "--prompts", str(prompts), "--ablate", "--pool", "2",
                         "--choose-guidance", "1", "7", chosen=CHOSEN)
    assert record.status == 0
    return record, Prompts(prompts)


def test_every_kind_is_drawn_of_every_class_from_the_noise_of_the_same_images(made):
    record, words = made
    of_dataset, of_kinds = record.drawn[:len(COUNTS)], record.drawn[len(COUNTS):]
    assert len(of_kinds) == 4 * len(COUNTS)
    for label, plain, place in zip(COUNTS, of_dataset, range(0, 12, 4), strict=True):
        for call, (text, with_negative) in zip(of_kinds[place:place + 4], ablation.KINDS,
                                               strict=True):
            assert call.indices == plain.indices[:ablation.MOST] and call.pipe.adapter == label
            assert call.options == plain.options
            assert set(call.negatives) == {words.negative(label) if with_negative else ""}
            assert call.prompts == [words.name(label) if text == "name" else words.caption(
                label, caption_draws(call.options["seed"], index)) for index in call.indices]
        assert call.prompts == plain.prompts[:ablation.MOST], "not what the dataset is drawn by"


def test_the_table_and_the_manifest_say_how_often_the_class_meant_is_known(made):
    record, _ = made
    with open(record.output / ablation.FILE, newline="") as file:
        lines = list(csv.DictReader(file))
    said = {(line["text"], line["negative"], line["label"]): float(line["value"])
            for line in lines}
    assert len(said) == len(lines) == 4 * (1 + len(COUNTS)) + 1 + len(COUNTS)
    for negative in ("True", "False"):
        assert said["prompt", negative, "all"] == said["prompt", negative, "lung_scc"] == 1
        assert (said["name", negative, "lung_aca"], said["name", negative, "lung_n"]) == (1, 0)
        assert 0.2 < said["name", negative, "all"] < 0.4
    assert said["real val", "", "lung_n"] == 1 and said["real val", "", "lung_scc"] == 0
    assert said["real val", "", "all"] == 0.5  # of 1 + 1 + 2 images
    found = open_dataset(record.output).manifest
    assert found["ablation"]["classifier"] == {"network": "stub", "train_images": 12}
    assert [str(line["value"]) for line in found["ablation"]["lines"]] == [
        line["value"] for line in lines]
    assert found["parameters"]["ablate"] is True
    assert {split for parent in found["parents"] for splits in parent["splits"].values()
            for split in splits} == {"train"}
    assert Stub.asked == ["train", "val"], "test is nobody's to judge by"


def test_what_was_chosen_draws_the_set_and_decides_it_and_not_its_model(made):
    record, _ = made
    drawn = {(call.options["steps"], call.options["guidance_scale"]) for call in record.drawn}
    assert drawn == {(3, 7.0)}
    manifest = open_dataset(record.output).manifest
    assert manifest["choice"] == CHOSEN
    assert manifest["parameters"]["choose_guidance"] == [1.0, 7.0]
    assert "choose_guidance" not in json.loads((record.model / "model.json").read_text())[
        "parameters"]


def test_without_it_nothing_is_judged_and_no_option_is_said(tmp_path):
    record = run_arm("prompt", write_real(tmp_path / "real"), tmp_path)
    assert record.status == 0 and len(record.drawn) == len(COUNTS)
    manifest = open_dataset(record.output).manifest
    assert "ablation" not in manifest and "ablate" not in manifest["parameters"]
    assert not (record.output / ablation.FILE).exists()
