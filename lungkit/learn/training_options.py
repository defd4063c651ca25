"""The options of a CNN's training beyond its preset's: asked for, checked, recorded.

Names, kinds and defaults are those of lungkit.learn.settings. What is not the usual is among what
decides a training, and nothing else is: results of before there was an option stay what they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from lungkit.learn.settings import SETTINGS, read_settings
from lungkit.run.faults import BadOptions, several
from lungkit.run.files import read_json
from lungkit.run.progress import say

NAMES = ("optimizer", "weight_decay", "label_smoothing", "dropout", "augment", "balance", "mixup",
         "cutmix", "unfreeze", "layer_decay", "tta")
OF_WEIGHTS = ("unfreeze", "layer_decay")   # nothing to do without pretrained ones
OF_IMAGES = ("augment", "cutmix", "tta")  # nothing to do with features


def add_options(group) -> None:
    """Add them to an argparse group. None means not given: its default is then meant."""
    for name, metavar, text in (
            ("optimizer", None, "sgd has Nesterov's momentum, adam no weight decay"),
            ("weight_decay", "RATE", "of adamw and sgd"),
            ("label_smoothing", "SHARE", "of the target, spread over all classes"),
            ("dropout", "SHARE", "of what the last layer is shown, besides what the network has"),
            ("augment", "FACTOR", "on how strongly images are lit and made noisy"),
            ("balance", None, "classes of unlike size: draw them equally often, weigh the loss by "
                              "n / (k n_c), or add moved copies up to the largest class"),
            ("mixup", "ALPHA", "mix images and labels by shares from Beta(ALPHA, ALPHA); 0: not"),
            ("cutmix", "ALPHA", "exchange boxes of images, of such shares; 0: not"),
            ("unfreeze", None, "of pretrained weights: which layers are trained, from the head "
                               "down: 30 %% and from half of the steps on 70 %%, 50 and 90 %%, "
                               "90 %% at once, all, or none but the head"),
            ("layer_decay", "FACTOR", "of pretrained weights: from each tenth of the depth to the "
                                      "one below, on the learning rate"),
            ("tta", None, "average the probabilities of val and test images over their flips, or "
                          "all eight flips and turns, as far as the dataset allows")):
        group.add_argument(f"--{name.replace('_', '-')}", **_kind(name), metavar=metavar,
                           help=f"{text} (default: {SETTINGS[name].default})")


def _kind(name: str) -> dict:
    setting = SETTINGS[name]
    return {"choices": setting.choices} if setting.choices else {"type": _number(name)}


def _number(name: str):
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if fault := SETTINGS[name].fault(value):
            raise argparse.ArgumentTypeError(fault.partition(" ")[2])
        return value

    return read


def complete(settings: Mapping) -> dict[str, object]:
    """All of NAMES, with the default of each that `settings` does not have."""
    return {name: SETTINGS[name].default if settings.get(name) is None else settings[name]
            for name in NAMES}


def as_setting(options: Mapping) -> dict[str, object]:
    """Those among what decides a training: said where they are not the usual."""
    return {name: value for name, value in complete(options).items()
            if value != SETTINGS[name].default}


def with_file(path: Path, options: Mapping, real_fingerprint: str) -> dict[str, object]:
    """`options` with what a file of settings says of those that are None, not given.

    What is given holds, and is said. Raises Fault as `read_settings`, BadOptions where the file was
    found in another dataset than real: what is in test here may have been trained on there.
    """
    found = read_settings(path)
    searched = read_json(path).get("fingerprint")
    if searched not in (None, real_fingerprint):
        raise BadOptions(f"--settings {path} were found in another dataset (fingerprint "
                         f"{str(searched)[:12]}..., that of --real is {real_fingerprint[:12]}...): "
                         "search in this one's train split")
    if found.get("weights"):
        found["weights"] = Path(found["weights"])
    over = [f"{name} {options[name]}, not {value}" for name, value in found.items()
            if options[name] is not None and options[name] != value]
    if over:
        say(f"--settings {path}: the command line holds: {several(over)}")
    return {**options, **{name: value for name, value in found.items() if options[name] is None}}


def check(options: Mapping, *, frozen: bool, pretrained: bool) -> None:
    """Raise BadOptions where options contradict what is trained.

    frozen: features are trained on. pretrained: the network starts from weights.
    """
    chosen = as_setting(options)
    turned = [name for name in OF_IMAGES if name in chosen]
    turned += ["balance upsample"] if chosen.get("balance") == "upsample" else []
    deep = [name for name in OF_WEIGHTS if name in chosen]
    if frozen and turned + deep:
        raise BadOptions(f"{_named(turned + deep)}: --frozen trains a head on features: leave "
                         "it out")
    if deep and not pretrained:
        raise BadOptions(f"{_named(deep)}: of a network that starts from --weights: give them, or "
                         "leave it out")


def _named(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
