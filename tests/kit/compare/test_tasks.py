"""The table of several tasks: the ruler in every row, and that the patients are split alike."""

from __future__ import annotations

import csv
import json

import pytest

from lungkit.compare import tasks
from lungkit.run.faults import Fault

SPLIT = {"p1": "train", "p2": "test"}


def estimate(level: str, difference: float, low: float | None, high: float | None) -> dict:
    return {"level": level, "difference": difference, "low": low, "high": high}


def make_task(run_dir, name, *, ruler=True, metric="auprc_weighted_real", split=SPLIT):
    """A run of real, layout and the baselines, as its comparison says it."""
    arm = {"kind": "cnn", "mean": 0.9, "low": 0.8, "high": 0.95}
    arms = [{"dataset": "real", **arm}, {"dataset": "layout", **arm, "mean": 0.7, "low": None}]
    if ruler:
        arms.append({"dataset": "size", "kind": "baseline", "mean": 0.92, "low": 0.85,
                     "high": 0.97})
    pairs = [
        {"arm": "layout", "against": "real", "level": "A", "estimates": {
            "A": estimate("A", -0.2, -0.3, -0.1)}},
        {"arm": "size", "against": "real", "level": "B", "estimates": {
            "A": estimate("A", 0.5, 0.4, 0.6), "B": estimate("B", 0.02, -0.03, 0.07)}},
        {"arm": "layout", "against": "size", "level": "A", "estimates": {
            "A": estimate("A", -0.22, None, 0.1)}}]
    folder = run_dir / name
    for path, content in {
            "comparison/comparison.json": {"metric": metric, "arms": arms, "pairs": pairs,
                                           "num_repeats": 6, "num_replicates": 2,
                                           "groups_per_class": {"benign": 4, "malignant": 5}},
            "results/real/replicate_000/repeat_0000.json": {"real": {
                "auprc_baseline": 0.55, "num_images": 10,
                "confusion_matrix": [[3, 1], [2, 4]]}}}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    path = folder / "datasets/real/split.csv"
    path.parent.mkdir(parents=True)
    path.write_text("patient,split,strata\n" + "".join(
        f"{patient},{part},\n" for patient, part in split.items()))
    return folder


def test_every_row_has_the_ruler_and_what_is_beyond_it(tmp_path, capsys):
    make_task(tmp_path, "crop-binary")
    make_task(tmp_path, "slice-grade", metric="accuracy_real")
    assert tasks.main([str(tmp_path), "--tasks", "crop-binary", "slice-grade"]) == 0
    rows = list(csv.DictReader((tmp_path / "tasks.csv").open()))
    assert [(row["task"], row["arm"]) for row in rows] == [
        (task, arm) for task in ("crop-binary", "slice-grade") for arm in ("real", "layout")]
    assert {(row["ruler"], row["ruler_low"], row["ruler_high"]) for row in rows} == {
        ("0.92", "0.85", "0.97")}
    real, layout = rows[:2]
    assert (real["beyond_ruler"], real["beyond_low"], real["beyond_high"], real["level"]) == (
        "-0.02", "-0.07", "0.03", "B")
    assert (layout["beyond_ruler"], layout["beyond_low"], layout["beyond_high"]) == (
        "-0.22", "", "0.1")
    assert [row["guessing"] for row in rows] == ["0.55"] * 2 + ["0.6"] * 2
    text = (tmp_path / "tasks.txt").read_text()
    assert capsys.readouterr().out.startswith(text)
    first = text.splitlines()[1]
    for words in ("weighted AUPRC", "0.900 (0.800 to 0.950)", "0.920 (0.850 to 0.970)",
                  "-2.0 (-7.0 to +3.0) B", "0.550", "12"):
        assert words in first
    assert first.split()[-1] == "4" and real["groups"] == "benign 4 malignant 5"


def test_of_nodule_or_none_there_is_no_ruler(tmp_path):
    row = tasks.rows_of("crop-presence", make_task(tmp_path, "crop-presence", ruler=False))[0]
    assert row["ruler"] is row["beyond_ruler"] is None and row["score"] == 0.9
    assert tasks.in_words([row]).splitlines()[1].count(" -") == 2


def test_a_replicate_has_a_split_of_its_own_which_all_tasks_share(tmp_path):
    runs = {name: make_task(tmp_path, name) for name in ("crop-binary", "crop-grade")}
    for run_dir, of_p1 in zip(runs.values(), ("test", "val")):
        path = run_dir / "replicates/001/datasets/real/split.csv"
        path.parent.mkdir(parents=True)
        path.write_text(f"patient,split\np1,{of_p1}\np2,train\n")
        if of_p1 == "test":  # in train of replicate 0
            assert tasks.check_splits({"crop-binary": run_dir}) is None
    with pytest.raises(Fault, match="p1 is in test of crop-binary .* in val .*replicates/001"):
        tasks.check_splits(runs)


@pytest.mark.parametrize("fault", ["no comparison", "other split"])
def test_what_is_no_table_of_one_split_is_one_line(tmp_path, capsys, fault):
    make_task(tmp_path, "crop-binary")
    other = {"p1": "train", "p2": "val"} if fault == "other split" else {"p1": "train"}
    folder = make_task(tmp_path, "crop-grade", split=other)
    if fault == "no comparison":
        (folder / "comparison/comparison.json").unlink()
    assert tasks.main([str(tmp_path), "--tasks", "crop-binary", "crop-grade"]) == 1
    error = capsys.readouterr().err
    words = {"no comparison": "crop-grade holds no comparison yet",
             "other split": "patient p2 is in test of crop-binary and in val of crop-grade"}
    assert words[fault] in error and error.count("\n") == 1
    assert not (tmp_path / "tasks.csv").exists()
