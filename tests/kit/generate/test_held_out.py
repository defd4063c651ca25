"""What a generator does not learn from: whole groups of real/train, for all arms the same."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from adapters import run_arm, write_real
from lungkit.data.dataset import Row, open_dataset
from lungkit.generate.held_out import HoldOut, share
from lungkit.generate.items import Arm


def data(groups: dict[str, list[str]]):
    """A dataset whose train split has an image of each group named, by class."""
    rows = [Row(f"train/{label}/{number:06d}.png", label, "train", group, "", "", "", "")
            for label, names in groups.items() for number, group in enumerate(names)]
    return SimpleNamespace(select=lambda split: rows, classes=list(groups))


PATIENTS = [f"p{number}" for number in range(12) for _ in range(3)]
BOTH = data({"a": PATIENTS, "b": PATIENTS})


def test_whole_groups_are_held_out_near_the_share_of_every_class():
    held = HoldOut(0.1).choose(BOTH, seed=5)
    rows = BOTH.select("train")
    groups = {rows[place].group for place in held}
    assert held == {place for place, row in enumerate(rows) if row.group in groups}
    assert Counter(rows[place].label for place in held) == {"a": 3, "b": 3}


def test_they_are_the_same_for_a_seed_and_others_for_another():
    chosen = [HoldOut(0.1).choose(BOTH, seed=seed) for seed in (5, 5, *range(6, 16))]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 3


@pytest.mark.parametrize(("rule", "groups", "words"), [
    (HoldOut(0.0, 4), {"a": PATIENTS}, ""),
    (HoldOut(0.1), {"a": PATIENTS, "b": ["p1"] * 30}, "b has 1 groups in train"),
    (HoldOut(0.1), {"a": PATIENTS[:27]}, "a has 9 groups in train, and a share of 0.1 needs 10")])
def test_nothing_is_held_out_where_it_is_not_asked_for_or_would_be_chance(rule, groups, words,
                                                                         capfd):
    assert rule.choose(data(groups), seed=0) == frozenset()
    said = capfd.readouterr().err
    assert words in said and bool(said) == bool(words)


def test_images_without_a_group_are_each_their_own():
    assert len(HoldOut(0.1).choose(data({"a": [""] * 20}), seed=0)) == 2


def test_what_decides_a_model_is_said_only_where_something_may_be_held_out():
    assert HoldOut(0.1, 4).as_setting() == {"validation_share": 0.1, "patience": 4}
    assert HoldOut(0.0, 4).as_setting() == {}
    assert share("0.25") == 0.25
    with pytest.raises(Exception, match="from 0 to 0.5"):
        share("0.6")


def test_sides_are_counted_as_the_images_of_a_class_are_loaded():
    arm = Arm("x", BOTH, [], None, None, False, None, 0, held=frozenset({0, 36, 38}))
    assert arm.sides("a") == ([*range(1, 36)], [0])
    assert arm.sides("b") == ([1, *range(3, 36)], [0, 2])
    assert arm.sides()[1] == [0, 36, 38] and len(arm.sides()[0]) == 69
    loss_at, watch = arm.watched(lambda places: places, steps=4, label="b")
    assert loss_at == arm.sides("b")[0] and watch.loss_at == [0, 2]
    bare = Arm("x", BOTH, [], None, None, False, None, 0)
    assert bare.watched(len, steps=4) == (72, None)


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_no_part_of_an_arm_learns_from_what_is_held_out_and_each_is_watched_by_it(arm, tmp_path):
    real = write_real(tmp_path / "real")
    made = run_arm(arm, real, tmp_path / "run", "--validation-share", "0.34", "--patience", "2")
    assert made.status == 0
    parameters = open_dataset(made.output).manifest["parameters"]
    assert (parameters["validation_share"], parameters["patience"]) == (0.34, 2)
    learnt, held = set(), set()
    for call in made.trained:
        watch = call.options["validation"]
        assert watch.loss_at.numbers and watch.patience == 2
        assert max(watch.due) == call.options["steps"]
        learnt |= set(call.loss.numbers)
        held |= set(watch.loss_at.numbers)
    assert not learnt & held and learnt | held == set(range(1, 13))
    assert len({call.options["validation"].seed for call in made.trained}) == 1
    assert not {call.options["seed"] for call in made.trained} & {watch.seed}
