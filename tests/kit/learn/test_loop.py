"""The one training loop: its rates, average, draws, resume, and what it refuses."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from lungkit.learn.loop import RandomStates, earlier, learning_rate_at, loop, train
from lungkit.learn.losses import Losses
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault, Stopped, forget_signals
from lungkit.run.seeds import generator_for


def parameter(value: float = 0.0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(value))


def descend(path, *, steps: int = 40, slope=lambda step: 1.0,
            **options) -> tuple[list[float], float]:
    """Train one weight down a slope: its value before each step, and the one left behind.

    Where the slope is constant Adam takes off the learning rate in each step, exactly.
    """
    weight, seen = parameter(), []

    def loss_at(step, generator):
        seen.append(weight.item())
        return weight * slope(step)

    options = {"learning_rate": 1.0, "weight_decay": 0.0, "seed": 0, **options}
    train([weight], loss_at, what="slope", steps=steps, checkpoint_path=path / "x.ckpt", **options)
    return seen, weight.item()


# ------------------------------------------------------------------ rates

@pytest.mark.parametrize(("step", "rate"), [
    (0, 0.2), (9, 2.0), (10, 2.0), (55, 1.1), (100, 0.2)])
def test_the_rate_rises_to_its_peak_and_falls_on_a_cosine_to_a_tenth(step, rate):
    assert learning_rate_at(step, 100, 2.0, 10) == pytest.approx(rate)


@pytest.mark.parametrize(("steps", "warmup_steps", "expected"), [
    (40, None, 2), (40, 8, 8), (5, None, 1), (40, 0, 0)])
def test_every_step_is_taken_at_the_rate_of_the_schedule(steps, warmup_steps, expected, tmp_path):
    seen, last = descend(tmp_path, steps=steps, warmup_steps=warmup_steps)
    taken = [before - after for before, after in zip(seen, [*seen[1:], last], strict=True)]
    assert taken == pytest.approx([learning_rate_at(step, steps, 1.0, expected)
                                   for step in range(steps)], rel=1e-3)


def test_a_steep_step_is_clipped_to_a_gradient_of_length_one(tmp_path):
    gentle = descend(tmp_path / "a", slope=lambda step: 1.0)
    steep = descend(tmp_path / "b", slope=lambda step: 1000.0 if step == 20 else 1.0)
    assert steep == gentle


def test_weight_decay_shrinks_weights_without_a_gradient(tmp_path):
    for weight_decay, left in ((0.0, 4.0), (0.5, 4 * (1 - 0.1 * 0.5))):
        weight = parameter(4.0)
        train([weight], lambda step, generator, weight=weight: weight * 0, what="decay", steps=1,
              learning_rate=0.1, weight_decay=weight_decay, seed=0,
              checkpoint_path=tmp_path / f"{weight_decay}.ckpt")
        assert weight.item() == pytest.approx(left)


def test_a_frozen_weight_stays(tmp_path):
    weight, frozen = parameter(), parameter(3.0).requires_grad_(False)
    train([frozen, weight], lambda step, generator: weight + frozen, what="frozen", steps=3,
          learning_rate=1.0, seed=0, checkpoint_path=tmp_path / "x.ckpt")
    assert frozen.item() == 3 and weight.item() < 0


# ------------------------------------------------------------------ the result

def test_the_result_is_the_moving_average_where_one_is_asked_for(tmp_path):
    seen, last = descend(tmp_path / "a")
    again, averaged = descend(tmp_path / "b", ema_decay=0.9)
    assert again == seen, "the average must not touch the training"
    expected, weights = seen[0], [*seen[1:], last]
    for count, weight in enumerate(weights):
        decay = min(0.9, 1 - (1 + count) ** -0.75)
        expected = decay * expected + (1 - decay) * weight
    assert averaged == pytest.approx(expected, rel=1e-4)
    assert averaged - last > 0.3, "the last weights were left"


def test_the_loss_returned_is_the_mean_of_the_last_tenth(tmp_path):
    weight = parameter()
    returned = train([weight], lambda step, generator: weight * 0 + step, what="loss", steps=50,
                     learning_rate=1.0, seed=0, checkpoint_path=tmp_path / "x.ckpt")
    assert returned == 47


@pytest.mark.parametrize(("steps", "rows"), [
    (3, [(1, 0.0), (2, 1.0), (3, 2.0)]), (10, [(3, 1.0), (6, 4.0), (9, 7.0), (10, 9.0)])])
def test_the_curve_is_the_mean_loss_of_a_few_steps_in_a_table(steps, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("lungkit.learn.losses.CURVE_ROWS", 4)
    weight, path = parameter(), tmp_path / "unet/loss.csv"
    train([weight], lambda step, generator: weight * 0 + step, what="loss", steps=steps, seed=0,
          learning_rate=1.0, checkpoint_path=tmp_path / "x.ckpt", curve_path=path)
    header, *lines = path.read_text().splitlines()
    assert header == "step,train_loss"
    assert [(int(step), float(loss)) for step, loss in (line.split(",") for line in lines)] == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [3, 24])
def test_a_loss_that_is_not_finite_is_a_fault_and_never_a_checkpoint(value, at, tmp_path):
    weight = parameter()
    with pytest.raises(Fault, match="wild: the loss is not finite"):
        train([weight], lambda step, generator: weight + (value if step == at else 0), what="wild",
              steps=25, learning_rate=1.0, seed=0, checkpoint_path=tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ draws

def draws_of(path, *, steps: int, seed: int) -> list[float]:
    drawn, weight = [], parameter()

    def loss_at(step, generator):
        drawn.append(float(torch.rand((), generator=generator)))
        return weight * 1

    train([weight], loss_at, what="draws", steps=steps, learning_rate=1.0, seed=seed,
          checkpoint_path=path / f"{steps}-{seed}.ckpt")
    return drawn


def test_a_step_draws_from_its_seed_and_number_alone(tmp_path):
    long, short, other = (draws_of(tmp_path, steps=steps, seed=seed)
                          for steps, seed in ((8, 0), (5, 0), (8, 1)))
    assert short == long[:5]
    assert len({*long, *other}) == 16


def test_a_generator_depends_on_the_whole_key_in_its_order():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 23), (12, 3), (2**62, 1), (2**62 + 1, 1)]

    def first(key: tuple[int, int]) -> float:
        return float(torch.rand((), generator=generator_for(*key), dtype=torch.float64))

    assert len({first(key) for key in keys}) == len(keys)
    assert [first(key) for key in keys] == [first(key) for key in keys]


# ------------------------------------------------------------------ resume

@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_stopped_training_goes_on_to_the_same_result(ema_decay, tmp_path):
    def attempt(path, stop_at: int | None) -> tuple[int, list, dict]:
        weight, drawn, result = parameter(), [], {}

        def loss_at(step, generator):
            drawn.append((step, float(torch.rand((), generator=generator))))
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return (weight - 1) ** 2 * (drawn[-1][1] + 0.5)

        def run():
            result["loss"] = train([weight], loss_at, what="stop", steps=30, learning_rate=0.1,
                                   seed=4, ema_decay=ema_decay, checkpoint_path=path / "x.ckpt",
                                   curve_path=path / "loss.csv")
            result["weight"] = weight.item()
            result["curve"] = (path / "loss.csv").read_text()

        return cli.main(cli.stage_parser("stop", "A test."), run, []), drawn, result

    whole = attempt(tmp_path / "a", None)
    stopped = attempt(tmp_path / "b", 26)
    resumed = attempt(tmp_path / "b", None)
    assert (whole[0], stopped[0], resumed[0]) == (0, 75, 0) and not stopped[2]
    assert stopped[1] + resumed[1] == whole[1], "a step was lost, or done twice"
    assert resumed[2] == whole[2]


def test_a_signal_in_the_last_step_ends_a_whole_training(tmp_path):
    weight, result = parameter(), []

    def loss_at(step, generator):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return weight * 1

    def run():
        result.append(train([weight], loss_at, what="last", steps=3, learning_rate=0.1, seed=0,
                            checkpoint_path=tmp_path / "x.ckpt"))

    assert cli.main(cli.stage_parser("last", "A test."), run, []) == 0 and len(result) == 1


# ------------------------------------------------------------------ two networks, two optimisers

TOTAL = 14


def gan(path, *, at_step=lambda step: None, identity=None, **options) -> list:
    """Train a toy GAN, one step at a time; the bytes of everything it ends with.

    The generator has a BatchNorm, whose buffers are no parameters; the discriminator drops out,
    by torch's own generator.
    """
    torch.manual_seed(1)
    made = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4),
                               torch.nn.Linear(4, 1))
    judge = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Dropout(0.3),
                                torch.nn.Linear(8, 1))
    of_made, of_judge = torch.optim.Adam(made.parameters()), torch.optim.AdamW(judge.parameters())
    average, losses = torch.zeros(4), Losses()
    state = {"made": made, "judge": judge, "of_made": of_made, "of_judge": of_judge,
             "average": average, "random": RandomStates(torch.device("cpu"))}
    for step in loop(TOTAL, what="GAN", state=state, losses=losses,
                     identity={"rate": 1, **(identity or {})}, checkpoint_path=path / "x.ckpt",
                     rates=[(of_made, lambda step: 0.01),
                            (of_judge, lambda step: 0.1 / (step + 1))],
                     **options):
        at_step(step)
        generator = generator_for(3, step)
        real, noise = torch.randn(8, 1, generator=generator), torch.randn(8, 2, generator=generator)
        judged = (judge(made(noise).detach()) - judge(real)).mean()
        of_judge.zero_grad()
        judged.backward()
        of_judge.step()
        fooled = -judge(made(noise)).mean()
        of_made.zero_grad()
        fooled.backward()
        of_made.step()
        average.lerp_(made[1].running_mean, 0.1)
        losses.add(made=fooled, judge=judged)
    tensors = [*made.state_dict().values(), *judge.state_dict().values(), average]
    moments = [part for optimizer in (of_made, of_judge)
               for parts in optimizer.state_dict()["state"].values() for part in parts.values()]
    return [part.numpy().tobytes() for part in (*tensors, *moments)] + [losses.values]


class Killed(Exception):
    pass


def kill_at(number: int):
    def at_step(step: int) -> None:
        if step == number:
            raise Killed
    return at_step


def test_a_killed_gan_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = gan(tmp_path / "a")
    monkeypatch.setattr("lungkit.learn.loop.CHECKPOINT_INTERVAL_SEC", 0.0)
    with pytest.raises(Killed):
        gan(tmp_path / "b", at_step=kill_at(11))
    done = []
    torch.rand(5)  # another process has drawn otherwise
    assert gan(tmp_path / "b", at_step=done.append) == whole
    assert 0 < done[0] <= 11 and done == [*range(done[0], TOTAL)]
    assert set(whole[-1]) == {"made", "judge"} and len(whole[-1]["judge"]) == TOTAL


def test_every_optimiser_is_given_its_own_rate(tmp_path):
    weights = [parameter(), parameter()]
    optimizers = [torch.optim.SGD([weight], lr=9.0) for weight in weights]
    losses, seen = Losses(), []
    for _ in loop(3, what="rates", state={}, losses=losses, identity={}, checkpoint_path=None,
                  rates=[(optimizers[0], lambda step: step),
                         (optimizers[1], lambda step: -step)]):
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
        losses.add(loss=torch.zeros(()))
    assert seen == [[0, 0], [1, -1], [2, -2]]


def test_any_loss_that_is_not_finite_is_a_fault(tmp_path):
    losses = Losses()
    with pytest.raises(Fault, match="GAN: the loss is not finite"):
        for _ in loop(3, what="GAN", state={}, losses=losses, identity={},
                      checkpoint_path=tmp_path / "x.ckpt"):
            losses.add(made=torch.tensor(1.0), judge=torch.tensor(float("nan")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save_last", [True, False])
def test_the_last_step_is_saved_where_asked_for(save_last, tmp_path):
    gan(tmp_path, save_last=save_last)
    assert (tmp_path / "x.ckpt").exists() == save_last
    done = []
    gan(tmp_path, at_step=done.append, save_last=save_last)
    assert bool(done) != save_last


def test_a_training_begun_with_other_options_is_refused_and_overwrite_begins_it_anew(tmp_path):
    whole = gan(tmp_path)
    with pytest.raises(BadOptions, match="rate: 1 there, 2 now"):
        gan(tmp_path, identity={"rate": 2})
    done = []
    assert gan(tmp_path, identity={"rate": 2}, overwrite=True, at_step=done.append) == whole
    assert done == [*range(TOTAL)]


def old_layout() -> dict:
    """What a version before the one loop kept of a training."""
    return {"step": 3, "losses": [1.0, 2.0, 3.0], "optimizer": {"state": {}, "param_groups": []},
            "parameters": [torch.zeros(())], "ema": None}


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def emptied(path) -> None:
    path.write_bytes(b"")


def hollowed(path) -> None:
    """As a file system leaves it that flushed the length and not the content."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr("lungkit.learn.loop.save_interval", lambda saving_sec: 0.0)


@pytest.mark.parametrize(("tear", "both"), [
    (cut, False), (emptied, False), (hollowed, False), (cut, True)])
def test_a_torn_checkpoint_is_left_out_with_a_warning(tear, both, tmp_path, save_always, capfd):
    whole = gan(tmp_path / "a")
    with pytest.raises(Killed):
        gan(tmp_path / "b", at_step=kill_at(11), keep_earlier=True)
    path, done = tmp_path / "b/x.ckpt", []
    for place in (path, earlier(path))[:1 + both]:
        tear(place)
    capfd.readouterr()
    assert gan(tmp_path / "b", at_step=done.append, keep_earlier=True) == whole
    assert done[0] == (0 if both else 10) and done[-1] == TOTAL - 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == (3 if both else 1) and "x.ckpt is torn" in lines[0]
    assert not both or "begins anew" in lines[-1]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, save_always):
    whole = gan(tmp_path / "a")
    with pytest.raises(Killed):
        gan(tmp_path / "b", at_step=kill_at(4), keep_earlier=True)
    path, done = tmp_path / "b/x.ckpt", []
    path.rename(earlier(path))
    assert gan(tmp_path / "b", at_step=done.append, keep_earlier=True) == whole
    assert done[0] == 4


def test_overwrite_leaves_no_checkpoint_of_the_training_before(tmp_path, save_always):
    with pytest.raises(Killed):
        gan(tmp_path, at_step=kill_at(4), keep_earlier=True)
    with pytest.raises(Killed):
        gan(tmp_path, at_step=kill_at(1), identity={"rate": 2}, overwrite=True, keep_earlier=True)
    assert not earlier(tmp_path / "x.ckpt").exists()


def test_generators_keep_two_checkpoints_and_both_are_named_as_such(tmp_path, save_always):
    descend(tmp_path, steps=3)
    assert {path.name for path in tmp_path.iterdir()} == {"x.ckpt", "x.earlier.ckpt"}


@pytest.mark.parametrize("content", [old_layout, lambda: [1, 2]])
def test_a_checkpoint_of_an_earlier_version_or_no_checkpoint_is_one_line(content, tmp_path, capfd):
    path = tmp_path / "x.ckpt"
    torch.save(content(), path)

    def run():
        descend(tmp_path, steps=2)

    assert cli.main(cli.stage_parser("old", "A test."), run, []) == 1
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "x.ckpt" in error[0] and "remove it" in error[0]
    path.rename(earlier(path))
    torch.save(content(), path)
    assert cli.main(cli.stage_parser("old", "A test."), run, []) == 1
    assert "remove it and x.earlier.ckpt," in capfd.readouterr().err
    earlier(path).unlink()
    path.unlink()
    assert cli.main(cli.stage_parser("old", "A test."), run, []) == 0


def test_one_checkpoint_is_kept_where_no_earlier_one_is_asked_for(tmp_path, save_always):
    with pytest.raises(Killed):
        gan(tmp_path, at_step=kill_at(4))
    assert (tmp_path / "x.ckpt").exists() and not earlier(tmp_path / "x.ckpt").exists()


def test_a_torn_checkpoint_never_takes_the_place_of_the_whole_one(tmp_path, save_always):
    path = tmp_path / "x.ckpt"
    with pytest.raises(Killed):
        gan(tmp_path, at_step=kill_at(4), keep_earlier=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Killed):
        gan(tmp_path, at_step=kill_at(4), keep_earlier=True)  # it goes on from the one before
    assert earlier(path).stat().st_size > 100


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])])
def test_a_training_goes_on_on_its_device(where, tmp_path):
    def run(folder, stop_at=None):
        torch.manual_seed(0)
        network = torch.nn.Linear(8, 1).to(where)

        def loss_at(step, generator):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return network(torch.randn(4, 8, generator=generator).to(where)).square().mean()
        try:
            train(network.parameters(), loss_at, what="x", steps=6, learning_rate=0.1, seed=0,
                  ema_decay=0.9, checkpoint_path=folder / "x.ckpt")
        except Stopped:
            return None
        return [weight.detach().cpu() for weight in network.parameters()]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    previous = signal.signal(signal.SIGTERM, cli.note_signal)
    try:
        whole = run(tmp_path / "a")
        assert run(tmp_path / "b", stop_at=2) is None
        forget_signals()
        resumed = run(tmp_path / "b")
    finally:
        signal.signal(signal.SIGTERM, previous)
        forget_signals()
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other) if where == "cpu" else torch.allclose(one, other, atol=1e-5)
