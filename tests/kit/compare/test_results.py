"""What a comparison reads, what it refuses to compare, and what it must tell of the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lungkit.compare.results import read_results
from lungkit.data.result import leaks_path
from lungkit.run.faults import BadOptions, Fault
from result_trees import OTHERS, make_results, record, right, split_of, write, write_counts

SPLIT = split_of(right(54))
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def tree(root, *rows):
    for row in rows:
        write(root, row)
    return root


def two_arms(**changed):
    """Two repeats of real, and of an arm in which something may be wrong."""
    return [record("real", repeat, SPLIT, SPLIT) for repeat in (0, 1)] + \
        [record("gan", repeat, SPLIT, SPLIT, **changed) for repeat in (0, 1)]


def fault(source, **options):
    with pytest.raises(Fault) as error:
        read_results(source, **options)
    return str(error.value)


# ------------------------------------------------------------------ what is read

def test_real_comes_first_then_the_names_and_repeats_in_order(tmp_path):
    rows = [record(name, repeat, SPLIT, SPLIT, replicate=replicate)
            for name in ("zebra", "real", "apple") for replicate in (1, 0) for repeat in (10, 2)]
    found = read_results(tree(tmp_path, *rows))
    assert found.datasets == ["real", "apple", "zebra"]
    assert (found.replicates, found.repeats) == ([0, 1], [2, 10])
    assert [(row["dataset"], row["replicate"], row["repeat"]) for row in found.rows] == [
        (name, replicate, repeat) for name in found.datasets for replicate in (0, 1)
        for repeat in (2, 10)]
    assert found.metrics[:4] == ["accuracy_real", "accuracy_own", "auprc_weighted_real",
                                 "auprc_weighted_own"]


def test_chosen_datasets_come_in_the_order_given_but_real_first(tmp_path):
    make_results(tmp_path, repeats=2)
    assert read_results(tmp_path, datasets=["voronoi", "prompt", "real", "voronoi"]).datasets == [
        "real", "voronoi", "prompt"]


def test_the_first_repeats_are_used_in_every_replicate(tmp_path):
    make_results(tmp_path, repeats=5, replicates=2)
    found = read_results(tmp_path, num_repeats=2)
    assert found.repeats == [0, 1]
    assert [row["repeat"] for row in found.rows] == [0, 1] * 6
    with pytest.raises(BadOptions, match="--repeats 6: .* holds 5 repeats"):
        read_results(tmp_path, num_repeats=6)


def test_hidden_and_unfinished_files_are_not_results(tmp_path):
    tree(tmp_path, *two_arms())
    (tmp_path / ".gan.lock").write_text("host")
    (tmp_path / ".half" / "replicate_000").mkdir(parents=True)
    (tmp_path / ".half" / "replicate_000" / "repeat_0000.json").write_text("{")
    (tmp_path / "gan/replicate_000/.repeat_0002.partial").write_bytes(b"\0")
    (tmp_path / "gan/replicate_000/repeat_0000.npz").write_bytes(b"\0")
    assert len(read_results(tmp_path).rows) == 4


def test_a_value_is_a_repeat_of_one_replicate_and_a_mean_of_repeats_of_several(tmp_path):
    write_counts(tmp_path / "one", {"real": [54, 30, 48], "gan": [12, 6, 0]}, own=45)
    found = read_results(tmp_path / "one")
    assert found.values("real", "accuracy_real") == pytest.approx([0.9, 0.5, 0.8])
    assert found.values("gan", "accuracy_own") == pytest.approx([0.75] * 3)
    for replicate, counts in enumerate(([60, 30, 45], [6, 12, 0])):
        write_counts(tmp_path / "two", {"real": counts, "gan": counts}, replicate=replicate,
                     dataset_fingerprint=f"x{replicate}", trained_on=OTHERS,
                     real_fingerprint=f"real{replicate}")
    assert read_results(tmp_path / "two").values("real", "accuracy_real") == pytest.approx(
        [0.75, 0.1])


@pytest.mark.parametrize(("sizes", "replicates", "metric", "step"), [
    ((60, 60), 1, "accuracy_real", 1 / 60),
    ((20, 30), 1, "accuracy_own", 1 / 60),   # the two arms' own tests: on both grids
    ((20, 30), 1, "accuracy_real", 1 / 30),
    ((30, 30), 2, "accuracy_real", 1 / 90),  # a mean of three repeats
])
def test_the_grid_is_one_test_image_shared_among_the_repeats_of_a_replicate(
        tmp_path, sizes, replicates, metric, step):
    for replicate in range(replicates):
        for name, size in zip(("real", "gan"), sizes):
            for repeat in range(3):
                write(tmp_path, record(name, repeat, split_of(right(9, size)),
                                       split_of(right(9, 30 if 30 in sizes else 60)),
                                       replicate=replicate))
    assert read_results(tmp_path).step(metric) == pytest.approx(step)
    assert read_results(tmp_path).step("auroc_real") == 0  # no share of test images


def unequal(*images: int) -> dict:
    """A test split of three classes with so many images, all of them right."""
    return split_of([[count if i == j else 0 for j in range(3)] for i, count in enumerate(images)])


@pytest.mark.parametrize(("own", "replicates", "metric", "step"), [
    (split_of(right(9, 60)), 1, "balanced_accuracy_own", 1 / 60),  # equal: that of the accuracy
    (split_of(right(9, 60)), 2, "balanced_accuracy_own", 1 / 180),  # a mean of three repeats
    (unequal(4, 6, 10), 1, "balanced_accuracy_own", 1 / 180),
    (unequal(4, 6, 0), 1, "balanced_accuracy_own", 1 / 24),        # a class that is not there
    (unequal(4, 6, 10), 1, "balanced_accuracy_real", 1 / 30),
    (unequal(4, 6, 10), 1, "accuracy_own", 1 / 20),
    (unequal(1009, 1013, 1019), 1, "balanced_accuracy_own", 0),    # finer than ties
    (unequal(4, 6, 10), 1, "macro_f1_own", 0)])
def test_the_grid_of_a_balanced_accuracy_is_the_common_denominator_of_the_classes(
        tmp_path, own, replicates, metric, step):
    for replicate in range(replicates):
        for name in ("real", "gan"):
            for repeat in range(3):
                write(tmp_path, record(name, repeat, own, split_of(right(9, 30)),
                                       replicate=replicate))
    assert read_results(tmp_path).step(metric) == pytest.approx(step)


def test_the_grid_of_a_balanced_accuracy_fits_the_classes_of_every_arm(tmp_path):
    for name, own in (("real", unequal(2, 2, 2)), ("gan", unequal(5, 5, 5))):
        tree(tmp_path, *(record(name, repeat, own, SPLIT) for repeat in (0, 1)))
    assert read_results(tmp_path).step("balanced_accuracy_own") == pytest.approx(1 / 30)


# ------------------------------------------------------------------ one result that is none

@pytest.mark.parametrize("value", ["missing", True, 1.5, [], None])
@pytest.mark.parametrize("name", ["schema", "dataset", "dataset_fingerprint", "real_fingerprint",
                                  "replicate", "repeat", "seed", "own", "real", "task", "scores"])
def test_a_result_without_its_identity_or_scores_is_refused(tmp_path, name, value):
    tree(tmp_path, *two_arms())
    row = record("gan", 1, SPLIT, SPLIT)
    row[name] = value
    if value == "missing":
        del row[name]
    (tmp_path / "gan/replicate_000/repeat_0001.json").write_text(json.dumps(row))
    assert f"repeat_0001.json lacks {name} (or of another type)" in fault(tmp_path)


@pytest.mark.parametrize("changed", [{"dataset": "other"}, {"replicate": 1}, {"repeat": 2}])
def test_a_result_in_the_place_of_another_is_refused(tmp_path, changed):
    tree(tmp_path, *two_arms())
    path = tmp_path / "gan/replicate_000/repeat_0001.json"
    path.write_text(json.dumps(record("gan", 1, SPLIT, SPLIT) | changed))
    assert "a file in the wrong place" in fault(tmp_path)


@pytest.mark.parametrize("split", ["own", "real"])
@pytest.mark.parametrize(("scores", "accuracy", "words"), [
    ({"confusion_matrix": [[9, 1], [0, 10]]}, 0.95, "counts 20 images, num_images says 60"),
    ({"confusion_matrix": [[0, 0], [0, 0]], "num_images": 0}, 0.0, "counts 0 images"),
    ({"confusion_matrix": [[20, 40]]}, 1 / 3, "is not a square of counts"),
    ({"confusion_matrix": [[20], [20], [20]]}, 1 / 3, "is not a square of counts"),
    ({"confusion_matrix": [[30, -10], [10, 30]]}, 1.0, "is not a square of counts"),
    ({"confusion_matrix": [[30.5, 9.5], [10, 10]]}, 0.675, "is not a square of counts"),
    ({"confusion_matrix": None}, 0.9, "is not a square of counts"),
    ({"confusion_matrix": "60"}, 0.9, "is not a square of counts"),
    ({}, 0.95, "is 0.9500, its confusion matrix says 0.9000"),
    ({}, 0.8998, "is 0.8998, its confusion matrix says 0.9000"),
    ({}, -0.1, "is -0.1, not a fraction between 0 and 1"),
    ({}, True, "is True, not a fraction between 0 and 1"),
    ({}, 90.0, "is 90.0, not a fraction between 0 and 1 (percent? divide by 100)"),
])
def test_a_result_that_contradicts_itself_is_refused(tmp_path, split, scores, accuracy, words):
    tree(tmp_path, *two_arms(), record("gan", 2, SPLIT, SPLIT) | {
        split: SPLIT | scores, f"accuracy_{split}": accuracy}, record("real", 2, SPLIT, SPLIT))
    message = fault(tmp_path)
    assert "gan/replicate_000/repeat_0002.json" in message and split in message
    assert words in message


@pytest.mark.parametrize("split", ["own", "real"])
@pytest.mark.parametrize(("scores", "words"), [
    ({"auroc": 1.01}, "auroc is 1.01, not a fraction between 0 and 1"),
    ({"auroc": -0.1}, "auroc is -0.1, not a fraction"), ({"auroc": None}, "auroc is None, not a"),
    ({"auroc": True}, "auroc is True, not a fraction"),
    ({"accuracy": 0.8}, "is 0.9000, scores."),  # the column says otherwise
])
def test_a_score_that_is_none_is_refused(tmp_path, split, scores, words):
    row = record("gan", 1, SPLIT, SPLIT)
    row["scores"][split] |= scores
    message = fault(tree(tmp_path, *two_arms(), row))
    assert "gan/replicate_000/repeat_0001.json: " in message and words in message
    assert f"scores.{split}." in message


@pytest.mark.parametrize("lacks", [{}, None, []])
def test_a_result_without_scores_on_one_split_is_refused(tmp_path, lacks):
    row = record("gan", 1, SPLIT, SPLIT)
    row["scores"]["own"] = lacks
    assert "scores.own holds no scores" in fault(tree(tmp_path, *two_arms(), row))


@pytest.mark.parametrize("split", ["own", "real"])
def test_a_classification_without_its_accuracy_among_the_scores_is_refused(tmp_path, split):
    row = record("gan", 1, SPLIT, SPLIT)
    del row["scores"][split]["accuracy"]
    assert f"repeat_0001.json: scores.{split} holds no accuracy" in fault(
        tree(tmp_path, *two_arms(), row))


def older(row: dict) -> dict:
    """The same result as it was written under lungkit.result/1."""
    scores, task = row.pop("scores"), row.pop("task")
    assert task == "classify"
    return row | {"schema": "lungkit.result/1"} | {
        split: {**row[split], **scores[split]} for split in ("own", "real")}


def test_a_tree_of_old_and_new_results_is_read_as_one(tmp_path):
    new, old = (read_results(tree(tmp_path / name, *(
        older(row) if name == "mixed" and (row["dataset"] == "gan" or row["repeat"]) else row
        for row in two_arms()))) for name in ("new", "mixed"))
    assert new.metrics == old.metrics and new.rows == old.rows


@pytest.mark.parametrize("kept", [("auroc",), ()])
def test_of_an_old_result_the_column_is_the_accuracy(tmp_path, kept):
    rows = [older(row) for row in two_arms()]
    for row in rows:
        for split in ("own", "real"):
            for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc_weighted"):
                if name not in kept:
                    del row[split][name]
    found = read_results(tree(tmp_path, *rows))
    assert found.metrics == [f"{name}_{split}" for name in ("accuracy", *kept)
                             for split in ("real", "own")]
    assert found.values("gan", "accuracy_own") == [0.9, 0.9]


def test_the_tree_kept_from_the_code_before_is_compared(tmp_path):
    copied = shutil.copytree(FIXTURES / "v1/results", tmp_path / "results")
    for path in sorted(copied.glob("*/*/repeat_0000.json")):  # as looking for leaks would leave it
        write_outcome(copied, json.loads(path.read_text()))
    found = read_results(copied)
    assert "auroc_own" in found.metrics and len(found.datasets) > 1
    for row in found.rows:
        kept = json.loads((FIXTURES / f"v1/results/{row['dataset']}/replicate_000/"
                           f"repeat_{row['repeat']:04d}.json").read_text())
        for split in ("own", "real"):
            for name in ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "auprc_weighted",
                         "auprc_baseline", "num_images"):
                assert row[f"{name}_{split}"] == kept[split][name]


def test_every_fault_is_counted_and_the_first_are_named(tmp_path):
    make_results(tmp_path, repeats=3, edit=lambda row: row.update(schema="lungkit.result/3"))
    message = fault(tmp_path)
    assert message.count("has schema 'lungkit.result/3', expected 'lungkit.result/2'") == 4
    assert message.endswith("; and 5 more")


def test_a_single_fault_is_counted_once(tmp_path):
    tree(tmp_path, *two_arms(accuracy_real=0.1))
    assert " more" not in fault(tmp_path)


# ------------------------------------------------------------------ two runs in one

@pytest.mark.parametrize(("changed", "words"), [
    ({"real_fingerprint": "x", "trained_on": OTHERS}, "real_fingerprint is not one in replicate 0"),
    ({"model": "resnet18"}, "model is not one in all results"),
    ({"steps": 100}, "steps is not one in all results"),
    ({"settings": {"steps": 50, "batch_size": 32}}, "settings is not one in all results"),
    ({"settings": None}, "settings is not one in all results"),
])
def test_an_arm_of_another_recipe_or_other_real_images_is_refused(tmp_path, changed, words):
    tree(tmp_path, *two_arms(**changed))
    message = fault(tmp_path)
    assert f"results of two runs are mixed: {words}" in message
    assert "in real replicate 0 repeat 0 but " in message
    assert "in gan replicate 0 repeat 0)" in message


@pytest.mark.parametrize("name", ["real", "gan"])
def test_repeats_of_two_versions_of_one_dataset_are_refused(tmp_path, name):
    rows = [row | {"dataset_fingerprint": f"version {row['repeat']}"}
            if row["dataset"] == name else row for row in two_arms()]
    assert (f"dataset_fingerprint is not one in {name} replicate 0 (version 0 in {name} "
            f"replicate 0 repeat 0 but version 1 in {name} replicate 0 repeat 1)") \
        in fault(tree(tmp_path, *rows))


def test_replicates_have_their_own_splits_and_datasets_but_one_recipe(tmp_path):
    make_results(tmp_path / "good", repeats=2, replicates=2)
    assert read_results(tmp_path / "good").replicates == [0, 1]

    def other_recipe(row):
        if row["replicate"] == 1:
            row["settings"] = {"steps": 51, "batch_size": 16}

    make_results(tmp_path / "bad", repeats=2, replicates=2, edit=other_recipe)
    assert "settings is not one in all results" in fault(tmp_path / "bad")


def test_one_seed_may_serve_every_arm_and_replicate_but_one_repeat_only(tmp_path):
    def one_seed(row):
        row["seed"] = 7 + row["repeat"] + row["replicate"]

    make_results(tmp_path / "good", repeats=2, replicates=2, edit=one_seed)
    assert read_results(tmp_path / "good")
    rows = [row | {"seed": 7} if row["dataset"] == "gan" else row for row in two_arms()]
    assert ("gan replicate 0 repeat 1 has the seed of repeat 0: one training given twice"
            in fault(tree(tmp_path / "bad", *rows)))


def test_a_lacking_repeat_is_named_for_its_arm_and_replicate(tmp_path):
    make_results(tmp_path, repeats=9, replicates=2)
    for repeat in range(1, 9):
        (tmp_path / f"prompt/replicate_001/repeat_{repeat:04d}.json").unlink()
    assert fault(tmp_path) == (
        "prompt replicate 1 lacks repeat 1, 2, 3, 4, 5, 6, ... (1 of 9 there): run the missing "
        "ones, or trim all datasets with --repeats")
    assert read_results(tmp_path, num_repeats=1).repeats == [0]


# ------------------------------------------------------------------ classical baselines

BASELINE = {"kind": "baseline", "model": "logistic", "settings": {"c": 1}, "device": "none",
            "versions": {"scikit-learn": "1.8"}}


def baseline(**changed):
    return [record("nuclei", repeat, SPLIT, SPLIT, **{**BASELINE, **changed}) for repeat in (0, 1)]


def test_a_baseline_has_its_own_recipe_device_and_libraries(tmp_path):
    found = read_results(tree(tmp_path, *two_arms(kind="cnn"), *baseline()))
    assert found.baselines == ["nuclei"] and found.warnings == []
    assert found.settings == {"model": "small", "steps": 50, "batch_size": 16}


@pytest.mark.parametrize(("second", "words"), [
    ({"settings": {"c": 2}}, "settings is not one in all results of nuclei"),
    ({"model": "forest"}, "model is not one in all results of nuclei"),
    ({"kind": "cnn", "model": "small", "settings": {"steps": 50, "batch_size": 16}},
     "kind is not one in nuclei"),
    ({"real_fingerprint": "x"}, "real_fingerprint is not one in replicate 0"),
    ({"kind": "human"}, "is of kind 'human', expected cnn or baseline"),
])
def test_a_baseline_of_two_recipes_or_kinds_is_refused(tmp_path, second, words):
    first, other = baseline()
    assert words in fault(tree(tmp_path, *two_arms(), first, other | second))


# ------------------------------------------------------------------ arms that saw a test image

def seen(name="real", fingerprint="real0", **parent):
    return {"trained_on": [{"name": "gan", "fingerprint": "gan0", "splits": ["train", "val"]},
                           {"name": name, "fingerprint": fingerprint, **parent}]}


@pytest.mark.parametrize(("changed", "words"), [
    (seen(splits=["test"]), "gan replicate 0 was trained on the real test split"),
    (seen(splits=["train", "val", "test"]), "gan replicate 0 was trained on the real test split"),
    (seen(), "gan replicate 0 was trained on the real test split"),
    (seen(name="renamed", splits=["test"]), "gan replicate 0 was trained on the real test split"),
    (seen(fingerprint="older", splits=["train"]), "gan replicate 0 was trained on another real"),
])
def test_an_arm_that_saw_a_test_image_or_may_have_is_refused(tmp_path, changed, words):
    tree(tmp_path, *two_arms(**changed), *baseline())
    message = fault(tmp_path)
    assert message.count(words) == 1
    assert read_results(tmp_path, datasets=["real", "nuclei"]).datasets == ["real", "nuclei"]


def test_one_repeat_that_saw_a_test_image_is_enough(tmp_path):
    rows = two_arms()
    rows[3] |= seen(splits=["test"])
    assert "was trained on the real test split" in fault(tree(tmp_path, *rows))


@pytest.mark.parametrize("changed", [
    seen(splits=["train"]), seen(splits=["train", "val"]),
    seen(name="base", fingerprint="base0", splits=["train", "test"]), {"trained_on": OTHERS}])
def test_an_arm_that_saw_no_test_image_is_compared(tmp_path, changed):
    assert read_results(tree(tmp_path, *two_arms(**changed))).datasets == ["real", "gan"]


@pytest.mark.parametrize("said", [None, [], "nothing"])
def test_an_arm_of_which_nobody_says_what_it_saw_is_refused(tmp_path, said):
    rows = two_arms()
    rows[2]["trained_on"] = said
    assert "gan replicate 0 does not say what it was trained on" in fault(tree(tmp_path, *rows))
    del rows[2]["trained_on"]
    assert "gan replicate 0 does not say what it was trained on" in fault(tree(tmp_path, *rows))


@pytest.mark.parametrize("said", [{"passed": False}, {}, True])
def test_an_arm_that_holds_copies_of_test_images_is_refused(tmp_path, said):
    rows = two_arms()
    rows[2]["leaks"] = said
    assert fault(tree(tmp_path, *rows)).count("images that are real test images or copies") == 1


def write_outcome(results, row, passed=True, **changed):
    """What a search for leaks leaves beside the results: see lungkit/audit/leaks.py."""
    fingerprints = {name: row[name] for name in ("dataset_fingerprint", "real_fingerprint")}
    path = leaks_path(results, *fingerprints.values())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**fingerprints, "passed": passed, **changed}))


@pytest.mark.parametrize("arm", ["gan", "nuclei"])
def test_an_older_arm_is_refused_until_its_images_are_compared(tmp_path, arm):
    rows = [*two_arms(), *baseline()]
    for row in rows:
        if row["dataset"] == arm:
            row["leaks"] = None
            if row["repeat"]:
                del row["leaks"]
    asked = f"{arm}: nobody has looked for real's test images among those trained on"
    assert fault(tree(tmp_path, *rows)).startswith(asked)
    searched = rows[2] if arm == "gan" else rows[0]  # a baseline is fitted to real
    for changed in ({"real_fingerprint": "other"}, {"dataset_fingerprint": "other"}):
        write_outcome(tmp_path, searched, **changed)
        assert fault(tmp_path).startswith(asked)
    write_outcome(tmp_path, searched, passed=False)
    assert f"{arm} replicate 0 was trained on images that are real test images" in fault(tmp_path)
    write_outcome(tmp_path, searched)
    assert read_results(tmp_path).datasets == ["real", "gan", "nuclei"]


@pytest.mark.parametrize(("said", "warned", "are_files"), [
    ("csv", "", False), ("csv+auto", "groups found only: old", False), ("regex", "", False),
    ("auto", "", True), ("none", "", True), (None, "", False), (None, "no groups given: so", True),
    (None, "groups found only: copies", True), (None, "few groups: 3", False)])
def test_whether_groups_name_patients_is_in_the_records_or_in_older_ones_warnings(
        tmp_path, said, warned, are_files):
    rows = two_arms()
    for row in rows:
        row |= {"groups_given": said, "warnings": [warned] * bool(warned)}
    assert read_results(tree(tmp_path, *rows)).groups_are_files == are_files


# ------------------------------------------------------------------ what must be told

def test_warnings_are_told_once_and_name_the_arms_unless_all_say_them(tmp_path):
    def warn(row):
        row["warnings"] = ["of all", *(["of two"] if row["dataset"] != "real" else []),
                           *(["of one repeat"] if row["dataset"] == "prompt" and row["repeat"] == 1
                             else [])]

    found = read_results(make_results(tmp_path, repeats=2, edit=warn))
    assert found.warnings == ["of all", "prompt, voronoi: of two", "prompt: of one repeat"]


@pytest.mark.parametrize(("name", "value"), [
    ("device", "NVIDIA H100"), ("versions", {"torch": "2.12.0"})])
def test_trainings_on_unlike_machines_are_told(tmp_path, name, value):
    found = read_results(tree(tmp_path, *two_arms(**{name: value})))
    assert found.warnings == [f"mixed {name}: the results come from 2 different {name}; equal "
                              "seeds need not give equal trainings there"]


def test_replicates_of_one_split_are_told(tmp_path):
    def same(row):
        row.update(real_fingerprint="real", dataset_fingerprint=f"{row['dataset']} x",
                   trained_on=OTHERS)

    found = read_results(make_results(tmp_path, repeats=2, replicates=2, edit=same))
    assert found.warnings[-1] == ("same split: replicates 0 and 1 test on the same real split; "
                                  "they are not whole-pipeline replicates, their trainings are "
                                  "repeats")
    assert found.splits == [[0, 1]] and found.unit == "repeat"
    assert len(found.values("real", "accuracy_real")) == 4


def test_one_dataset_under_two_names_is_told(tmp_path):
    found = read_results(tree(tmp_path, *two_arms(dataset_fingerprint="real0", trained_on=OTHERS)))
    assert found.warnings == ["same images: real and gan are one dataset under two names"]


def test_the_settings_told_are_those_of_the_cnns(tmp_path):
    rows = [record(name, repeat, SPLIT, SPLIT, steps=70, settings={"batch_size": 8})
            for name in ("real", "gan") for repeat in (0, 1)]
    found = read_results(tree(tmp_path, *rows, *baseline()))
    assert found.settings == {"model": "small", "steps": 70, "batch_size": 8}


# ------------------------------------------------------------------ a CSV

def write_csv(path, *lines, header="dataset,repeat,accuracy", encoding="utf-8"):
    path.write_bytes("\r\n".join([header, *lines, ""]).encode(encoding))
    return path


def test_a_csv_is_read_by_its_column_names(tmp_path):
    path = write_csv(tmp_path / "t.csv", "0.5,1, old ,0,note", "0.75,0,real,0,", "0.25,0,old,0,",
                     "1,1,real,0,", header="accuracy,repeat,dataset,replicate,note",
                     encoding="utf-8-sig")  # as a spreadsheet saves it
    found = read_results(path)
    assert (found.datasets, found.metrics) == (["real", "old"], ["accuracy"])
    assert found.values("real", "accuracy") == [0.75, 1] and found.values("old", "accuracy") == [
        0.25, 0.5]
    assert (found.settings, found.warnings, found.baselines) == ({}, [], [])


def test_replicates_of_a_csv_are_replicates(tmp_path):
    lines = [f"{name},{replicate},{repeat},{value}" for name in "ab" for replicate, repeat, value in
             ((0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.1), (1, 1, 0.3))]
    found = read_results(write_csv(tmp_path / "t.csv", *lines,
                                   header="dataset,replicate,repeat,accuracy"))
    assert found.replicates == [0, 1]
    assert found.values("a", "accuracy") == pytest.approx([0.6, 0.2])


def test_the_grid_of_a_csv_is_its_smallest_gap(tmp_path):
    path = write_csv(tmp_path / "t.csv", "a,0,0.50", "a,1,0.62", "b,0,0.53", "b,1,0.62")
    assert read_results(path).step("accuracy") == pytest.approx(0.03)
    path = write_csv(tmp_path / "t.csv", "a,0,0.5", "a,1,0.5", "b,0,0.5", "b,1,0.5")
    assert read_results(path).step("accuracy") == 0  # nothing is known of its images


@pytest.mark.parametrize(("line", "words"), [
    ("b,1.5,0,0.8", "replicate is '1.5', not a whole number from 0"),
    ("b,-1,0,0.8", "replicate is '-1', not a whole number from 0"),
    ("b,,0,0.8", "replicate is '', not a number"),
    ("b,0,inf,0.8", "repeat is 'inf', not a whole number from 0"),
    ("b,0,0.5,0.8", "repeat is '0.5', not a whole number from 0"),
    ("b,0,,0.8", "repeat is '', not a number"),
    ("b,0,0,inf", "accuracy is inf, not a fraction between 0 and 1"),
])
def test_a_line_of_a_csv_that_holds_no_result_is_named(tmp_path, line, words):
    path = write_csv(tmp_path / "t.csv", "a,0,0,0.5", "a,0,1,0.6", "b,0,1,0.7", line,
                     header="dataset,replicate,repeat,accuracy")
    assert f"{path} line 5: {words}" in fault(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = write_csv(tmp_path / "t.csv", "é,0,0.5", encoding="latin-1")
    assert "is not a CSV text file" in fault(path)
