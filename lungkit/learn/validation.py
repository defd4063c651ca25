"""The loss on images held out of a training, at the same draws every time, and its best weights.

Prechelt 1998, doi:10.1007/3-540-49430-8_3 (early stopping). What is noted is of the weights that
would be the result, their moving average where there is one. The training itself goes on as if
nobody looked: no random number of it is drawn here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from lungkit.learn.shares import mean
from lungkit.run.faults import Fault
from lungkit.run.seeds import generator_for

CHECKS = 20        # ours: looks over a training, fewer where it has not ...
CHECK_STEPS = 30   # ... so many steps for each
LOOK_STEPS = 10    # ours: a batch without a gradient for so many steps: 3 % of their time
MOST_BATCHES = 32  # ours: of one look


class Validation:
    """The held-out loss of a training by step, and the weights that had the least of it."""

    def __init__(self, loss_at: Callable, *, steps: int, seed: int, patience: int = 0) -> None:
        """loss_at(number, generator): of a batch of what is held out, called for the same numbers
        and generators at every look. steps: of the whole training.
        patience: looks without a better one after which it ends, 0: never before its end.
        """
        looks = min(CHECKS, max(1, steps // CHECK_STEPS))
        self.due = {round(number * steps / looks) for number in range(1, looks + 1)}
        self.num_batches = min(MOST_BATCHES, max(1, steps // LOOK_STEPS // looks))
        self.loss_at, self.seed, self.patience = loss_at, seed, patience
        self.values: dict[int, float] = {}  # by steps done
        self.weights: list[torch.Tensor] = []

    @property
    def best_step(self) -> int:
        """Steps done at the least loss, the first of equal ones; there has to be one."""
        return min(self.values, key=lambda step: self.values[step])

    def note(self, step: int, parameters: Sequence[torch.Tensor], what: str) -> bool:
        """Look after `step` steps; return whether to stop. Raises Fault where it is not finite."""
        with torch.no_grad():
            found = [self.loss_at(number, generator_for(self.seed, number)).float()
                     for number in range(self.num_batches)]
        value = float(mean(torch.stack(found)).mean())
        if not math.isfinite(value):
            raise Fault(f"{what}: the loss on the images held out is not finite after {step} steps:"
                        " lower --learning-rate and add --overwrite, or look at the images")
        self.values[step] = value
        if self.best_step == step:
            self.weights = [each.detach().cpu().clone() for each in parameters]
        since = sum(other > self.best_step for other in self.values)
        return 0 < self.patience <= since

    def restore(self, parameters: Sequence[torch.Tensor]) -> None:
        """Give `parameters` the best weights."""
        with torch.no_grad():
            for each, best in zip(parameters, self.weights, strict=True):
                each.copy_(best)

    def record(self, steps_done: int) -> dict[str, int | float]:
        """What a manifest says: {best_step, best_loss, last_loss, steps}."""
        best = self.best_step
        return {"best_step": best, "best_loss": self.values[best],
                "last_loss": self.values[max(self.values)], "steps": steps_done}

    def state_dict(self) -> dict:
        return {"steps": list(self.values), "values": list(self.values.values()),
                "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.values = dict(zip(state["steps"], state["values"], strict=True))
        self.weights = list(state["weights"])


@contextlib.contextmanager
def exchanged(parameters: Sequence[torch.Tensor],
              others: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """`parameters` hold the values of `others`, and these theirs, within the block; None: as is.

    Nothing is copied, so both come back bit for bit.
    """
    def exchange() -> None:
        for one, other in zip(parameters, others or (), strict=others is not None):
            one.data, other.data = other.data, one.data

    exchange()
    try:
        yield
    finally:
        exchange()
