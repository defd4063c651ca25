"""cnn_explain.py: kept weights, where a network looks, how that is scored, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import cnn_classify
import cnn_explain
from lungkit.data import heat
from lungkit.data.dataset import open_dataset
from lungkit.data.png import decode_png, encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.learn import kept_weights
from lungkit.learn.feature_grid import Grid
from lungkit.nuclei import detect, masks as nuclei
from lungkit.run.output import Output

SIZE = 32
SPLITS = (("train", 3), ("val", 1), ("test", 6))


def disc(rng, radius=4):
    """A dark grey image with a bright disc anywhere but in the middle, and its mask."""
    away = rng.uniform(-1, 1, 2)
    row, column = SIZE / 2 + 10 * away / np.abs(away).max()
    mask = np.hypot(*(np.indices((SIZE, SIZE)) - np.array([row, column])[:, None, None])) < radius
    return np.clip(30 * mask + rng.integers(0, 10, mask.shape), 0, 255).astype(np.uint8), mask


def write_dataset(path, *, masks=lambda index, mask: mask, kind="nodule"):
    rng, index = np.random.default_rng(0), 0
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a", "b"],
                       image_size=SIZE, channels=1) as writer:
        for split, number in SPLITS:
            for label in "ab":
                for _ in range(number):
                    image, mask = disc(rng)
                    mask = masks(index, mask)
                    writer.add(split, label, index, image[..., None], group=f"g{index // 2}",
                               masks={} if mask is None else {kind: 255 * mask.astype(np.uint8)})
                    index += 1
        writer.publish(parents=[], seed=0, modality="ct", symmetries=8)
    return open_dataset(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("run") / "real")


def classify(real, results, *more):
    return cnn_classify.main(["--data", str(real.path), "--real", str(real.path), "--results",
                              str(results), "--repeats", "1", "--steps", "2", "--batch-size", "4",
                              "--device", "cpu", *more])


@pytest.fixture(scope="module")
def results(real):
    assert classify(real, real.path.parent / "results", "--keep-weights") == 0
    return real.path.parent / "results"


def explain(real, results, output, *more):
    return cnn_explain.main(["--data", str(real.path), "--results", str(results), "--output",
                             str(output), "--shuffles", "2", "--device", "cpu", *more])


def read(folder):
    with open(folder / "explain.csv", encoding="utf-8") as file:
        return json.loads((folder / "explain.json").read_text()), list(csv.DictReader(file))


class Bright(nn.Sequential):
    """Says the second class of bright images, for their bright pixels alone."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(1, 2))
        with torch.no_grad():
            self[0].weight.fill_(1 / 3)
            self[0].bias.fill_(1.5)  # what is not the disc is below 0
            self[4].weight.copy_(torch.tensor([[-1.0], [1]]))
            self[4].bias.zero_()


@pytest.fixture
def bright(monkeypatch, real):
    """In the kept network's place one that looks at the discs."""
    record = {"settings": {}, "model": "bright", "accuracy_real": 0.5,
              "real_fingerprint": real.fingerprint, "run": {kept_weights.SHA256: "x"}}
    monkeypatch.setattr(kept_weights, "load", lambda *_: (record, Bright().eval()))
    return record


# ------------------------------------------------------------------ kept weights

def test_kept_weights_are_the_network_that_was_tested(real, results):
    record, model = kept_weights.load(results, "real", 0, 0)
    from lungkit.learn.classify_training import predict

    with np.load(results / "real/replicate_000/repeat_0000.npz") as arrays:
        kept = arrays["real_probabilities"]
    images = torch.from_numpy(real.load("test")[0])
    np.testing.assert_allclose(predict(model, images), kept, atol=1e-6)
    assert len(record["run"][kept_weights.SHA256]) == 64


def test_a_record_is_the_same_with_weights_kept_and_without(real, results, tmp_path, capsys):
    assert classify(real, tmp_path) == 0
    place = "real/replicate_000/repeat_0000.json"
    without, kept = (json.loads((root / place).read_text()) for root in (tmp_path, results))
    assert without.pop("run").keys() == kept.pop("run").keys() - {kept_weights.SHA256}
    assert without == kept and not list(tmp_path.rglob("*.safetensors"))
    assert classify(real, tmp_path, "--keep-weights") == 2
    assert "give another --results" in capsys.readouterr().err.splitlines()[-1]
    assert classify(real, results, "--keep-weights") == 0


REFUSED = {  # what is done to the record or beside it: the exit status, and what is said
    "no repeat": (lambda place: place.unlink(), 1, "cnn_classify.py --keep-weights"),
    "no weights": (lambda place: place.with_suffix(".safetensors").unlink(), 1,
                   "repeats keep their weights by"),
    "other weights": (lambda place: place.with_suffix(".safetensors").write_bytes(b"x"), 1,
                      "is not what was kept"),
    "frozen": (lambda place: edit(place, settings={"frozen": True}), 2, "frozen features"),
    "no CNN": (lambda place: edit(place, model="unet", task="segment"), 2, "is of unet"),
    "other real": (lambda place: edit(place, real_fingerprint="f" * 64), 2,
                   "may have been trained on its test images")}


def edit(place, **changed):
    place.write_text(json.dumps(json.loads(place.read_text()) | changed))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_is_one_line(real, results, tmp_path, capsys, name):
    spoil, code, said = REFUSED[name]
    shutil.copytree(results, tmp_path / "results")
    spoil(tmp_path / "results/real/replicate_000/repeat_0000.json")
    assert explain(real, tmp_path / "results", tmp_path / "out") == code
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


# ------------------------------------------------------------------ the scores

def test_a_network_that_looks_at_the_discs_points_at_them_and_a_blob_does_not(
        real, bright, tmp_path, capsys):
    assert explain(real, tmp_path, tmp_path / "out") == 0
    found, lines = read(tmp_path / "out")
    energy, points = found["scores"]["energy"], found["scores"]["points"]
    assert energy["map"]["value"] > 0.99 and points["map"]["value"] == 1
    assert points["blob"]["value"] < 0.1 and points["above_blob"]["more"] == "yes"
    assert energy["ceiling"]["value"] == pytest.approx(1, abs=0.01), "a place is a pixel"
    shares = [float(line["mask_share"]) for line in lines]
    assert energy["by_area"] == pytest.approx(np.mean(shares), abs=1e-4)
    assert energy["blob"]["value"] < 2 * energy["by_area"]
    assert (found["num_scored"], found["num_groups"], found["places"]) == (12, 6, 32)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("the maps point at the nodule more often than a blob in the middle: "
                              "yes (100.0 % against")
    assert found["verdict"] == said[:4] and found["num_flat"] == 0
    assert {line["said"] for line in lines} == {"b"} and all(
        float(line["energy_map"]) > 0.98 for line in lines)
    assert sum(line["right"] == "yes" for line in lines) == 6


def test_empty_full_and_missing_masks_are_left_out_and_counted(bright, tmp_path):
    special = {8: lambda mask: mask & False, 9: lambda mask: mask | True, 10: lambda mask: None}
    data = write_dataset(tmp_path / "real", masks=lambda index, mask: special.get(
        index, lambda mask: mask)(mask))
    bright["real_fingerprint"] = data.fingerprint
    assert explain(data, tmp_path, tmp_path / "out") == 0
    found, lines = read(tmp_path / "out")
    counts = {name: found[name] for name in ("num_empty", "num_full", "num_without_mask",
                                             "num_scored", "num_images")}
    assert counts == {"num_empty": 1, "num_full": 1, "num_without_mask": 1, "num_scored": 9,
                      "num_images": 12}
    assert [line["energy_map"] == "" for line in lines] == [True] * 3 + [False] * 9


@pytest.mark.parametrize(("kind", "masks", "more", "why"), [
    ("lung", lambda index, mask: mask, [], "the dataset has no masks"),
    ("nodule", lambda index, mask: mask & False, [], "12 are background alone"),
    ("lung", lambda index, mask: mask & False, ["--mask", "lung"], "12 are background alone")])
def test_without_anything_outlined_there_are_maps_and_no_scores(bright, tmp_path, kind, masks, more,
                                                                why):
    data = write_dataset(tmp_path / "real", kind=kind, masks=masks)
    bright["real_fingerprint"] = data.fingerprint
    assert explain(data, tmp_path, tmp_path / "out", *more) == 0
    found, lines = read(tmp_path / "out")
    assert found["scores"] is None and why in found["verdict"][0] and len(lines) == 12
    assert decode_png((tmp_path / "out/explain.png").read_bytes()).std() > 10


# ------------------------------------------------------------------ nuclei

TISSUE, NUCLEUS = (225, 170, 200), (95, 60, 145)  # eosin, haematoxylin


def write_tissue(path, *, forms=None, modality="he"):
    """64 px of 64 um with nuclei of 11 um planted in the left half; and masks where forms says."""
    rng, index, planted = np.random.default_rng(1), 0, []
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a", "b"],
                       image_size=64, mask_forms=forms or {}) as writer:
        for split, number in SPLITS:
            for label in "ab":
                for _ in range(number):
                    labels = np.zeros((64, 64), np.uint8)
                    for k, (row, column) in enumerate([(12, 10), (12, 24), (32, 17), (52, 24)]):
                        shift = rng.integers(-3, 4, 2)
                        away = np.indices((64, 64)) - (shift + [row, column])[:, None, None]
                        labels[np.hypot(*away) < 5.5] = k + 1
                    image = np.where(labels[..., None] > 0, NUCLEUS, TISSUE)
                    image = image + rng.normal(0, 4, image.shape)
                    masks = {kind: labels if form == "labels" else 255 * (labels > 0).astype(
                        np.uint8) for kind, form in (forms or {}).items()}
                    writer.add(split, label, index, np.clip(image, 0, 255).astype(np.uint8),
                               group=f"g{index // 2}", masks=masks)
                    planted += [labels > 0] * (split == "test")
                    index += 1
        writer.publish(parents=[], seed=0, modality=modality, um_per_px=1.0)
    return open_dataset(path), np.stack(planted)


@pytest.fixture
def dark(bright, monkeypatch):
    """A network that looks at what has little red: nuclei."""
    network = Bright().eval()
    with torch.no_grad():
        network[0].weight[0, :, 0, 0] = torch.tensor([-1.0, 0, 0])
        network[0].bias.fill_(-0.5)
    monkeypatch.setattr(kept_weights, "load", lambda *_: (bright, network))
    return bright


def test_an_image_in_which_no_nucleus_is_found_is_known_to_have_none(tmp_path):
    with DatasetWriter(Output(tmp_path / "real", "dataset.json", {}), stage="test",
                       classes=["a"], image_size=64) as writer:
        for index, split in enumerate(("train", "val", "test")):
            writer.add(split, "a", index, np.full((64, 64, 3), TISSUE, np.uint8))
        writer.publish(parents=[], seed=0, modality="he", um_per_px=1.0)
    masks, known = nuclei.find(open_dataset(tmp_path / "real"), "test")
    assert not masks.any() and known.tolist() == [True]


def test_nuclei_that_were_planted_are_found_and_a_network_that_looks_at_them_points_there(
        dark, tmp_path, capsys):
    data, planted = write_tissue(tmp_path / "real")
    dark["real_fingerprint"] = data.fingerprint
    assert explain(data, tmp_path, tmp_path / "out", "--mask", "nuclei") == 0
    found, lines = read(tmp_path / "out")
    energy = found["scores"]["energy"]
    assert energy["map"]["value"] > 0.9 and energy["blob"]["value"] < 2 * energy["by_area"]
    assert energy["above_blob"]["more"] == "yes" and energy["ceiling"]["value"] > 0.99
    masks, known = nuclei.find(data, "test")
    assert known.all() and (masks & planted).sum() / (masks | planted).sum() > 0.75
    assert energy["by_area"] == pytest.approx(planted.mean(), rel=0.3)
    assert (found["mask"], found["num_scored"], found["nuclei_recipe"]) == ("nuclei", 12,
                                                                            detect.RECIPE)
    assert found["verdict"][-1] == cnn_explain.FOUND in capsys.readouterr().out
    assert float(lines[0]["mask_share"]) == pytest.approx(masks[0].mean(), abs=1e-4)


def test_nuclei_found_by_other_rules_are_another_output(dark, tmp_path, monkeypatch, capsys):
    data, _ = write_tissue(tmp_path / "real")
    dark["real_fingerprint"] = data.fingerprint
    call = [data, tmp_path, tmp_path / "out", "--mask", "nuclei"]
    assert explain(*call) == explain(*call) == 0
    monkeypatch.setattr(detect, "RECIPE", detect.RECIPE + 1)
    assert explain(*call) == 2 and "masks: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("form", "more", "share"), [
    ("binary", [], 1), ("labels", [], 1), ("labels", ["--labels", "2"], 0.25)])
def test_masks_of_nuclei_that_there_are_are_taken(dark, tmp_path, form, more, share):
    data, planted = write_tissue(tmp_path / "real", forms={"nuclei": form})
    dark["real_fingerprint"] = data.fingerprint
    assert explain(data, tmp_path, tmp_path / "out", "--mask", "nuclei", *more) == 0
    found, _ = read(tmp_path / "out")
    assert found["scores"]["energy"]["by_area"] == pytest.approx(share * planted.mean(), rel=0.1)
    assert "nuclei_recipe" not in found and cnn_explain.FOUND not in found["verdict"]


def test_nuclei_that_cannot_be_found_are_one_line(real, bright, dark, tmp_path, capsys):
    data, _ = write_tissue(tmp_path / "real")
    dark["real_fingerprint"] = data.fingerprint
    assert explain(data, tmp_path, tmp_path / "o", "--mask", "nuclei", "--labels", "1") == 2
    assert "has no masks of nuclei" in capsys.readouterr().err.splitlines()[-1]
    dark["real_fingerprint"] = real.fingerprint
    assert explain(real, tmp_path, tmp_path / "o", "--mask", "nuclei") == 2
    assert "of CT, which shows no nuclei" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


# ------------------------------------------------------------------ what a score is

def test_the_ceiling_is_the_mask_at_the_map_s_places():
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 8:24, 40:56] = True
    seen = cnn_explain.at_places(mask, Grid(0.0, 16.0, 4))[0]  # places at 0, 16, 32, 48
    assert np.unravel_index(seen.argmax(), seen.shape) == (16, 48)
    assert seen[16, 48] == pytest.approx(15.5**2 / 16**2), "half a pixel of it is beyond"
    assert seen[32, 16] == 0 and seen[24, 48] == pytest.approx(seen[16, 48] / 2)


def test_a_maximum_within_half_a_place_is_inside():
    own, masks = np.zeros((2, 64, 64), np.float32), np.zeros((2, 64, 64), bool)
    masks[:, 20:30, 20:30] = True
    own[0, 25, 37], own[1, 25, 38] = 1, 1  # the last pixel inside is 29; half a place is 8
    maps = cnn_explain.Maps(own, own[None], np.zeros((2, 2), np.float32), Grid(0.0, 16.0, 4))
    _, values = cnn_explain.score(maps, masks, np.arange(2), np.array(["g", "h"]))
    assert values["points_map"].tolist() == [1, 0]


def test_every_network_of_shuffled_weights_is_another(real, results):
    _, model = kept_weights.load(results, "real", 0, 0)
    first, second = cnn_explain.make_maps(model, real, places=2, shuffles=2, seed=0,
                                          device="cpu").shuffled
    assert not np.allclose(first, second)


def test_the_surest_errors_are_shown_after_those_chosen_and_before_right_ones():
    labels = np.array([0, 0, 0, 1, 1, 1])
    sure = np.array([0.9, 0.6, 0.99, 0.8, 0.7, 0.95])
    said = np.array([0, 1, 1, 1, 0, 1])
    probabilities = np.where(said[:, None] == [0, 1], sure[:, None], 1 - sure[:, None])
    picked = cnn_explain.pick(labels, probabilities, [5])
    assert picked[:4] == [5, 2, 4, 1] and set(picked[4:]) == {0, 3}


def test_a_map_is_seen_upon_the_image_and_where_it_is_nothing_the_image_is():
    image = np.full((16, 16, 3), (200, 100, 60), np.uint8)
    strength = np.zeros((16, 16))
    strength[8:, 8:] = 1
    seen = heat.over(image, strength)
    assert (seen[:8] == 120).all() and (seen[12, 12] != 120).any()
    outlined = heat.sheet([heat.Seen(image, (strength,), strength > 0, "words")])
    assert (outlined == heat.OUTLINE).all(-1).any()
    assert not (heat.sheet([heat.Seen(image, (strength,), None, "")]) == heat.OUTLINE).all(-1).any()


def test_again_it_is_complete_and_other_options_are_refused(real, bright, tmp_path, capsys):
    chosen = ["--images", real.select("test")[3].file_name]
    assert explain(real, tmp_path, tmp_path / "out", *chosen) == 0
    capsys.readouterr()
    assert explain(real, tmp_path, tmp_path / "out", *chosen) == 0
    assert "already complete" in capsys.readouterr().out
    for other in (["--shuffles", "3"], ["--seed", "9"], ["--places", "4"]):
        assert explain(real, tmp_path, tmp_path / "out", *chosen, *other) == 2
    assert explain(real, tmp_path, tmp_path / "out") == 2
    assert explain(real, tmp_path, tmp_path / "new", "--images", "test/a/9.png") == 2
    assert "not among the test images" in capsys.readouterr().err.splitlines()[-1]
    assert explain(real, tmp_path, tmp_path / "new", "--dry-run") == 0
    assert not (tmp_path / "new").exists()


def test_other_masks_are_another_output(real, bright, tmp_path, capsys):
    shutil.copytree(real.path, tmp_path / "real")
    data = open_dataset(tmp_path / "real")
    assert explain(data, tmp_path, tmp_path / "out") == 0
    mask = data.mask_path("nodule", data.select("test")[0])
    mask.write_bytes(encode_png(255 - decode_png(mask.read_bytes())))
    assert explain(data, tmp_path, tmp_path / "out") == 2
    assert "masks: " in capsys.readouterr().err.splitlines()[-1]
