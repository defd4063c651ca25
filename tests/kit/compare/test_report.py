"""The report: every number of the comparison in its place, in order, escaped, and nothing else."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import fields, replace
from html import unescape

import pytest

from lungkit.compare import decide, figures, report
from lungkit.compare.answer import Caution, PairAnswer
from lungkit.compare.bootstrap import Mean
from lungkit.compare.conclude import conclude
from lungkit.compare.pairs import compare
from lungkit.compare.results import read_results
from result_trees import record, right, split_of, write, write_counts
from simulated_results import Truth, conclude_of, simulate

COUNTS = {"real": [54, 55, 56, 57, 58, 59], "gan": [30, 31, 32, 33, 34, 35],
          "vae": [52, 53, 54, 56, 57, 57]}
ANSWER = ["Accuracy, margin 5 points", "Read first:", "- a limit: <b>&", "- another", "Answer:",
          "- gan scores lower than real.", "Next: more"]


def compared(found, metric="accuracy_real", *, alpha=0.05, margin=0.05, grid=1 / 60, plan=None):
    """What is said of the results, with an answer block of the tests' own, and the rank tests."""
    tests = compare({name: found.values(name, metric) for name in found.datasets},
                    metric=metric, unit=found.unit, alpha=alpha, margin=margin, grid=grid)
    said = conclude(found, tests, metric, None, "no groups here", alpha=alpha, margin=margin,
                    plan=plan)
    said.answer = ANSWER
    for pair in tests:
        pair.verdict = "decided"
    return said, tests


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read_results(write_counts(tmp_path_factory.mktemp("results"), COUNTS))


@pytest.fixture(scope="module")
def comparison(found):
    return compared(found)


def page_of(found, said, tests, *, sheets=None, drawn=True):
    pictures = {"accuracy_boxplot.png": b"box"}
    if drawn:
        pictures["accuracy_differences.png"] = b"difference"
    page = report.page(found, said, tests, pictures=pictures, sheets=sheets or {})
    return " ".join(page.split())  # as a browser does


@pytest.fixture(scope="module")
def page(found, comparison):
    return page_of(found, *comparison)


@pytest.fixture(scope="module")
def close_up():
    """A run at level B with a lost class, a collapsed training and a baseline: (found, said)."""
    made = simulate({"real": Truth(0.9), "gan": Truth(0.88, lost=1), "vae": Truth(0.9, collapsed=1),
                     "nuclei": Truth(0.7, kind="baseline")}, seed=1, groups=12, repeats=4)
    return made.found(), conclude_of(made)


@pytest.fixture(scope="module")
def close_page(close_up):
    found, said = close_up
    return page_of(found, said, compared(found)[1])


def heads_of(page):
    return [re.sub(r"<[^>]*>", "", part) for part in re.findall(
        r"<h1>.*?</h1>|<h2>.*?</h2>|<caption>.*?</caption>|"
        r'alt="[^"]*"|class="answer"', page)]


def items(page, after):
    """The texts of the first list after some words of the page."""
    part = page[page.index(after):]
    part = part[part.index("<ul"):part.index("</ul>")]
    return [unescape(re.sub("<.*?>", "", item)) for item in re.findall(r"<li>(.*?)</li>", part)]


# ------------------------------------------------------------------ the page

def test_the_page_is_in_order(found, comparison):
    page = page_of(found, *comparison, sheets={"gan": b"sheet"})
    parts = heads_of(page)
    assert [part for part in parts if part[0] != "E" or "worse" in part] == [
        "Can synthetic images stand in for real ones?", 'class="answer"', "Plan and looks",
        "Is an arm worse than real?",
        "Each synthetic arm against real: is it worse by the margin or more? Points, arm − real",
        "Levels side by side", 'alt="Difference of every pair at every level"', "Rank-sum tests",
        "Wilcoxon rank-sum tests of these repeats. Shift: Hodges-Lehmann, a − b, points",
        "Arms", 'alt="Accuracy of every repeat"',
        "Accuracy on real test images of every arm, in percent", "Classes",
        *(f"{name}: true class by row, said by column, 6 trainings" for name in COUNTS),
        "The images", 'alt="Images of gan"', "Protocol", "Provenance",
        "All numbers of the tests", "All numbers of the levels: differences, standard errors and "
        "ends in points", "All numbers of the rank-sum tests"]


def test_a_close_look_has_classes_trainings_and_components_in_order(close_page):
    parts = heads_of(close_page)
    wanted = ["Is an arm worse than real?", "Levels side by side", "Rank-sum tests", "Arms",
              "Trainings that collapsed or lie far from the others, in percent",
              "The test group of two images or more that each arm does worst on", "Classes",
              "Where the uncertainty is from", "Protocol"]
    assert [part for part in parts if part in wanted] == wanted


def test_a_picture_stands_under_its_own_name(found, comparison):
    page = page_of(found, *comparison, sheets={"real": b"r", "vae": b"v"})
    shown = {name: base64.b64decode(content) for name, content in re.findall(
        r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', page)}
    assert shown == {"Difference of every pair at every level": b"difference",
                     "Accuracy of every repeat": b"box", "Images of real": b"r",
                     "Images of vae": b"v"}


def test_what_was_compared_and_how_is_said(page, found, comparison):
    line = unescape(re.search(r'<p class="quiet">(.*?)</p>', page)[1])
    assert line == ("3 datasets, 6 repeats each; metric: accuracy on real test images; 3 pairs, "
                    "significance level 0.05 after Holm, margin ±5 points.")
    said, tests = comparison
    fewer = replace(said, arms=[replace(said.arms[0], n=4), *said.arms[1:]])
    assert "3 datasets, 4 to 6 repeats each;" in page_of(found, fewer, tests)


def test_the_answer_is_the_block_line_by_line_in_order_and_escaped(page):
    block = page[page.index("<section"):page.index("</section>")]
    lines = re.findall(r"<(li|p)[^>]*>(.*?)</\1>", block)
    assert [("- " * (tag == "li")) + unescape(text) for tag, text in lines] == ANSWER
    assert "<b>&" not in page and 'list-style: "- "' in page
    limits = block[block.index('<ul class="limits">'):]
    assert re.findall("<li>(.*?)</li>", limits[:limits.index("</ul>")]) == [
        "a limit: &lt;b&gt;&amp;", "another"]
    assert page.index("<section") < page.index("<table")


def test_without_real_the_page_asks_and_answers_no_question_of_real_images(tmp_path):
    found = read_results(write_counts(tmp_path, {name: COUNTS[name] for name in ("gan", "vae")}))
    page = page_of(found, *compared(found))
    assert "<title>Comparison of datasets</title>" in page and "<h1>Comparison of datasets" in page
    assert "Is an arm worse than real?" not in page


def test_every_other_warning_is_on_the_page_escaped_before_any_table(found, comparison):
    said, tests = comparison
    warnings = [Caution("first", "<b>&", limits=False), Caution("limit", "above the answer"),
                Caution("second", 'a "quote"', limits=False)]
    page = page_of(found, replace(said, warnings=warnings), tests)
    assert items(page, "<h2>Also to know") == ["first: <b>&", 'second: a "quote"']
    assert "<b>&" not in page and page.index("second: a") < page.index("<table")
    assert "<h2>Also" not in page_of(found, replace(said, warnings=warnings[1:2]), tests)


def test_every_table_says_what_it_is_and_what_its_cells_belong_to(close_page):
    tables = re.findall(r"<table>(.*?)</table>", close_page)
    assert len(tables) == 14
    for table in tables:
        assert table.startswith("<caption>") and "</caption><thead>" in table
        head, body = table.split("</thead>")
        assert re.findall("<th ([^>]*)>", head) and "<td" not in head
        assert all('scope="col"' in each for each in re.findall("<th ([^>]*)>", head))
        rows = re.findall("<tr>(.*?)</tr>", body)
        assert rows and all(row.strip().startswith('<th scope="row">') for row in rows)
        width = len(re.findall("<th ", head))
        assert {len(re.findall("<t[hd]", row)) for row in rows} == {width}
    assert len(re.findall("<h1", close_page)) == 1 and '<html lang="en">' in close_page


def test_in_print_nothing_is_smaller_than_what_limits_it_cut_or_parted(close_page):
    """All sizes follow the root's, and a page of 186 mm holds a picture with its caption."""
    rules = close_page[close_page.index("@media print"):close_page.index("</style>")]
    assert "html { font-size: 11px }" in rules
    assert re.search(r"body {[^}]*font-size: 1rem }", rules)
    assert re.search(r"figure, tr, li { break-inside: avoid }", rules)
    assert ".limits { print-color-adjust: exact }" in rules
    assert ".scroll { overflow: visible;" in rules
    assert int(re.search(r"max-height: (\d+)mm", rules)[1]) <= 160


def test_nothing_is_fetched_run_or_folded_away(close_page):
    assert not re.search(r"https?://|@import|<script|<link|<details|url\(", close_page)


def test_by_the_arms_own_tests_there_is_no_picture_of_differences(found, monkeypatch):
    monkeypatch.setattr(figures, "boxplot_png", lambda *_: b"box")
    said, tests = compared(found, "accuracy_own")
    names = list(report.contents(found, said, tests, None))
    assert names == ["accuracies.csv", "wilcoxon.csv", "accuracy_boxplot.png", "report.html"]
    page = page_of(found, said, tests, drawn=False)
    assert "Difference of every pair" not in page and "not reached" in page
    assert "metric: accuracy on its own test images" in page
    assert "Every CNN is tested on the test split of its own dataset." in items(page, "Protocol")


def test_a_score_on_no_grid_names_no_step(found):
    page = page_of(found, *compared(found, "auroc_real", grid=0))
    for words in ("metric: AUROC on real test images;", 'alt="AUROC of every repeat"',
                  "<caption>AUROC on real test images of every arm"):
        assert words in page
    assert items(page, "Protocol")[-1].endswith("the same exact test does not reject.")


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
    assert "40 or 60 test images." in page_of(found, *compared(found, "accuracy_own"))


# ------------------------------------------------------------------ plan and provenance

PLAN = {"metric": "accuracy_real", "margin": 0.05, "alpha": 0.05, "repeats": 9, "replicates": 1,
        "arms": ["real", "gan"], "made_at": "2026-01-02T03:04:05Z", "made_by": "plan <x>",
        "looks": []}


def test_without_a_plan_that_is_said(page):
    assert "No plan was given: nothing here shows that the score, the margin and n were" in page


def test_the_plan_is_said_with_every_look_and_what_looks_cost(found):
    kept = page_of(found, *compared(found, plan=PLAN))
    assert "Planned on 2026-01-02T03:04:05Z by plan &lt;x&gt;:" in kept
    assert items(kept, "Planned on") == [
        "metric accuracy_real, margin 0.05, alpha 0.05, repeats 9, replicates 1, arms ['real', "
        "'gan']"]
    assert "This comparison is the one planned" in kept
    looks = [PLAN | {"changed": ["repeats 6 for 9"], "made_at": "2026-02"},
             PLAN | {"changed": ["margin 0.1 for 0.05", "repeats 7 for 9"], "made_at": "2026-03"}]
    page = page_of(found, *compared(found, plan=PLAN | {
        "looks": looks, "out_of_reach": "nothing is in reach"}))
    assert items(page, "Looks beyond the plan, 2;") == [
        "2026-02: repeats 6 for 9", "2026-03: margin 0.1 for 0.05, repeats 7 for 9"]
    assert "chance of any false difference is up to 15&nbsp;%" in page
    assert items(page, "Planned on")[-1] == (
        "planned although it could not reach an answer: nothing is in reach")
    assert "the one planned" not in page


def test_provenance_names_the_recipe_every_dataset_version_and_the_check_for_leaks(page, found):
    assert items(page, "<h2>Provenance") == [
        "model: small", "steps: 50", "batch_size: 16", "repeats 0, 1, 2, 3, 4, 5; replicates 0",
        "real, replicate 0: fingerprint real0", "gan, replicate 0: fingerprint gan0",
        "vae, replicate 0: fingerprint vae0",
        "no training image is or copies a test image of real: looked for and passed for 18 of 18 "
        "results", "trained on: cpu", "versions: torch 2.11.0"]
    first, *others = found.rows
    changed = [first | {"leaks": None, "device": "cuda", "run": {"commit": "abc", "dirty": True}},
               *others]
    lines = report.provenance(replace(found, rows=changed))
    assert lines[-4].endswith("passed for 17 of 18 results")
    assert lines[-3:] == ["trained on: cuda, cpu", "versions: torch 2.11.0", "code: abc, changed"]


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
    assert said[2].startswith("Means decide")
    assert "the 90 % interval of the difference of the means lies within 5 points" in said[3]
    assert "its lower end at 95 % lies above -5 points after Holm" in said[3]
    assert said[4].startswith("The unit of replication of the rank-sum tests is the repeat")
    assert "exact" in said[5] and "two-sided" in said[5]
    assert said[6].endswith("Holm's method; significant means at most 0.05.")
    assert len(said) == 8 and not any("baseline" in line for line in said)


def test_the_protocol_names_the_margin_tested_and_the_replicate(found, comparison):
    said, tests = comparison
    tests = [replace(pair, unit="replicate", margin_tested=1 / 60) for pair in tests]
    said = replace(said, metric="accuracy", alpha=0.1, margin=0.02)
    said = items(page_of(found, said, tests), "Protocol")
    assert said[1] == "Accuracies are taken as given in the CSV."
    assert "the 80 % interval" in said[3] and "lies above -2 points" in said[3]
    assert said[4] == ("The unit of replication of the rank-sum tests is the whole-pipeline "
                       "replicate: the mean of its 6 repeats is one value.")
    assert said[6].endswith("significant means at most 0.1.")
    assert said[7].endswith("in whole test images: 1.67 points.")


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
    page = page_of(with_baseline, *compared(with_baseline))
    assert items(page, "Protocol")[1].startswith("nuclei: a classical baseline, no CNN.")
    assert ("<p>nuclei tells tumour from lung_&lt;n&gt; on the real test images with balanced "
            "accuracy 55.0 % (sensitivity 90.0 %, specificity 25.0 %, AUROC 62.5 %; means of 6 "
            "repeats).</p>") in page


# ------------------------------------------------------------------ files

def read(content):
    return list(csv.DictReader(io.StringIO(content.decode())))


@pytest.fixture(scope="module")
def contents(found, comparison):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "boxplot_png", lambda *_: b"box")
        patch.setattr(figures, "differences_png", lambda *_: b"difference")
        return report.contents(found, *comparison, None)


def test_a_comparison_has_these_files_and_the_page_shows_its_pictures(contents):
    assert list(contents) == ["accuracies.csv", "wilcoxon.csv", "accuracy_boxplot.png",
                              "accuracy_differences.png", "report.html"]
    assert contents["accuracy_boxplot.png"] == b"box"
    assert contents["accuracy_differences.png"] == b"difference"
    page = contents["report.html"].decode()
    assert base64.b64encode(b"difference").decode() in page and "The images" not in page


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
    for line, pair in zip(lines, comparison[1]):
        assert line == {each.name: "" if getattr(pair, each.name) is None
                        else str(getattr(pair, each.name)) for each in fields(pair)}
    assert lines[2]["p_b_not_worse_holm"] == "" != lines[0]["p_b_not_worse_holm"]


def test_a_tidy_line_begins_with_the_dataset_and_leaves_nested_values_out():
    line = report.tidy({"schema": "x", "repeat": 1, "dataset": "real", "accuracy_own": 0.5,
                        "warnings": ["w"], "settings": {"steps": 5}, "train_loss": None,
                        "own": {"auroc": 0.7}, "auroc_own": 0.7, "auroc_real": 0.6,
                        "malignancy": {"benign": "n", "auroc": 0.8}})
    assert list(line.items()) == [("dataset", "real"), ("repeat", 1), ("accuracy_own", 0.5),
                                  ("auroc_own", 0.7), ("auroc_real", 0.6),
                                  ("malignancy_benign", "n"), ("malignancy_auroc", 0.8)]


def test_a_csv_has_a_column_for_every_name_of_any_line():
    lines = [{"a": 1}, {"a": None, "b": 'x,"y"'}, {"a": 2}]
    assert report.table_csv(lines) == 'a,b\n1,\n,"x,""y"""\n2,\n'


def test_the_verdicts_as_text_are_aligned_in_the_order_of_the_pairs():
    beside = {"p_holm": 0.0123}
    estimate = decide.estimate("B", Mean(-0.0123, 0.01, 9.0, 0, 0, 0), alpha=0.05, margin=0.02,
                               n_arm=2, n_against=2, num_trainings=2)
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
