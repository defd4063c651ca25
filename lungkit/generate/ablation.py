"""Do the prompts earn their place? Images of bare names and of prompts, with and without negatives.

Each kind is drawn from the same noise by the same adapters; what is asked of it is how often a
classifier of real images says the class that was meant: a linear one on features of a pretrained
network (lungkit/learn/features.py), fitted to real's train images. How often it is right itself is
measured on real's val images, which are opened for nothing else: nothing is chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lungkit.audit.fidelity import mean_of
from lungkit.compare.report import table_csv
from lungkit.generate.items import Arm, as_real, in_parts
from lungkit.generate.prompts import Prompts
from lungkit.learn import linear
from lungkit.learn.features import Extractor
from lungkit.run.files import write_text
from lungkit.run.progress import Progress
from lungkit.run.seeds import caption_draws

FILE = "ablation.csv"
KINDS = (("name", False), ("name", True), ("prompt", False), ("prompt", True))
MOST, BATCH = 32, 16  # ours: images of a class and kind, and drawn at once
ALL, REAL = "all", "real val"


@dataclass(frozen=True)
class Line:
    """How often the class that was meant was said, of n images of a kind; ends of 95 %, if known.

    text: what they were drawn by, "name" or "prompt"; "real val": real images, and no negative.
    """

    text: str
    negative: bool | None
    label: str  # "all": of all classes
    n: int
    value: float
    low: float | None
    high: float | None


def measure(arm: Arm, words: Prompts, drawer: Callable[[str], Callable]) -> dict:
    """Draw all kinds of all classes, write FILE beside the images in the making; for the manifest.

    drawer(label): draw(items, captions, negative), images uint8 [B, S, S, C] of a class.
    """
    data, extractor = arm.data, Extractor(device=arm.device)
    train, labels = extractor.load(data, "train")
    head = linear.fit(train, labels)
    items = {label: [item for item in arm.items if item.label == label][:MOST]
             for label in data.classes}
    progress = Progress("ablation images", len(KINDS) * sum(map(len, items.values())))
    said: dict[tuple, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for number, label in enumerate(data.classes):
        draw = drawer(label)
        for kind in KINDS:
            images = images_of(kind, label, items[label], words, draw, arm)
            said[kind][label] = head.predict(extractor.features(images)) == number
            progress.update(progress.done + len(images))
    found = [line for kind in KINDS for line in lines_of(*kind, said[kind])]
    val, meant = extractor.load(data, "val")
    rows = data.select("val")
    groups = np.array([row.group or row.file_name for row in rows])
    right = head.predict(val) == meant
    of_real = [Line(REAL, None, label, int(some.sum()), **mean_of(right[some], groups[some]))
               for label, some in ((ALL, np.full(len(rows), True)), *(
                   (label, meant == number) for number, label in enumerate(data.classes)))]
    table = [vars(line) for line in (*found, *of_real)]
    write_text(arm.target.work_dir / FILE, table_csv(table))
    return {"classifier": {**extractor.identity, "train_images": len(labels)}, "lines": table}


def images_of(kind: tuple[str, bool], label: str, items: list, words: Prompts, draw: Callable,
              arm: Arm):
    """The images of one kind, uint8 [S, S, C] each, drawn from the noise of `items`."""
    text, with_negative = kind
    negative = words.negative(label) if with_negative else ""

    def drawn(part: list) -> tuple[np.ndarray, list]:
        captions = [words.name(label) if text == "name" else
                    words.caption(label, caption_draws(arm.draws, item.index)) for item in part]
        return draw(part, captions, negative), [{}] * len(part)

    return [image for first in range(0, len(items), BATCH) for image in as_real(
        in_parts(drawn, items[first:first + BATCH])[0], arm.data.channels)]


def lines_of(text: str, negative: bool, said: dict[str, np.ndarray]) -> list[Line]:
    """Of a kind the lines of all classes together, and of each; every image is its own group."""
    sides = {ALL: np.concatenate(list(said.values())), **said}
    return [Line(text, negative, label, len(right), **mean_of(right, np.arange(len(right))))
            for label, right in sides.items()]
