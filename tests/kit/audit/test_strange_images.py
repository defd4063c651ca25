"""Outliers: how far off an image is, what is usual, and how often an ordinary one is flagged."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.audit import embedding, outliers


def some(rng, num_images, groups=None, width=16):
    """Features of ordinary images, and their groups: two images each, or as many as asked."""
    groups = groups or num_images // 2
    return rng.normal(size=(num_images, width)), np.array(
        [f"g{i % groups:03d}" for i in range(num_images)])


@pytest.mark.parametrize("neighbours", [1, 3])
def test_the_distance_is_that_to_the_kth_nearest_other_group(neighbours):
    features, groups = some(np.random.default_rng(0), 30, groups=9)
    found = outliers.apart(features, groups, neighbours)
    for i in range(30):
        away = np.linalg.norm(features - features[i], axis=1)
        of_groups = sorted(min(away[groups == name]) for name in set(groups) - {groups[i]})
        assert found.distance[i] == pytest.approx(of_groups[neighbours - 1])
        away[groups == groups[i]] = np.inf
        assert found.nearest[i] == away.argmin()


def test_images_of_its_own_group_do_not_vouch_for_an_image():
    features, groups = some(np.random.default_rng(0), 60)
    features[[0, 30]] += 40  # both of g000
    found = outliers.apart(features, groups, 1)
    p = outliers.usual(found.distance).p(found.distance)
    assert max(p[0], p[30]) < 1e-3 < np.delete(p, [0, 30]).min()


def test_as_many_strange_groups_that_are_alike_as_neighbours_are_all_found():
    features, groups = some(np.random.default_rng(0), 200)
    features[:outliers.NEIGHBOURS] = 6 + 0.01 * features[:outliers.NEIGHBOURS]
    found = outliers.apart(features, groups)
    p = outliers.usual(found.distance).p(found.distance)
    assert p[:outliers.NEIGHBOURS].max() < 0.001


def test_too_few_groups_are_refused():
    features, groups = some(np.random.default_rng(0), 20, groups=5)
    with pytest.raises(ValueError, match="5 groups, of which 5 others"):
        outliers.apart(features, groups, 5)


@pytest.mark.parametrize(("n", "planted"), [(40, 0), (200, 0), (200, 6)])
def test_of_fresh_ordinary_images_the_nominal_share_is_flagged(n, planted):
    shares = {0.01: [], 0.05: []}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features, groups = some(rng, n)
        features[:planted] += 20 * rng.normal(size=features[:planted].shape)
        fresh, of = some(rng, 500)
        usual = outliers.usual(outliers.apart(features, groups).distance)
        away = outliers.apart_from(fresh, np.char.add("new ", of), features, groups).distance
        for share, each in shares.items():
            each.append((usual.p(away) < share).mean())
    assert 0.002 < np.mean(shares[0.01]) < 0.02 and 0.025 < np.mean(shares[0.05]) < 0.075


@pytest.mark.parametrize("n", [20, 100, 300])
def test_centre_and_spread_being_estimates_flags_no_more(n):
    """Of fresh normal logarithms; the normal tail flags 3 % at n = 20."""
    rng, shares = np.random.default_rng(n), []
    for _ in range(400):
        usual = outliers.usual(np.exp(rng.normal(size=n)))
        shares.append((usual.p(np.exp(rng.normal(size=200))) < 0.01).mean())
    assert 0.008 < np.mean(shares) < 0.016


def test_where_no_image_is_strange_fewer_are_flagged_than_a_rank_would():
    features = np.random.default_rng(1).uniform(size=(300, 4))
    found = outliers.apart(features, np.arange(300).astype(str))
    inside = np.abs(features - 0.5).max(1) < 0.3  # away from the edge all are alike
    usual = outliers.usual(found.distance[inside])
    assert (usual.p(found.distance[inside]) < 0.001).sum() == 0


def test_p_and_its_distance_are_each_other_s_inverse():
    usual = outliers.Usual(1.0, 0.2, 60)
    assert usual.p(np.array([usual.distance_at(0.013)])) == pytest.approx(0.013)


def test_distances_of_nought_are_no_fault():
    usual = outliers.usual(np.r_[np.zeros(30), np.ones(2)])
    p = usual.p(np.array([0.0, 1.0]))
    assert p[0] == pytest.approx(0.5) and p[1] < 1e-6


def test_the_quantile_is_of_the_other_groups_images():
    distance, groups = np.array([1.0, 2, 3, 9]), np.array(["a", "b", "c", "c"])
    assert outliers.quantile(distance, groups).tolist() == [0, 1 / 3, 1, 1]


# ------------------------------------------------------------------ a class among the others

def classes_of(rng, num_images=80, apart=4.0):
    """Two classes whose features differ by `apart` along one direction; their levels do not."""
    found = {}
    for place, label in enumerate("ab"):
        features, groups = some(rng, num_images)
        features[:, 0] += apart * place
        found[label] = outliers.Images(features, 128 + 20 * rng.normal(size=(num_images, 15)),
                                       np.char.add(label, groups))
    return found


def test_an_image_of_another_class_is_found_by_its_label_and_shown_beside_that_class():
    classes = classes_of(np.random.default_rng(0), apart=6.0)
    classes["a"].features[7, 0] += 6
    far = classes["b"]
    classes["c"] = outliers.Images(far.features + 40, far.levels, np.char.add("c", far.groups))
    found = outliers.judge("a", classes)
    assert found.p_of["label"][7] < 1e-3 and found.p[7] < 0.01 and found.measure[7] == "label"
    name, place = found.nearest[7]
    away = np.linalg.norm(classes["b"].features - classes["a"].features[7], axis=1)
    assert (name, place) == ("b", away.argmin())
    assert all(name == "a" for (name, _), measure in zip(found.nearest, found.measure)
               if measure != "label")


def test_an_image_of_another_light_is_found_by_its_pixels():
    classes = classes_of(np.random.default_rng(0))
    classes["b"].levels[3] += 150
    found = outliers.judge("b", classes)
    assert found.p[3] < 0.01 < found.p_of["features"][3] and found.measure[3] == "pixels"


def test_what_is_less_than_a_grey_level_is_no_other_light():
    classes = classes_of(np.random.default_rng(0))
    classes["b"].levels[:, 0] = 0  # a blank corner in all of them
    classes["b"].levels[3, 0] = 0.5
    assert outliers.judge("b", classes).p_of["pixels"][3] > 0.05


def test_in_three_respects_no_more_ordinary_images_are_flagged_than_in_one():
    flagged = []
    for seed in range(25):
        classes = classes_of(np.random.default_rng(seed))
        flagged += [(outliers.judge(label, classes).p < 0.05).mean() for label in classes]
    assert 0.02 < np.mean(flagged) < 0.06


def test_the_label_is_not_doubted_where_another_class_has_too_few_images():
    classes = classes_of(np.random.default_rng(0))
    few = outliers.Images(*(each[:5] for each in vars(classes["b"]).values()))
    found = outliers.judge("a", {**classes, "c": few})
    assert list(found.p_of) == ["features", "pixels"] and not few.is_enough(5)


def test_levels_are_of_every_channel():
    image = np.zeros((10, 10, 2), np.uint8)
    image[..., 1] = np.arange(100).reshape(10, 10)
    assert outliers.levels(image).reshape(5, 2).T.tolist() == [
        [0] * 5, pytest.approx([4.95, 24.75, 49.5, 74.25, 94.05])]


# ------------------------------------------------------------------ the embeddings

def test_images_are_drawn_where_they_hide_none_and_flagged_ones_first():
    at = np.array([[0.5, 0.5], [0.51, 0.5], [0.9, 0.5], [0.52, 0.5]])
    assert embedding.shown_whole(at, np.array([False] * 4), 0.1) == [0, 2]
    assert embedding.shown_whole(at, np.array([False, False, False, True]), 0.1) == [3, 2]


def test_two_kinds_of_images_are_apart_in_both_embeddings_and_a_seed_gives_the_same():
    rng = np.random.default_rng(0)
    features = np.r_[rng.normal(size=(12, 8)), 9 + rng.normal(size=(12, 8))]
    placed, again = embedding.place(features, 3), embedding.place(features, 3)
    for name, at in placed.items():
        assert at.shape == (24, 2) and np.array_equal(at, again[name])
        ends = at[:12].mean(0), at[12:].mean(0)
        between = np.linalg.norm(ends[0] - ends[1])
        assert between > 2 * max(np.linalg.norm(at[:12] - ends[0], axis=1).max() / 2,
                                 np.linalg.norm(at[12:] - ends[1], axis=1).max() / 2)
