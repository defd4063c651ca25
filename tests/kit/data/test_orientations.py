"""The flips and turns by which an image stays valid: which they are, and their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data.orientations import OF_PIXELS, orient, square_symmetries

IMAGE = np.arange(9).reshape(1, 3, 3)


def ways(symmetries: int) -> list[np.ndarray]:
    return [orient(IMAGE, which, symmetries) for which in range(symmetries)]


def test_the_eight_are_quarter_turns_then_mirrored_ones():
    turns = [np.rot90(IMAGE, k, (1, 2)) for k in range(4)]
    assert np.array_equal(ways(8), [*turns, *(turn[:, :, ::-1] for turn in turns)])


def test_of_two_the_second_exchanges_left_and_right_and_of_one_nothing_is_turned():
    assert np.array_equal(ways(2), [IMAGE, IMAGE[:, :, ::-1]])
    assert np.array_equal(ways(1), [IMAGE])


@pytest.mark.parametrize("symmetries", [8, 2, 1])
def test_arrays_and_tensors_are_turned_alike_on_the_axes_given(symmetries):
    import torch

    image = np.arange(2 * 9 * 3).reshape(2, 3, 3, 3)
    for which in range(symmetries):
        turned = orient(image, which, symmetries, axes=(1, 2))
        tensor = torch.from_numpy(image).permute(0, 3, 1, 2)
        assert np.array_equal(orient(tensor, which, symmetries).permute(0, 2, 3, 1), turned)


def test_an_order_of_pixels_turns_as_its_number_says():
    plain = IMAGE[0]
    half = [plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1]]
    for symmetries, expected in ((8, half + [part.T for part in half]), (2, half[::2]),
                                 (1, half[:1])):
        orders = square_symmetries(3, symmetries).numpy()
        assert np.array_equal(plain.ravel()[orders], [part.ravel() for part in expected])
        assert len(OF_PIXELS[symmetries]) == symmetries
