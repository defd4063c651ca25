"""The comparison as a stage: verdicts, what it reads and refuses, the page, its habits."""

import csv
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import wilcoxon_test as stage
from arms import fork, signal_when
from lungkit.compare import figures, rank_sum, results
from lungkit.compare.pairs import compare, rank_cautions
from rank_sums import X, Y, enumerate_p
from result_trees import ARMS, make_results, record, right, split_of, write, write_counts

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ verdicts

def pair_of(a, b, names=("real", "other"), margin=0.02):
    return compare(dict(zip(names, (a, b))), metric="accuracy", unit="repeat", alpha=0.05,
                         margin=margin)[0]


def decided(**values):
    """{(a, b): pair} of all pairs, at the usual level and margin."""
    return {(pair.dataset_a, pair.dataset_b): pair for pair in compare(
        values, metric="accuracy", unit="repeat", alpha=0.05, margin=0.02)}


def test_a_difference_significant_by_itself_is_not_so_among_three_pairs():
    real = [0.70, 0.71, 0.72, 0.73, 0.74, 0.75]
    gan = [0.720, 0.738, 0.767, 0.774, 0.815, 0.827]
    alone = decided(real=real, gan=gan)["real", "gan"]
    assert alone.p == alone.p_holm == pytest.approx(42 / 924)
    among = decided(real=real, gan=gan, vae=[0.70, 0.72, 0.74, 0.76, 0.78, 0.80])["real", "gan"]
    assert (among.p, among.p_holm) == (alone.p, pytest.approx(3 * alone.p))
    assert among.can_reach_alpha


def test_an_equivalence_shown_by_itself_is_not_so_among_three_pairs():
    real = [0.701, 0.704, 0.717, 0.726, 0.732, 0.733]
    gan = [0.700, 0.709, 0.718, 0.729, 0.730, 0.738]
    alone = decided(real=real, gan=gan)["real", "gan"]
    assert alone.p_equivalent == alone.p_equivalent_holm == pytest.approx(43 / 924)
    among = decided(real=real, gan=gan, vae=[0.60, 0.65, 0.70, 0.75, 0.80, 0.85])["real", "gan"]
    assert among.p_equivalent_holm == pytest.approx(3 * alone.p_equivalent)


def test_not_worse_than_real_is_adjusted_over_the_pairs_with_real_alone():
    real = [0.704, 0.707, 0.715, 0.721, 0.737, 0.745]
    gan = [0.713, 0.713, 0.722, 0.736, 0.742, 0.757]
    wide = [0.60, 0.65, 0.70, 0.75, 0.80, 0.85]
    alone = decided(real=real, gan=gan)["real", "gan"]
    assert alone.p_b_not_worse_holm == alone.p_b_not_worse == pytest.approx(17 / 924)
    among = decided(real=real, gan=gan, vae=wide)
    assert among["real", "gan"].p_b_not_worse_holm == pytest.approx(2 * 17 / 924)
    assert among["gan", "vae"].p_b_not_worse_holm is None
    others = decided(gan=gan, vae=wide, real=real)  # real is nobody's reference where it is not a
    assert [pair.p_b_not_worse_holm for pair in others.values()] == [None] * 3
    swapped = decided(real=gan, gan=real)["real", "gan"]  # real not worse than gan: not asked
    assert swapped.p_a_not_worse == alone.p_b_not_worse
    assert swapped.p_b_not_worse_holm == swapped.p_b_not_worse == alone.p_a_not_worse > 0.1


def test_a_pair_holds_the_numbers_of_its_own_two_datasets():
    values = {"real": [0.90, 0.91, 0.93, 0.94, 0.96], "gan": [0.80, 0.84, 0.85, 0.86, 0.95],
              "vae": [0.84, 0.88, 0.90, 0.95, 0.97, 0.99]}
    pairs = compare(values, metric="accuracy_own", unit="replicate", alpha=0.1, margin=0.05,
                          margin_tested=0.04, grid=0.02)
    assert [(pair.dataset_a, pair.dataset_b) for pair in pairs] == [
        ("real", "gan"), ("real", "vae"), ("gan", "vae")]
    for pair in pairs:
        a, b = values[pair.dataset_a], values[pair.dataset_b]
        assert (pair.metric, pair.unit, pair.method) == ("accuracy_own", "replicate", "exact")
        assert (pair.n_a, pair.n_b) == (len(a), len(b))
        assert (pair.median_a, pair.median_b) == pytest.approx((np.median(a), np.median(b)))
        greater, less, extreme = enumerate_p(a, b)
        assert pair.p == pytest.approx(2 * min(greater, less))
        assert pair.p_smallest == pytest.approx(2 * extreme)
        assert pair.p_smallest_without_ties == pytest.approx(2 / math.comb(len(a) + len(b), len(a)))
        assert pair.u == sum((x > y) + (x == y) / 2 for x in a for y in b)
        assert pair.a12 == pytest.approx(pair.u / len(a) / len(b))
        assert (pair.shift, pair.shift_low, pair.shift_high) == rank_sum.shift_with_interval(
            a, b, 0.1, 0.02)
        assert (pair.confidence, pair.margin, pair.margin_tested) == (0.9, 0.05, 0.04)
        assert (pair.p_a_not_worse, pair.p_b_not_worse) == rank_sum.margin_tests(a, b, 0.04)
        assert pair.p_equivalent == max(pair.p_a_not_worse, pair.p_b_not_worse)
        assert pair.n_needed == rank_sum.n_needed(3, 0.1) and pair.can_reach_alpha
    assert [pair.p_holm for pair in pairs] == rank_sum.holm([pair.p for pair in pairs])
    assert [pair.p_equivalent_holm for pair in pairs] == rank_sum.holm(
        [pair.p_equivalent for pair in pairs])
    assert [pair.p_b_not_worse_holm for pair in pairs] == [
        *rank_sum.holm([pair.p_b_not_worse for pair in pairs[:2]]), None]
    assert pairs[0].shift > 0 and pairs[0].a12 > 0.5 and pairs[2].shift < 0


def test_ties_can_put_significance_out_of_reach():
    pair = pair_of([0.5] * 11 + [0.6], [0.5] * 12)
    assert pair.p_smallest == 1 and pair.p_smallest_without_ties < 1e-5
    assert not pair.can_reach_alpha and pair.n_a > pair.n_needed
    assert not pair_of([0.5] * 4 + [0.9] * 2, [0.5] * 6).can_reach_alpha


def test_reach_counts_the_pairs():
    values = {name: [0.1 * k + 0.001 * i for i in range(5)] for k, name in enumerate("abcde")}
    pairs = compare(values, metric="accuracy", unit="repeat", alpha=0.05, margin=0.02)
    assert len(pairs) == 10 and not any(pair.can_reach_alpha for pair in pairs)
    assert pairs[0].n_needed == 6 and pairs[0].p == pytest.approx(2 / 252)
    assert pairs[0].p_holm == pytest.approx(20 / 252)
    two = compare({name: values[name] for name in "ab"}, metric="accuracy", unit="repeat",
                        alpha=0.05, margin=0.02)
    assert two[0].can_reach_alpha


# ------------------------------------------------------------------ a results tree

def compared_by(*arguments):
    return stage.main([str(argument) for argument in arguments])


def page_of(out):
    """The report's text, whatever its lines."""
    return " ".join((out / "report.html").read_text().split())


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "boxplot_png", lambda *_: b"box")
    monkeypatch.setattr(figures, "differences_png", lambda *_: b"difference")


def test_end_to_end(tmp_path, capsys):
    tree, out = make_results(tmp_path / "results"), tmp_path / "comparison"
    assert compared_by(tree, "--output", out) == 0
    printed = capsys.readouterr()
    assert {path.name for path in out.iterdir()} == {
        "noninferiority.csv", "levels.csv", "arms.csv", "accuracies.csv", "wilcoxon.csv",
        "accuracy_boxplot.png", "accuracy_differences.png", "report.html", "comparison.json"}
    assert not list(tmp_path.glob(".*"))
    rows = read_csv(out / "accuracies.csv")
    assert len(rows) == 18 and [row["dataset"] for row in rows[:6]] == ["real"] * 6
    assert {"accuracy_own", "accuracy_real", "balanced_accuracy_real", "seed"} <= set(rows[0])
    pairs = read_csv(out / "wilcoxon.csv")
    assert [(p["dataset_a"], p["dataset_b"]) for p in pairs] == [
        ("real", "prompt"), ("real", "voronoi"), ("prompt", "voronoi")]
    values = {name: [float(r["accuracy_real"]) for r in rows if r["dataset"] == name]
              for name in ARMS}
    greater, less, _ = enumerate_p(values["real"], values["voronoi"])
    assert float(pairs[1]["p"]) == pytest.approx(2 * min(greater, less))
    assert float(pairs[1]["p_holm"]) == pytest.approx(3 * float(pairs[1]["p"]))
    assert pairs[1]["verdict"].startswith("In these trainings on these test images (level A), "
                                          "voronoi scores lower than real: -")
    manifest = json.loads((out / "comparison.json").read_text())
    assert manifest["unit"] == "repeat" and len(manifest["pairs"]) == 3
    assert float(pairs[0]["margin_tested"]) == pytest.approx(1 / 60)
    assert float(pairs[1]["shift_low"]) * 120 % 2 == pytest.approx(1)
    page = page_of(out)
    assert "model small, steps 50, batch_size 16" in page and "test images: 1.67 points" in page
    lines = printed.out.splitlines()
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert [line.split()[:3] for line in lines[-4:-1]] == [
        ["prompt", "real", "A"], ["voronoi", "real", "A"], ["prompt", "voronoi", "A"]]
    [first, second] = read_csv(out / "noninferiority.csv")
    assert (first["arm"], second["arm"], second["decision"]) == ("prompt", "voronoi", "worse")


def test_the_answer_block_is_the_same_on_terminal_and_page_and_warns_first(
        tmp_path, no_pictures, capsys):
    tree, out = make_results(tmp_path / "r", repeats=3, num_images=30), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0
    page, printed = page_of(out), capsys.readouterr()
    block = printed.out.split("\n\n")[0].splitlines()
    assert json.loads((out / "comparison.json").read_text())["answer"] == block
    section = page[page.index("<section"):page.index("</section>")]
    lines = re.findall(r"<(li|p)[^>]*>(.*?)</\1>", section)  # the style puts "- " before an item
    assert [("- " * (tag == "li")) + html.unescape(text) for tag, text in lines] == block
    told = "\n".join(block)
    for words in ("one replicate: ", "chance level: voronoi cannot", "confounding: real: class a",
                  "no groups: level A only: real/replicate_000/repeat_0000.npz is not there"):
        assert words in told and told.index(words) < told.index("Answer:")
    assert "(level A), " in told.split("Answer:")[1] and "patients" not in told.split(
        "Answer:")[1].split("Next:")[0]
    assert block[-1].startswith("Next: level B, this generated set, for new patients, needs ")
    assert "rank-sum test: 3 of 3 pairs cannot" in printed.err and "rank-sum test" not in told


def test_by_the_arms_own_images_there_is_a_table_and_no_answer(tmp_path, no_pictures, capsys):
    tree, out = make_results(tmp_path / "r"), tmp_path / "c"
    assert compared_by(tree, "--output", out, "--metric", "accuracy_own") == 0
    printed = capsys.readouterr().out
    assert "own test images: each CNN is tested on its own kind" in printed
    assert "No answer: on its own test images no arm is measured against real." in printed
    assert {pair["verdict"] for pair in read_csv(out / "wilcoxon.csv")} == {"no verdict"}
    assert not (out / "noninferiority.csv").exists()
    assert not [word for word in ("equivalent", "higher", "lower", "not worse", "better")
                if word in printed]


def test_replicates_are_the_unit_when_there_are_several(tmp_path, no_pictures):
    tree, out = make_results(tmp_path / "r", repeats=3, replicates=4), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0
    rows, pair = read_csv(out / "accuracies.csv"), read_csv(out / "wilcoxon.csv")[1]
    means = {name: [np.mean([float(r["accuracy_real"]) for r in rows if r["dataset"] == name
                             and r["replicate"] == str(k)]) for k in range(4)] for name in ARMS}
    assert (pair["n_a"], pair["unit"]) == ("4", "replicate")
    assert float(pair["median_a"]) == pytest.approx(np.median(means["real"]))
    assert float(pair["p"]) == pytest.approx(2 / 70)
    page = page_of(out)
    assert "- one replicate:" not in page and "mean of its 3 repeats" in page


def test_more_repeats_recompute_and_fewer_use_the_first(tmp_path, no_pictures, capsys):
    tree, out = make_results(tmp_path / "r", repeats=5), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    first = capsys.readouterr().out.splitlines()
    assert compared_by(tree, "--output", out) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == first[:-1] and again[-1].startswith("already complete: ")
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    five = (out / "wilcoxon.csv").read_bytes()
    make_results(tree, repeats=8)
    assert compared_by(tree, "--output", out) == 0
    assert read_csv(out / "wilcoxon.csv")[0]["n_a"] == "8"
    assert compared_by(tree, "--output", out, "--repeats", 5) == 0
    assert (out / "wilcoxon.csv").read_bytes() == five
    assert compared_by(tree, "--output", out, "--repeats", 9) == 2
    (out / "wilcoxon.csv").write_text("altered")
    assert compared_by(tree, "--output", out, "--repeats", 5) == 0
    assert (out / "wilcoxon.csv").read_bytes() == five


def test_chosen_datasets_and_unfinished_others(tmp_path, no_pictures, capsys):
    tree, out = make_results(tmp_path / "r"), tmp_path / "c"
    (tree / "context").mkdir()
    assert compared_by(tree, "--output", out) == 1
    assert "context holds no results" in capsys.readouterr().err
    assert compared_by(tree, "--output", out, "--datasets", "voronoi", "real") == 0
    pairs = read_csv(out / "wilcoxon.csv")
    assert [(p["dataset_a"], p["dataset_b"]) for p in pairs] == [("real", "voronoi")]
    assert compared_by(tree, "--output", out, "--datasets", "real", "gan") == 2
    assert "gan" in capsys.readouterr().err


def test_dry_run_plans_and_writes_nothing(tmp_path, capsys):
    tree, out = make_results(tmp_path / "r", repeats=3), tmp_path / "c"
    assert compared_by(tree, "--output", out, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "n = 3 repeats" in printed and "needs n >= 5: out of reach" in printed
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["r"]


# ------------------------------------------------------------------ what a reader must know first

COUNTS = {"real": [54, 55, 56, 57, 58, 59], "gan": [51, 52, 54, 55, 57, 58]}


@pytest.mark.parametrize(("changed", "told"), [
    ({"can_reach_alpha": False, "n_needed": 7, "unit": "replicate"},
     "1 of 3 pairs cannot be significant at 0.05 after Holm with n = 6; n >= 7 replicates make it "
     "possible, not likely"),
    ({"can_reach_alpha": False, "n_needed": 6},
     "1 of 3 pairs cannot be significant because most values are equal"),
    ({"method": "normal"},
     "with more than 200 values a pair, p comes from the normal distribution with tie correction"),
])
def test_what_weakens_a_rank_sum_test_is_told_but_limits_no_answer(changed, told):
    pair = pair_of([0.1 * k for k in range(6)], [0.1 * k + 0.05 for k in range(6)])
    assert rank_cautions([pair] * 3, 0.05) == []
    [caution] = rank_cautions([replace(pair, **changed), pair, pair], 0.05)
    assert (caution.name, caution.text, caution.limits) == ("rank-sum test", told, False)


# ------------------------------------------------------------------ a view of the results

@pytest.fixture
def reads(monkeypatch):
    """How often the results were read."""
    calls = []
    original = results.read_results
    monkeypatch.setattr(results, "read_results", lambda *given, **options: calls.append(given)
                        or original(*given, **options))
    return calls


@pytest.mark.parametrize("options", [
    ["--alpha", "0.01"], ["--margin", "0.05"], ["--metric", "accuracy_own"], ["--repeats", "2"],
    ["--metric", "auroc"], ["--datasets", "real", "gan"]])
def test_other_options_make_the_comparison_anew(tmp_path, no_pictures, reads, options):
    tree, out = write_counts(tmp_path / "r", {**COUNTS, "vae": COUNTS["gan"]}), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0 and len(reads) == 1
    assert compared_by(tree, "--output", out) == 0 and len(reads) == 1
    assert compared_by(tree, "--output", out, *options) == 0 and len(reads) == 2
    assert compared_by(tree, "--output", out, *options) == 0 and len(reads) == 2


@pytest.mark.parametrize("edit", [
    lambda folder: (folder / "c/wilcoxon.csv").unlink(),
    lambda folder: (folder / "c/accuracy_boxplot.png").write_bytes(b"other"),
    lambda folder: (folder / "c/comparison.json").unlink(),
    lambda folder: (folder / "sheets/real.png").write_bytes(b"other"),
    lambda folder: (folder / "sheets/gan.png").write_bytes(b"new"),
    lambda folder: write(folder / "r", record("gan", 0, split_of(right(57)), split_of(right(50)))),
])
def test_a_comparison_altered_or_of_other_inputs_is_made_anew(tmp_path, no_pictures, reads, edit):
    sheets = tmp_path / "sheets"
    sheets.mkdir()
    (sheets / "real.png").write_bytes(b"sheet")
    command = write_counts(tmp_path / "r", COUNTS), "--output", tmp_path / "c", "--sheets", sheets
    assert compared_by(*command) == 0
    edit(tmp_path)
    assert compared_by(*command) == 0 and len(reads) == 2
    assert compared_by(*command) == 0 and len(reads) == 2


@pytest.mark.parametrize("module", [stage.result])
def test_other_code_of_the_view_makes_the_comparison_anew(
        tmp_path, monkeypatch, no_pictures, reads, module):
    code = tmp_path / "code.py"
    shutil.copyfile(module.__file__, code)
    monkeypatch.setattr(module, "__file__", str(code))
    tree = write_counts(tmp_path / "r", COUNTS)
    assert compared_by(tree, "--output", tmp_path / "c") == 0
    assert compared_by(tree, "--output", tmp_path / "c") == 0 and len(reads) == 1
    code.write_text(code.read_text() + "# changed\n")
    assert compared_by(tree, "--output", tmp_path / "c") == 0 and len(reads) == 2


@pytest.mark.parametrize("version", ["dataset_fingerprint", "real_fingerprint"])
def test_results_of_another_dataset_version_are_not_called_complete(
        tmp_path, no_pictures, capsys, version):
    tree, out = write_counts(tmp_path / "r", COUNTS), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write(tree, record("gan", 5, split_of(right(57)), split_of(right(58)), **{version: "other"}))
    capsys.readouterr()
    assert compared_by(tree, "--output", out) == 1
    printed = capsys.readouterr()
    assert f"two runs are mixed: {version}" in printed.err and printed.out == ""
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_metric_chosen_is_the_one_compared(tmp_path, no_pictures):
    tree, out = write_counts(tmp_path / "r", COUNTS, own=45), tmp_path / "c"
    for metric, median in ((None, 56.5 / 60), ("accuracy_real", 56.5 / 60), ("accuracy_own", 0.75)):
        assert compared_by(tree, "--output", out, *(["--metric", metric] if metric else [])) == 0
        [pair] = read_csv(out / "wilcoxon.csv")
        assert pair["metric"] == (metric or "accuracy_real")
        assert float(pair["median_a"]) == pytest.approx(median)


@pytest.mark.parametrize(("asked", "metric"), [
    ("auroc", "auroc_real"), ("auroc_real", "auroc_real"), ("auroc_own", "auroc_own"),
    ("accuracy", "accuracy_real"), ("balanced_accuracy", "balanced_accuracy_real"),
    ("macro_f1_own", "macro_f1_own"), ("dice", "dice_real")])
def test_any_score_that_every_record_has_can_be_compared(tmp_path, no_pictures, asked, metric):
    def edit(row):
        for split, value in (("own", 0.5), ("real", 0.6)):
            row["scores"][split] |= {"dice": value + row["repeat"] / 100}

    tree, out = make_results(tmp_path / "r", edit=edit), tmp_path / "c"
    assert compared_by(tree, "--output", out, "--metric", asked) == 0
    rows, pairs = read_csv(out / "accuracies.csv"), read_csv(out / "wilcoxon.csv")
    assert {pair["metric"] for pair in pairs} == {metric}
    real, voronoi = ([float(row[metric]) for row in rows if row["dataset"] == name]
                     for name in ("real", "voronoi"))
    assert float(pairs[1]["median_a"]) == pytest.approx(np.median(real))
    greater, less, _ = enumerate_p(real, voronoi)
    assert float(pairs[1]["p"]) == pytest.approx(min(1, 2 * min(greater, less)))
    assert json.loads((out / "comparison.json").read_text())["metric"] == metric
    # accuracies lie on a grid: of other scores the margin is tested as it is
    assert float(pairs[0]["margin_tested"]) == pytest.approx(
        1 / 60 if "accuracy" in metric else 0.02)
    assert ("in whole steps of the score" in page_of(out)) == metric.startswith("balanced")
    assert ("in whole test images" in page_of(out)) == metric.startswith("accuracy")
    told = json.loads((out / "comparison.json").read_text())["warnings"]
    told = [each["name"] for each in told]
    assert ("chance level" in told) == (metric == "accuracy_real")
    assert ("own test images" in told) == metric.endswith("_own")


@pytest.mark.parametrize("asked", ["f1", "auprc_baseline", "num_images", "auroc_test", "dice",
                                   "seed"])
def test_a_score_that_some_record_lacks_is_refused_with_those_there(tmp_path, capsys, asked):
    def edit(row):
        if row["dataset"] != "prompt":
            row["scores"]["own"]["dice"] = row["scores"]["real"]["dice"] = 0.5

    tree, out = make_results(tmp_path / "r", edit=edit), tmp_path / "c"
    assert compared_by(tree, "--output", out, "--metric", asked, "--dry-run") == 2
    assert capsys.readouterr().err == (
        f"wilcoxon_test.py: error: --metric {asked} is not a score of all these results; there are "
        "accuracy_real, accuracy_own, auprc_weighted_real, auprc_weighted_own, auroc_real, "
        "auroc_own, balanced_accuracy_real, balanced_accuracy_own, macro_f1_real, macro_f1_own\n")
    assert compared_by(tree, "--output", out, "--metric", asked) == 2 and not out.exists()


def test_results_that_share_no_score_on_both_splits_are_refused_in_one_line(tmp_path, capsys):
    def edit(row):
        row |= {"task": "segment", "scores": {"own": {"dice": 0.5}, "real": {"ap50": 0.5}}}

    tree = make_results(tmp_path / "r", edit=edit)
    assert compared_by(tree, "--output", tmp_path / "c") == 1
    error = capsys.readouterr().err
    assert "share no score on both test splits" in error and error.count("\n") == 1


@pytest.mark.parametrize(("asked", "status"), [("auroc_own", 1), ("aurok", 2)])
def test_a_misspelt_score_ends_a_plan_before_there_are_results(tmp_path, capsys, asked, status):
    assert compared_by(tmp_path / "r", "--output", tmp_path / "c", "--metric", asked,
                       "--dry-run") == status
    error = capsys.readouterr().err
    assert ("is not a score" in error) == (status == 2) and error.count("\n") == 1


def test_level_and_margin_asked_for_are_those_used(tmp_path, no_pictures):
    tree, out = write_counts(tmp_path / "r", COUNTS), tmp_path / "c"
    for options, alpha, margin, tested in (
            ([], 0.05, 0.02, 1 / 60), (["--alpha", "0.2", "--margin", "0.06"], 0.2, 0.06, 3 / 60)):
        assert compared_by(tree, "--output", out, *options) == 0
        [pair] = read_csv(out / "wilcoxon.csv")
        assert float(pair["confidence"]) == pytest.approx(1 - alpha)
        assert float(pair["margin"]) == margin
        assert float(pair["margin_tested"]) == pytest.approx(tested)
        page = page_of(out)
        assert f"significance level {alpha:g} after Holm, margin ±{100 * margin:g} points" in page


def test_the_manifest_is_json_with_what_was_asked_and_found(tmp_path, no_pictures):
    tree = write_counts(tmp_path / "r", {name: counts[:3] for name, counts in COUNTS.items()})
    assert compared_by(tree, "--output", tmp_path / "c", "--repeats", 3) == 0
    manifest = json.loads((tmp_path / "c/comparison.json").read_text())
    assert manifest["schema"] == "lungkit.comparison/2"
    assert manifest["options"].items() >= {
        "metric": None, "repeats": 3, "alpha": 0.05, "margin": 0.02, "datasets": None,
        "controls": [], "benign": None}.items()
    assert (manifest["metric"], manifest["unit"]) == ("accuracy_real", "repeat")
    [pair], [real, gan] = manifest["tests"], manifest["arms"]
    assert pair["shift_low"] is None and pair["shift"] == pytest.approx(3 / 60)  # n = 3: unbounded
    assert (real["dataset"], real["n"], gan["dataset"]) == ("real", 3, "gan")
    assert {each["name"] for each in manifest["warnings"]} >= {"rank-sum test", "no groups"}
    assert sorted(manifest["files"]) == [
        "accuracies.csv", "accuracy_boxplot.png", "accuracy_differences.png", "arms.csv",
        "levels.csv", "noninferiority.csv", "report.html", "wilcoxon.csv"]


def test_the_manifest_is_written_last(tmp_path, no_pictures, monkeypatch):
    tree, out, names = write_counts(tmp_path / "r", COUNTS), tmp_path / "c", []
    replace_file = os.replace

    def one_by_one(source, target):
        names.append(Path(target).name)
        if len(names) == 5:
            raise OSError(28, "No space left on device", str(target))
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", one_by_one)
        assert compared_by(tree, "--output", out) == 1
        assert not (out / "comparison.json").exists() and not list(out.glob(".*"))
        names.clear()
        patch.setattr(os, "replace", lambda *given: names.append(Path(given[1]).name)
                      or replace_file(*given))
        assert compared_by(tree, "--output", out) == 0
    assert len(names) == 9 and names[-1] == "comparison.json"


def test_a_signal_ends_it_with_75_and_nothing_written(tmp_path, no_pictures, monkeypatch, capsys):
    tree, out = write_counts(tmp_path / "r", COUNTS), tmp_path / "c"
    original = results.read_results

    def signalled(*given, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(results, "read_results", signalled)
        assert compared_by(tree, "--output", out) == 75
    assert "run the same command again" in capsys.readouterr().err and not out.exists()
    assert compared_by(tree, "--output", out) == 0


def test_a_stop_is_heeded_between_pairs(monkeypatch):
    """Of many arms and repeats the intervals take minutes."""
    from lungkit.run import faults

    heeded = []
    monkeypatch.setattr(faults, "check_stop", lambda: heeded.append(True))
    compare({name: [0.5, 0.6, 0.7] for name in "abcd"}, metric="accuracy", unit="repeat",
            alpha=0.05, margin=0.02)
    assert len(heeded) == 6


def test_two_do_not_write_one_comparison(tmp_path, no_pictures, capsys, monkeypatch):
    from lungkit.run import faults, output

    monkeypatch.setattr(output.time, "sleep", lambda seconds: faults.note_signal(15, None))
    tree, out = write_counts(tmp_path / "r", COUNTS), tmp_path / "c"
    with output.lock(out):
        assert compared_by(tree, "--output", out) == 75  # it waits, and a signal ends that
    assert "is being written by another process" in capsys.readouterr().err and not out.exists()


def test_a_plan_is_made_although_the_comparison_is_complete(tmp_path, no_pictures, capsys):
    tree, out = write_counts(tmp_path / "r", {**COUNTS, "vae": COUNTS["gan"]}), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 0
    capsys.readouterr()
    assert compared_by(tree, "--output", out, "--dry-run") == 0
    assert capsys.readouterr().out == (
        "found 3 datasets (real, gan, vae) with n = 6 repeats of accuracy_real\n"
        "3 pairs; smallest p 0.0022, after Holm 0.0065; significance at 0.05 needs n >= 5\n"
        f"would write {out / 'report.html'}\n")
    assert compared_by(tree, "--output", out, "--dry-run", "--repeats", "2") == 0
    assert "smallest p 0.33, after Holm 1; significance at 0.05 needs n >= 5: out of reach" \
        in capsys.readouterr().out


def test_an_output_that_is_a_file_is_refused(tmp_path):
    tree, out = write_counts(tmp_path / "r", COUNTS), tmp_path / "c"
    out.write_text("mine")
    assert compared_by(tree, "--output", out) == 2 and out.read_text() == "mine"


# ------------------------------------------------------------------ what is refused

def change(dataset="voronoi", repeat=2, **values):
    """An edit of one result."""
    def edit(row):
        if row["dataset"] == dataset and row["repeat"] == repeat:
            row.update(values)
    return edit


def trained_on(**parent):
    return change(trained_on=[
        {"name": "real", "fingerprint": "real0", "splits": ["train"]} | parent])


@pytest.mark.parametrize("edit, words", [
    (change(real_fingerprint="other"),
     "two runs are mixed: real_fingerprint is not one in replicate 0"),
    (change(dataset_fingerprint="other"), "dataset_fingerprint is not one in voronoi replicate 0"),
    (change(model="resnet18"), "model is not one"),
    (change(settings={"steps": 51, "batch_size": 16}), "settings is not one"),
    (trained_on(splits=["train", "test"]), "was trained on the real test split"),
    (trained_on(fingerprint="elsewhere"), "was trained on another real dataset"),
    (trained_on(name="lung", splits=["test"]), "was trained on the real test split"),
    (change(seed=100), "has the seed of repeat 0: one training given twice"),
    (change(accuracy_real=float("nan")), "accuracy_real is nan"),
    (change(accuracy_real=1.5), "accuracy_real is 1.5, not a fraction"),
    (change(accuracy_real="high"), "accuracy_real is 'high'"),
    (change(accuracy_real=0.5), "its confusion matrix says"),
    (change(schema="lungkit.result/9"), "lungkit.result/9"),
    (change(seed=None), "lacks seed"),
    (change(task="segment"), "two runs are mixed: task is not one in all results"),
    (change(scores={"own": {"accuracy": 0.5}, "real": {}}), "scores.own.accuracy says 0.5000"),
    (change(own={}), "own.confusion_matrix is not a square"),
    (lambda row: row.update(repeat=7) if row["repeat"] == 2 else None, "a file in the wrong place"),
])
def test_results_are_refused(tmp_path, capsys, edit, words):
    tree, out = make_results(tmp_path / "r", repeats=4, edit=edit), tmp_path / "c"
    assert compared_by(tree, "--output", out) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not out.exists()


def test_missing_repeats_are_named(tmp_path, no_pictures, capsys):
    tree = make_results(tmp_path / "r")
    for repeat in (4, 5):
        (tree / f"prompt/replicate_000/repeat_{repeat:04d}.json").unlink()
    assert compared_by(tree, "--output", tmp_path / "c") == 1
    assert "prompt replicate 0 lacks repeat 4, 5 (4 of 6 there)" in capsys.readouterr().err
    assert compared_by(tree, "--output", tmp_path / "c", "--repeats", 4) == 0


@pytest.mark.parametrize("content", ["", '{"schema": "lungkit.res', "[]", "\x00\x01"])
def test_unreadable_results_are_refused(tmp_path, capsys, content):
    tree = make_results(tmp_path / "r")
    path = tree / "real/replicate_000/repeat_0003.json"
    path.write_text(content)
    assert compared_by(tree, "--output", tmp_path / "c") == 1
    error = capsys.readouterr().err
    assert "repeat_0003.json" in error and error.count("\n") == 1


def test_nothing_to_compare_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert compared_by(tmp_path / "empty", "--output", tmp_path / "c") == 1
    assert compared_by(tmp_path / "absent", "--output", tmp_path / "c") == 1
    one = make_results(tmp_path / "one", arms={"real": 0.9})
    assert compared_by(one, "--output", tmp_path / "c") == 1
    assert "one dataset only (real)" in capsys.readouterr().err
    single = make_results(tmp_path / "single", repeats=1)
    assert compared_by(single, "--output", tmp_path / "c") == 1
    assert "one value per dataset" in capsys.readouterr().err
    run_dir = make_results(tmp_path / "run" / "results").parent
    assert compared_by(run_dir, "--output", tmp_path / "c") == 1
    assert f"did you mean {run_dir / 'results'}?" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_table_that_no_longer_belongs_is_not_left(tmp_path):
    command = write_counts(tmp_path / "r", COUNTS), "--output", tmp_path / "c"
    assert compared_by(*command) == 0
    assert (tmp_path / "c/noninferiority.csv").exists()
    (tmp_path / "c/notes.txt").write_text("mine")
    assert compared_by(*command, "--metric", "accuracy_own") == 0
    assert not (tmp_path / "c/noninferiority.csv").exists()
    assert (tmp_path / "c/notes.txt").read_text() == "mine"


GOOD = [("a", 0, "0.5"), ("a", 1, "0.6"), ("b", 0, "0.7"), ("b", 1, "0.8")]


def write_csv(path, lines, header="dataset,repeat,accuracy"):
    path.write_text("\n".join([header, *(",".join(map(str, line)) for line in lines)]) + "\n")
    return path


@pytest.mark.parametrize("lines, header, words", [
    ([*GOOD[:3], ("b", 1, "nan")], None, "line 5: accuracy is nan"),
    ([*GOOD[:3], ("b", 1, "")], None, "line 5: accuracy is '', not a number"),
    ([*GOOD[:3], ("b", 1, "good")], None, "'good', not a number"),
    ([*GOOD[:3], ("b", 1, "80%")], None, "'80%', not a number (percent? divide by 100)"),
    ([*GOOD[:3], ("b", 1, "0,8")], None, "line 5 has 4 cells, the header 3"),
    ([*GOOD[:3], ("b", 1, "80")], None, "80.0, not a fraction between 0 and 1 (percent?"),
    ([*GOOD[:3], ("b", 1, "-0.1")], None, "-0.1, not a fraction"),
    ([*GOOD[:3], ("b", 0, "0.8")], None, "b replicate 0 repeat 0 is given twice"),
    ([*GOOD[:3], ("b", "x", "0.8")], None, "repeat is 'x'"),
    ([*GOOD[:3], ("", 1, "0.8")], None, "line 5: the dataset is empty"),
    (GOOD[:3], None, "holds one value of b: a rank-sum test needs two or more"),
    ([GOOD[0], GOOD[2]], None, "one value per dataset"),
    (GOOD[:2], None, "one dataset only"),
    ([], None, "has a header and no lines"),
    (GOOD, "dataset,run,accuracy", "lacks the column repeat"),
    (GOOD, "arm,n,score", "lacks the column dataset, repeat, accuracy"),
])
def test_csv_is_refused(tmp_path, capsys, lines, header, words):
    table = write_csv(tmp_path / "t.csv", lines, header or "dataset,repeat,accuracy")
    assert compared_by(table, "--output", tmp_path / "c") == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_csv_is_compared(tmp_path, no_pictures):
    lines = [(name, i, value) for name, sample in (("new", Y), ("old", X)) for i, value in
             enumerate(sample, start=1)]
    out = tmp_path / "c"
    assert compared_by(write_csv(tmp_path / "t.csv", lines), "--output", out) == 0
    [pair] = read_csv(out / "wilcoxon.csv")
    assert (pair["dataset_a"], pair["metric"]) == ("new", "accuracy")
    assert float(pair["p"]) == pytest.approx(0.0411255411255411)
    assert float(pair["shift"]) == pytest.approx(-0.0975) and float(pair["a12"]) == 5 / 36
    assert float(pair["shift_low"]) == pytest.approx(-0.183)  # as R: a CSV names no grid
    assert float(pair["margin_tested"]) == pytest.approx(0.014)  # twice its smallest gap, 0.007
    # its own accuracies.csv is such a CSV
    assert compared_by(out / "accuracies.csv", "--output", tmp_path / "d") == 0
    assert (tmp_path / "d/wilcoxon.csv").read_bytes() == (out / "wilcoxon.csv").read_bytes()
    assert compared_by(tmp_path / "t.csv", "--output", out, "--metric", "accuracy_own") == 2


@pytest.mark.parametrize("options", [
    ["--alpha", "0"], ["--alpha", "0.7"], ["--margin", "2"], ["--margin", "-1"], ["--repeats", "0"],
    ["--metric", "f1"], ["--marg", "0.1"], ["--sheets", "absent"]])
def test_bad_options(tmp_path, options):
    table = write_csv(tmp_path / "t.csv", GOOD)
    assert compared_by(table, "--output", tmp_path / "c", *options) == 2
    assert not (tmp_path / "c").exists()


def test_output_inside_results_is_refused(tmp_path):
    tree = make_results(tmp_path / "r")
    assert compared_by(tree, "--output", tree / "comparison") == 2


# ------------------------------------------------------------------ the stage's habits

def test_help_is_quick_and_imports_nothing_heavy():
    code = ("import sys, wilcoxon_test\ntry: wilcoxon_test.main(['--help'])\nfinally: "
            "assert not {'numpy', 'matplotlib', 'scipy', 'torch'} & set(sys.modules), 'heavy'")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Hodges-Lehmann" in done.stdout and "--margin SCORE" in done.stdout


def test_killed_and_rerun_gives_the_same_files(tmp_path):
    tree = make_results(tmp_path / "r", repeats=8)
    assert compared_by(tree, "--output", tmp_path / "whole") == 0
    out = tmp_path / "c"
    signal_when(fork(lambda: compared_by(tree, "--output", out)), lambda: any(out.glob("*.csv")))
    assert compared_by(tree, "--output", out) == 0
    for path in (tmp_path / "whole").iterdir():
        if path.name != "comparison.json":
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    manifests = [json.loads((folder / "comparison.json").read_text())
                 for folder in (tmp_path / "whole", out)]
    assert manifests[0] == manifests[1]


def test_report_stands_alone_and_escapes_names(tmp_path):
    name = "<b>&x"
    lines = [(n, i, v) for n, s in ((name, Y), ("old", X)) for i, v in enumerate(s)]
    sheets = tmp_path / "sheets"
    sheets.mkdir()
    shutil.copyfile(make_png(tmp_path), sheets / "old.png")
    out = tmp_path / "c"
    assert compared_by(write_csv(tmp_path / "t.csv", lines), "--output", out,
                       "--sheets", sheets) == 0
    page = page_of(out)
    assert "&lt;b&gt;&amp;x" in page and name not in page
    assert page.count("<img ") == 3 and "Images of old" in page
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert not re.search(r"https?://|@import|<script", page)


def make_png(folder):
    from matplotlib.image import imsave

    imsave(folder / "sheet.png", np.zeros((8, 24, 3)))
    return folder / "sheet.png"


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """A comparison of the usual results. Read only."""
    root = tmp_path_factory.mktemp("compared")
    assert compared_by(make_results(root / "r"), "--output", root / "c") == 0
    return root / "c"


def test_plot_is_a_picture_with_every_dataset(compared):
    from matplotlib.image import imread

    from lungkit.compare import figures

    picture = imread(compared / "accuracy_boxplot.png")[..., :3]
    for colour in figures.COLOURS[:3]:  # real first, then the others
        rgb = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        columns = np.where((np.abs(picture - rgb).max(-1) < 0.02).any(0))[0]
        assert len(columns) > 20, colour
        place = figures.COLOURS.index(colour)
        share = (columns.mean() / picture.shape[1] - 0.08) / 0.92 * 3
        assert place < share < place + 1, (colour, share)
    assert figures._spread([1, 2, 1]) == pytest.approx([-0.0275, 0, 0.0275])


def test_page_renders_in_a_browser(compared, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium, to look at the page as a browser does")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
               "--window-size=400,1400", f"--user-data-dir={tmp_path / 'profile'}"]
    probe = tmp_path / "probe.html"  # the page, and a line that measures it
    probe.write_text((compared / "report.html").read_text().replace("</body>", """<script>
        addEventListener('load', () => { document.title = JSON.stringify({
            images: [...document.images].map(i => i.naturalWidth),
            overflow: document.documentElement.scrollWidth - innerWidth,
            rows: document.querySelector('table').tBodies[0].rows.length}) })</script></body>"""))
    done = subprocess.run([*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "HOME": str(tmp_path)})
    measured = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert len(measured["images"]) == 2 and min(measured["images"]) > 500
    assert measured["overflow"] <= 0 and measured["rows"] == 2  # of each arm against real


def test_results_warn_of_copies_and_mixed_devices(tmp_path):
    def edit(row):
        if row["dataset"] == "prompt":
            row["dataset_fingerprint"] = "voronoi0"
        if row["repeat"] == 1:
            row["device"] = "cuda"
    found = results.read_results(make_results(tmp_path / "r", edit=edit))
    assert any(text.startswith("mixed device") for text in found.warnings)
    assert any("prompt and voronoi are one dataset" in text for text in found.warnings)


# ------------------------------------------------------------------ levels, by the stage itself

@pytest.fixture(scope="module")
def run_of_arms(tmp_path_factory):
    """A tree with two arms, a baseline and a control, twelve test groups a class."""
    from simulated_results import Truth, simulate

    truths = {"real": Truth(0.9), "gan": Truth(0.9), "vae": Truth(0.6),
              "nuclei": Truth(0.7, kind="baseline"), "shuffled": Truth(0.4)}
    return simulate(truths, seed=0, groups=12, repeats=4).write(
        tmp_path_factory.mktemp("levels") / "results")


def test_a_tree_with_groups_is_answered_for_new_patients(run_of_arms, tmp_path, no_pictures,
                                                         capsys):
    out = tmp_path / "c"
    assert compared_by(run_of_arms, "--output", out, "--controls", "shuffled") == 0
    printed = capsys.readouterr().out
    told = json.loads((out / "comparison.json").read_text())
    assert told["level"] == "B" and told["groups_per_class"] == {
        "class0": 12, "class1": 12, "class2": 12}
    first = read_csv(out / "noninferiority.csv")
    assert [(line["arm"], line["level"], line["decision"]) for line in first] == [
        ("gan", "B", first[0]["decision"]), ("vae", "B", "worse")]
    assert float(first[1]["p_not_worse_holm"]) > 0.9 and float(first[1]["margin"]) == 0.02
    assert first[1]["sentence"] in printed
    levels = read_csv(out / "levels.csv")
    assert len(levels) == 20 and {line["level"] for line in levels} == {"A", "B"}
    families = {(line["arm"], line["against"]): line["family"] for line in levels}
    assert sorted(families.values()).count("outside") == 7
    assert families["gan", "vae"] == "second" and families["vae", "real"] == "primary"
    classes = read_csv(out / "classes.csv")
    assert len(classes) == 15 and list(classes[0])[:4] == ["dataset", "name", "num_images",
                                                            "num_groups"]
    confusion = read_csv(out / "confusion.csv")
    assert len(confusion) == 45 and sum(int(line["count"]) for line in confusion) == 5 * 4 * 108
    arms = {line["dataset"]: line for line in read_csv(out / "arms.csv")}
    assert float(arms["vae"]["brier"]) > float(arms["gan"]["brier"]) > 0
    assert arms["nuclei"]["kind"] == "baseline" and arms["vae"]["worst_label"].startswith("class")
    parts = read_csv(out / "components.csv")
    assert {line["arm"] for line in parts} == {"gan", "vae"}
    assert sum(float(line["share"]) for line in parts) == pytest.approx(2)
    table = printed.split("\n\n")[1].splitlines()
    assert table[0].split()[:3] == ["arm", "against", "level"] and len(table) == 12
    again = compared_by(run_of_arms, "--output", out, "--controls", "shuffled")
    assert again == 0 and capsys.readouterr().out.startswith(printed.split("report: ")[0])


def test_another_answer_beside_a_record_makes_the_comparison_anew(run_of_arms, tmp_path,
                                                                  no_pictures, reads):
    tree, out = shutil.copytree(run_of_arms, tmp_path / "r"), tmp_path / "c"
    options = ["--output", out, "--datasets", "real", "gan"]
    assert compared_by(tree, *options) == 0 and compared_by(tree, *options) == 0
    assert len(reads) == 1
    path = tree / "gan/replicate_000/repeat_0000.npz"
    path.write_bytes((tree / "gan/replicate_000/repeat_0001.npz").read_bytes())
    assert compared_by(tree, *options) == 1 and len(reads) == 2  # not what its record says


def test_sensitivity_and_specificity_can_be_primary_where_the_benign_class_is_known(
        run_of_arms, tmp_path, no_pictures, capsys):
    out = tmp_path / "c"
    for metric in ("sensitivity", "specificity"):
        assert compared_by(run_of_arms, "--output", out, "--benign", "class2", "--metric",
                           metric) == 0
        rows = read_csv(out / "accuracies.csv")
        record = json.loads((run_of_arms / "gan/replicate_000/repeat_0002.json").read_text())
        matrix = record["real"]["confusion_matrix"]
        wanted = {"sensitivity": sum(sum(line[:2]) for line in matrix[:2]) / 72,
                  "specificity": matrix[2][2] / 36}[metric]
        [row] = [row for row in rows if (row["dataset"], row["repeat"]) == ("gan", "2")]
        assert float(row[f"{metric}_real"]) == pytest.approx(wanted)
        told = json.loads((out / "comparison.json").read_text())
        assert (told["metric"], told["level"]) == (f"{metric}_real", "B")
    capsys.readouterr()
    assert compared_by(run_of_arms, "--output", out, "--metric", "sensitivity") == 2
    assert compared_by(run_of_arms, "--output", out, "--benign", "class9") == 2
    assert "--benign class9 is no class of real; there are class0, class1" \
        in capsys.readouterr().err


def test_equal_values_everywhere_are_no_difference_and_no_talk_of_test_images(
        tmp_path, no_pictures, capsys):
    lines = [(name, i, "0.5") for name in ("a", "b") for i in range(6)]
    out = tmp_path / "c"
    assert compared_by(write_csv(tmp_path / "t.csv", lines), "--output", out) == 0
    printed = capsys.readouterr()
    [pair] = read_csv(out / "wilcoxon.csv")
    assert float(pair["p"]) == float(pair["p_holm"]) == 1
    [level] = read_csv(out / "levels.csv")
    assert float(level["p_difference"]) == 1 and float(level["difference"]) == 0
    assert "100 points" not in printed.out + printed.err + page_of(out)
    assert "one test image" not in printed.out + printed.err
    assert json.loads((out / "comparison.json").read_text())["level"] == "A"


def test_where_no_value_varies_the_exact_rank_test_gives_the_p(tmp_path, no_pictures):
    lines = [(name, i, value) for name, value in (("real", 0.9), ("gan", 0.8)) for i in range(4)]
    out = tmp_path / "c"
    assert compared_by(write_csv(tmp_path / "t.csv", lines), "--output", out) == 0
    [level] = read_csv(out / "levels.csv")
    assert float(level["p_difference"]) == pytest.approx(2 / 70)
    assert float(level["p_not_worse"]) == 1 and level["decision"] == "worse"


def test_a_csv_with_unequal_n_and_its_own_numbers_is_compared_and_that_is_named(
        tmp_path, no_pictures, capsys):
    lines = [("real", i, value) for i, value in enumerate(X)] + [
        ("gan", 100 + i, value) for i, value in enumerate(Y[:4])]
    out = tmp_path / "c"
    assert compared_by(write_csv(tmp_path / "t.csv", lines), "--output", out) == 0
    printed = capsys.readouterr().out
    assert "- unequal n: real 6, gan 4 values" in printed
    [pair] = read_csv(out / "wilcoxon.csv")
    assert (pair["n_a"], pair["n_b"]) == ("6", "4")
    greater, less, _ = enumerate_p(X, Y[:4])
    assert float(pair["p"]) == pytest.approx(2 * min(greater, less))
    table = tmp_path / "t.csv"  # its first repeats are those of each dataset, by its own numbers
    assert compared_by(table, "--output", tmp_path / "d", "--repeats", 4) == 0
    [pair] = read_csv(tmp_path / "d/wilcoxon.csv")
    assert (pair["n_a"], pair["n_b"]) == ("4", "4")
    assert float(pair["median_a"]) == pytest.approx(np.median(X[:4]))
    assert compared_by(table, "--output", tmp_path / "d", "--repeats", 5) == 2
    [first] = read_csv(out / "noninferiority.csv")
    assert float(first["difference"]) == pytest.approx(np.mean(Y[:4]) - np.mean(X))
