"""Which layers of a pretrained network are trained, from which step on, and how fast.

A layer is a convolution or a linear layer with the normalisation after it; they are counted from
the head, which is always trained. `conservative` begins with the 30 % next to the head and goes on
with 70 %, `moderate` with 50 and 90 %, `aggressive` trains 90 % at once; `none` the head alone, and
`all` everything. What is frozen is as in testing: its batch normalisation keeps its statistics.
From the head down: Howard and Ruder 2018 (arXiv:1801.06146); rates by depth: Clark et al. 2020
(arXiv:2003.10555).

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# (share of the steps from which on, share of the layers under the head); second phases are ours
SCHEDULES = {"none": ((0.0, 0.0),), "conservative": ((0.0, 0.3), (0.5, 0.7)),
             "moderate": ((0.0, 0.5), (0.5, 0.9)), "aggressive": ((0.0, 0.9),),
             "all": ((0.0, 1.0),)}
BANDS = 10  # of depth: a factor a layer would mean another thing for each network; ours


def layers_of(model) -> list[list]:
    """The modules of each layer, those that have weights of their own, from input to head."""
    layers: list[list] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        weight = getattr(module, "weight", None)
        if not layers or (weight is not None and weight.ndim > 1):
            layers.append([])
        layers[-1].append(module)
    return layers


def of(model, how: Mapping, steps: int) -> Unfreezing | None:
    """The layers of `model` as settings `how` say; None where all are trained alike."""
    if how["unfreeze"] == "all" and how["layer_decay"] == 1:
        return None
    return Unfreezing(model, how["unfreeze"], how["layer_decay"], steps)


class Unfreezing:
    """A model's layers under a schedule, for `train`: its optimiser's groups, its steps."""

    def __init__(self, model, schedule: str, layer_decay: float, steps: int) -> None:
        """layer_decay: a rate's share of that of the band of layers above; 1: all alike."""
        self.layers = layers_of(model)
        self.phases = [(math.ceil(share * steps), trained) for share, trained in
                       SCHEDULES[schedule]]
        self.decay, self.trained = layer_decay, -1

    def groups(self) -> list[dict]:
        """The optimiser's parameter groups: those of each layer."""
        return [{"params": [each for module in layer for each in module.parameters(recurse=False)]}
                for layer in self.layers]

    def rates(self, optimizer, rate_at: Callable[[int], float]) -> list[tuple]:
        """For `loop`: each group's rate at a step, that of the head times decay for each band."""
        below = len(self.layers) - 1

        def of(place: int) -> Callable[[int], float]:
            band = 0 if place == below else 1 + (below - 1 - place) * (BANDS - 1) // below
            return lambda step: rate_at(step) * self.decay**band

        return [(_Group(optimizer, place), of(place)) for place in range(len(self.layers))]

    def begin(self, model, step: int) -> None:
        """Freeze and unfreeze as the step's phase says; `model` is in training mode after it."""
        share = [trained for first, trained in self.phases if first <= step][-1]
        trained = 1 + round(share * (len(self.layers) - 1))
        if trained == self.trained:
            return
        self.trained = trained
        model.train()
        for place, layer in enumerate(self.layers):
            frozen = place < len(self.layers) - trained
            for module in layer:
                module.training = not frozen  # of it alone: a block may hold layers of both kinds
                for each in module.parameters(recurse=False):
                    each.requires_grad_(not frozen)


class _Group:
    """One group of an optimiser, also after its state was restored, as `loop` sets rates."""

    def __init__(self, optimizer, place: int) -> None:
        self.optimizer, self.place = optimizer, place

    @property
    def param_groups(self) -> list[dict]:
        return [self.optimizer.param_groups[self.place]]
