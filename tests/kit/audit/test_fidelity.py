"""FID, KID, precision, recall, density, coverage: as others compute them, and where they point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.audit import fidelity
from lungkit.audit.fidelity import Compared, measure


def features(seed, num=60, width=16, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, 1.0, (num, width)) @ rng.normal(size=(width, width)) * 0.1 + 5 + shift


@pytest.fixture(scope="module", params=[(60, 60, 16), (40, 70, 100)], ids=["more", "fewer"])
def pair(request):
    """Reference and candidate, more or fewer images than features."""
    num, other, width = request.param
    return features(0, num, width), features(1, other, width, shift=0.2)


def test_fid_and_kid_are_those_of_torch_fidelity(pair):
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason="of tests/requirements.txt")
    from torch_fidelity.metric_kid import kid_features_to_metric

    reference, candidate = pair
    stats = [fid.fid_features_to_statistics(torch.from_numpy(each)) for each in pair]
    [wanted] = fid.fid_statistics_to_metric(*stats, verbose=False).values()
    compared = Compared(*pair)
    found = fidelity.frechet(*compared.parts(*compared.all()))
    assert found == pytest.approx(wanted, rel=1e-6) and wanted > 0.1

    wanted = kid_features_to_metric(*map(torch.from_numpy, pair), kid_subsets=20,
                                    kid_subset_size=25, rng_seed=2020, verbose=False)
    found = fidelity.kernel_distance(compared, *compared.all(), 25, 20,
                                     np.random.RandomState(2020))
    assert found == pytest.approx(tuple(wanted.values()), rel=1e-6) and found[1] > 0


def test_kid_is_the_mean_over_fifty_subsets_of_half_the_images(pair):
    compared, rng = Compared(*pair), np.random.default_rng(0)
    half = min(map(len, pair)) // 2
    mean, deviation = fidelity.kernel_distance(compared, *compared.all(), half, 50, rng)
    found = measure(*pair)
    assert (found.values["kid"], found.deviation) == (mean, deviation)


def test_overlaps_are_those_of_naeem_and_others():
    prdc = pytest.importorskip("prdc", reason="of tests/requirements.txt")

    both = features(2, 110)
    pair = both[:50], both[50:] + 0.02
    compared = Compared(*pair)
    found = fidelity.overlaps(*compared.parts(*compared.all()))
    wanted = prdc.compute_prdc(*pair, nearest_k=5)
    assert found == pytest.approx({name: float(wanted[name]) for name in found}, abs=1e-12)
    assert found.keys() == {"precision", "recall", "density", "coverage"}
    assert all(0 < value < 1 for name, value in found.items() if name != "density")


def test_a_part_is_measured_as_if_it_were_all(pair):
    reference, candidate = pair
    some, others = np.arange(5, 35, 2), np.arange(3, 40, 3)
    parts = Compared(*pair).parts(some, others)
    alone = Compared(reference[some], candidate[others])
    assert fidelity.frechet(*parts) == pytest.approx(
        fidelity.frechet(*alone.parts(*alone.all())), rel=1e-9)


def test_every_number_points_where_it_should():
    """The same distribution, a shifted one, and one that has lost half of its kinds."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 300) * 6.0
    real, same = (rng.normal(size=(150, 8)) + part[:, None]
                  for part in (kinds[:150], kinds[150:]))
    shifted, half = same + 3, rng.normal(size=(150, 8))
    found = {name: measure(real, each).values
             for name, each in (("same", same), ("shifted", shifted), ("half", half))}
    for name in ("fid", "kid"):
        assert found["same"][name] < found["half"][name]
        assert found["same"][name] < found["shifted"][name]
    assert abs(found["same"]["kid"]) < 0.1 * found["shifted"]["kid"]
    assert found["half"]["precision"] > 0.8 and found["half"]["recall"] < 0.6
    assert found["half"]["coverage"] < 0.6 < found["same"]["coverage"]
    assert found["shifted"]["density"] < 0.1 < found["same"]["density"]


def test_intervals_hold_the_truth_as_often_as_they_say_and_go_by_group(monkeypatch):
    """KID of 40 pairs of sets of one distribution, whose truth is 0; groups of three are alike."""
    monkeypatch.setattr(fidelity, "HALVES", 40)
    hits, widths = 0, {"group": [], "image": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pair = [np.repeat(rng.normal(size=(12, 6)), 3, 0) + 0.3 * rng.normal(size=(36, 6))
                for _ in range(2)]
        ways = {"group": np.arange(36) // 3, "image": np.arange(36)}
        for by, groups in list(ways.items())[:2 if seed < 10 else 1]:
            low, high = measure(*pair, groups.astype(str), groups.astype(str),
                                seed=seed).intervals["kid"]
            hits += by == "group" and low <= 0 <= high
            widths[by].append(high - low)
    assert hits >= 34 and np.mean(widths["group"]) > 1.3 * np.mean(widths["image"])


def test_shares_stay_between_0_and_1_and_few_groups_have_no_interval():
    real, other = features(0), features(0) + 1e-9
    groups = np.arange(60).astype(str)
    found = measure(real, other, groups, groups).intervals
    assert all(0 <= low <= high <= 1 for name, (low, high) in found.items()
               if name in ("precision", "recall", "coverage"))
    assert measure(real, other, np.array(["a", "b", "c"] * 20), groups).intervals is None
    assert measure(real, other).intervals is None


def test_a_share_is_resampled_by_group():
    right = np.repeat([True, False], 30)
    by_image = fidelity.mean_of(right, np.arange(60).astype(str))
    by_group = fidelity.mean_of(right, (np.arange(60) // 10).astype(str))
    assert by_image["value"] == by_group["value"] == 0.5
    assert by_group["high"] - by_group["low"] > 2 * (by_image["high"] - by_image["low"])
    assert fidelity.mean_of(right, (np.arange(60) // 30).astype(str))["low"] is None


# ------------------------------------------------------------------ membership

def draw(rng, number, groups, name):
    """Features of so many images of so many groups, which differ, and the groups."""
    own = np.arange(number) % groups
    return (rng.normal(0, 1, (groups, 8))[own] + rng.normal(0, 1, (number, 8)),
            np.array([f"{name}{each}" for each in own]))


def told(generated, members, others):
    return fidelity.membership(*({"a": (fidelity.nearest(generated, features), groups)}
                                 for features, groups in (members, others)))


def test_an_independent_draw_holds_a_half_and_a_copier_is_told():
    rng, held = np.random.default_rng(0), 0
    for _ in range(30):
        members, others = draw(rng, 60, 20, "m"), draw(rng, 40, 14, "o")
        said = told(draw(rng, 60, 30, "g")[0], members, others)
        held += said["low"] <= 0.5 <= said["high"]
        assert 0 < said["low"] < said["auroc"] < said["high"] < 1
        assert (said["num_members"], said["num_others"]) == (60, 40)
    assert held >= 26
    copier = told(members[0] + rng.normal(0, 0.1, members[0].shape), members, others)
    assert copier["auroc"] > 0.99 and copier["low"] > 0.97


def test_the_membership_is_resampled_by_group():
    rng = np.random.default_rng(1)
    near, far = (np.repeat(rng.normal(size=12), 5) for _ in range(2))
    one, many = (fidelity.membership({"a": (near, np.arange(60) // size)},
                                     {"a": (far, np.arange(60) // size)}) for size in (1, 5))
    assert one["auroc"] == many["auroc"]
    assert many["high"] - many["low"] > 1.5 * (one["high"] - one["low"])


def test_members_and_others_are_resampled_each_by_itself():
    """Of two sides that are the same one draw for both would say 0.5 every time."""
    side = {"a": (np.arange(12.0), np.arange(12))}
    said = fidelity.membership(side, side)
    assert said["low"] < 0.4 and said["auroc"] == 0.5 and said["high"] > 0.6


def test_members_are_compared_with_others_of_their_class_by_the_distance_alone():
    near, far = (np.array([[0.0, 3], [0, 9]]), np.array(["g", "h"])), np.array([[0.0, 4]])
    assert fidelity.nearest(np.zeros((1, 2)), near[0]) == pytest.approx([3, 9])
    sides = ({"a": (fidelity.nearest(np.zeros((1, 2)), near[0]), near[1]),
              "b": (np.array([100.0]), np.array(["i"]))},
             {"a": (fidelity.nearest(np.zeros((1, 2)), far), np.array(["k"])),
              "b": (np.array([100.0]), np.array(["l"]))})
    said = fidelity.membership(*sides)
    assert said["auroc"] == pytest.approx((1 + 0 + 0.5) / 3)  # 3 < 4, 9 > 4, and a tie
    assert said["low"] is said["high"] is None


def test_a_mean_leaves_out_what_could_not_be_measured_and_is_resampled_by_group():
    values = np.array([1.0, 2, np.nan, 3, 4] * 4)
    by_image = fidelity.mean_of(values, np.arange(20).astype(str))
    by_group = fidelity.mean_of(values, np.array([*"abcde"] * 4))
    assert by_image["value"] == by_group["value"] == 2.5
    assert by_group["high"] - by_group["low"] > 1.5 * (by_image["high"] - by_image["low"])
    assert fidelity.mean_of(np.array([np.nan]), np.array(["a"])) == {
        "value": None, "low": None, "high": None}
