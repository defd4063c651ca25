"""The tables of the page: every number in its place, and printed as numbers are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lungkit.compare import tables
from lungkit.compare.pairs import compare
from simulated_results import Truth, conclude_of, simulate


@pytest.fixture(scope="module")
def run():
    """A run at level B with a lost class, a collapsed training and a baseline: (found, said)."""
    made = simulate({"real": Truth(0.9), "gan": Truth(0.88, lost=1), "vae": Truth(0.9, collapsed=1),
                     "nuclei": Truth(0.7, kind="baseline")}, seed=1, groups=12, repeats=4)
    return made.found(), conclude_of(made)


def column(table, head):
    return [line[table.heads.index(head)] for line in table.lines]


@pytest.mark.parametrize(("printed", "number", "text"), [
    *((tables.points, shift, text) for shift, text in [
        (0.0167, "+1.7"), (-0.0167, "-1.7"), (0.0, "0.0"), (-0.0004, "0.0"), (0.0004, "0.0"),
        (0.4, "+40.0"), (math.inf, "unbounded"), (-math.inf, "-unbounded"), (None, "–")]),
    *((tables.p_words, p, text) for p, text in [
        (0.00009, "<0.0001"), (0.0001, "0.0001"), (0.04996, "0.0500"), (0.0123, "0.0123"),
        (0.0999, "0.0999"), (0.1, "0.10"), (0.456, "0.46"), (1.0, "1.00"), (None, "–")]),
    (tables.percent, 0.1234, "12.3"), (tables.percent, None, "–")])
def test_numbers_as_they_are_printed(printed, number, text):
    assert printed(number) == text


def test_each_synthetic_arm_is_in_the_first_table(run):
    _, said = run
    table, pair = tables.noninferiority(said), said.pairs[0]
    best = pair.estimates["B"]
    best = replace(best, p_not_worse=0.0123, p_not_worse_holm=0.0246, low=-0.05, high=0.012)
    pair = replace(pair, estimates={"B": best}, decision="worse")
    table = tables.noninferiority(replace(said, pairs=[pair, *said.pairs[1:]]))
    assert column(table, "Arm") == ["gan", "vae"]
    first = dict(zip(table.heads, table.lines[0]))
    assert (first["Decision"], first["Level"], first["Margin"]) == ("worse", "B", "-2")
    assert first["95 % interval"] == "-5.0 to +1.2"
    assert (first["p, one-sided"], first["p after Holm"]) == ("0.0123", "0.0246")
    silent = tables.noninferiority(replace(said, pairs=[replace(
        pair, estimates={}, level=None, decision="")]))
    assert silent.lines == [["gan", "no answer", *["–"] * 7]]
    assert tables.noninferiority(replace(said, pairs=[])) is None


def test_the_levels_stand_side_by_side(run):
    _, said = run
    whole = said.pairs[0].estimates["B"]
    equal = replace(whole, difference=0.001, low=-0.03, high=0.04, low_equivalence=-0.01,
                    high_equivalence=0.012, decision="equivalent")
    still = replace(whole, level="A", difference=0.0, se=0.0, decision="better")
    pair = replace(said.pairs[0], estimates={"A": still, "B": equal})
    table = tables.levels(replace(said, pairs=[pair]))
    assert [head[0] for head in table.heads[2:]] == ["A", "B", "C"]
    assert table.lines == [["gan − real", "primary", "0.0, values do not vary\nbetter",
                            "+0.1, 90 % -1.0 to +1.2\nequivalent", "not reached"]]
    assert len(tables.all_levels(said).lines) == 12
    assert all(len(line) == len(tables.all_levels(said).heads)
               for line in tables.all_levels(said).lines)


def test_the_rank_sum_tables_hold_every_number():
    [pair] = compare({"a": [0.5, 0.6, 0.7], "b": [0.1, 0.2, 0.3, 0.4]}, metric="accuracy",
                     unit="repeat", alpha=0.05, margin=0.02)
    pair = replace(pair, p=0.011, p_holm=0.022, p_equivalent=0.033, p_equivalent_holm=0.044,
                   p_smallest=0.055, p_smallest_without_ties=0.066, p_a_not_worse=0.077,
                   p_b_not_worse=0.088, shift=0.1, shift_low=-0.2, shift_high=math.inf, a12=0.75,
                   median_a=0.25, median_b=0.5, u=1.5, n_needed=9, method="normal")
    assert tables.rank_sum([pair], 0.05).lines == [[
        "a", "b", "3, 4", "+10.0", "-20.0 to unbounded", "0.75", "0.0110", "0.0220", "0.0440"]]
    assert tables.all_rank_sum([pair]).lines == [[
        "a", "b", "normal", "25.0", "50.0", "1.5", "0.0550", "0.0660", "9", "0.0770", "0.0880",
        "0.0330"]]


def test_the_table_of_arms_holds_every_arm_and_only_what_is_known(run):
    found, said = run
    gan = replace(said.arms[1], mean=0.5, own=0.75, scores={"auroc_real": 0.6, "auroc_own": 0.7})
    table = tables.arms(found, replace(said, arms=[said.arms[0], gan]))
    assert table.heads == ["Arm", "n", "Mean", "95 % interval, groups and trainings", "SD",
                           "Median", "Accuracy on its own test images", "Largest class", "AUROC",
                           "Brier score", "Calibration error"]
    told = dict(zip(table.heads, table.lines[1]))
    assert (told["Arm"], told["Mean"], told["AUROC"], told["Largest class"]) == (
        gan.dataset, "50.0", "60.0", "33.3")
    assert told["Accuracy on its own test images"] == "75.0"
    own = tables.arms(found, replace(said, metric="accuracy_own", arms=[gan]))
    assert dict(zip(own.heads, own.lines[0]))["AUROC"] == "70.0"


def test_the_largest_class_is_of_true_labels_and_of_accuracies_alone(run):
    arm = replace(run[1].arms[0], confusion=[[3, 3], [2, 0]])
    assert tables.largest_class(arm) == 6 / 8
    assert tables.largest_class(replace(arm, metric="auroc_real")) is None


def test_every_class_of_every_arm_is_in_its_table(run):
    found, said = run
    table = tables.classes(said)
    assert len(table.lines) == 12 and table.heads.count("95 % interval") == 2
    lost = [line[:3] for line in table.lines if line[2]]
    assert lost == [["gan", "class1", "lost: finds less than chance"]]
    matrices = tables.confusions(found, said)
    assert len(matrices) == 4 and matrices[0].heads == ["True", "class0", "class1", "class2"]
    assert sum(int(cell) for line in matrices[0].lines for cell in line[1:]) == 4 * 108


def test_what_a_mean_hides_is_listed(run):
    _, said = run
    assert tables.outlying(said).lines[0][:4] == ["vae", "0", "0", "collapsed"]
    assert len(tables.worst_groups(said).lines) == 4
    parts = tables.components(said)
    assert {line[0] for line in parts.lines} == {"gan", "vae"} and len(parts.lines) == 6
    bare = replace(said, arms=[replace(each, outlying=[], worst_group=None, classes=[])
                               for each in said.arms], components=[])
    assert (tables.outlying(bare), tables.worst_groups(bare), tables.classes(bare),
            tables.components(bare)) == (None,) * 4
