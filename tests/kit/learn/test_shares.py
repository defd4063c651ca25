"""Shares of a batch: any number of ranks trains what one process does, and goes on with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # noqa: F401  (before the ranks are forked)
from diffusers.training_utils import EMAModel  # noqa: F401

from lungkit.learn import loop, shares
from lungkit.learn.validation import Validation
from lungkit.run import cli, ranks
from lungkit.run.launch import Place
from ranked import together

BATCH, STEPS = 5, 60
SEEDS = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)


@pytest.mark.parametrize(("batch", "number"), [(5, 1), (5, 2), (8, 2), (5, 5), (7, 3), (64, 6)])
def test_shares_are_the_batch_in_order_and_their_weighted_means_its_mean(batch, number,
                                                                         monkeypatch):
    values, seen, means = torch.rand(batch, dtype=torch.float64), [], []
    for rank in range(number):
        monkeypatch.setattr(ranks._here, "place", Place(rank, number))
        share = shares.share_of(batch)
        own = values[share.own]
        assert len(own) >= 1
        seen += own.tolist()
        means.append(share.weight * own.mean())
    assert seen == values.tolist()
    assert float(torch.stack(means).mean()) == pytest.approx(float(values.mean()), rel=1e-12)


def test_alone_a_batch_is_whole_and_weighs_one():
    assert shares.share_of(7) == (slice(None), 1.0)
    values = torch.rand(3)
    assert shares.mean(values) is values
    assert shares.averaged(len, []) is len


# ------------------------------------------------------------------ a training

class Model:
    """A small network that learns noisy points, each place of a batch with its own noise."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(),
                                       torch.nn.Linear(16, 3))

    def loss_at(self, step: int, generator: torch.Generator) -> torch.Tensor:
        share = shares.share_of(BATCH)
        picks = torch.randint(len(SEEDS), (BATCH,), generator=generator)
        noise = torch.randn((BATCH, 3), generator=generator)
        clean = torch.from_numpy(SEEDS)[picks]
        error = (self.net((clean + noise)[share.own]) - clean[share.own]).square().mean(1)
        return share.weight * error.mean()


def training(root: Path, at_step=lambda step: None) -> int:
    """Train in `root` and keep what came of it there, by rank."""
    model = Model()

    def loss_at(step, generator):
        at_step(step)
        return model.loss_at(step, generator)

    def run(**options):
        validation = Validation(model.loss_at, steps=STEPS, seed=9)
        loss = loop.train(model.net.parameters(), loss_at, what="net", steps=STEPS, seed=3,
                          learning_rate=0.01, ema_decay=0.9, checkpoint_path=root / "x.ckpt",
                          curve_path=root / "loss.csv", validation=validation)
        torch.save([loss, validation.values, *model.net.parameters()],
                   root / f"{ranks.rank()}.pt")

    parser = cli.stage_parser("train.py", "A test.")
    parser.set_defaults(device="cpu", dry_run=False)
    return cli.main(parser, ranks.together(run), [])


def trained(root: Path, rank: int = 0) -> tuple[float, dict, torch.Tensor]:
    loss, values, *weights = torch.load(root / f"{rank}.pt")
    return loss, values, torch.cat([weight.detach().flatten() for weight in weights])


def alike(one: tuple, other: tuple) -> bool:
    """Whether two trainings are the same but for the last bits."""
    return (abs(one[0] - other[0]) < 1e-5 and one[1].keys() == other[1].keys()
            and all(abs(one[1][step] - other[1][step]) < 1e-5 for step in one[1])
            and float((one[2] - other[2]).abs().max()) < 1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple:
    root = tmp_path_factory.mktemp("alone")
    assert training(root) == 0
    return trained(root)


@pytest.mark.parametrize("number", [2, 3])
def test_ranks_train_what_one_process_does(number, alone, tmp_path, monkeypatch):
    def write(path: Path, content: dict, *, write=loop.checkpoints.write) -> None:
        assert ranks.is_first(), "another rank writes a checkpoint"
        write(path, content)

    monkeypatch.setattr(loop.checkpoints, "write", write)
    monkeypatch.setattr(loop, "save_interval", lambda saving_sec: 0)
    statuses, said = together(lambda: training(tmp_path), number, tmp_path)
    assert statuses == [0] * number and not "".join(said[1:])
    found = [trained(tmp_path, rank) for rank in range(number)]
    assert all(torch.equal(each[2], found[0][2]) for each in found), "ranks drift apart"
    assert all(each[:2] == found[0][:2] for each in found)
    assert alike(found[0], alone)
    curve = [line.split(",") for line in (tmp_path / "loss.csv").read_text().splitlines()[1:]]
    assert len([row for row in curve if row[1]]) == STEPS


def test_the_noise_is_of_the_place_in_the_batch_and_the_weights_of_the_share(alone):
    """The comparison above can fail: neither other noise nor another weight goes unnoticed."""
    model = Model()
    generator = torch.Generator().manual_seed(0)
    whole = model.loss_at(0, torch.Generator().manual_seed(0))
    for step in range(3):
        other = model.loss_at(step, generator)
    assert abs((whole - other).item()) > 1e-3
    assert not alike(alone, (alone[0] + 1e-3, *alone[1:]))
    assert not alike(alone, (*alone[:2], alone[2] + 1e-3))


@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_ended_training_goes_on_by_another_number_of_ranks(first, then, number, alone, tmp_path,
                                                              monkeypatch):
    def end(step: int) -> None:
        if step == 40 and ranks.rank() == first - 1:
            os.kill(os.getpid(), number)

    steps, killed = tmp_path / "steps", number == signal.SIGKILL
    monkeypatch.setattr(loop, "SYNC_STEPS", 7)
    if killed:
        monkeypatch.setattr(loop, "save_interval", lambda saving_sec: 0)
    statuses, _ = together(lambda: training(tmp_path, end), first, tmp_path)
    assert statuses == ([1] * (first - 1) + [-9] if killed else [75] * first)

    def note(step: int) -> None:
        with open(steps, "a") as file:
            file.write(f"{step}\n")

    assert together(lambda: training(tmp_path, note), then, tmp_path)[0] == [0] * then
    resumed_at = min(map(int, steps.read_text().split()))
    assert resumed_at in ((35, 40) if killed else (41, 42)), "it did not go on, or lost much"
    assert alike(trained(tmp_path), alone)


def test_ranks_that_found_different_checkpoints_end_with_a_line(tmp_path, monkeypatch):
    restore = loop.restore

    def other(path, state, identity, **how):
        return restore(path, state, identity, **how) + ranks.rank()

    monkeypatch.setattr(loop, "restore", other)
    statuses, said = together(lambda: training(tmp_path), 2, tmp_path)
    assert statuses == [1, 1]
    assert "the ranks found different checkpoints in" in "".join(said)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_a_line(tmp_path, monkeypatch):
    loss_at = Model.loss_at

    def not_finite(self, step, generator):
        found = loss_at(self, step, generator)
        return found * float("nan") if ranks.rank() == 1 and step == 30 else found

    monkeypatch.setattr(Model, "loss_at", not_finite)
    statuses, said = together(lambda: training(tmp_path), 2, tmp_path)
    assert statuses == [1, 1]
    line, = [line for each in said for line in each.splitlines() if "error" in line]
    assert "not finite" in line
