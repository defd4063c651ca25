"""The report: every number of the comparison in its place, in order, escaped, and nothing else."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from dataclasses import fields, replace
from html import unescape

import pytest

from lungkit.compare import decide, figures, report
from lungkit.compare.answer import PairAnswer
from lungkit.compare.bootstrap import Mean
from lungkit.compare.pairs import compare
from lungkit.compare.results import read_results
from result_trees import OTHERS, record, right, scores_of, split_of, write, write_counts

COUNTS = {"real": [54, 55, 56, 57, 58, 59], "gan": [30, 31, 32, 33, 34, 35],
          "vae": [52, 53, 54, 56, 57, 57]}


def compared(found, metric="accuracy_real", *, alpha=0.05, margin=0.05, grid=1 / 60):
    pairs = compare({name: found.values(name, metric) for name in found.datasets},
                          metric=metric, unit="repeat", alpha=alpha, margin=margin, grid=grid)
    for pair in pairs:
        pair.verdict = f"{pair.dataset_b} is decided <against> {pair.dataset_a}."
    return pairs, report.summarise(found, metric, {
        name: (0.0625, 0.9375) for name in found.datasets} if metric == "accuracy_real" else None)


ANSWER = ("Read first:", "- a limit: <b>&", "Answer:", "- gan scores lower than real.")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read_results(write_counts(tmp_path_factory.mktemp("results"), COUNTS))


@pytest.fixture(scope="module")
def comparison(found):
    return compared(found)


def page_of(found, pairs, arms, *, warnings=(), sheets=None, metric="accuracy_real", alpha=0.05,
            margin=0.05):
    page = report.page(found, metric, arms, pairs, alpha=alpha, margin=margin,
                       warnings=list(warnings), sheets=sheets or {}, answer=ANSWER, pictures={
                           "accuracy_boxplot.png": b"box",
                           "accuracy_differences.png": b"difference"})
    return " ".join(page.split())  # as a browser does


@pytest.fixture(scope="module")
def page(found, comparison):
    return page_of(found, *comparison)


def cells(page, first_head):
    """The table whose first heads are given, as lines of texts, the heads first."""
    tables = [[[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
               for line in re.findall(r"<tr>(.*?)</tr>", table)]
              for table in re.findall(r"<table>(.*?)</table>", page)]
    [table] = [table for table in tables if table[0][:len(first_head)] == list(first_head)]
    return table


def items(page, after):
    """The texts of the first list after some words of the page."""
    part = page[page.index(after):]
    part = part[part.index("<ul>"):part.index("</ul>")]
    return [unescape(re.sub("<.*?>", "", item)) for item in re.findall(r"<li>(.*?)</li>", part)]


# ------------------------------------------------------------------ one line per dataset

def test_an_arm_is_summarised_by_hand(tmp_path):
    skewed = [[38, 0, 7], [0, 10, 0], [5, 0, 0]]
    for repeat, more in enumerate(({"auroc": 0.5, "macro_f1": 0.1}, {"macro_f1": 0.2},
                                   {"auroc": 0.8, "macro_f1": 0.6})):
        own, real = split_of(right(20 + repeat, 40)), split_of(skewed)
        write(tmp_path, record("real", repeat, split_of(right(30 + repeat, 40)),
                               split_of(right(30 + 3 * repeat**2))))
        write(tmp_path, record("gan", repeat, own, real, scores={
            "own": scores_of(own, auroc=0.99), "real": {"accuracy": 0.8, **more}}))
    found = read_results(tmp_path)
    arms = report.summarise(found, "accuracy_real", {"real": (0.3, 0.4), "gan": (0.1, 0.2)})
    assert [arm["dataset"] for arm in arms] == ["real", "gan"]
    first, gan = arms
    assert (first["n"], first["metric"]) == (3, "accuracy_real")
    assert first["mean"] == pytest.approx(35 / 60) and first["median"] == pytest.approx(33 / 60)
    assert first["sd"] == pytest.approx(math.sqrt((25 + 4 + 49) / 2) / 60)
    assert (first["accuracy_own"], gan["accuracy_own"]) == pytest.approx((31 / 40, 21 / 40))
    assert gan["mean"] == pytest.approx(0.8)
    assert (gan["num_images"], gan["majority_share"]) == (60, 0.75)
    assert (gan["auroc_real"], gan["macro_f1_real"]) == pytest.approx((0.65, 0.3))
    assert "auprc_weighted_real" not in gan and gan["auprc_baseline_real"] == pytest.approx(1 / 3)
    assert (gan["test_low"], gan["test_high"]) == (0.1, 0.2)
    own = report.summarise(found, "accuracy_own")[1]
    assert (own["num_images"], own["auroc_own"]) == (40, pytest.approx(0.99))
    assert own["mean"] == pytest.approx(21 / 40)


def test_the_spread_of_replicates_is_that_of_their_means(tmp_path):
    for replicate, counts in enumerate(([30, 40], [50, 60])):
        write_counts(tmp_path, {"real": counts, "gan": counts}, replicate=replicate, trained_on=OTHERS,
                     real_fingerprint=f"real{replicate}", dataset_fingerprint=f"{replicate}")
    arm = report.summarise(read_results(tmp_path), "accuracy_real")[0]
    assert (arm["n"], arm["mean"]) == (2, pytest.approx(45 / 60))
    assert arm["sd"] == pytest.approx(math.sqrt(200) / 60)


# ------------------------------------------------------------------ the page

def test_the_page_is_in_order(found, comparison):
    page = page_of(found, *comparison, warnings=["careful"], sheets={"gan": b"sheet"})
    parts = [*re.findall(r"<h1>.*?</h1>|<h2>.*?</h2>|<summary>.*?</summary>|"
                         r'alt="[^"]*"|class="answer"', page)]
    assert [re.sub(r"<[^>]*>", "", part) for part in parts] == [
        "Can synthetic images stand in for real ones?", 'class="answer"', "Also", "Verdicts",
        'alt="Difference of every pair"', "Accuracies", 'alt="Accuracy of every repeat"',
        "The images", 'alt="Images of gan"', "Protocol", "All numbers of the tests",
        "Settings and inputs"]


def test_a_picture_stands_under_its_own_name(found, comparison):
    page = page_of(found, *comparison, sheets={"real": b"r", "vae": b"v"})
    shown = {name: base64.b64decode(content) for name, content in re.findall(
        r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)}
    assert shown == {"Difference of every pair": b"difference", "Accuracy of every repeat": b"box",
                     "Images of real": b"r", "Images of vae": b"v"}


def test_the_first_lines_say_what_was_compared_and_how(page):
    line = unescape(re.search(r'<p class="quiet">(.*?)</p>', page)[1])
    assert line == ("3 datasets, 6 repeats each; metric: accuracy on real test images; 3 pairs, "
                    "significance level 0.05 after Holm, margin ±5 points.")


def test_the_answer_is_the_block_line_by_line_and_escaped(page):
    assert items(page, 'class="answer"') == list(ANSWER)
    assert "<b>&" not in page


def test_without_real_the_page_asks_and_answers_no_question_of_real_images(found, comparison):
    pairs = [pair for pair in comparison[0] if pair.dataset_a != "real"]
    others = replace(found, datasets=["gan", "vae"],
                     rows=[row for row in found.rows if row["dataset"] != "real"])
    page = page_of(others, pairs, comparison[1][1:])
    assert "<title>Comparison of datasets</title>" in page and "<h1>Comparison of datasets" in page


def test_every_warning_is_on_the_page_escaped_before_the_verdicts(found, comparison):
    warnings = ["first: <b>&", "second: a \"quote\"", "third"]
    page = page_of(found, *comparison, warnings=warnings)
    assert items(page, "<h2>Also") == warnings
    assert "<b>&" not in page and page.index("third") < page.index("<h2>Verdicts")
    assert "<h2>Also" not in page_of(found, *comparison)


def test_the_table_of_verdicts_holds_every_pair(page, comparison):
    heads, *lines = cells(page, ["a", "b", "Verdict"])
    assert heads == ["a", "b", "Verdict", "a − b", "Interval", "A12", "p (Holm)",
                     "Equivalence p (Holm)"]
    first, second, third = comparison[0]
    assert lines == [
        ["real", "gan", first.verdict, "+40.0", "+35.8 to +44.2", "1.00",
         report.p_words(6 / 924), report.p_words(first.p_equivalent_holm)],
        ["real", "vae", second.verdict, "+3.3",
         f"{report.points(second.shift_low)} to {report.points(second.shift_high)}",
         f"{second.a12:.2f}", report.p_words(second.p_holm),
         report.p_words(second.p_equivalent_holm)],
        ["gan", "vae", third.verdict, "-36.7",
         f"{report.points(third.shift_low)} to {report.points(third.shift_high)}", "0.00",
         report.p_words(6 / 924), report.p_words(third.p_equivalent_holm)]]


def test_the_table_of_accuracies_holds_every_arm(page):
    heads, *lines = cells(page, ["Dataset"])
    assert heads == ["Dataset", "n", "Mean", "SD", "Median", "Test-set interval",
                     "Mean on own test", "Largest class", "Balanced accuracy", "Macro F1",
                     "AUROC", "Weighted AUPRC", "AUPRC by prevalence"]
    assert lines[0] == ["real", "6", "94.2", "3.1", "94.2", "6.2 to 93.8", "95.0",
                        "33.3", "94.2", "94.2", "97.1", "90.0", "33.3"]
    assert [line[:3] for line in lines[1:]] == [["gan", "6", "54.2"], ["vae", "6", "91.4"]]
    assert "60 test images. Test-set interval: of the mean over test groups" in page


def test_by_the_arms_own_tests_measures_are_theirs_and_the_other_mean_is_that_on_real(found):
    pairs, arms = compared(found, "accuracy_own")
    page = page_of(found, pairs, arms, metric="accuracy_own")
    heads, real, gan, _ = cells(page, ["Dataset"])
    place, f1 = heads.index("Mean on real test"), heads.index("Macro F1")
    assert (real[2], real[place], gan[2], gan[place]) == ("95.0", "94.2", "95.0", "54.2")
    assert (real[f1], gan[f1]) == ("95.0", "95.0")
    assert "metric: accuracy on its own test images" in page
    assert "Every CNN is tested on the test split of its own dataset." in items(page, "Protocol")


def test_a_score_that_is_no_accuracy_has_no_limits_of_test_images(found):
    pairs, arms = compared(found, "auroc_real", grid=0)
    page = page_of(found, pairs, arms, metric="auroc_real")
    heads, real, gan, _ = cells(page, ["Dataset"])
    assert heads == ["Dataset", "n", "Mean", "SD", "Median", "Mean on own test", "Accuracy",
                     "Balanced accuracy", "Macro F1", "Weighted AUPRC", "AUPRC by prevalence"]
    assert (real[2], real[5], real[6]) == ("97.1", "97.5", "94.2")
    assert not {"num_images", "majority_share", "test_low"} & set(arms[0])
    for words in ("metric: AUROC on real test images;", "a − b in points of AUROC (",
                  "<h2>AUROC</h2>", 'alt="AUROC of every repeat"'):
        assert words in page
    said = items(page, "Protocol")
    assert said[5].endswith("the same exact test does not reject.")
    assert said[6].endswith("at level C whole replicates.") and "est-set interval" not in page


def test_a_word_the_page_does_not_know_is_an_error_and_no_gap(found, comparison, monkeypatch,
                                                              tmp_path):
    import jinja2

    monkeypatch.setattr(report, "TEMPLATE", tmp_path / "page.j2")
    report.TEMPLATE.write_text("{{ metrics }}")
    with pytest.raises(jinja2.UndefinedError, match="metrics"):
        page_of(found, *comparison)


def test_the_test_images_of_every_arm_are_counted(tmp_path):
    for name, size in (("real", 60), ("gan", 40)):
        for repeat in (0, 1):
            write(tmp_path, record(name, repeat, split_of(right(30, size)), split_of(right(50))))
    found = read_results(tmp_path)
    pairs, arms = compared(found, "accuracy_own")
    assert "40 or 60 test images." in page_of(found, pairs, arms, metric="accuracy_own")


def test_all_numbers_are_those_of_the_tests(page, found, comparison):
    pair = comparison[0][0]
    heads, first, *_ = cells(page, ["a", "b", "n"])
    assert dict(zip(heads, first)) == {
        "a": "real", "b": "gan", "n": "6, 6", "Median a": "94.2", "Median b": "54.2", "U": "36",
        "p": "0.0022", "Smallest p, these ties": "0.0022", "Smallest p, no ties": "0.0022",
        "n needed": "5", "p a not worse": report.p_words(pair.p_a_not_worse),
        "p b not worse": report.p_words(pair.p_b_not_worse), "Method": "exact"}
    assert (first[10], first[11]) == ("0.0011", "1.00")
    tied = replace(pair, p=0.2, p_smallest=0.3, p_smallest_without_ties=0.4, n_a=7, n_b=8,
                   median_a=0.25, median_b=0.5, u=1.5, n_needed=9, method="normal")
    assert cells(page_of(found, [tied], comparison[1]), ["a", "b", "n"])[1][2:10] == [
        "7, 8", "25.0", "50.0", "1.5", "0.20", "0.30", "0.40", "9"]


def test_settings_and_inputs_name_the_recipe_and_every_dataset_version(page):
    assert items(page, "Settings and inputs") == [
        "model: small", "steps: 50", "batch_size: 16", "repeats 0, 1, 2, 3, 4, 5; replicates 0",
        "real, replicate 0: fingerprint real0", "gan, replicate 0: fingerprint gan0",
        "vae, replicate 0: fingerprint vae0"]


def test_settings_are_escaped_wherever_they_are_named(found, comparison):
    page = page_of(replace(found, settings={"a<b": "x&y"}), *comparison)
    assert "dataset (a&lt;b x&amp;y)." in page and "<li>a&lt;b: x&amp;y</li>" in page


# ------------------------------------------------------------------ the protocol in words

def test_the_protocol_says_what_was_done(page):
    said = items(page, "Protocol")
    assert said[0] == ("Each repeat is an independently seeded training of the same CNN on the "
                       "same dataset (model small, steps 50, batch_size 16).")
    assert said[1] == ("Every CNN, whatever it was trained on, is tested on the same held-out real "
                       "images, which no generator has seen.")
    assert said[2].startswith("The unit of replication is the repeat")
    assert "exact" in said[3] and "two-sided" in said[3]
    assert said[4].endswith("Holm's method; significant means at most 0.05.")
    assert "the 90 % interval of the difference of the means lies within 5 points" in said[6]
    assert "its lower end at 95 % lies above -5 points after Holm" in said[6]
    assert len(said) == 7 and not any("baseline" in line for line in said)


def test_the_protocol_names_the_margin_tested_and_the_replicate(found, comparison):
    pairs, arms = comparison
    pairs = [replace(pair, unit="replicate", margin_tested=1 / 60) for pair in pairs]
    said = items(page_of(found, pairs, arms, metric="accuracy", alpha=0.1, margin=0.02), "Protocol")
    assert said[1] == "Accuracies are taken as given in the CSV."
    assert said[2] == ("The unit of replication is the whole-pipeline replicate: the mean of its 6 "
                       "repeats is one value.")
    assert said[4].endswith("significant means at most 0.1.")
    assert "the 80 % interval" in said[6] and "lies above -2 points" in said[6]
    assert said[6].endswith("in whole test images: 1.67 points.")


@pytest.fixture(scope="module")
def with_baseline(tmp_path_factory):
    root = write_counts(tmp_path_factory.mktemp("baseline"), COUNTS)
    for repeat, count in enumerate(COUNTS["vae"]):
        told = {"benign": "lung_<n>", "balanced_accuracy": 0.5 + 0.02 * repeat, "sensitivity": 0.9,
                "specificity": 0.25, "auroc": 0.625}
        write(root, record("nuclei", repeat, split_of(right(57)), split_of(right(count)),
                           kind="baseline", model="logistic", settings={}, malignancy=told))
    return read_results(root)


def test_a_baseline_is_called_one_wherever_it_is_named(with_baseline):
    pairs, arms = compared(with_baseline)
    page = page_of(with_baseline, pairs, arms)
    assert items(page, "Protocol")[1].startswith("nuclei: a classical baseline, no CNN.")
    assert ("<p>nuclei tells tumour from lung_&lt;n&gt; on the real test images with balanced "
            "accuracy 55.0 % (sensitivity 90.0 %, specificity 25.0 %, AUROC 62.5 %; means of 6 "
            "repeats).</p>") in page


# ------------------------------------------------------------------ numbers as they are printed

@pytest.mark.parametrize(("shift", "text"), [
    (0.0167, "+1.7"), (-0.0167, "-1.7"), (0.0, "0.0"), (-0.0004, "0.0"), (0.0004, "0.0"),
    (0.4, "+40.0"), (math.inf, "unbounded"), (-math.inf, "-unbounded")])
def test_a_difference_in_points(shift, text):
    assert report.points(shift) == text


@pytest.mark.parametrize(("p", "text"), [
    (0.00009, "<0.0001"), (0.0001, "0.0001"), (0.04996, "0.0500"), (0.0123, "0.0123"),
    (0.0999, "0.0999"), (0.1, "0.10"), (0.456, "0.46"), (1.0, "1.00")])
def test_a_p_in_words(p, text):
    assert report.p_words(p) == text


# ------------------------------------------------------------------ files

def read(content):
    return list(csv.DictReader(io.StringIO(content.decode())))


@pytest.fixture(scope="module")
def contents(found, comparison):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "boxplot_png", lambda *_: b"box")
        patch.setattr(figures, "differences_png", lambda *_: b"difference")
        pairs, arms = comparison
        return report.contents(found, "accuracy_real", arms, pairs, alpha=0.05, margin=0.05,
                               warnings=["careful"], sheets_dir=None, answer=ANSWER)


def test_a_comparison_has_these_files_and_the_page_shows_its_pictures(contents):
    assert list(contents) == ["accuracies.csv", "wilcoxon.csv", "accuracy_boxplot.png",
                              "accuracy_differences.png", "report.html"]
    assert contents["accuracy_boxplot.png"] == b"box"
    assert contents["accuracy_differences.png"] == b"difference"
    assert items(contents["report.html"].decode(), "<h2>Also") == ["careful"]


def test_accuracies_csv_is_a_tidy_line_of_every_repeat(contents, found):
    lines = read(contents["accuracies.csv"])
    measures = ("accuracy", "auprc_baseline", "auprc_weighted", "auroc", "balanced_accuracy",
                "macro_f1", "num_images")
    assert list(lines[0])[:3] == ["dataset", "task", "replicate"]
    assert set(lines[0]) == {
        "dataset", "task", "replicate", "repeat", "seed", "model", "dataset_fingerprint",
        "real_fingerprint", "device", *(f"{name}_{split}" for split in ("own", "real")
                                        for name in measures)}
    assert [(line["dataset"], int(line["repeat"]), float(line["accuracy_real"]))
            for line in lines] == [(name, repeat, count / 60) for name in found.datasets
                                   for repeat, count in enumerate(COUNTS[name])]
    assert {line["num_images_real"] for line in lines} == {"60"}
    assert lines[-1]["dataset_fingerprint"] == "vae0" and lines[3]["seed"] == "103"


def test_wilcoxon_csv_is_a_line_of_every_pair_with_every_number(contents, comparison):
    lines = read(contents["wilcoxon.csv"])
    assert list(lines[0]) == [
        "dataset_a", "dataset_b", "metric", "unit", "n_a", "n_b", "median_a", "median_b", "u", "p",
        "p_holm", "method", "shift", "shift_low", "shift_high", "confidence", "a12", "p_smallest",
        "p_smallest_without_ties", "can_reach_alpha", "n_needed", "margin", "margin_tested",
        "p_a_not_worse", "p_b_not_worse", "p_equivalent", "p_equivalent_holm",
        "p_b_not_worse_holm", "verdict"]
    assert len(lines) == 3
    for line, pair in zip(lines, comparison[0]):
        assert line == {each.name: "" if getattr(pair, each.name) is None
                        else str(getattr(pair, each.name)) for each in fields(pair)}
    assert lines[2]["p_b_not_worse_holm"] == "" != lines[0]["p_b_not_worse_holm"]


def test_a_tidy_line_begins_with_the_dataset_and_leaves_nested_values_out():
    line = report.tidy({"schema": "x", "repeat": 1, "dataset": "real", "accuracy_own": 0.5,
                        "warnings": ["w"], "settings": {"steps": 5}, "train_loss": None,
                        "own": {"auroc": 0.7}, "auroc_own": 0.7, "auroc_real": 0.6})
    assert list(line.items()) == [("dataset", "real"), ("repeat", 1), ("accuracy_own", 0.5),
                                  ("auroc_own", 0.7), ("auroc_real", 0.6)]


def test_a_csv_has_a_column_for_every_name_of_any_line():
    lines = [{"a": 1}, {"a": None, "b": 'x,"y"'}, {"a": 2}]
    assert report.table_csv(lines) == 'a,b\n1,\n,"x,""y"""\n2,\n'


def test_the_verdicts_as_text_are_aligned_in_the_order_of_the_pairs():
    beside = {"p_holm": 0.0123}
    estimate = decide.estimate("B", Mean(-0.0123, 0.01, 9.0, 0, 0, 0), alpha=0.05, margin=0.02,
                               n_arm=2, n_against=2)
    pairs = [PairAnswer("gan", "real", "primary", {"B": estimate}, "B", "worse", "", beside),
             PairAnswer("prompt", "real", "primary", {}, None, "", "", {"p_holm": 1.0})]
    assert report.verdict_table(pairs).splitlines() == [
        "arm     against  level  difference  decision    rank-sum p (Holm)",
        "gan     real     B            -1.2  worse                  0.0123",
        "prompt  real     -                  no verdict               1.00"]


# ------------------------------------------------------------------ contact sheets

def test_sheets_of_the_compared_datasets_are_shown_in_their_order(tmp_path):
    for name in ("gan", "other", "real"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "vae.txt").write_text("no sheet")
    sheets = report.read_sheets(tmp_path, ["real", "vae", "gan"])
    assert list(sheets.items()) == [("real", b"real"), ("gan", b"gan")]
    assert report.read_sheets(None, ["real"]) == {}
