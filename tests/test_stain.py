"""Stain methods: Macenko beside torchstain, Reinhard by its own statistics, tiles without stain."""

from __future__ import annotations

import pickle
import warnings

import cv2
import numpy as np
import pytest

from lungkit import stain
from lungkit.phantom import CLASSES, draw_tile
from lungkit.stain import METHODS, TEXTBOOK, Colours, Mixture, Stains


@pytest.fixture(scope="module")
def tiles():
    """Four simulated tiles a class of twelve patients, that is twelve slides."""
    return [draw_tile(label, patient=4 * k + patient, index=0, seed=8).image
            for k, label in enumerate(CLASSES) for patient in range(4)]


@pytest.fixture(scope="module")
def white(tiles):
    return [stain.balance_white(tile, stain.background_light(tile)) for tile in tiles]


def normalised(method, images):
    """Each image brought to the reference of all."""
    method = METHODS[method]
    own = [method.estimate(image) for image in images]
    reference = method.reference(own)
    return [method.normalise(image, one, reference)
            for image, one in zip(images, own, strict=True)], own, reference


def blue(image):
    """Densities of haematoxylin alone: every pixel on one line but for noise."""
    grey = -np.log(np.maximum(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1) / 255.0)
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    return np.uint8(np.clip(255 * np.exp(-grey[..., None] * (1.0, 1.2, 0.05)) + noise, 0, 255))


# ------------------------------------------------------------------ torchstain

def torchstain_normalise(backend, image, target):
    """torchstain's own fit and normalise; without a target its built-in reference."""
    if backend == "numpy":
        from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer as Normalizer

        def given(pixels):
            return pixels
    else:
        import torch
        from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer as Normalizer

        def given(pixels):
            return torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = Normalizer()
    if target is not None:
        theirs.fit(given(target))
    return np.asarray(theirs.normalize(given(image), stains=False)[0]).astype(int), theirs


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("fitted", [False, True], ids=["built-in", "fitted"])
def test_macenko_agrees_with_torchstain_to_one_grey_level(tiles, backend, fitted):
    """With the textbook's conventions; theirs cuts off where ours rounds: hence one level."""
    def estimate(image):
        density = stain.optical_density(image, TEXTBOOK).reshape(-1, 3)
        return stain.estimate_stains(density, TEXTBOOK)

    target = tiles[1] if fitted else None
    for image in tiles[2:]:
        expected, theirs = torchstain_normalise(backend, image, target)
        reference = estimate(target) if fitted else Stains(np.asarray(theirs.HERef),
                                                           np.asarray(theirs.maxCRef))
        ours = stain.normalise_stains(image, estimate(image), reference, TEXTBOOK)
        assert np.abs(ours.astype(int) - expected).max() <= 1
        assert np.abs(ours.astype(int) - image).mean() > 5  # there was something to do


def test_our_default_is_not_the_textbook(white):
    """Pure eosin leaves red light alone: asked of every channel, most pink pixels are lost."""
    kept = {"ours": [], "textbook": []}
    for image in white:
        density = stain.optical_density(image).reshape(-1, 3)
        kept["ours"].append((density.mean(1) > stain.OD_BETA).mean())
        kept["textbook"].append((density.min(1) > stain.OD_BETA).mean())
    assert np.mean(kept["textbook"]) < 0.75 * np.mean(kept["ours"])


# ------------------------------------------------------------------ every method

def spread_of_colour(images):
    """Standard deviation of mean tissue colours [3] over images, averaged: grey levels."""
    return np.mean(np.std([image[stain.tissue_mask(image)].mean(0) for image in images], axis=0))


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_slides_look_alike_afterwards_and_keep_their_structure(white, method):
    moved, own, reference = normalised(method, white)
    assert all(own) and all(stain.shortfall(one, reference) is None for one in own)
    # what is left is tissue: a tile of nuclei is bluer than one of stroma, on any slide
    assert spread_of_colour(moved) < 0.8 * spread_of_colour(white)
    for before, after in zip(white, moved, strict=True):
        assert after.dtype == np.uint8 and after.shape == before.shape
        pair = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).ravel() for image in (before, after)]
        assert np.corrcoef(pair)[0, 1] > 0.93
        glass = before.min(2) > 252
        if glass.sum() > 200:
            assert after[glass].min() > 235  # glass is not stained


def test_none_changes_nothing_and_measures_nothing(white):
    moved, own, reference = normalised("none", white)
    assert own == [None] * len(white) and reference is None
    assert all(a is b for a, b in zip(white, moved, strict=True))
    assert stain.describe(reference) is None


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (17, 31), (225, 223)])
def test_no_tile_is_too_odd(white, method, shape):
    rng = np.random.default_rng(0)
    method = METHODS[method]
    reference = method.reference([method.estimate(image) for image in white])
    odd = [np.full((*shape, 3), level, np.uint8) for level in (0, 128, 254, 255)]
    odd += [np.full((*shape, 3), (200, 120, 180), np.uint8),
            rng.integers(0, 256, (*shape, 3), dtype=np.uint8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a division by 0 or a mean of nothing
        for image in odd:
            own = method.estimate(image)
            moved = method.normalise(image, own, reference)
            assert moved.dtype == np.uint8 and moved.shape == image.shape
            if own is None:
                np.testing.assert_array_equal(moved, image)
                assert stain.shortfall(own, reference) is not None
            assert method.normalise(image, own, None) is image


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_white_constant_and_nearly_white_tiles_are_unchanged_and_counted(white, method):
    rng = np.random.default_rng(0)
    speck = np.full((64, 64, 3), 250, np.uint8)
    speck[:8, :8] = 90
    grain = np.uint8(np.clip(rng.normal(250, 2, (64, 64, 3)), 0, 255))
    method = METHODS[method]
    reference = method.reference([method.estimate(image) for image in white])
    for image in (np.full((64, 64, 3), 255, np.uint8), speck, grain):
        own = method.estimate(image)
        assert own is None and method.normalise(image, own, reference) is image
        assert "too little" in stain.shortfall(own, reference)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_what_is_measured_crosses_processes_and_is_small(white, method):
    for image in (white[0], blue(white[5])):
        own = METHODS[method].estimate(image)
        again = pickle.loads(pickle.dumps(own))
        assert len(pickle.dumps(own)) < 8000
        reference = METHODS[method].estimate(white[3])
        np.testing.assert_array_equal(METHODS[method].normalise(image, own, reference),
                                      METHODS[method].normalise(image, again, reference))


@pytest.mark.parametrize(("method", "kind"), [("macenko", Stains), ("reinhard", Colours)])
def test_a_reference_is_the_median_and_ignores_what_failed(white, method, kind):
    own = [METHODS[method].estimate(image) for image in white[:3]]
    reference = METHODS[method].reference([None, *own, Mixture(np.ones((3, 9), np.float16))]
                                          if method == "macenko" else [None, *own])
    assert isinstance(reference, kind)
    last = list(vars(reference))[-1]
    np.testing.assert_allclose(getattr(reference, last),
                               np.median([getattr(one, last) for one in own], axis=0))
    assert METHODS[method].reference([None, None]) is None
    assert METHODS[method].reference([]) is None
    assert stain.describe(reference)[last] == np.round(getattr(reference, last), 4).tolist()


# ------------------------------------------------------------------ one stain

def test_a_tile_of_one_blue_moves_to_the_stains_of_the_others(white):
    """What Macenko cannot take apart is taken apart by the reference's stains."""
    method = METHODS["macenko"]
    reference = method.reference([method.estimate(image) for image in white])
    image = blue(white[5])
    own = method.estimate(image)
    assert isinstance(own, Mixture) and "taken apart" in stain.shortfall(own, reference)
    assert stain.estimate_stains(stain.optical_density(image).reshape(-1, 3)) is None
    moved = method.normalise(image, own, reference)

    def colour_of_no_stain(pixels):
        density = stain.optical_density(pixels)[stain.tissue_mask(pixels)].mean(0)
        density = density / np.linalg.norm(density)
        return abs(density @ np.cross(*reference.matrix.T))

    assert colour_of_no_stain(moved) < 0.2 * colour_of_no_stain(image)
    dark = [stain.optical_density(pixels).mean(2).ravel() for pixels in (image, moved)]
    assert np.corrcoef(dark)[0, 1] > 0.98
    # the strongest stain gets the reference's strength, as far as it may be amplified
    strength = np.percentile(stain.optical_density(moved).reshape(-1, 3)
                             @ np.linalg.pinv(reference.matrix).T, 99, axis=0)
    before = np.percentile(stain.optical_density(image).reshape(-1, 3)
                           @ np.linalg.pinv(reference.matrix).T, 99, axis=0)
    wanted = min(reference.strength[0], before[0] * stain.MAX_STRENGTH_RATIO)
    assert strength[0] == pytest.approx(wanted, rel=0.15)


# ------------------------------------------------------------------ Reinhard

def lab(pixels):
    """Reinhard's l, alpha, beta [N, 3] of uint8 [N, 3], written from the paper's equations."""
    red, green, blue_ = np.maximum(pixels, 1).T / 255.0
    long = np.log10(0.3811 * red + 0.5783 * green + 0.0402 * blue_)
    middle = np.log10(0.1967 * red + 0.7244 * green + 0.0782 * blue_)
    short = np.log10(0.0241 * red + 0.1288 * green + 0.8444 * blue_)
    return np.stack([(long + middle + short) / 3 ** 0.5, (long + middle - 2 * short) / 6 ** 0.5,
                     (long - middle) / 2 ** 0.5], 1)


def test_reinhard_measures_the_papers_statistics(white):
    for image in white:
        pixels = image.reshape(-1, 3)[::5]
        stained = pixels[stain.optical_density(pixels).mean(1) > stain.OD_BETA]
        own = stain.estimate_colours(image)
        np.testing.assert_allclose(own.mean, lab(stained).mean(0), atol=1e-4)
        np.testing.assert_allclose(own.spread, lab(stained).std(0), atol=1e-4)


def test_reinhard_moves_mean_and_spread_to_the_reference(white):
    reference = stain.estimate_colours(white[0])
    for image in white[1:]:
        own = stain.estimate_colours(image)
        moved = stain.normalise_colours(image, own, reference)
        dense = stain.optical_density(image).mean(2) > stain.OD_BETA
        found = lab(moved[dense])
        gap = [np.abs(one - reference.mean) for one in (own.mean, found.mean(0))]
        assert gap[1][0] < 0.02 and gap[1].sum() < 0.35 * gap[0].sum() + 0.01
        wanted = own.spread * np.clip(reference.spread / own.spread, 1 / stain.MAX_STRENGTH_RATIO,
                                      stain.MAX_STRENGTH_RATIO)
        np.testing.assert_allclose(found.std(0)[0], wanted[0], rtol=0.1)


def test_reinhard_to_itself_is_the_identity(white):
    for image in white[:4]:
        own = stain.estimate_colours(image)
        assert np.abs(stain.normalise_colours(image, own, own).astype(int) - image).max() <= 1
