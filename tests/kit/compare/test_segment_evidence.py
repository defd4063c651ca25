"""What is segmented reaches level B: scores by item and group, read from the records' .npz."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import wilcoxon_test
from lungkit.compare.influence import ITEM_SCORES, of_items
from lungkit.data import result
from lungkit.data.mask_items import Item
from lungkit.data.segment_scores import score_item, summarise

NAMES = ("dice", "dice_pooled", "lesion_sensitivity", "surface_dice")


def scored(quality, seed, number=12, healthy=3):
    """Items and their scores: a lesion of which `quality` is found, in vain in the last ones."""
    rng, items, found = np.random.default_rng(seed), [], []
    for i in range(number + healthy):
        true, said = np.zeros((2, 16, 16), bool)
        if i < number:
            side = 3 + i % 4
            true[3:3 + side, 3:3 + side] = True
            said = true & (rng.random(true.shape) < quality)
        said[14, 14] = i >= number
        items.append(Item(f"test/a/{i}.png", f"patient {i}", (i,), None, (1.0, 1.0)))
        found.append(score_item(said, true, (1.0, 1.0)))
    return items, found


def test_every_score_that_is_written_can_be_resampled():
    assert set(ITEM_SCORES) == set(NAMES) == set(result.SCORES["segment"])


@pytest.mark.parametrize("name", NAMES)
def test_an_influence_is_what_an_item_more_moves_the_score(name):
    items, found = scored(0.8, 0, number=4, healthy=1)
    scores, _, arrays = summarise(items, found)
    value, moved = of_items(name, arrays)
    assert value == pytest.approx(scores[name]) and sum(moved) == pytest.approx(0)
    often = 400
    for i in range(len(items)):
        again, _, _ = summarise(items * often + [items[i]], found * often + [found[i]])
        assert often * (again[name] - scores[name]) == pytest.approx(moved[i], abs=2e-3), i


def write_arm(results, arm, quality, **changed):
    for repeat in range(3):
        record, arrays = {"task": "segment", "scores": {}}, {}
        for split in result.SPLITS:
            scores, about, of_split = summarise(*scored(quality, repeat))
            record["scores"][split], record[split] = scores, about
            record[f"dice_{split}"] = scores["dice"]
            arrays |= {f"{split}_{key}": values for key, values in of_split.items()}
        arrays |= changed.get("arrays", {})
        seen = [{"name": arm, "fingerprint": arm, "splits": ["train", "val"]}]
        if arm != "real":
            seen.append({"name": "real", "fingerprint": "real", "splits": ["train"]})
        result.write_record(result.replicate_dir(results, arm, 0), {
            **record, "dataset": arm, "dataset_fingerprint": arm, "real_fingerprint": "real",
            "replicate": 0, "repeat": repeat, "seed": repeat, "model": "unet", "settings": {},
            "trained_on": seen, "leaks": {"passed": True}, "warnings": [],
            "groups_given": "csv"}, arrays, {})


def compare(tmp_path, *more, results=None):
    return wilcoxon_test.main([str(results or tmp_path / "results"), "--output",
                               str(tmp_path / "comparison"), "--margin", "0.1", *more])


@pytest.fixture(scope="module")
def better_and_worse(tmp_path_factory):
    """Results of real and of an arm that finds less. Read only."""
    results = tmp_path_factory.mktemp("arms") / "results"
    for arm, quality in (("real", 0.9), ("mix", 0.4)):
        write_arm(results, arm, quality)
    return results


@pytest.mark.parametrize("metric", NAMES)
def test_an_arm_that_finds_less_is_lower_for_new_patients(metric, better_and_worse, tmp_path):
    assert compare(tmp_path, "--metric", metric, results=better_and_worse) == 0
    found = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert found["level"] == "B" and found["groups_per_class"] == {"foreground": 12}
    [pair] = found["pairs"]
    assert pair["estimates"]["B"]["num_groups"] == 15
    if metric in ("dice", "dice_pooled"):  # a speck has its surface within 2 mm
        assert pair["estimates"]["B"]["high"] < 0
    real = next(arm for arm in found["arms"] if arm["dataset"] == "real")
    assert real["low"] <= real["mean"] <= real["high"] and not real["classes"]


@pytest.mark.parametrize(("arrays", "words"), [
    ({"real_dice": np.full(15, 0.123)}, "its record says"),
    ({"real_true": np.arange(15)}, "tested on other images"),
    ({"real_groups": np.array([f"x{i}" for i in range(15)])}, "tested on other images")])
def test_items_that_contradict_the_record_or_the_others_are_refused(arrays, words, tmp_path, capfd):
    write_arm(tmp_path / "results", "real", 0.9)
    write_arm(tmp_path / "results", "mix", 0.9, arrays=arrays)
    assert compare(tmp_path, "--metric", "dice") == 1
    assert words in capfd.readouterr().err.splitlines()[-1]


def test_items_of_one_patient_are_one_group(tmp_path, monkeypatch):
    def grouped(*args, **more):
        items, found = inner(*args, **more)
        return [replace(item, group=f"patient {n % 13}") for n, item in enumerate(items)], found
    inner = scored
    monkeypatch.setattr(sys.modules[__name__], "scored", grouped)
    for arm, quality in (("real", 0.9), ("mix", 0.4)):
        write_arm(tmp_path / "results", arm, quality)
    assert compare(tmp_path, "--metric", "dice") == 0
    told = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert told["pairs"][0]["estimates"]["B"]["num_groups"] == 13


def test_a_volume_named_as_its_patient_has_a_group(tmp_path, monkeypatch):
    def named(*args, **more):
        items, found = inner(*args, **more)
        return [replace(item, name=item.group, slices=(0,)) for item in items], found
    inner = scored
    monkeypatch.setattr(sys.modules[__name__], "scored", named)
    for arm, quality in (("real", 0.9), ("mix", 0.4)):
        write_arm(tmp_path / "results", arm, quality)
    assert compare(tmp_path, "--metric", "dice") == 0
    assert json.loads((tmp_path / "comparison/comparison.json").read_text())["level"] == "B"
