"""Which guidance scale and how many steps a set is drawn with, chosen before it is drawn.

Some images of each class are drawn by every candidate, from the same noise, which no image of the
set has. Asked is how often a linear classifier of real's train images says the class that was meant
(label fidelity) and how far they are from the train images that the model did not learn from (KID,
the mean over classes). Real's val and test images are not opened: val is what a CNN stops by and
what an arm's likeness is measured by. The rule is that of choice_rule.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lungkit.audit.fidelity import ends_of, mean_of
from lungkit.generate.choice_rule import decide, distances, figures_of
from lungkit.generate.items import Arm, Item, as_real, in_parts
from lungkit.run import cli, ranks
from lungkit.run.faults import BadOptions, check_stop
from lungkit.run.files import atomic_path, read_json, write_json
from lungkit.run.progress import Progress, say

FILE, KEPT = "choice.json", ".choice"
RECIPE = 1
PER_CLASS, BATCH = 32, 16  # ours: images of a class by each candidate, and drawn at once
FIRST = 1_000_000_000      # index of the first of them: no image of a set, redrawn or not, has it
FEWEST_HELD, MOST_HELD = 2, 256  # held-out images of a class: KID needs two; ours
ALL = "all"


class Sampling(NamedTuple):
    """How images are drawn: steps from noise to an image; guidance_scale 1: no guidance."""

    sampling_steps: int
    guidance_scale: float

    def how(self) -> dict[str, int | float]:
        """The keywords of whatever draws."""
        return {"steps": self.sampling_steps, "guidance_scale": self.guidance_scale}

    def __str__(self) -> str:
        return f"{self.sampling_steps} steps with guidance {self.guidance_scale:g}"


@dataclass(frozen=True)
class Ways:
    """How a set may be drawn; the first is what the preset or an option of its own says."""

    candidates: tuple[Sampling, ...]
    asked: dict[str, list | int]

    def as_setting(self) -> dict[str, object]:
        """Among what decides a dataset; what may be chosen from only where it is asked for."""
        return {**self.candidates[0]._asdict(), **self.asked}


def ways_of(options: dict) -> Ways:
    """The candidates of a stage's options, the given one first, then by steps and scale.

    Raises BadOptions where there is nothing to choose from or by.
    """
    given = Sampling(options["sampling_steps"], options["guidance_scale"])
    scales, steps = options["choose_guidance"], options["choose_steps"]
    if not scales and not steps:
        return Ways((given,), {})
    option = "--choose-guidance" if scales else "--choose-steps"
    others = sorted({Sampling(number, scale) for number in (given.sampling_steps, *(steps or ()))
                     for scale in (given.guidance_scale, *(scales or ()))} - {given})
    if not others:
        raise BadOptions(f"{option} names only what is drawn with anyway, {given}: give other "
                         "values, too")
    if not options["validation_share"]:
        raise BadOptions(f"{option} chooses by train images that are held out, and "
                         "--validation-share 0 holds out none: leave one of the two out")
    from lungkit.learn.features import Extractor

    Extractor()  # raises BadOptions where the network that judges is not here
    asked = {name: sorted(set(values)) for name, values in (
        ("choose_guidance", scales), ("choose_steps", steps)) if values}
    return Ways((given, *others), {**asked, "choice_recipe": RECIPE})


def add_choice_options(hyperparameters) -> None:
    """Add --choose-guidance and --choose-steps."""
    for name, kind, metavar, what in (
            ("guidance", cli.positive_float, "FLOAT", "with each of these scales"),
            ("steps", cli.positive_int, "INT", "in each of these numbers of steps")):
        hyperparameters.add_argument(
            f"--choose-{name}", nargs="+", type=kind, metavar=metavar,
            help=f"draw some images {what}, too, and all with what is known best by its labels and "
                 "KID on the held-out train images (choice.json); off unless given")


# ------------------------------------------------------------------ what is recorded

def lines_of(way: Sampling, classes: list[str], right: np.ndarray, values: np.ndarray,
             halves: np.ndarray | None) -> list[dict]:
    """What is recorded of a candidate, of all classes and of each, with the ends of 95 %.

    right: bool [classes, images]; values [classes]; halves [HALVES, classes] or None.
    """
    lines = []
    for label, some in ((ALL, np.arange(len(classes))),
                        *((label, np.array([place])) for place, label in enumerate(classes))):
        said, ends = right[some].ravel(), {"low": None, "high": None}
        kid = float(values[some].mean())
        if halves is not None:
            drawn = halves[:, some].mean(1)
            ends = ends_of(kid + drawn - drawn.mean())
        lines.append({**way._asdict(), "label": label, "n": len(said),
                      "label_fidelity": mean_of(said, np.arange(len(said))),
                      "kid": {"value": kid, **ends}})
    return lines


# ------------------------------------------------------------------ drawn, judged, written down

def choose(arm: Arm, ways: Ways, draw_for: Callable[[str], Callable]) -> tuple[dict, dict]:
    """What to draw the dataset with, {steps, guidance_scale}, and what its manifest says of it.

    draw_for(label): draw(items, steps=, guidance_scale=) of a class. What is found is kept in FILE
    beside the images in the making, where a run that was stopped finds it again. The first of
    several ranks chooses.
    """
    return ranks.by_first(lambda: _choose(arm, ways, draw_for))


def _choose(arm: Arm, ways: Ways, draw_for: Callable[[str], Callable]) -> tuple[dict, dict]:
    if len(ways.candidates) == 1:
        return ways.candidates[0].how(), {}
    with arm.target.writing() as work_dir:
        if not (work_dir / FILE).exists():
            write_json(work_dir / FILE, judged(arm, ways.candidates, draw_for, work_dir / KEPT))
        shutil.rmtree(work_dir / KEPT, ignore_errors=True)
        found = read_json(work_dir / FILE)
    for line in found["lines"]:
        if line["label"] == ALL:
            say(f"{Sampling(line['sampling_steps'], line['guidance_scale'])}: label fidelity "
                f"{in_words(line['label_fidelity'])}, KID {in_words(line['kid'])}")
    chosen = Sampling(**found["chosen"])
    say(f"{arm.stage}: drawn in {chosen}: {found['because']}")
    return chosen.how(), {"choice": found}


def in_words(figure: dict) -> str:
    ends = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    return f"{figure['value']:.2f}{ends}"


def judged(arm: Arm, candidates: Sequence[Sampling], draw_for: Callable, kept: Path) -> dict:
    """The content of FILE: candidates, figures, which one is chosen and why.

    kept: where features are left that a run which is stopped need not draw again.
    """
    from lungkit.learn import linear
    from lungkit.learn.features import Extractor

    classes, rows = arm.data.classes, arm.data.select("train")
    held = sorted(arm.rule.choose(arm.data, arm.seed) if arm.is_trained else arm.held)
    places = [spread([place for place in held if rows[place].label == label]) for label in classes]
    counts = {label: len(own) for label, own in zip(classes, places, strict=True)}
    if few := [label for label in classes if counts[label] < FEWEST_HELD]:
        return {"chosen": candidates[0]._asdict(), "held_out": counts, "lines": [], "because": (
            f"{counts[few[0]]} train images of {few[0]} are held out, fewer than {FEWEST_HELD}, so "
            "that nothing is judged and what is given stays")}
    extractor = Extractor(device=arm.device)
    train, labels = extractor.load(arm.data, "train")
    learnt = np.setdiff1d(np.arange(len(rows)), held)
    head = linear.fit(train[learnt], labels[learnt])
    drawn = list(zip(*(drawn_by(arm, candidates, label, draw_for, extractor, kept)
                       for label in classes), strict=True))
    groups = [np.array([rows[place].group or rows[place].file_name for place in own])
              for own in places]
    right = np.array([[head.predict(features) == number for number, features in enumerate(each)]
                      for each in drawn])
    values, halves = distances([train[own] for own in places], groups, drawn)
    found = figures_of(right.reshape(len(drawn), -1), values, halves)
    place, because = decide(found)
    real = np.concatenate(places)
    return {
        "chosen": candidates[place]._asdict(), "given": candidates[0]._asdict(),
        "because": because + edge_of(candidates[place], candidates), "held_out": counts,
        "classifier": {**extractor.identity, "train_images": len(learnt)},
        "real_label_fidelity": mean_of(head.predict(train[real]) == labels[real],
                                       np.concatenate(groups)),
        "candidates": [{**way._asdict(), "p_label_fidelity": each.p_label, "p_kid": each.p_kid}
                       for way, each in zip(candidates, found, strict=True)],
        "lines": [line for number, way in enumerate(candidates) for line in lines_of(
            way, classes, right[number], values[number],
            None if halves is None else halves[:, number])]}


def edge_of(chosen: Sampling, candidates: Sequence[Sampling]) -> str:
    """What to try next where the largest of several scales is chosen; 1 is no guidance at all."""
    scales = {way.guidance_scale for way in candidates}
    if len(scales) == 1 or chosen.guidance_scale < max(scales):
        return ""
    return "; no larger scale was tried"


def spread(places: list[int]) -> np.ndarray:
    """All of them, or MOST_HELD that lie evenly among them."""
    chosen = np.linspace(0, len(places) - 1, min(len(places), MOST_HELD))
    return np.array(places, int)[chosen.round().astype(int)]


def drawn_by(arm: Arm, candidates: Sequence[Sampling], label: str, draw_for: Callable, extractor,
             kept: Path) -> list[np.ndarray]:
    """Of every candidate features float32 [PER_CLASS, D] of images of a class of the same noise."""
    number = arm.data.classes.index(label)
    items = [Item(FIRST + number * PER_CLASS + place, "train", label) for place in range(PER_CLASS)]
    progress = Progress(f"choice, {label}", len(candidates) * len(items))
    draw, found = None, []
    for place, way in enumerate(candidates):
        path = kept / f"{number}-{place}.npy"
        if not path.exists():
            draw = draw or draw_for(label)
            drawn = (in_parts(partial(draw, **way.how()), items[first:first + BATCH])[0]
                     for first in range(0, len(items), BATCH))
            images = [image for part in drawn for image in as_real(part, arm.data.channels)]
            with atomic_path(path) as hidden:
                np.save(hidden, extractor.features(images))
        found.append(np.load(path))
        progress.update((place + 1) * len(items))
        check_stop()
    return found
