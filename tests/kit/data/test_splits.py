"""Groups from names and links, splits and folds: nothing linked lies on two sides, ever."""

import argparse
import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import event, given, settings, strategies as st

from lungkit.data import splits
from lungkit.formats import sources
from lungkit.formats.groups import groups_by_pattern
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault


def make_sources(*names: str) -> list[sources.Source]:
    return [sources.Source(Path("/data", name), name, name.split("/")[0]) for name in names]


# ------------------------------------------------------------------ --group-regex

def test_a_pattern_names_the_patient_across_classes():
    found = make_sources("aca/TCGA-05-4249-01A.png", "n/TCGA-05-4249-11A.png",
                         "aca/deep/TCGA-44-2655-01A.png")
    groups = groups_by_pattern("TCGA-..-....", found)
    assert list(groups.values()) == ["TCGA-05-4249", "TCGA-05-4249", "TCGA-44-2655"]
    groups = groups_by_pattern("TCGA-(..)-(....)", found)
    assert list(groups.values()) == ["05", "05", "44"]
    groups = groups_by_pattern("^[^/]+/(?:deep/)?([^/]{12})", found)  # the whole path
    assert groups == groups_by_pattern("TCGA-..-....", found)


def test_names_the_pattern_does_not_match_are_named():
    found = make_sources("aca/p1_0.png", "aca/scan.png", "n/p2_0.png")
    with pytest.raises(Fault, match=r"matches nothing in 1 of 3 names: 'aca/scan\.png'"):
        groups_by_pattern(r"p\d", found)
    with pytest.raises(Fault, match="its capture group matches nothing in 1 of 3"):
        groups_by_pattern(r"(p\d)|scan", found)
    with pytest.raises(Fault, match="in 3 of 3"):
        groups_by_pattern("q*", found)  # an empty match is no group


@pytest.mark.parametrize("pattern", ["p(", "[", "(?P<n", "*", "a{9999999999999}"])
def test_a_pattern_that_does_not_compile_is_a_bad_option(pattern):
    with pytest.raises(BadOptions, match="is not a regular expression"):
        groups_by_pattern(pattern, make_sources("aca/p1_0.png"))


# ------------------------------------------------------------------ merged groups

def test_groups_merge_through_contents_and_links_and_are_named_by_the_first():
    groups = {"a": "g4", "b": "g2", "c": "g3", "d": "g1", "e": "g5"}
    hashes = {"a": "x", "b": "x", "c": "y", "d": "z", "e": "w"}
    assert splits.merge_groups(groups, [("c", "a")], hashes=hashes) == (
        {"a": "g2", "b": "g2", "c": "g2", "d": "g1", "e": "g5"}, 2)
    assert splits.merge_groups(groups) == (groups, 0)


@st.composite
def collections(draw):
    """Groups, hashes and links of up to 60 images, and their labels."""
    n = draw(st.integers(9, 60))
    names = [f"{i:02d}" for i in range(n)]

    def drawn(values):
        return dict(zip(names, draw(st.lists(values, min_size=n, max_size=n))))

    groups = drawn(st.integers(0, n).map("g{}".format))
    hashes = drawn(st.integers(0, 3 * n).map("h{}".format))
    labels = {name: "ab"[i % 2] for i, name in enumerate(names)}
    links = draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=12))
    return groups, hashes, links, labels


@given(collections(), st.integers(0, 5), st.sampled_from([None, (1, 3), (2, 4), (5, 5)]))
@settings(max_examples=60, deadline=None)
def test_nothing_linked_is_ever_in_two_splits(case, seed, fold):
    groups, hashes, links, labels = case
    merged, joined = splits.merge_groups(groups, links, hashes=hashes)
    assert joined == len(set(groups.values())) - len(set(merged.values()))
    try:
        split_of = splits.split_groups([(merged[name], labels[name]) for name in groups], seed,
                                       fold)
    except Fault:
        event("too few groups to split")
        split_of = {group: group for group in merged.values()}  # as strict: no linked two differ
    split = {name: split_of[merged[name]] for name in groups}
    assert all(split[one] == split[other] for one, other in links)
    for one, other in itertools.combinations(groups, 2):
        if groups[one] == groups[other] or hashes[one] == hashes[other]:
            assert split[one] == split[other]
    again = splits.merge_groups(dict(sorted(groups.items(), reverse=True)),
                                [(b, a) for a, b in reversed(links)], hashes=hashes)
    assert again == (merged, joined)


# ------------------------------------------------------------------ splits and folds

def share_of_splits(items, chosen):
    table, totals = Counter((label, chosen[group]) for group, label in items), Counter(
        label for _, label in items)
    return {(label, split): table[label, split] / totals[label]
            for label in totals for split in splits.SPLITS}


def uneven(num_groups=60):
    """Patients with 1 to 12 images, of two classes or one."""
    return [(f"p{i}", label) for i in range(num_groups)
            for label in (("aca", "n"), ("n",), ("scc", "n"), ("scc",))[i % 4]
            for _ in range(1 + 5 * i % 12)]


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_sixty_twenty_twenty_in_every_class(seed):
    """Also in a class a hundredth the size of another, whose patients are the other's, too."""
    items = [(f"p{i}", "large") for i in range(40) for _ in range(100)]
    items += [(f"p{i}", "small") for i in range(0, 40, 2) for _ in range(1 + i % 3)]
    shares = share_of_splits(items, splits.split_groups(items, seed))
    for label in ("large", "small"):
        found = [shares[label, split] for split in ("train", "val", "test")]
        assert found == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


@pytest.mark.parametrize("count", [3, 4, 5, 10])
def test_every_image_is_tested_in_exactly_one_fold(count):
    items = uneven()
    runs = [splits.split_groups(items, 7, (k + 1, count)) for k in range(count)]
    for group in runs[0]:
        assert sorted(run[group] for run in runs) == ["test"] + (count - 2) * ["train"] + ["val"]
        tested = next(k for k, run in enumerate(runs) if run[group] == "test")
        assert runs[tested - 1][group] == "val"  # the fold before it looks one ahead
    for run in runs:
        shares = share_of_splits(items, run)
        assert all(abs(shares[label, split] - want) < 0.06 for label in ("aca", "n", "scc")
                   for split, want in zip(splits.SPLITS, (1 - 2 / count, 1 / count, 1 / count)))
    assert runs[0] == splits.split_groups(items[::-1], 7, (1, count))
    assert runs[0] != splits.split_groups(items, 8, (1, count))


def test_a_class_with_too_few_groups_is_told_how_many_it_needs():
    items = [(f"{label}{i}", label) for label, n in (("a", 9), ("b", 4)) for i in range(n)]
    with pytest.raises(Fault, match=r"at least 5 groups .*one for each fold.* 'b' has 4"):
        splits.split_groups(items, 0, (1, 5))
    assert len(splits.split_groups(items, 0, (1, 4))) == 13
    with pytest.raises(Fault, match=r"at least 3 groups .*one for each split.* 'b' has 2"):
        splits.split_groups(items[:-2], 0)


@given(st.lists(st.frozensets(st.sampled_from("abc"), min_size=1), min_size=3, max_size=6),
       st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_split_is_found_wherever_there_is_one(classes_of, size):
    items = [(f"g{i}", label) for i, classes in enumerate(classes_of) for label in classes
             for _ in range(1 + size * i % 17)]
    possible = any(all(len({part for part, classes in zip(parts, classes_of) if label in classes})
                       == 3 for label in set().union(*classes_of))
                   for parts in itertools.product(range(3), repeat=len(classes_of)))
    try:
        chosen = splits.split_groups(items, 0)
    except Fault:
        assert not possible
    else:
        assert min(share_of_splits(items, chosen).values()) > 0


def test_the_search_escapes_from_where_moves_of_single_groups_end():
    """Class sizes for which largest-first placement and moves alone leave an empty cell."""
    sizes = [[5, 4, 6, 3], [1, 5, 5, 0], [0, 6, 6, 4], [1, 5, 0, 5], [0, 0, 0, 6]]
    items = [(f"g{group}", label) for group, row in enumerate(sizes)
             for label, n in zip("abcd", row) for _ in range(n)]
    assert min(share_of_splits(items, splits.split_groups(items, 0)).values()) > 0


@pytest.mark.parametrize("num_groups", [300, 15_000])
def test_many_groups_are_split_evenly_to_the_image(num_groups):
    items = [(f"{label}{i}", label) for label in "abc" for i in range(num_groups // 3)]
    shares = share_of_splits(items, splits.split_groups(items, 3))
    assert all(abs(shares[label, split] - want) < 1e-3
               for label in "abc" for split, want in zip(splits.SPLITS, splits.SPLIT_SHARES))


# ------------------------------------------------------------------ --fold

def test_fold_reads_k_of_K():
    assert cli.fold("2/5") == (2, 5) and cli.fold("3/3") == (3, 3)


@pytest.mark.parametrize("text, message", [
    ("2", "is not k/K"), ("a/5", "is not k/K"), ("1/2/3", "is not k/K"), ("-1/5", "is not k/K"),
    ("", "is not k/K"), ("1.0/5", "is not k/K"), ("²/5", "is not k/K"), ("0/5", "from 1 to 5"),
    ("6/5", "from 1 to 5"), ("1/2", "at least 3 folds"), ("1/0", "at least 3 folds")])
def test_fold_refuses_what_is_none(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        cli.fold(text)
