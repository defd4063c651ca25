"""Fragments: measured as their features say, joined the likeliest first, by the fitted weights."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lungkit.nuclei import fragments
from lungkit.nuclei.fragments import (
    BORDER,
    FEATURES,
    LENGTH,
    SADDLE,
    features,
    find_touching,
    hull_areas,
    hulls_of,
    join_fragments,
    join_pairs,
    log_odds,
    measure_regions,
    rewire,
)

PX_PER_UM = 2.0


def two_bars() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regions of 10 x 20 and 10 x 10 px side by side (rows x columns), their height and stain."""
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 2:22], labels[5:15, 22:32] = 1, 2
    height = np.where(labels == 1, 4.0, 3.0).astype(np.float32) * (labels > 0)
    height[:, 21], height[:, 22] = 2.0, 2.5
    stain = np.where(labels == 1, 1.0, 0.5).astype(np.float32) * (labels > 0)
    return labels, height, stain


def test_features_of_a_pair_are_those_that_their_names_say():
    labels, height, stain = two_bars()
    pairs, edges = find_touching(labels, height, stain)
    assert pairs.tolist() == [[1, 2]]
    assert edges[0, [LENGTH, BORDER, SADDLE]].tolist() == [10, 7.5, 2.0]
    found = dict(zip(FEATURES, features(pairs, edges, *measure_regions(labels, height, stain),
                                        PX_PER_UM)[0]))
    mean = (200 * 1.0 + 100 * 0.5) / 300
    variance = (200 * 1.0 + 100 * 0.25) / 300 - mean**2
    expected = {
        "union_solidity": 1, "union_ellipticity": 3 / np.pi, "union_log_elongation": np.log(3),
        "union_log_area_um2": np.log(300 / 4), "smaller_log_area_um2": np.log(100 / 4),
        "log_area_ratio": np.log(2), "saddle": 2.0 / 3.0, "log_neck": 0, "stain_step": 0.5 / mean,
        "border_stain": 0.75 / 0.5 - 1, "stain_between": 2 / 9 * 0.25 / variance,
        "solidity_loss": 0, "ellipticity_loss": 0, "distance_um": 15 / PX_PER_UM,
        "stain_variation": np.sqrt(variance) / mean}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_losses_are_those_of_the_worse_of_the_two():
    labels = np.zeros((40, 40), np.int32)
    labels[5:25, 5:15] = 1
    labels[25:35, 5:15], labels[15:35, 15:20] = 2, 2  # an L around the bar's corner
    even = (labels > 0).astype(np.float32)
    sums, peaks, hulls = measure_regions(labels, even, even)
    solidity = sums[1:, 0] / hull_areas(hulls)[1:]
    pairs, edges = find_touching(labels, even, even)
    found = dict(zip(FEATURES, features(pairs, edges, sums, peaks, hulls, PX_PER_UM)[0]))
    assert solidity[1] < solidity[0] == 1
    assert found["solidity_loss"] == pytest.approx(solidity[1] - found["union_solidity"])


def test_hulls_hold_the_pixels_of_the_digital_hull():
    from skimage.morphology import convex_hull_image

    rng = np.random.default_rng(0)
    labels = np.zeros((30, 90), np.int32)
    for number in range(1, 4):
        spot = rng.random((18, 20)) < 0.3
        labels[5:23, 30 * number - 25:30 * number - 5] = np.where(spot, number, 0)
    labels[0, 0] = 4
    found = hull_areas(hulls_of(labels))
    for number in range(1, 5):
        inside = convex_hull_image(labels == number, offset_coordinates=False) if number < 4 else 1
        assert found[number] == np.sum(inside)
    assert found[0] == 0


def test_joined_regions_keep_their_sums_and_the_greater_height():
    labels, height, stain = two_bars()
    sums, peaks, hulls = measure_regions(labels, height, stain)
    whole, top, hull = measure_regions(np.minimum(labels, 1), height, stain)
    assert join_pairs(np.array([[1, 2]]), sums, peaks, hulls).tolist() == [0, 1, 1]
    np.testing.assert_allclose(sums[1], whole[1])
    assert peaks[1] == top[1] == 4.0
    assert hull_areas([hulls[1]]) == hull_areas([hull[1]]) == 300


def test_borders_that_fall_together_add_and_the_highest_saddle_stays():
    pairs = np.array([[1, 2], [1, 3], [1, 5], [2, 3], [2, 6], [3, 4], [5, 6]])
    edges = np.array([[4, 2.0, 0.9], [3, 1.5, 0.2], [6, 3.0, 0.1], [5, 1.0, 0.7], [7, 2.0, 0.8],
                      [2, 1.0, 0.4], [1, 0.5, 0.3]])
    score = np.array([2.0, -1.0, -2.0, -3.0, -3.5, -4.0, -5.0])
    after, borders, scores = rewire(pairs, edges, score, np.array([0, 1, 1, 3, 4, 5, 6]))
    assert after.tolist() == [[1, 3], [1, 5], [1, 6], [3, 4], [5, 6]]
    np.testing.assert_allclose(borders, [[8, 2.5, 0.7], [6, 3.0, 0.1], [7, 2.0, 0.8],
                                         [2, 1.0, 0.4], [1, 0.5, 0.3]])
    assert np.isnan(scores[:3]).all() and scores[3:].tolist() == [-4.0, -5.0]


def chain(widths: list[int]) -> np.ndarray:
    labels = np.zeros((12, sum(widths) + 4), np.int32)
    ends = np.cumsum([2, *widths])
    for number, (start, end) in enumerate(zip(ends[:-1], ends[1:]), start=1):
        labels[2:10, start:end] = number
    return labels


@pytest.mark.parametrize(("odds", "expected"), [
    ({8: 5.0, 7: 1.0}, [1, 1, 3]),   # the first two are likelier; their union joins nothing more
    ({8: 1.0, 7: 5.0}, [1, 2, 2]),
    ({8: 0.2, 7: 0.1}, [1, 2, 3]),   # below the threshold of 0.3
    ({8: 0.3, 7: 0.1}, [1, 1, 3])])
def test_the_likeliest_pair_is_joined_first_and_the_union_judged_anew(monkeypatch, odds, expected):
    """Regions 9, 8 and 7 px wide: a pair is known by its smaller width; a union gets -9."""
    labels = chain([9, 8, 7])

    def told(measured):
        union = np.exp(measured[:, FEATURES.index("union_log_area_um2")]) / 8
        small = np.exp(measured[:, FEATURES.index("smaller_log_area_um2")]) / 8
        return np.array([odds[round(s)] if u < 18 else -9.0 for u, s in zip(union, small)])

    monkeypatch.setattr(fragments, "log_odds", told)
    even = (labels > 0).astype(np.float32)
    joined = join_fragments(labels, even, even, 1.0)
    assert [joined[5, column] for column in (4, 14, 22)] == expected


def odds_of(**changed: float) -> float:
    values = dict(zip(FEATURES, json.loads(fragments.WEIGHTS_PATH.read_text())["mean"])) | changed
    return float(log_odds(np.array([[values[name] for name in FEATURES]]))[0])


def test_a_deep_neck_or_a_round_union_without_one_settles_it():
    round_union = {"union_solidity": 0.96, "union_ellipticity": 0.95, "union_log_elongation": 0.1}
    assert odds_of(saddle=0.59) == odds_of(saddle=0.59, **round_union) == -np.inf
    assert odds_of(saddle=0.95, **round_union) == np.inf
    for other in ({"saddle": 0.89}, {"union_solidity": 0.93}, {"union_ellipticity": 0.93},
                  {"union_log_elongation": 0.3}):
        assert np.isfinite(odds_of(**{"saddle": 0.95, **round_union, **other})), other


def test_the_network_is_two_rectified_layers_on_standardised_features(monkeypatch):
    mean, scale = np.arange(15.0), np.arange(1.0, 16.0)
    first = np.zeros((15, 2)), np.array([0.5, -1.0])
    first[0][0], first[0][1] = (1, -1), (2, 0)
    second = np.array([[1.0, -1.0], [3.0, 1.0]]), np.array([0.0, 0.25])
    last = np.array([[2.0], [-1.0]]), np.array([0.125])
    monkeypatch.setattr(fragments, "_weights", lambda: (mean, scale, first, second, last))
    measured = mean + scale * np.array([[1.0, -0.5, *[0] * 13], [-3.0, 0, *[0] * 13]])
    measured[:, FEATURES.index("saddle")] = 0.7  # its weights are 0
    # [1 - 1 + .5, -1 - 1] -> [.5, 0] -> [.5, -.25] -> [.5, 0] -> 1.125;
    # [-2.5, 2] -> [6, 2.25] -> 9.875
    np.testing.assert_allclose(log_odds(measured), [1.125, 9.875])


def test_weights_of_other_features_are_refused(tmp_path, monkeypatch):
    stored = json.loads(fragments.WEIGHTS_PATH.read_text())
    stored["features"][:2] = stored["features"][1::-1]
    (tmp_path / "other.json").write_text(json.dumps(stored))
    monkeypatch.setattr(fragments, "WEIGHTS_PATH", tmp_path / "other.json")
    with pytest.raises(ValueError, match="other features: fit it anew"):
        fragments._weights.__wrapped__()
