"""Augmentation of CT: in HU, resumed, and only of CT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cnn_classify
from lungkit.learn import augment, batches

HU = {"unit": "HU", "window": [-1000, 400]}


@pytest.mark.parametrize(("modality", "intensity", "expected"), [
    ("ct", HU, 1400 / 255), ("ct", {"unit": "HU", "window": [-200, 310]}, 2.0),
    ("ct", None, 1400 / 255), ("he", None, None), (None, None, None),
    ("fluorescence", {"unit": "counts", "window": [0, 9]}, None)])
def test_a_grey_level_is_of_so_many_hu_where_it_is_ct(modality, intensity, expected):
    assert augment.hu_per_level(modality, intensity) == expected
    assert augment.as_setting(modality) == ({"augmentation": "hu"} if expected else {})


def test_shift_and_noise_are_drawn_in_hu_beforehand():
    plan = cnn_classify.plan_batches(np.arange(9), 40, 50, np.random.default_rng(0), 2, 2.0)
    assert set(plan) == {"index", "symmetry", "shift", "noise"}
    low, high = plan["shift"].min() * 2, plan["shift"].max() * 2
    assert -20 <= low < -19.5 and 19.5 < high <= 20 and abs(plan["shift"].mean()) < 0.3
    assert 0 <= plan["noise"].min() * 2 < 0.5 and 29.5 < plan["noise"].max() * 2 <= 30
    usual = cnn_classify.plan_batches(np.arange(9), 40, 50, np.random.default_rng(0), 2)
    assert set(usual) == {"index", "symmetry", "brightness"}
    assert (usual["index"] == plan["index"]).all() and (usual["symmetry"] == plan["symmetry"]).all()


def test_every_image_has_its_own_shift_and_noise_and_stays_in_the_window():
    torch.manual_seed(0)
    batch = torch.tensor([100, 100, 0, 255], dtype=torch.uint8)[:, None, None, None].expand(
        4, 64, 64, 1)
    found = augment.scan_again(batch, torch.tensor([5.0, 0, -3, 3]), torch.tensor([0.0, 4, 0, 0]))
    assert found.dtype == torch.float32 and found.shape == batch.shape
    assert found[0].unique().tolist() == [105.0] and found[2].max() == 0 and found[3].min() == 255
    assert abs(float(found[1].mean()) - 100) < 0.3 and abs(float(found[1].std()) - 4) < 0.2


def test_colours_have_one_noise_and_the_noise_is_torch_s_own_to_resume():
    batch = torch.full((1, 8, 8, 3), 90, dtype=torch.uint8)
    state, how = torch.get_rng_state(), (torch.zeros(1), torch.ones(1))
    first = augment.scan_again(batch, *how)
    assert (first == first[..., :1]).all() and first.std() > 0.5
    torch.set_rng_state(state)
    assert (augment.scan_again(batch, *how) == first).all()


def test_what_the_network_sees_of_ct_is_scanned_again():
    """Bytes of one grey, shifted by the plan: the network's mean is that of the shifted grey."""
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(1, 2)

        def forward(self, batch):
            seen.append(batch)
            return self.head(batch.mean((1, 2, 3))[:, None])

    plan = {"index": np.array([[0, 1]]), "symmetry": np.zeros((1, 2), np.int64),
            "shift": np.float32([[10, -10]]), "noise": np.zeros((1, 2), np.float32)}
    images = torch.full((2, 4, 4, 1), 100, dtype=torch.uint8)
    cnn_classify.train(Net(), images, torch.tensor([0, 1]), plan, learning_rate=0.1, what="t",
                       identity={}, checkpoint_path=None)
    scale, shift = batches.pixel_scale("cpu")
    for image, grey in zip(seen[0], (110, 90), strict=True):
        assert image.mean((1, 2)).tolist() == pytest.approx((grey * scale + shift).tolist())
