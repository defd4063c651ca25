"""MixUp and CutMix: what is mixed with what, and that the labels are mixed alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.learn import mixing
from lungkit.learn.classify_training import plan_batches, train

CPU = torch.device("cpu")


def drawn(mixup: float, cutmix: float, steps: int = 2000) -> dict:
    return mixing.draw((steps, 4), mixup, cutmix, np.random.default_rng(0))


def test_nothing_is_drawn_where_nothing_is_mixed():
    rng = np.random.default_rng(0)
    assert mixing.draw((9, 4), 0, 0, rng) == {} and mixing.mixer({}, CPU) is None
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize(("mixup", "cutmix", "cut"), [(0.4, 0, 0), (0, 1.0, 1), (0.4, 1.0, 0.5)])
def test_shares_are_of_beta_and_a_coin_decides_between_the_two(mixup, cutmix, cut):
    plan = drawn(mixup, cutmix)
    cuts = ~np.isnan(plan["centre"][:, 0])
    assert cuts.mean() == pytest.approx(cut, abs=0.04)
    for alpha, share in ((mixup, plan["share"][~cuts]), (cutmix, plan["share"][cuts])):
        if len(share):
            assert share.mean() == pytest.approx(0.5, abs=0.04)
            assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    assert (np.sort(plan["partner"], 1) == np.arange(4)).all()
    assert len({tuple(row) for row in plan["partner"]}) == 24


def test_mixup_is_a_mean_of_two_images():
    batch = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 4)
    plan = {"share": np.array([0.75]), "partner": np.array([[2, 0, 1]]),
            "centre": np.full((1, 2), np.nan)}
    mixed, partner, share = mixing.mixer(plan, CPU)(0, batch)
    assert mixed[:, 0, 0, 0].tolist() == [0.5, 0.75, 1.75]
    assert partner.tolist() == [2, 0, 1] and share == 0.75


@pytest.mark.parametrize(("centre", "corners"), [
    ((0.5, 0.5), ((2, 2), (6, 6))), ((0, 1), ((0, 6), (2, 8))), ((0.5, 0.0), ((2, 0), (6, 2)))])
def test_cutmix_puts_a_box_of_the_partner_in_and_its_share_is_that_of_the_pixels(centre, corners):
    batch = torch.arange(2.0)[:, None, None, None].expand(2, 1, 8, 8)
    plan = {"share": np.array([0.75]), "partner": np.array([[1, 0]]), "centre": np.array([centre])}
    mixed, partner, share = mixing.mixer(plan, CPU)(0, batch)
    (top, left), (bottom, right) = corners
    assert mixed[0, 0, top:bottom, left:right].eq(1).all()
    assert float(mixed[0].sum()) == (bottom - top) * (right - left)
    assert share == pytest.approx(1 - float(mixed[0].mean()))
    assert torch.equal(mixed[1], 1 - mixed[0]) and batch[0].eq(0).all()


@pytest.mark.parametrize("how", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(how):
    """A loss by hand of one step, of what the plan says the network saw."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    labels = torch.arange(6) % 3
    plan = plan_batches(np.arange(6), 1, 4, rng, 1, settings=how)
    plan["share"][0] = share = 0.3
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].clone()))
    weight, bias = (each.detach().clone() for each in model[1].parameters())
    found = train(model, images, labels, plan, learning_rate=0.1, symmetries=1, settings=how,
                  what="t", identity={}, checkpoint_path=None)
    if "cutmix" in how:
        (top, left), (bottom, right) = mixing.box(share, plan["centre"][0], 8)
        share = 1 - (bottom - top) * (right - left) / 64
    said = seen[0].flatten(1) @ weight.T + bias
    true = labels[plan["index"][0]]
    own, other = (torch.nn.functional.cross_entropy(said, each, label_smoothing=0.1)
                  for each in (true, true[plan["partner"][0]]))
    assert found == pytest.approx(float(share * own + (1 - share) * other), rel=1e-5)
