"""Stain methods: Macenko beside torchstain, Reinhard by its own statistics, tiles without stain."""

from __future__ import annotations

import pickle
import warnings

import cv2
import numpy as np
import pytest

from lungkit.histology import background, reinhard, stain
from lungkit.histology.density import MAX_STRENGTH_RATIO, OD_BETA, TEXTBOOK, optical_density
from lungkit.histology.reinhard import Colours
from lungkit.histology.stain import METHODS, Mixture, Stains
from lungkit.phantom.paint import CLASSES, draw_tile


@pytest.fixture(scope="module")
def tiles():
    """Four simulated tiles a class of twelve patients, that is twelve slides."""
    return [draw_tile(label, patient=4 * k + patient, index=0, seed=8).image
            for k, label in enumerate(CLASSES) for patient in range(4)]


@pytest.fixture(scope="module")
def white(tiles):
    return [background.balance_white(tile, background.background_light(tile)) for tile in tiles]


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
        density = optical_density(image, TEXTBOOK).reshape(-1, 3)
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
        density = optical_density(image).reshape(-1, 3)
        kept["ours"].append((density.mean(1) > OD_BETA).mean())
        kept["textbook"].append((density.min(1) > OD_BETA).mean())
    assert np.mean(kept["textbook"]) < 0.75 * np.mean(kept["ours"])


# ------------------------------------------------------------------ every method

def spread_of_colour(images):
    """Standard deviation of mean tissue colours [3] over images, averaged: grey levels."""
    return np.mean(np.std([image[background.tissue_mask(image)].mean(0)
                           for image in images], axis=0))


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
    assert stain.estimate_stains(optical_density(image).reshape(-1, 3)) is None
    moved = method.normalise(image, own, reference)

    def colour_of_no_stain(pixels):
        density = optical_density(pixels)[background.tissue_mask(pixels)].mean(0)
        density = density / np.linalg.norm(density)
        return abs(density @ np.cross(*reference.matrix.T))

    assert colour_of_no_stain(moved) < 0.2 * colour_of_no_stain(image)
    dark = [optical_density(pixels).mean(2).ravel() for pixels in (image, moved)]
    assert np.corrcoef(dark)[0, 1] > 0.98
    # the strongest stain gets the reference's strength, as far as it may be amplified
    strength = np.percentile(optical_density(moved).reshape(-1, 3)
                             @ np.linalg.pinv(reference.matrix).T, 99, axis=0)
    before = np.percentile(optical_density(image).reshape(-1, 3)
                           @ np.linalg.pinv(reference.matrix).T, 99, axis=0)
    wanted = min(reference.strength[0], before[0] * MAX_STRENGTH_RATIO)
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
        stained = pixels[optical_density(pixels).mean(1) > OD_BETA]
        own = reinhard.estimate_colours(image)
        np.testing.assert_allclose(own.mean, lab(stained).mean(0), atol=1e-4)
        np.testing.assert_allclose(own.spread, lab(stained).std(0), atol=1e-4)


def test_reinhard_moves_mean_and_spread_to_the_reference(white):
    reference = reinhard.estimate_colours(white[0])
    for image in white[1:]:
        own = reinhard.estimate_colours(image)
        moved = reinhard.normalise_colours(image, own, reference)
        dense = optical_density(image).mean(2) > OD_BETA
        found = lab(moved[dense])
        gap = [np.abs(one - reference.mean) for one in (own.mean, found.mean(0))]
        assert gap[1][0] < 0.02 and gap[1].sum() < 0.35 * gap[0].sum() + 0.01
        wanted = own.spread * np.clip(reference.spread / own.spread, 1 / MAX_STRENGTH_RATIO,
                                      MAX_STRENGTH_RATIO)
        np.testing.assert_allclose(found.std(0)[0], wanted[0], rtol=0.1)


def test_reinhard_to_itself_is_the_identity(white):
    for image in white[:4]:
        own = reinhard.estimate_colours(image)
        assert np.abs(reinhard.normalise_colours(image, own, own).astype(int) - image).max() <= 1


# ------------------------------------------------------------------ rules, figure by figure

def test_optical_density_is_the_natural_logarithm_of_light_over_level():
    levels = np.array([[[255, 128, 1], [0, 94, 255]]], np.uint8)
    expected = [[[0, np.log(255 / 128), np.log(255)], [np.log(255), np.log(255 / 94), 0]]]
    np.testing.assert_allclose(optical_density(levels), expected, atol=1e-6)
    np.testing.assert_allclose(optical_density(levels[0]), expected[0], atol=1e-6)
    np.testing.assert_allclose(optical_density(levels, TEXTBOOK)[0, 1, 0], np.log(240),
                               atol=1e-6)


@pytest.mark.parametrize("colour, is_light", [
    ((230, 225, 235), True), ((205, 205, 205), True), ((202, 202, 202), False),
    ((235, 221, 236), True), ((235, 205, 236), False),   # green is weakest: pale eosin
    ((255, 250, 172), True), ((255, 255, 168), False),   # too far from grey
    ((160, 240, 240), False)])
def test_background_is_bright_greyish_and_not_pink(colour, is_light):
    image = np.full((40, 40, 3), colour, np.uint8)
    expected = colour if is_light else (255, 255, 255)
    np.testing.assert_array_equal(background.background_light(image), expected)


def test_background_is_the_brightest_of_what_is_bright_and_needs_a_hundredth_of_the_image():
    image = np.full((200, 200, 3), 120, np.uint8)
    image[:60], image[60:140] = 240, 215
    np.testing.assert_array_equal(background.background_light(image), 240)
    image[:] = 120
    image[:26, :26] = 240
    np.testing.assert_array_equal(background.background_light(image), 240)
    image[14:] = 120
    np.testing.assert_array_equal(background.background_light(image), 255)


def test_balancing_divides_each_channel_by_its_own_light():
    image = np.array([[[200, 250, 100], [40, 100, 80], [220, 97, 0]]], np.uint8)
    found = background.balance_white(image, np.array([200.0, 250.0, 100.0]))
    assert found.tolist() == [[[255, 255, 255], [51, 102, 204], [255, 99, 0]]]


@pytest.mark.parametrize("colour, is_tissue", [
    ((195, 195, 195), True), ((233, 233, 233), False),    # densities 0.27 and 0.09
    ((255, 215, 250), True), ((255, 243, 252), False)])   # differences of colour 0.16 and 0.05
def test_an_even_tile_is_all_tissue_or_none(colour, is_tissue):
    mask = background.tissue_mask(np.full((64, 64, 3), colour, np.uint8))
    assert mask.all() if is_tissue else not mask.any()


@pytest.mark.parametrize("channels", [(1, 1, 1), (0, 1, 0)])  # ever darker; ever more coloured
def test_pale_tissue_beside_dark_tissue_is_tissue(channels):
    amount = np.linspace(60, 200, 64)[:, None] * channels
    image = np.uint8(255 - np.tile(amount, (64, 1, 1)))
    assert background.tissue_mask(image).all()


def test_tissue_of_grey_is_what_is_bright_on_dark():
    image = np.full((64, 64), 10, np.uint8)
    image[20:40, 20:40] = 200
    mask = background.tissue_mask(image)
    assert mask[22:38, 22:38].all() and mask.sum() < 500


def test_a_hot_pixel_does_not_set_the_contrast_and_a_gap_between_nuclei_stays():
    values = np.full((64, 64), 100, np.uint16)
    values[20:44, 20:44] = 1000
    values[:, 32] = 100
    values[5, 5] = 65535
    image, bright = background.enhance_grey(values)
    assert not bright and image[5, 5] == 0 and image[30, 25] == 255 and image[30, 32] == 0


def pixels_of(matrix, amounts):
    """uint8 [N, 3] of densities matrix [3, 2] @ amounts [2, N]."""
    return np.uint8(np.clip(255 * np.exp(-(matrix @ amounts).T) + 0.5, 0, 255))


def two_stains(degrees, strength=(1.2, 1.2), count=4000):
    """Unit columns so far apart, haematoxylin first, and amounts of which some are pure."""
    first = np.array([0.62, 0.70, 0.35]) / np.linalg.norm([0.62, 0.70, 0.35])
    across = np.cross(np.cross(first, [0.1, 0.95, 0.25]), first)
    across /= np.linalg.norm(across)
    second = np.cos(np.radians(degrees)) * first + np.sin(np.radians(degrees)) * across
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.4, 1, (2, count)) * np.array(strength)[:, None]
    kind = rng.integers(0, 3, count)
    amounts[0, kind == 1], amounts[1, kind == 2] = 0, 0
    return np.stack([first, second], 1), amounts


@pytest.mark.parametrize("degrees, kind", [(9, Mixture), (16, Stains), (30, Stains)])
def test_stains_closer_than_12_degrees_are_a_mixture(degrees, kind):
    matrix, amounts = two_stains(degrees)
    found = stain.estimate_macenko(pixels_of(matrix, amounts))
    assert isinstance(found, kind)
    if kind is Stains:  # haematoxylin, which absorbs more red, is the first column; unit columns
        np.testing.assert_allclose(found.matrix, matrix, atol=0.03)
        np.testing.assert_allclose(np.linalg.norm(found.matrix, axis=0), 1)


def test_the_order_of_the_stains_does_not_depend_on_their_amounts():
    for strength in ((1.5, 0.7), (0.7, 1.5)):
        matrix, amounts = two_stains(30, strength)
        found = stain.estimate_macenko(pixels_of(matrix, amounts))
        assert found.matrix[0, 0] > found.matrix[0, 1]
        np.testing.assert_allclose(found.strength, strength, rtol=0.05)


def test_a_strength_is_the_99th_percentile_of_stained_pixels_and_air_changes_nothing():
    matrix, amounts = two_stains(30)
    pixels = pixels_of(matrix, amounts)
    alone = stain.estimate_stains(optical_density(pixels))
    air = np.full((6000, 3), 250, np.uint8)
    beside = stain.estimate_stains(optical_density(np.concatenate([pixels, air])))
    np.testing.assert_allclose(beside.strength, alone.strength, rtol=1e-5)
    np.testing.assert_allclose(beside.matrix, alone.matrix, atol=1e-5)
    np.testing.assert_allclose(stain._strength(matrix @ amounts, matrix),
                               np.percentile(amounts, 99, axis=1), rtol=1e-4)


@pytest.mark.parametrize("stained, of, measured", [
    (99, 1000, False), (101, 1000, True), (190, 10_000, False), (210, 10_000, True)])
def test_stain_is_measured_on_a_fiftieth_and_on_100_pixels_at_least(stained, of, measured):
    matrix, amounts = two_stains(30, count=stained)
    pixels = np.full((of, 3), 252, np.uint8)
    pixels[:stained] = pixels_of(matrix, amounts)
    assert (stain.estimate_macenko(pixels) is not None) == measured
    assert (reinhard.estimate_colours(pixels) is not None) == measured


@pytest.mark.parametrize("wanted, got", [(1.3, 1.3), (3.0, 1.6), (0.8, 0.8), (0.2, 1 / 1.6)])
def test_a_stain_is_made_at_most_16_times_stronger_or_weaker(wanted, got):
    matrix, _ = two_stains(30)
    own, reference = (Stains(matrix, np.array([1.0, 1.0])),
                      Stains(matrix, np.array([wanted, 1.0])))
    image = pixels_of(matrix, np.array([[0.8, 0.0, 0.3], [0.0, 0.8, 0.5]]))[None]
    expected = pixels_of(matrix, np.array([[0.8 * got, 0.0, 0.3 * got], [0.0, 0.8, 0.5]]))[None]
    moved = stain.normalise_stains(image, own, reference)
    assert np.abs(moved.astype(int) - expected).max() <= 2


def test_normalising_goes_from_the_images_stains_to_the_references():
    own, _ = two_stains(25)
    reference, _ = two_stains(35)
    amounts = np.array([[0.9, 0.0, 0.4], [0.0, 0.9, 0.4]])
    ones = np.array([1.0, 1.0])
    moved = stain.normalise_stains(pixels_of(own, amounts)[None], Stains(own, ones),
                                   Stains(reference, ones))
    assert np.abs(moved.astype(int) - pixels_of(reference, amounts)).max() <= 2


def test_a_reference_is_a_median_with_unit_columns_whatever_one_image_says():
    good, odd = (two_stains(degrees)[0] for degrees in (30, 60))
    own = [Stains(good, np.array([1.0, 0.8])), Stains(good, np.array([1.1, 0.9])),
           Stains(odd, np.array([9.0, 0.1]))]
    reference = METHODS["macenko"].reference(own)
    np.testing.assert_allclose(reference.matrix, good)
    np.testing.assert_allclose(reference.strength, [1.1, 0.8])
    mixed = METHODS["macenko"].reference([own[0], own[2]])
    np.testing.assert_allclose(np.linalg.norm(mixed.matrix, axis=0), 1)
    colours = [Colours(np.full(3, m), np.full(3, m / 9)) for m in (-0.3, -0.2, 5.0)]
    assert METHODS["reinhard"].reference(colours).mean.tolist() == [-0.2] * 3


def test_reinhard_leaves_glass_and_changes_spread_at_most_16_times():
    own = Colours(np.array([-0.3, 0.0, 0.02]), np.array([0.01, 0.05, 0.02]))
    shifted = Colours(own.mean + (-0.3, 0.05, 0.02), own.spread * (9, 1, 1))
    image = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(reinhard.normalise_colours(image, own, shifted), image)
    wide = Colours(own.mean, own.spread * (9, 1, 1))
    greys = np.repeat(np.uint8([[90, 110, 140]]), 3).reshape(1, 3, 3)
    moved = reinhard.normalise_colours(greys, own, wide)
    change = (lab(moved[0]) - own.mean)[:, 0] / (lab(greys[0]) - own.mean)[:, 0]
    np.testing.assert_allclose(change, 1.6, rtol=0.05)
