"""Which layers are trained, from which step on and how fast; what is frozen is as in testing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lungkit.learn import classify_training, cnns, unfreezing
from lungkit.learn.classify_training import one_cycle, plan_batches, train

STEPS = 8


def block(num_in: int, num_out: int) -> list[nn.Module]:
    return [nn.Conv2d(num_in, num_out, 3, 1, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()]


def ten_layers() -> nn.Sequential:
    """Ten convolutions and a head."""
    torch.manual_seed(0)
    return nn.Sequential(*block(3, 2), *(each for _ in range(9) for each in block(2, 2)),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


def trained(schedule: str, decay: float = 1.0, monkeypatch=None, **more) -> tuple:
    """The network before and after, of every step which layers moved (0 is the head)."""
    model, moved, rates = ten_layers(), [], []
    layers = unfreezing.layers_of(model)
    images = torch.randint(0, 256, (12, 6, 6, 3), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    settings = {"unfreeze": schedule, "layer_decay": decay, **more}
    plan = plan_batches(np.arange(12), STEPS, 6, np.random.default_rng(0))
    before = [[each.detach().clone() for m in layer for each in m.state_dict().values()]
              for layer in layers]
    make = classify_training.optimizer_of

    def noted(*given):
        optimizer = make(*given)
        step = optimizer.step

        def stepped():
            rates.append([group["lr"] for group in optimizer.param_groups][::-1])
            moved.append([each[0].weight.grad is not None for each in layers][::-1])
            return step()

        optimizer.step = stepped
        return optimizer

    monkeypatch.setattr(classify_training, "optimizer_of", noted)
    train(model, images, torch.arange(12) % 3, plan, learning_rate=0.1, settings=settings,
          what="t", identity={}, checkpoint_path=None)
    after = [[each for m in layer for each in m.state_dict().values()] for layer in layers]
    same = [all(torch.equal(a, b) for a, b in zip(*pair)) for pair in zip(before, after)][::-1]
    return moved, same, rates


@pytest.mark.parametrize(("schedule", "first", "then"), [
    ("none", 0, 0), ("conservative", 3, 7), ("moderate", 5, 9), ("aggressive", 9, 9)])
def test_a_schedule_trains_so_many_layers_from_the_head_down(monkeypatch, schedule, first, then):
    moved, same, _ = trained(schedule, monkeypatch=monkeypatch)
    for step, found in enumerate(moved):
        wanted = first if step < STEPS // 2 else then
        assert found == [True] * (1 + wanted) + [False] * (10 - wanted), step
    # weights and running means of what was never trained, batch normalisation in testing mode
    assert same == [False] * (1 + then) + [True] * (10 - then)


def test_what_is_unfrozen_later_is_in_training_mode_from_then_on():
    model = ten_layers()
    layers = unfreezing.Unfreezing(model, "conservative", 1.0, STEPS)
    for step, num in ((0, 3), (3, 3), (4, 7), (7, 7)):
        layers.begin(model, step)
        norms = [m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms == [False] * (10 - num) + [True] * num and model.training
    again = unfreezing.Unfreezing(model, "conservative", 1.0, STEPS)
    again.begin(model, 5)  # as a training that goes on does
    assert sum(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)) == 7


def test_rates_fall_by_the_factor_from_tenth_to_tenth_of_the_depth(monkeypatch):
    _, _, rates = trained("all", 0.5, monkeypatch=monkeypatch)
    for step, found in enumerate(rates):
        peak = 0.1 * one_cycle(step, STEPS)
        assert found == pytest.approx([peak * 0.5**band for band in (0, 1, 1, *range(2, 10))])


def test_without_either_the_optimiser_is_as_before(monkeypatch):
    assert unfreezing.of(ten_layers(), {"unfreeze": "all", "layer_decay": 1.0}, 9) is None
    groups = unfreezing.of(ten_layers(), {"unfreeze": "all", "layer_decay": 0.9}, 9).groups()
    assert len(groups) == 11


@pytest.mark.parametrize(("name", "layers"), [("small", 6), ("resnet18", 21)])
def test_every_weight_is_of_one_layer_and_the_head_is_the_last(name, layers):
    model = cnns.build_model(name, 3, None)
    found = unfreezing.layers_of(model)
    own = [each for layer in found for module in layer for each in
           module.parameters(recurse=False)]
    assert len(found) == layers and len(own) == len({id(each) for each in own})
    assert {id(each) for each in own} == {id(each) for each in model.parameters()}
    assert found[-1][0].out_features == 3
