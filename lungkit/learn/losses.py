"""The losses of a training, step by step.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import torch

from lungkit.learn.shares import mean

CURVE_ROWS = 500  # of a table of losses: fine enough for any plot


class Losses:
    """The losses of every step by name; fetched from the device a few steps together."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.waiting: dict[str, list[torch.Tensor]] = {}

    def add(self, **losses: torch.Tensor) -> None:
        """Note a step's losses, scalars; the same names at every step."""
        for name, loss in losses.items():
            self.waiting.setdefault(name, []).append(loss.detach())

    def num_waiting(self) -> int:
        return max(map(len, self.waiting.values()), default=0)

    def fetch(self) -> dict[str, list[float]]:
        """Take in the losses noted since the last call, and return them by name.

        Of several ranks the means.
        """
        new = {name: mean(torch.stack(each).float()).cpu().tolist()
               for name, each in self.waiting.items()}
        self.waiting.clear()
        for name, values in new.items():
            self.values.setdefault(name, []).extend(values)
        return new

    def last_tenth(self, name: str = "loss") -> list[float]:
        """Those of the last tenth of the steps, one at least."""
        values = self.values[name]
        return values[-max(1, len(values) // 10):]

    def curve(self, name: str = "loss") -> list[tuple[int, float]]:
        """(steps done, mean loss of the steps since the row before), CURVE_ROWS at most."""
        values = self.values[name]
        length = max(1, -(-len(values) // CURVE_ROWS))
        parts = [values[first:first + length] for first in range(0, len(values), length)]
        return [(min((place + 1) * length, len(values)), sum(part) / len(part))
                for place, part in enumerate(parts)]

    def state_dict(self) -> dict:
        return self.values

    def load_state_dict(self, state: dict) -> None:
        self.values = state
