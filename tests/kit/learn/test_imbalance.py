"""Classes of unlike size: drawn alike, weighed, or repeated under stronger augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.learn import batches, imbalance
from lungkit.learn.classify_training import plan_batches, train

LABELS = np.repeat([0, 1, 2], [12, 4, 2])      # of a pool of which index 0 is not drawn
DRAWN = np.arange(1, 18)                       # 11, 4 and 2 images


def shown(balance: str, steps: int = 11, hu_per_level: float | None = None) -> dict:
    return plan_batches(DRAWN, steps, 6, np.random.default_rng(0), 8, hu_per_level, LABELS,
                        {"balance": balance})


def test_without_balance_classes_are_shown_as_often_as_there_are_images():
    plan = shown("none", steps=17)
    assert np.bincount(LABELS[plan["index"].ravel()]).tolist() == [66, 24, 12]
    assert set(plan) == {"index", "symmetry", "brightness"}


def test_the_sampler_shows_every_class_equally_often_and_each_image_of_it_in_turn():
    index = shown("sampler")["index"].ravel()
    for first in range(0, 66, 3):
        assert sorted(LABELS[index[first:first + 3]]) == [0, 1, 2]
    counts = np.bincount(index, minlength=18)
    assert counts[0] == 0 and (counts[1:12] == 2).all()
    assert counts[12:16].tolist().count(5) == 2 and counts[16:].tolist() == [11, 11]
    assert len({tuple(LABELS[index[k:k + 3]]) for k in range(0, 66, 3)}) > 2


def test_upsampling_repeats_the_small_classes_whole_and_calls_what_is_added_copies():
    plan = shown("upsample")
    index, copied = plan["index"].ravel()[:33], plan["copied"].ravel()[:33]  # an epoch of 3 x 11
    assert np.bincount(LABELS[index]).tolist() == [11, 11, 11]
    assert sorted(index[~copied]) == DRAWN.tolist()
    assert np.bincount(LABELS[index[copied]]).tolist() == [0, 7, 9]
    assert set(np.bincount(index[copied])[12:]) == {1, 2, 4, 5}


def test_copies_are_moved_but_not_scaled_and_lit_twice_as_strongly():
    for hu, names, most in ((None, ["brightness"], [0.2]), (2.0, ["shift", "noise"], [20, 30])):
        plan = shown("upsample", 400, hu)
        copied, move = plan["copied"], plan["move"][plan["copied"]]
        assert np.allclose(np.linalg.det(move[..., :2]), 1, atol=1e-5)
        turn = np.degrees(np.arcsin(move[:, 1, 0]))
        assert 14 < turn.max() <= 15 and -15 <= turn.min() < -14
        assert 0.099 < move[..., 2].max() <= 0.1 and -0.1 <= move[..., 2].min() < -0.099
        for name, limit in zip(names, most, strict=True):
            away = np.abs(plan[name] - (1 if name == "brightness" else 0))
            assert away[copied].max() == pytest.approx(limit, rel=0.02)
            assert away[~copied].max() == pytest.approx(limit / 2, rel=0.02)


def test_a_copy_is_shown_moved_and_an_image_as_it_is():
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[0, 2:4, 4:6] = 200
    by_two = np.float32([[1, 0, 0.5], [0, 1, 0]])  # a quarter of the side, to the left
    plan = {"index": np.array([[0, 0]]), "symmetry": np.zeros((1, 2), int),
            "copied": np.array([[True, False]]), "move": np.tile(by_two, (1, 2, 1, 1)),
            "brightness": np.ones((1, 2), np.float32)}
    scale, shift = batches.pixel_scale("cpu", (0,) * 3, (1,) * 3)
    at = batches.training_batches(image, plan, 8, scale, shift, torch.device("cpu"))
    (copy, kept), _ = at(0)
    assert torch.allclose(255 * kept[0], image[0, ..., 0].float(), atol=1e-3)
    assert torch.allclose(copy[0, 2:4, 2:4] * 255, torch.tensor(200.0), atol=0.1)
    assert copy.sum() == pytest.approx(float(kept.sum()), rel=1e-3)


def test_weights_are_of_n_by_k_n_c():
    assert imbalance.class_weights(LABELS[DRAWN], 3).tolist() == pytest.approx(
        [17 / (3 * 11), 17 / (3 * 4), 17 / (3 * 2)])
    assert imbalance.class_weights(np.array([0, 0, 2]), 4).tolist() == pytest.approx(
        [3 / 4, 0, 3 / 2, 0])


def test_the_loss_is_weighted_and_still_smoothed():
    plan = shown("loss", steps=1)
    assert set(plan) == {"index", "symmetry", "brightness", "class_weights"}
    features = torch.randn(18, 4, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(4, 3)
    logits = model(features[plan["index"][0]]).detach()
    wanted = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(LABELS[plan["index"][0]]), label_smoothing=0.1,
        weight=torch.tensor([17 / 33, 17 / 12, 17 / 6]))
    found = train(model, features, torch.from_numpy(LABELS), plan, learning_rate=0.1, what="t",
                  identity={}, checkpoint_path=None)
    assert found == pytest.approx(float(wanted), rel=1e-5)
