"""The confounding report: what it finds in confounded data, and its silence elsewhere."""

import functools
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from lungkit.audit import confounding
from lungkit.audit.confounding import Specimen, report
from lungkit.audit.warnings import confounding_warnings, describe_confounding
from lungkit.data.splits import split_groups


@functools.cache
def calm(num_groups=30, images=4, classes="ab", seed=0) -> list[Specimen]:
    """Specimens of which nothing tells the class; statistics vary by group and by image. Read only.
    """
    rng = np.random.default_rng(seed)
    found = []
    for label in classes:
        for g in range(num_groups):
            shift = rng.normal(0, 12, 3)
            for i in range(images):
                rgb = np.array([180, 130, 170]) + shift + rng.normal(0, 5, 3)
                found.append(Specimen(
                    label, f"{label}-p{g}", f"{label}/img_{g}_{i}.png", f"{label}{g}/{i}",
                    (224, 224, ".png", "colour"), int(rng.integers(9_000, 30_000)),
                    tuple(map(float, rgb)), float(rgb.mean()), float(rng.normal(40, 6))))
    return found


def reported(specimens, groups_given="csv"):
    return report(specimens, split_groups([(s.group, s.label) for s in specimens], 0),
                  groups_given)


def warned(specimens, groups_given="csv") -> dict[str, str]:
    return dict(line.split(": ", 1)
                for line in confounding_warnings(reported(specimens, groups_given)))


def test_calm_data_warn_of_nothing_and_the_report_is_the_same_again():
    first = reported(calm())
    assert confounding_warnings(first) == []
    assert json.loads(json.dumps(first)) == first == reported(calm())
    told = first["trivial"]["families"]
    assert told["mean colour"]["p"] > 0.05 and not told["mean colour"]["constant"]
    low, high = told["mean colour"]["interval_95"]
    assert low < 0.5 < high < 0.75  # classes are guessed
    assert told["image size"] == {"balanced_accuracy": 0.5, "constant": True}
    assert first["classes"]["a"]["groups_by_split"] == {"train": 18, "val": 6, "test": 6}
    assert first["classes"]["a"]["effective_groups"] == 30


def test_groups_that_were_not_given_or_group_nothing():
    assert set(warned(calm(), "none")) == {"no groups given"}
    assert "own group" in warned(calm(), "none")["no groups given"]
    assert set(warned(calm(), "auto")) == {"groups found only"}
    assert not warned(calm(), "regex+auto")
    assert set(warned(calm(images=1), "regex")) == {"one image per group"}


def test_few_and_uneven_groups():
    few = warned(calm(9) + calm(30, classes="c"))
    assert set(few) == {"few groups"} and "'b' has 9 groups only" in few["few groups"]
    large = [replace(s, group=f"a-p{i % 3}") if s.label == "a" and i < 150 else s
             for i, s in enumerate(calm(60, 3))]
    uneven = warned(large)["few groups"]
    assert "13 groups, but so uneven ones that they count for 4.3" in uneven
    one = [replace(s, group="tumour") if s.label == "a" and i < 61 else s
           for i, s in enumerate(calm())]
    found = warned(one)
    assert "61 of 120 images of 'a' come from one group ('tumour')" in found["one group dominates"]
    assert "one group dominates" not in warned(
        [replace(s, group="tumour") if s.label == "a" and i < 60 else s
         for i, s in enumerate(calm())])


@pytest.mark.parametrize("name, kind", [
    ("{label}/site{label}/{rest}", "folder"), ("{label}/hospital{label}_{rest}", "prefix"),
    ("{label}/TCGA-{label}5-{rest}", "prefix")])
def test_a_source_that_one_class_has_for_itself(name, kind):
    there = [replace(s, source_name=name.format(label=s.label, rest=s.source_name[2:]))
             for s in calm()]
    line = warned(there)["one source dominates"]
    assert "100% of 'b' has the" in line and kind in line and "but 0% of the other" in line
    shared = [replace(s, source_name=name.format(label="x", rest=s.source_name[2:]))
              for s in calm()]
    assert not warned(shared)


def test_a_prefix_that_spells_the_class_is_no_source():
    plain = [replace(s, label={"a": "lung_aca", "b": "lung_n"}[s.label]) for s in calm()]
    spelt = [replace(s, source_name=f"{s.label}/{s.label.replace('_', '')}{i}.jpeg")
             for i, s in enumerate(plain)]
    assert not warned(spelt)
    assert "one source dominates" in warned(
        [replace(s, source_name=f"{s.label}/{s.label[-1]}_scan{i}.jpeg")
         for i, s in enumerate(plain)])


def test_identical_images_of_two_classes():
    data = calm()
    copy = replace(data[0], label="b", source_name="b/copy.png")
    line = warned(data + [copy])["identical images with different labels"]
    assert line.startswith("1 images") and "'a/img_0_0.png' = 'b/copy.png'" in line
    same_class = replace(data[0], source_name="a/copy.png")
    assert "identical images with different labels" not in warned(data + [same_class])


# ------------------------------------------------------------------ trivial statistics

def shifted(data, **change):
    """Class a changed: a number is added, a tuple takes the place."""
    return [replace(s, **{name: getattr(s, name) + value if isinstance(value, (int, float))
                          else value for name, value in change.items()})
            if s.label == "a" else s for s in data]


@pytest.mark.parametrize("family, change", [
    ("mean colour", {"mean_rgb": (150.0, 110.0, 160.0)}),
    ("brightness and contrast", {"contrast": 25}), ("file size", {"file_bytes": 40_000}),
    ("image size", {"look": (768, 768, ".png", "colour")}),
    ("file type", {"look": (224, 224, ".jpeg", "colour")})])
def test_each_family_of_statistics_is_noticed_by_name(family, change):
    data = shifted(calm(), **change)
    found = warned(data)
    line = found["trivial statistics predict the class"]
    assert f"{family} 1.00 (" in line or f"{family} 0.9" in line
    assert ("acquired differently" in line) == (family in ("image size", "file type"))
    assert "morphology" in line
    told = reported(data)["trivial"]["families"]
    others = {"mean colour", "brightness and contrast", "file size"} - {family}
    assert all(told[other]["balanced_accuracy"] < 0.65 for other in others)


def test_the_colours_of_groups_are_not_told_by_their_own_images():
    """Every group has a colour of its own, and no class has: within groups it would be perfect."""
    rng = np.random.default_rng(1)
    hue = {}
    data = [replace(s, mean_rgb=hue.setdefault(s.group, tuple(rng.uniform(50, 220, 3))))
            for s in calm(40, 8)]
    told = reported(data)["trivial"]["families"]["mean colour"]
    assert told["balanced_accuracy"] < 0.6 and told["p"] > 0.01
    label = np.array([s.label == "a" for s in data]).astype(int)
    values = np.array([s.mean_rgb for s in data])
    leaking = np.arange(len(data)) % 5  # by image: what the report must not do
    rng = np.random.default_rng(0)
    leak = confounding.vote(confounding.nearest(values, leaking, rng)[:, :5], label, 2)
    assert confounding.balanced_accuracy(leak, label, 2) > 0.95


def test_p_is_rarely_small_when_groups_differ_and_classes_do_not():
    """Strong group effects, no class effect: about one in twenty is below 0.05, not most."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(24), 10)
    fold = group % 4
    small = 0
    for _ in range(60):
        label = np.repeat(rng.permutation(24) % 2, 10)
        values = (rng.normal(0, 1, (24, 2))[group] + rng.normal(0, 0.2, (240, 2)))
        small += confounding.tell_class(values, label, group, fold)["p"] <= 0.05
    assert small <= 9  # 60 draws of 0.05: more than 9 once in 1,000


def test_unequal_classes_are_scored_alike():
    """Nine of ten images are b: naming b always is right for nine tenths and scores one half."""
    data = [s for s in calm(180, 3) if s.label == "b" or int(s.group[3:]) < 20]
    told = reported(data)["trivial"]["families"]["mean colour"]
    assert abs(told["balanced_accuracy"] - 0.5) < 0.12
    weak = reported(shifted(data, contrast=9))["trivial"]["families"]["brightness and contrast"]
    assert weak["balanced_accuracy"] > 0.65  # votes as they come would all go to b


def test_ties_favour_no_class():
    """All but one image alike: neighbours are drawn from all, not the first in the order."""
    values = np.zeros((300, 1))
    values[0] = 1
    label = np.repeat([0, 1, 2], 100)
    fold = np.arange(300) % 5
    near = confounding.nearest(values, fold, np.random.default_rng(0))
    counts = np.bincount(label[near[1:]].ravel())
    assert counts.min() > 0.28 * counts.sum()
    assert (fold[near] != fold[:, None]).all()


def test_statistics_after_normalisation_are_told_apart_from_those_before():
    data = [replace(s, after=(*s.mean_rgb, s.brightness, s.contrast)) for s in calm()]
    found = reported(shifted(data, mean_rgb=(150.0, 110.0, 160.0)))["trivial"]["families"]
    assert found["mean colour"]["balanced_accuracy"] > 0.9
    assert found["mean colour after normalisation"]["balanced_accuracy"] < 0.65
    assert "mean colour after normalisation" not in reported(calm())["trivial"]["families"]


def test_the_words_hold_the_figures():
    data = shifted(calm(), contrast=25)
    words = describe_confounding(reported(data, "none"))
    assert "a: 120 images, 30 groups (train 18, val 6, test 6)" in words
    assert "image size: the same in all images" in words
    assert "warning: no groups given" in words and "warning: trivial statistics" in words


def test_groups_that_span_classes_awkwardly_fall_back_to_the_split():
    """Six groups, any two of which share a class: five folds would part them, three need not."""
    data = [replace(s, label=label, group=s.group[2:], source_name=f"{label}/{s.source_name[2:]}")
            for number, label in enumerate("abc") for s in calm(6, classes="a")
            if s.group != f"a-p{number}"]
    split_of = split_groups([(s.group, s.label) for s in data], 0)
    fold = confounding._fold_of(data, split_of)
    assert max(fold) == 2 and set(warned(data)) == {
        "few groups", "few groups in train", "identical images with different labels"}
    assert max(confounding._fold_of(calm(6), {})) == 4


@pytest.mark.skipif("LC25000" not in os.environ, reason="needs LC25000=<folder of groups.csv>")
def test_colour_alone_tells_lc25000_apart():
    import csv
    from pathlib import Path

    import cv2

    root = Path(os.environ["LC25000"])
    data = []
    with open(root / "groups.csv", newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            if i % 3:
                continue
            content = (root / "lung_image_sets" / row["file_name"]).read_bytes()
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            data.append(Specimen(row["label"], row["group"], row["file_name"], str(i),
                                 (224, 224, ".jpeg", "colour"), len(content),
                                 tuple(image.mean((0, 1))), image.mean(), image.mean(2).std()))
    found = reported(data)
    assert 0.65 < found["trivial"]["families"]["mean colour"]["balanced_accuracy"] < 0.9
    assert {line.split(":")[0] for line in confounding_warnings(found)} == {
        "trivial statistics predict the class"}


def test_a_draw_of_groups_that_lacks_a_class_says_nothing():
    right, apart = np.array([True, True, False]), np.array([0, 1, 1])
    assert confounding._interval(right, apart, apart, 2, np.random.default_rng(0)) == [0.75, 0.75]


def test_a_large_slide_counts_by_its_tiles():
    """Ten slides of one tile and one of 96: the dataset is one specimen, whatever the files say."""
    slides = calm(12)
    large = [replace(s, tiles=96) if s.group == slides[0].group and s.label == "a" else s
             for s in slides]
    assert "one group dominates" not in warned(slides)
    assert slides[0].group in warned(large)["one group dominates"]


# ------------------------------------------------------------------ thresholds, figure by figure

def plain_report(**change) -> dict:
    """A report of two classes that warns of nothing, changed."""
    found = {"groups_given": "csv", "images": 200, "tiles": 200, "groups": 60,
             "classes": {label: {"images": 100, "groups": 30, "effective_groups": 25.0,
                                 "largest_group": "p7", "largest_images": 20,
                                 "groups_by_split": {"train": 18, "val": 6, "test": 6}}
                         for label in "ab"},
             "sources": {"folder": {label: {"sources": 3, "commonest": "site", "share": 0.4,
                                            "share_of_others": 0.4} for label in "ab"}},
             "identical_with_other_label": [],
             "trivial": {"guessing": 0.5, "families": {"file size": {
                 "balanced_accuracy": 0.6, "interval_95": [0.5, 0.7], "p": 0.5,
                 "constant": False}}}}
    found["classes"]["a"] |= change.get("a", {})
    found["sources"]["folder"]["a"] |= change.get("source", {})
    found["trivial"]["families"]["file size"] |= change.get("told", {})
    return found


@pytest.mark.parametrize("name, silent, warns", [
    ("one group dominates", {"a": {"largest_images": 50}}, {"a": {"largest_images": 51}}),
    ("few groups", {"a": {"groups": 10}}, {"a": {"groups": 9}}),
    ("few groups", {"a": {"effective_groups": 5.0}}, {"a": {"effective_groups": 4.9}}),
    ("few groups in train", {"a": {"groups_by_split": {"train": 3}}},
     {"a": {"groups_by_split": {"train": 2}}}),
    ("one source dominates", {"source": {"share": 0.5, "share_of_others": 0.0}},
     {"source": {"share": 0.51, "share_of_others": 0.0}}),
    ("one source dominates", {"source": {"share": 0.9, "share_of_others": 0.65}},
     {"source": {"share": 0.9, "share_of_others": 0.64}}),
    ("trivial statistics predict the class", {"told": {"balanced_accuracy": 0.7, "p": 0.01}},
     {"told": {"balanced_accuracy": 0.71, "p": 0.05}}),
    ("trivial statistics predict the class", {"told": {"balanced_accuracy": 0.9, "p": 0.06}},
     {"told": {"balanced_accuracy": 0.9, "p": 0.01}})])
def test_each_warning_begins_at_its_threshold(name, silent, warns):
    assert confounding_warnings(plain_report()) == []
    assert confounding_warnings(plain_report(**silent)) == []
    assert [line.split(":")[0] for line in confounding_warnings(plain_report(**warns))] == [name]


def test_a_class_of_one_group_is_named_with_its_group_and_every_other_warning():
    one = {"groups": 1, "effective_groups": 1.0, "largest_images": 100,
           "groups_by_split": {"train": 1}}
    found = dict(line.split(": ", 1) for line in confounding_warnings(plain_report(a=one)))
    assert set(found) == {"one group dominates", "few groups"}
    assert "100 of 100 images of 'a' come from one group ('p7')" in found["one group dominates"]
    assert "'a' has 1 groups only" in found["few groups"]


def test_three_groups_are_asked_for_one_in_train_and_four_for_two():
    for groups, train, warned_of in ((3, 1, False), (4, 1, True), (4, 2, False), (5, 2, True)):
        counts = {"groups": groups, "groups_by_split": {"train": train}}
        found = confounding_warnings(plain_report(a=counts))
        assert any(line.startswith("few groups in train") for line in found) == warned_of


def test_the_warning_of_statistics_names_the_best_score_and_leaves_out_what_is_constant():
    data = plain_report(told={"balanced_accuracy": 0.88, "p": 0.01})
    families = data["trivial"]["families"]
    families["mean colour"] = families["file size"] | {"balanced_accuracy": 0.93}
    families["image size"] = {"balanced_accuracy": 0.5, "constant": True}
    line = confounding_warnings(data)[0]
    assert "mean colour 0.93" in line and "no better than 0.93" in line
    assert "guessing scores 0.50" in line and "image size" not in line
    assert "acquired differently" not in line


def test_groups_and_sources_are_counted_by_tiles():
    data = [replace(calm(1, 1)[0], label=label, group=group, sha256=f"{i}", tiles=tiles,
                    source_name=f"{label}/{folder}/x{i}.png")
            for i, (label, group, folder, tiles) in enumerate((
                ("a", "p1", "north", 6), ("a", "p2", "south", 2), ("a", "p2", "north", 0),
                ("b", "p1", "south", 3), ("b", "p3", "north", 1)))]
    found = report(data, {"p1": "train", "p2": "val", "p3": "test"}, "csv")
    assert found["classes"]["a"] == {
        "images": 8, "groups": 2, "effective_groups": 1.6, "largest_group": "p1",
        "largest_images": 6, "groups_by_split": {"train": 1, "val": 1, "test": 0}}
    assert found["sources"]["folder"]["a"] == {"sources": 2, "commonest": "north", "share": 0.75,
                                               "share_of_others": 0.25}
    assert (found["images"], found["tiles"], found["groups"]) == (5, 12, 3)
    assert found["trivial"]["guessing"] == 0.5


@pytest.mark.parametrize("name, folder, prefix", [
    ("a/x.png", "", "x"), ("a/site/x.png", "site", "x"), ("a/site/deep/x.png", "site", "x"),
    ("a/TCGA-05-4249.svs", "", "TCGA-05"), ("a/scan_0017 (2).png", "", "scan"),
    ("a/0017.png", "", ""), ("a/a12.png", "", ""), ("a/A-12.png", "", "")])
def test_a_source_is_the_folder_below_the_class_and_what_stands_before_a_number(name, folder,
                                                                               prefix):
    specimen = replace(calm(1, 1)[0], label="a", source_name=name)
    assert confounding.source_folder(specimen) == folder
    assert confounding.source_prefix(specimen) == prefix


def test_the_families_hold_what_their_names_say():
    one = replace(calm(1, 1)[0], look=(300, 200, ".png", "colour"), file_bytes=1000,
                  mean_rgb=(1.0, 2.0, 3.0), brightness=4.0, contrast=5.0,
                  after=(6.0, 7.0, 8.0, 9.0, 10.0))
    other = replace(one, look=(300, 200, ".jpeg", "colour"))
    found = {name: rows[0] for name, rows in confounding.families([one, other]).items()}
    assert found.pop("file type") == [0.0, 1.0]
    together = found.pop("all together")
    assert found == {
        "mean colour": [1, 2, 3], "brightness and contrast": [4, 5], "file size": [np.log(1000)],
        "image size": [np.log(300), np.log(200)], "mean colour after normalisation": [6, 7, 8],
        "brightness and contrast after normalisation": [9, 10]}
    assert together == [1, 2, 3, 4, 5, np.log(1000), np.log(300), np.log(200), 0, 1]


def test_neighbours_are_of_other_folds_on_columns_of_one_scale():
    """The first column tells, the second is a thousand times as wide and does not."""
    rng = np.random.default_rng(0)
    values = np.c_[np.arange(200) % 2, rng.normal(0, 1000, 200)]
    fold = np.arange(200) // 2 % 5
    near = confounding.nearest(values, fold, rng)
    assert near.shape == (200, round(160 ** 0.5))
    assert (fold[near] != fold[:, None]).all() and (near % 2 == np.arange(200)[:, None] % 2).all()
    many = np.zeros((2000, 1))
    assert confounding.nearest(many, np.arange(2000) % 5, rng).shape == (2000, 25)


def test_p_counts_shuffles_of_whole_groups_and_the_interval_resamples_groups():
    """Twelve groups of 20 like images: labels told perfectly, as one of 924 divisions would be."""
    group = np.repeat(np.arange(12), 20)
    label = group % 2
    values = label[:, None] + np.random.default_rng(0).normal(0, 0.01, (240, 1))
    told = confounding.tell_class(values, label, group, group // 2 % 3)
    assert told["balanced_accuracy"] == 1 and told["p"] == 0.01
    assert told["interval_95"] == [1, 1]
    right = np.where((group == 0) | (group == 1), 0, 1)  # one group of either class is told wrongly
    low, high = confounding._interval(right.astype(bool), label, group, 2,
                                      np.random.default_rng(0))
    assert low < 0.65 and high == 1  # by image it would be 0.78 to 0.88


def test_balanced_accuracy_is_the_mean_over_classes():
    label = np.repeat([0, 1], [90, 10])
    assert confounding.balanced_accuracy(np.zeros(100, int), label, 2) == 0.5
    told = np.r_[np.zeros(90, int), np.repeat([0, 1], [4, 6])]
    assert confounding.balanced_accuracy(told, label, 2) == pytest.approx(0.8)
    neighbours = np.tile([0, 1, 95], (100, 1))  # two votes of the common class, one of the rare
    assert (confounding.vote(neighbours, label, 2) == 1).all()
