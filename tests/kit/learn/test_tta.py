"""Test-time augmentation: which orientations, and that probabilities are their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.data.orientations import orient
from lungkit.learn import tta
from lungkit.learn.classify_training import predict


@pytest.mark.parametrize(("name", "symmetries", "num"), [
    ("none", 1, 1), ("none", 8, 1), ("flips", 2, 2), ("flips", 8, 4), ("eight", 8, 8)])
def test_turns_are_those_that_are_named(name, symmetries, num):
    turns = tta.turns(name, symmetries)
    image = np.arange(4).reshape(2, 2)
    found = {orient(image, which, symmetries).tobytes() for which in turns}
    assert turns[0] == 0 and len(found) == len(turns) == num
    if name == "flips":  # rows stay rows
        assert all({*each[0]} in ({0, 1}, {2, 3}) for each in (
            orient(image, which, symmetries).tolist() for which in turns))


class Corner(torch.nn.Module):
    """Says by the upper left pixel's first channel which of two classes an image is of."""

    def forward(self, batch):
        grey = batch[:, 0, 0, 0]
        return torch.stack([grey, -grey], 1)


@pytest.mark.parametrize(("name", "symmetries", "of"), [
    ("none", 8, [[0]]), ("flips", 2, [[0], [1]]), ("flips", 8, [[0], [1], [2], [3]]),
    ("eight", 8, [[0], [1], [2], [3]])])
def test_probabilities_are_the_mean_over_the_orientations(name, symmetries, of):
    images = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    images[1, 0, 0], images[1, 0, 1] = 255, 40
    images[2, 1, 0], images[2, 1, 1] = 90, 200
    model = Corner()
    alone = predict(model, images.flatten(1, 2)[:, [0, 1, 2, 3]].reshape(12, 1, 1, 3))
    wanted = alone.reshape(3, 4, 2)[:, [each[0] for each in of]].mean(1)
    found = predict(model, images, None, tta.turns(name, symmetries), symmetries)
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-6)
