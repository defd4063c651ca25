"""What of a CNN's training may be chosen: one table of names, kinds, ranges and defaults.

Three must agree on it: cnn_classify.py, whose long options have these names; cnn_search.py, which
draws from `searched`; and a file of settings (best.json), which is refused where it says anything
else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lungkit.learn.cnns import MODELS
from lungkit.run.faults import Fault, several
from lungkit.run.files import read_json

SCHEMA = "lungkit.settings/1"
WORDS = {str: "a word", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Setting:
    """One setting of a training: its kind, what is allowed, what is meant where it is not given.

    default: None means what the preset or the model decides. choices: all that a word may be; ():
    any. low, high: of a number, both allowed. searched: what a search draws from, of a float (low,
    high), else the values; () where it is not searched. log: drawn by its logarithm.
    """

    name: str
    kind: type
    default: object = None
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    searched: tuple = ()
    log: bool = False

    def fault(self, value: object) -> str | None:
        """What is wrong with a value; None where nothing is. None is allowed where it is meant."""
        if value is None and self.default is None:
            return None
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or isinstance(value, bool):
            return f"{self.name} {value!r} is not {WORDS[self.kind]}"
        if self.choices and value not in self.choices:
            return f"{self.name} {value!r} is not one of {', '.join(self.choices)}"
        if self.kind is not str and not self.low <= value <= self.high:
            return f"{self.name} {value!r} is not in {self.low:g} to {self.high:g}"
        return None


# ranges that are searched are ours: about a factor of ten around the usual value, or from what
# turns a part off to what is called strong
SETTINGS = {each.name: each for each in (
    Setting("model", str, choices=tuple(MODELS)),
    Setting("weights", str),
    Setting("batch_size", int, low=2, searched=(16, 32, 64)),
    Setting("learning_rate", float, low=1e-8, high=1.0, searched=(2e-4, 2e-2), log=True),
    Setting("weight_decay", float, 0.05, low=0.0, high=1.0, searched=(1e-3, 0.3), log=True),
    Setting("optimizer", str, "adamw", ("adamw", "adam", "sgd"), searched=("adamw", "adam", "sgd")),
    Setting("unfreeze", str, "all", ("all", "none", "conservative", "moderate", "aggressive"),
            searched=("all", "conservative", "moderate", "aggressive")),
    Setting("dropout", float, 0.0, low=0.0, high=0.9, searched=(0.0, 0.5)),
    Setting("augment", float, 1.0, low=0.0, high=4.0, searched=(0.0, 2.0)),
    Setting("mixup", float, 0.0, low=0.0, high=10.0, searched=(0.0, 0.4)),
    Setting("cutmix", float, 0.0, low=0.0, high=10.0, searched=(0.0, 1.0)),
    Setting("balance", str, "none", ("none", "sampler", "loss", "upsample"),
            searched=("none", "sampler", "loss", "upsample")),
    Setting("label_smoothing", float, 0.1, low=0.0, high=0.5, searched=(0.0, 0.2)),
    Setting("layer_decay", float, 1.0, low=0.1, high=1.0),
    Setting("tta", str, "none", ("none", "flips", "eight")),
)}


def read_settings(path: Path) -> dict[str, object]:
    """The settings of a file that cnn_search.py wrote, or of one written by hand.

    The file holds {"settings": {name: value}}; what else it says is where they come from. Raises
    Fault, once, with all that is wrong.
    """
    if not Path(path).is_file():
        raise Fault(f"--settings {path} is not a file: give a best.json of cnn_search.py tune")
    found = read_json(path).get("settings")
    if not isinstance(found, dict):
        raise Fault(f'--settings {path} holds no "settings" object: give a best.json of '
                    "cnn_search.py tune")
    faults = [f"there is no setting {name!r}" for name in sorted(set(found) - set(SETTINGS))]
    faults += [fault for name in found if name in SETTINGS
               and (fault := SETTINGS[name].fault(found[name]))]
    if faults:
        raise Fault(f"--settings {path}: {several(faults)}: allowed are {', '.join(SETTINGS)}")
    return found
