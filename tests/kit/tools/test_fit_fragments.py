"""The fit of the rule that joins fragments: measures, which are one nucleus, what is held out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lungkit.nuclei import detect, fragments
from lungkit.phantom import paint
from lungkit.tools import fit_fragments


def cut(*columns: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels of columns (start, end, number), 10 px high, and an even height."""
    labels = np.zeros((20, 40), np.int32)
    for start, end, number in columns:
        labels[5:15, start:end] = number
    return labels, (labels > 0).astype(np.float32)


def measured(monkeypatch, cuts, truth, joins: float = 1.0):
    labels, even = cut(*cuts)
    monkeypatch.setattr(detect, "cut_fragments", lambda *_: (labels, even, even, even, 0.3))
    monkeypatch.setattr(fit_fragments, "JOIN_SHARE", joins)
    image = np.zeros((20, 20, 3), np.uint8)
    return fit_fragments.measure(image, cut(*truth)[0], "he", np.random.default_rng(0))


def test_a_pair_is_one_nucleus_where_both_lie_mostly_in_the_same_true_one(monkeypatch):
    cuts = ((2, 10, 1), (10, 18, 2), (18, 26, 3), (26, 34, 4))
    truth = ((3, 17, 1), (17, 25, 2), (25, 25, 3))  # 3 reaches 7 px into 2; 4 lies in none
    features, same = measured(monkeypatch, cuts, truth, joins=0.0)
    assert same.tolist() == [True, False] and features.shape == (2, len(fragments.FEATURES))


def test_unions_of_true_pairs_count_too(monkeypatch):
    cuts = ((2, 10, 1), (10, 18, 2), (18, 26, 3))
    features, same = measured(monkeypatch, cuts, ((2, 18, 1), (18, 26, 2)))
    assert same.tolist() == [True, False, False]  # 1-2 and 2-3, then their union and 3
    area = np.exp(features[:, fragments.FEATURES.index("union_log_area_um2")])
    assert area / area[0] == pytest.approx([1, 1, 1.5])


def test_pictures_are_of_every_class_in_both_stains_and_changed(monkeypatch):
    asked = []
    tile = paint.draw_tile("lung_n", patient=0, index=0, image_size=48)

    def draw(label, **which):
        asked.append((label, which))
        return tile

    monkeypatch.setattr(paint, "draw_tile", draw)
    rising = np.arange(48 * 48).reshape(48, 48)
    monkeypatch.setattr(paint, "draw_fluorescence",
                        lambda label, **which: np.stack([rising, *[2304 - rising] * 3])[None])
    made = list(fit_fragments.pictures(9, 2))
    assert [modality for *_, modality in made] == ["he", "fluorescence", "he", "he"] * 3
    assert asked == [(label, {"patient": 2, "index": 0, "seed": 9}) for label in paint.CLASSES]
    for image, truth, _ in made:
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and truth.shape == (48, 48)
    dapi = made[1][0]
    assert dapi[0, 0].tolist() == [0] * 3 and dapi[-1, -1].tolist() == [255] * 3  # of channel 0
    assert len({made[k][0].tobytes() for k in (0, 2, 3)}) == 3


@pytest.mark.parametrize("seed", range(3))
def test_a_change_moves_the_truth_with_the_image(seed):
    y, x = np.mgrid[:160, :160]
    truth = np.zeros((160, 160), np.int32)
    for number, (cx, cy) in enumerate([(60, 50), (100, 60), (80, 110)], start=5):
        truth[np.hypot(x - cx, y - cy) < 13] = number
    image = np.where(truth[..., None] > 0, (90, 60, 140), (225, 190, 210)).astype(np.uint8)
    moved, labels = fit_fragments.change(image, truth, np.random.default_rng(seed))
    assert moved.dtype == np.uint8 and labels.dtype == np.int32
    assert set(np.unique(labels)) <= {0, 5, 6, 7} and (labels != truth).any()
    red = moved[..., 0].astype(float)
    assert red[labels > 0].mean() < red[labels == 0].mean() - 60
    assert np.corrcoef(red.ravel(), labels.ravel() > 0)[0, 1] < -0.85


def test_what_is_held_out_is_reported_and_not_fitted(monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(fit_fragments, "NUM_EPOCHS", 8)
    monkeypatch.setattr(fit_fragments, "BATCH_SIZE", 32)
    features = np.random.default_rng(0).normal(5, 2, (600, len(fragments.FEATURES)))
    same, held_out = features[:, 6] > 5, np.arange(600) >= 480
    features[:, 6] += np.where(same, 3, -3)
    stored = fit_fragments.fit(features, same, held_out)
    opposite = fit_fragments.fit(features, np.where(held_out, ~same, same), held_out)
    assert opposite == stored
    said = capsys.readouterr().out.splitlines()
    assert all("480 pairs fitted; of 120 held out" in line for line in said)
    right, wrong = (float(line.split(" are told right")[0].split()[-1]) for line in said)
    assert right > 0.9 and wrong == pytest.approx(1 - right)
    values = (features - stored["mean"]) / stored["scale"]
    for k in range(2):
        values = np.maximum(values @ stored[f"weight_{k}"] + stored[f"bias_{k}"], 0)
    odds = values @ stored["weight_2"] + stored["bias_2"]
    assert ((odds[:, 0] > 0) == same)[held_out].mean() == pytest.approx(right, abs=0.01)


def test_seeds_that_benchmarks_report_on_are_never_fitted(tmp_path, monkeypatch):
    drawn, fitted = [], {}

    def fit(measured, same, held_out):
        fitted.update(pairs=len(measured), held_out=held_out.tolist())
        return {"features": fragments.FEATURES}

    monkeypatch.setattr(fit_fragments, "pictures",
                        lambda seed, changed: drawn.append((seed, changed)) or [(0, 0, "he")] * 2)
    monkeypatch.setattr(fit_fragments, "measure",
                        lambda *_: (np.zeros((1, 15)), np.zeros(1, bool)))
    monkeypatch.setattr(fit_fragments, "fit", fit)
    output = tmp_path / "fragments.json"
    assert fit_fragments.main(["--output", str(output), "--num-seeds", "10"]) == 0
    assert drawn == [(seed, 3) for seed in range(10)]
    assert fitted == {"pairs": 20, "held_out": [seed % 5 == 4 for seed in range(10) for _ in "ab"]}
    assert json.loads(output.read_text()) == {"features": list(fragments.FEATURES)}
    assert fit_fragments.MAX_SEED == 50
    assert fit_fragments.main(["--output", str(output), "--num-seeds", "51"]) == 2
