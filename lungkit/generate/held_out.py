"""What of real/train a generator does not learn from, to see when it has learnt enough.

Whole groups (patients, slides, source tiles), the same for every generator of one --seed. They are
of real/train, and not real's val split: choosing weights by val would have each arm made with the
help of patients whose images no other CNN is trained on, and val is what an arm's likeness to real
is measured by.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lungkit.data.dataset import Dataset
from lungkit.data.splits import partition
from lungkit.run import cli
from lungkit.run.progress import say
from lungkit.run.seeds import stream

if TYPE_CHECKING:
    from lungkit.learn.validation import Validation

SHARE, PATIENCE = 0.1, 10  # ours


@dataclass(frozen=True)
class HoldOut:
    """Which share of the training images is held out, and how long a training goes on in vain.

    share: 0, none. patience: looks at them without a better one after which a training ends, 0:
    never before its last step.
    """

    share: float = 0.0
    patience: int = 0

    def as_setting(self) -> dict[str, float | int]:
        """Among what decides a model: said where something may be held out."""
        return {"validation_share": self.share, "patience": self.patience} if self.share else {}

    def choose(self, data: Dataset, seed: int) -> frozenset[int]:
        """The places held out among the train images, as `Dataset.select` orders them; says so.

        None where a class has fewer groups than 1 / share: what so few show is chance.
        """
        if not self.share:
            return frozenset()
        rows = data.select("train")
        groups = [row.group or row.file_name for row in rows]
        least = math.ceil(1 / self.share)
        numbers = {label: len({group for group, row in zip(groups, rows, strict=True)
                               if row.label == label}) for label in data.classes}
        if few := [label for label in data.classes if numbers[label] < least]:
            say(f"nothing is held out for validation: {few[0]} has {numbers[few[0]]} groups in "
                f"train, and a share of {self.share:g} needs {least}")
            return frozenset()
        part = partition([(group, row.label) for group, row in zip(groups, rows, strict=True)],
                         (1 - self.share, self.share), stream("validation", seed))
        held = frozenset(place for place, group in enumerate(groups) if part[group])
        say(f"{len(held)} of {len(rows)} training images are held out for validation, of "
            f"{sum(part.values())} groups of {len(part)}")
        return held

    def validation(self, loss_at: Callable | None, *, steps: int, seed: int) -> Validation | None:
        """What looks at the held-out loss during a training; None: nothing is held out."""
        from lungkit.learn.validation import Validation

        return None if loss_at is None else Validation(
            loss_at, steps=steps, seed=stream("validation draws", seed), patience=self.patience)


NOTHING = HoldOut()


def add_validation_options(hyperparameters) -> None:
    """Add --validation-share and --patience."""
    hyperparameters.add_argument(
        "--validation-share", type=share, default=SHARE, metavar="SHARE",
        help="of REAL's training images, by group: held out, to keep the weights that are best on "
             "them; 0: none")
    hyperparameters.add_argument(
        "--patience", type=cli.non_negative_int, default=PATIENCE, metavar="LOOKS",
        help="looks at them (20 a training) without a better one after which it ends; 0: never")


def share(text: str) -> float:
    """Argument type: a number from 0 to a half."""
    number = cli.non_negative_float(text)
    if number > 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 0.5")
    return number
