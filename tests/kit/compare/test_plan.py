"""The plan before a run: power, what is refused, the pilot, the file and its looks."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

import result_trees as trees
from lungkit.compare import pilot, plan, power
from lungkit.compare.power import Deviations, Size
from lungkit.run.faults import Fault

GROUPS = {"a": 12, "b": 13, "c": 25}
FIVE = Size(6, 1, GROUPS, num_synthetic=4, num_pairs=10)
ASKED = {"alpha": 0.05, "margin": 0.02, "overlap": 1 / 3}


# ------------------------------------------------------------------ power

@pytest.mark.parametrize(("shift", "n", "expected"), [  # R: power.t.test(n, shift, sd = 1)$power
    (0.5, 64, 0.8014596), (1.0, 17, 0.8070367), (0.8, 10, 0.3950692)])
def test_the_power_of_a_difference_is_that_of_the_t_test(shift, n, expected):
    se, df = math.sqrt(2 / n), 2 * (n - 1)
    shown = (power.chance(shift, se, df, low=0, high=math.inf, side=0.025)
             + power.chance(shift, se, df, low=-math.inf, high=0, side=0.025))
    assert shown == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("low", "high", "shift"), [
    (-0.5, 0.5, 0.0), (-0.5, 0.5, 0.2), (-0.5, math.inf, 0.0), (-0.5, math.inf, -0.5)])
@pytest.mark.parametrize("df", [2, 9])
def test_the_chance_of_an_interval_is_that_of_simulated_ones(low, high, shift, df):
    from scipy.stats import t

    rng, se = np.random.default_rng(5), 0.2
    estimates = rng.normal(shift, se, 200_000)
    half = t.ppf(0.95, df) * se * np.sqrt(rng.chisquare(df, 200_000) / df)
    simulated = np.mean((estimates - half > low) & (estimates + half < high))
    assert power.chance(shift, se, df, low=low, high=high, side=0.05) == pytest.approx(
        simulated, abs=0.004)


def test_a_difference_is_shown_in_either_direction():
    """Of equal arms as often as the level says: alpha over the pairs of the family."""
    shown = power.outcomes("A", FIVE, Deviations(0.02, 0, 0, ""), effect=0.0, **ASKED)
    assert shown["difference"] == pytest.approx(0.05 / 4, rel=0.02)


def test_more_of_what_a_level_rests_on_shows_more():
    of = Deviations(0.02, 0.35, 0.03, "")
    sizes = {"A": Size(20, 1, {}, 4, 10), "B": Size(6, 1, {"a": 40, "b": 40, "c": 80}, 4, 10),
             "C": Size(6, 6, GROUPS, 4, 10)}
    for level, larger in sizes.items():
        before = power.outcomes(level, Size(6, 3, GROUPS, 4, 10), of, effect=0.05, **ASKED)
        after = power.outcomes(level, larger, of, effect=0.05, **ASKED)
        assert after["detectable"] < before["detectable"] and after["difference"] > 0.05


@pytest.mark.parametrize(("repeats", "replicates", "shown"), [
    (28, 1, False), (29, 1, True), (9, 3, False), (10, 3, True)])
def test_too_few_trainings_show_no_arm_as_good(repeats, replicates, shown):
    size = Size(repeats, replicates, {"a": 400, "b": 400}, 1, 1)
    for level in size.levels:
        told = power.outcomes(level, size, Deviations(0.01, 0.1, 0.01, ""), effect=0.1, **ASKED)
        assert told["difference"] > 0.5
        assert (told["equivalent"] > 0) == (told["not_worse"] > 0) == shown


@pytest.mark.parametrize(("repeats", "replicates", "p"), [
    (6, 1, 10 * 2 / 924), (3, 1, 1), (20, 6, 10 * 2 / 924), (20, 3, 1)])
def test_the_smallest_p_of_the_table_is_that_of_its_values(repeats, replicates, p):
    assert power.table_p(Size(repeats, replicates, {}, 4, 10)) == pytest.approx(p)


@pytest.mark.parametrize(("replicates", "p"), [(5, None), (6, 4 * 2 / 64), (9, 4 * 2 / 512)])
def test_the_smallest_p_of_sign_flips(replicates, p):
    assert power.sign_flip_p(Size(6, replicates, {}, 4, 10)) == p


def test_training_sets_that_overlap_widen_level_c():
    alone, shared = (power.standard_error("C", Size(6, 4, {}, 4, 10), Deviations(0, 0, 0.1, ""),
                                          overlap) for overlap in (0, 0.25))
    assert alone == (pytest.approx(0.05), 3) and shared[0] == pytest.approx(0.1 * math.sqrt(0.5))


def test_the_rarest_class_decides_how_far_the_groups_go():
    assert Size(6, 1, {"a": 12, "b": 12, "c": 12}, 4, 10).effective_groups == pytest.approx(36)
    assert Size(6, 1, {"a": 1, "b": 1000, "c": 1000}, 4, 10).effective_groups < 9
    assert Size(6, 1, {}, 4, 10).effective_groups == 0


@pytest.mark.parametrize(("groups", "replicates", "levels"), [
    ({}, 1, "A"), (GROUPS, 1, "AB"), ({**GROUPS, "a": 9}, 1, "A"), (GROUPS, 2, "AB"),
    (GROUPS, 3, "ABC"), ({}, 3, "AC")])
def test_which_levels_are_reached(groups, replicates, levels):
    assert "".join(Size(6, replicates, groups, 4, 10).levels) == levels


# ------------------------------------------------------------------ what is refused

@pytest.mark.parametrize(("size", "group", "words"), [
    (FIVE, 0.35, None), (Size(3, 1, GROUPS, 4, 10), 0.35, "6 repeats or fewer arms would do"),
    (Size(5, 6, {}, 4, 10), 0.35, None),     # replicates are compared, not repeats
    (Size(4, 1, {}, 1, 1), 0.35, None),      # one pair needs four
    (Size(6, 1, {"a": 10, "b": 10}, 4, 10), 0.9, "REPLICATES=3 would do"),
    (Size(6, 3, {"a": 10, "b": 10}, 4, 10), 0.9, None),
    (Size(6, 1, {"a": 9, "b": 9}, 4, 10), 0.9, None)])  # level A is all it claims
def test_a_plan_without_an_answer_says_what_would(size, group, words):
    reason = plan.why_not(size, Deviations(0.02, group, 0.01, ""), **ASKED)
    assert reason is None if words is None else words in reason


# ------------------------------------------------------------------ the pilot

def write_tree(root, values, groups=6, wrong=()):
    """Records of two classes; `wrong`: groups that every arm but real gets wrong."""
    for (arm, replicate), accuracies in values.items():
        for repeat, accuracy in enumerate(accuracies):
            split = trees.split_of(trees.right(round(60 * accuracy)))
            row = trees.record(arm, repeat, split, split, replicate=replicate,
                               run={"elapsed_sec": 2.0 + repeat})
            path = trees.write(root, row)
            labels = np.repeat([0, 1], groups)
            of_group = np.array([f"g{i}" for i in range(2 * groups)])
            sure = np.where(np.isin(of_group, wrong) & (arm != "real"), 0.1, 0.9)
            said = np.stack([np.where(labels == k, sure, 1 - sure) for k in (0, 1)], 1)
            np.savez(path.with_suffix(".npz"), real_labels=labels, real_groups=of_group,
                     real_probabilities=said.astype(np.float32))
    return root


def test_deviations_are_those_of_the_runs_own_results(tmp_path):
    values = {("real", 0): [0.90, 0.95], ("real", 1): [0.80, 0.85], ("real", 2): [0.9, 0.95],
              ("arm", 0): [0.70, 0.75], ("arm", 1): [0.70, 0.75], ("arm", 2): [0.6, 0.65]}
    found = pilot.read(write_tree(tmp_path, values, wrong=["g0", "g1", "g6"]), ["real", "arm"])
    of = pilot.deviations(found, "accuracy_real", plan.DEFAULT, num_groups=12)
    assert of.seed == pytest.approx(0.05 / math.sqrt(2), rel=0.01)
    assert of.replicate == pytest.approx(np.std([-0.2, -0.1, -0.3], ddof=1), rel=0.01)
    # each class's share of the variance of a mean over twelve groups, brought to one group
    shares = [6 * np.var([-1, -1, 0, 0, 0, 0], ddof=1), 6 * np.var([-1, 0, 0, 0, 0, 0], ddof=1)]
    assert of.group == pytest.approx(math.sqrt(sum(shares) / 12), rel=0.01)
    assert of.source == "seed, group, replicate of this run's own 12 results"
    assert pilot.seconds_per_repeat(found) == 2.5


def test_what_earlier_results_do_not_tell_is_the_default(tmp_path):
    default = Deviations(0.1, 0.2, 0.3, "by default")
    nothing = pilot.read(tmp_path, ["real", "arm"])
    assert pilot.deviations(nothing, "accuracy_real", default, 12) is default
    assert pilot.seconds_per_repeat(nothing) is None
    values = {("real", 0): [0.9, 0.95], ("arm", 0): [0.7]}
    broken = write_tree(tmp_path, values) / "arm/replicate_000/repeat_0000.json"
    found = pilot.read(tmp_path, ["real", "arm"])
    of = pilot.deviations(found, "auroc_own", default, 12)
    assert (of.group, of.replicate) == (0.2, 0.3) and of.seed < 0.1
    assert of.source.endswith("3 results, group, replicate by default")
    broken.write_text("{")
    assert pilot.read(tmp_path, ["arm"]) == {"arm": {}}


def test_a_baselines_results_are_no_pilot(tmp_path):
    write_tree(tmp_path, {("real", 0): [0.5, 0.9]})
    for path in tmp_path.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "baseline"}))
    assert pilot.read(tmp_path, ["real"]) == {"real": {}}


# ------------------------------------------------------------------ the command and its file

def plan_it(tmp_path, *more, repeats=6):
    return plan.main(["--results", str(tmp_path / "results"), "--real", str(tmp_path / "real"),
                      "--arms", "voronoi", "real", "--output", str(tmp_path / "plan.json"),
                      "--repeats", str(repeats), *more])


def test_what_was_planned_first_holds(tmp_path, capsys):
    assert plan_it(tmp_path, "--dry-run") == 0 and not (tmp_path / "plan.json").exists()
    assert plan_it(tmp_path, "--metric", "auroc", "--margin", "0.03") == 0
    made = json.loads((tmp_path / "plan.json").read_text())
    assert (made["metric"], made["margin"], made["alpha"]) == ("auroc_real", 0.03, 0.05)
    assert made["arms"] == ["real", "voronoi"] and made["looks"] == []
    assert made["results_there"] == 0
    assert made["families"] == {"primary": [["voronoi", "real"]], "second": []}
    capsys.readouterr()
    assert plan_it(tmp_path, repeats=9) == 0  # of the plan's metric and margin
    told = capsys.readouterr().err
    assert "auroc_real, margin 0.03, alpha 0.05: 9 repeats" in told and "counts as a look" in told
    assert json.loads((tmp_path / "plan.json").read_text()) == made


def test_the_page_lists_every_key_of_a_plan_and_no_other(tmp_path):
    plan_it(tmp_path)
    made = json.loads((tmp_path / "plan.json").read_text())
    page = trees.keys_on_page("The plan")
    assert set(made) == page - {"real"} and set(made["outlook"]["A"]) == {
        "standard_error", "df", "difference", "equivalent", "not_worse", "detectable"}


def test_a_plan_without_an_answer_ends_with_2_unless_forced(tmp_path, capsys):
    assert plan_it(tmp_path, repeats=2) == 2
    line, = [each for each in capsys.readouterr().err.splitlines() if "error:" in each]
    assert "cannot reach an answer" in line and "4 repeats" in line and "FORCE=1" in line
    assert not (tmp_path / "plan.json").exists()
    assert plan_it(tmp_path, "--force", repeats=2) == 0
    assert "warning: this plan cannot" in capsys.readouterr().err
    assert "4 repeats" in json.loads((tmp_path / "plan.json").read_text())["out_of_reach"]
    assert plan_it(tmp_path, repeats=2) == 0  # a run that was let begin goes on
    assert plan_it(tmp_path, repeats=3) == 2


def test_baselines_are_further_pairs_of_the_table_and_no_arms(tmp_path, capsys):
    assert plan_it(tmp_path, repeats=4) == 0
    (tmp_path / "plan.json").unlink()
    assert plan_it(tmp_path, "--baselines", "nuclei", repeats=4) == 2
    assert "of 3 pairs" in capsys.readouterr().err
    assert plan_it(tmp_path, "--baselines", "nuclei", repeats=5) == 0
    assert json.loads((tmp_path / "plan.json").read_text())["arms"] == ["real", "voronoi"]


def test_a_run_is_not_ended_by_what_its_own_results_say_of_deviations(tmp_path, capsys):
    assert plan_it(tmp_path, repeats=4) == 0
    write_tree(tmp_path / "results", {("real", 0): [0.1, 0.9], ("voronoi", 0): [0.05, 0.95]})
    for repeats in (4, 5):
        assert plan_it(tmp_path, repeats=repeats) == 0
        assert "warning: this plan cannot reach an answer: neither" in capsys.readouterr().err
    (tmp_path / "plan.json").unlink()
    assert plan_it(tmp_path, repeats=4) == 2


@pytest.mark.parametrize("more", [["--margin", "1"], ["--alpha", "0.5"], ["--metric", "speed"]])
def test_a_plan_of_what_cannot_be_meant_is_refused(more, tmp_path, capsys):
    assert plan_it(tmp_path, *more) == 2 and more[1] in capsys.readouterr().err


def test_looks_are_added_once_each_and_cost(tmp_path):
    path = tmp_path / "plan.json"
    plan_it(tmp_path)
    planned = {name: json.loads(path.read_text())[name] for name in plan.LOOKED}
    for now in (planned, {**planned, "repeats": 20}, {**planned, "repeats": 20},
                {**planned, "arms": ["voronoi", "real"]},
                {**planned, "metric": "auroc_real", "arms": ["real"]}):
        holds = plan.note_look(path, **now)
    assert [look["changed"] for look in holds["looks"]] == [
        ["repeats 20 for 6"], ["metric auroc_real for accuracy_real", "arms real for real voronoi"]]
    assert plan.read(path) == holds and plan.cost(holds) == pytest.approx(0.15)


def test_of_two_who_plan_at_once_one_holds(tmp_path):
    path = tmp_path / "plan.json"
    plan_it(tmp_path)
    first = json.loads(path.read_text())
    path.unlink()
    held = []
    racers = [threading.Thread(target=lambda k=k: held.append(
        plan.write_once(path, {**first, "repeats": k}))) for k in (7, 8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert held[0] == held[1] == json.loads(path.read_text())


@pytest.mark.parametrize("content", ['{"schema": "x"}', '{"schema": "lungkit.plan/1"}', "[]", "{"])
def test_what_is_no_plan_is_a_fault(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(Fault, match=r"plan\.json"):
        plan.read(path)
    path.unlink()
    with pytest.raises(Fault, match="is missing"):
        plan.note_look(path, arms=["real"])


def test_groups_are_those_of_reals_test_split(tmp_path):
    real = tmp_path / "real"
    rows = [("train/a/0.png", "a", "train", "g0"), ("test/a/1.png", "a", "test", "g1"),
            ("test/a/2.png", "a", "test", "g1"), ("test/b/3.png", "b", "test", "g1"),
            ("test/b/4.png", "b", "test", "")]
    real.mkdir()
    (real / "metadata.csv").write_text("".join(
        ",".join(row) + "\n" for row in [("file_name", "label", "split", "group"), *rows]))
    assert plan.test_groups(real) == ({}, 0.0)  # not complete yet
    (real / "dataset.json").write_text(json.dumps({
        "schema": "lungkit.dataset/2", "name": "real", "classes": ["a", "b"], "image_size": 8,
        "counts": {"train": {"a": 8, "b": 0}, "test": {"a": 2, "b": 2}}, "parents": [],
        "fingerprint": "f"}))
    assert plan.test_groups(real) == ({"a": 1, "b": 2}, 0.5)
