"""Loss on what is held out: the same draws at every look, the best weights, when it ends."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from lungkit.learn.loop import train
from lungkit.learn.validation import Validation, exchanged
from lungkit.run import cli
from lungkit.run.faults import Fault


def parameter(value: float = 0.0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(value))


def walk(path, *, steps: int = 60, valley: float | None = None, at_step=lambda step: None,
         patience: int = 0, **options):
    """Train one weight up a slope, a step of 0.1 each; what is held out is best at `valley`.

    Returns the weights before each step, the validation (None without a valley), the weight left.
    """
    weight, seen = parameter(), []

    def loss_at(step, generator):
        seen.append(weight.item())
        at_step(step)
        return -weight * 1

    validation = None if valley is None else Validation(
        lambda number, generator: (weight - valley) ** 2 + 0.5, steps=steps, seed=1,
        patience=patience)
    path.mkdir(exist_ok=True)
    options = {"learning_rate": 0.1, "weight_decay": 0.0, "seed": 0, "warmup_steps": 0, **options}
    train([weight], loss_at, what="walk", steps=steps, checkpoint_path=path / "x.ckpt",
          curve_path=path / "part/loss.csv", validation=validation, **options)
    return seen, validation, weight.item()


@pytest.mark.parametrize(("steps", "looks", "batches"), [
    (3, 1, 1), (150, 5, 3), (800, 20, 4), (3000, 20, 15), (60000, 20, 32)])
def test_looks_are_spread_over_the_training_and_cost_a_few_of_its_hundredths(steps, looks, batches):
    watch = Validation(lambda number, generator: 0, steps=steps, seed=0)
    assert (len(watch.due), watch.num_batches) == (looks, batches) and max(watch.due) == steps
    assert looks * batches <= max(1, steps / 10)


def test_every_look_draws_the_same():
    drawn = []

    def loss_at(number, generator):
        drawn.append((number, float(torch.rand((), generator=generator))))
        return torch.zeros(())

    watch = Validation(loss_at, steps=150, seed=3)
    for step in (30, 60):
        torch.rand(step)  # nobody else's numbers matter
        watch.note(step, [parameter()], "x")
    assert drawn[:3] == drawn[3:] and [number for number, _ in drawn[:3]] == [0, 1, 2]
    assert len({value for _, value in drawn}) == 3
    other = Validation(loss_at, steps=150, seed=4)
    other.note(30, [parameter()], "x")
    assert drawn[6:] != drawn[:3]


def test_of_equal_losses_the_first_is_the_best():
    weight = parameter(1.0)
    watch = Validation(lambda number, generator: torch.tensor(0.25), steps=90, seed=0, patience=2)
    enough = []
    for step in (30, 60, 90):
        enough.append(watch.note(step, [weight], "x"))
        weight.data += 1
    watch.restore([weight])
    assert watch.best_step == 30 and weight.item() == 1 and enough == [False, False, True]


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_weights_kept_are_the_best_on_what_is_held_out(ema_decay, tmp_path):
    plain = walk(tmp_path / "a", steps=300, ema_decay=ema_decay)
    seen, watch, kept = walk(tmp_path / "b", steps=300, valley=7.5, ema_decay=ema_decay)
    assert seen == plain[0], "the look touched the training"
    after = {step: seen[step] if step < 300 else plain[2] for step in watch.due}
    best = min(watch.due, key=lambda step: abs(after[step] - 7.5))
    assert watch.best_step == best and best < 300
    assert kept == pytest.approx(after[best], abs=0.2 if ema_decay else 1e-6)
    assert watch.values[best] == pytest.approx((kept - 7.5) ** 2 + 0.5, abs=1e-5)
    if ema_decay:  # it is the average that was looked at, and that is kept
        assert kept < after[best] - 1e-3


@pytest.mark.parametrize(("patience", "steps_done"), [(0, 300), (3, 240), (50, 300)])
def test_a_training_ends_after_so_many_looks_in_vain(patience, steps_done, tmp_path, capfd):
    seen, watch, kept = walk(tmp_path / "a", steps=300, valley=12.2, patience=patience)
    record = json.loads((tmp_path / "a/part/validation.json").read_text())
    assert record["best_step"] == watch.best_step == 150
    assert len(seen) == record["steps"] == steps_done
    assert record["best_loss"] == watch.values[150] < record["last_loss"]
    assert kept == pytest.approx(seen[150])
    assert ("stopped after 240 of 300 steps" in capfd.readouterr().err) == (steps_done == 240)
    lines = (tmp_path / "a/part/loss.csv").read_text().splitlines()
    assert lines[0] == "step,train_loss,val_loss"
    shown = {int(line.split(",")[0]): line.split(",")[2] for line in lines[1:]}
    assert {step for step, value in shown.items() if value} == set(watch.values)
    assert shown[150] == f"{watch.values[150]:.6g}" and list(shown) == sorted(shown)


def test_a_killed_training_looks_on_and_ends_where_it_would_have(tmp_path):
    def run(path, stop_at=None):
        result = []

        def at_step(step):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        status = cli.main(cli.stage_parser("walk", "A test."), lambda: result.append(walk(
            path, steps=300, valley=12.2, patience=3, ema_decay=0.9, at_step=at_step)), [])
        found = {file.name: file.read_bytes() for file in path.glob("part/*")}
        return status, [(watch.values, left) for _, watch, left in result], found

    whole = run(tmp_path / "a")
    assert run(tmp_path / "b", stop_at=160)[:2] == (75, [])
    assert run(tmp_path / "b") == whole and whole[0] == 0 and len(whole[2]) == 2


def test_a_held_out_loss_that_is_not_finite_is_a_fault(tmp_path):
    with pytest.raises(Fault, match="held out is not finite after 2 steps"):
        walk(tmp_path / "a", steps=2, valley=float("nan"))


def test_other_patience_is_another_training(tmp_path, monkeypatch):
    walk(tmp_path / "a", steps=60, valley=2.0, patience=3)
    with pytest.raises(Fault, match="patience: 3 there, 4 now"):
        walk(tmp_path / "a", steps=60, valley=2.0, patience=4)


def test_weights_and_their_averages_change_places_and_come_back_even_after_a_fault():
    ours, theirs = [parameter(1.0), parameter(2.0)], [torch.tensor(5.0), torch.tensor(6.0)]
    with pytest.raises(KeyError), exchanged(ours, theirs):
        assert [each.item() for each in ours] == [5, 6]
        raise KeyError
    with exchanged(ours, None):
        assert [each.item() for each in (*ours, *theirs)] == [1, 2, 5, 6]
