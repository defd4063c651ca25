"""Which of an arm's images are copies of training images, and what gives these away: shown.

What the arms left in their datasets' folders is read: `copy_audit` of the manifest, closest.png,
and the membership test of fidelity.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lungkit.compare import likeness
from lungkit.compare.rank_sum import wilson_interval
from lungkit.compare.tables import UNKNOWN, Table, percent
from lungkit.run.files import read_json

MANIFEST, PICTURE = "dataset.json", "closest.png"
KINDS = ("same", "registered", "alike", "blend")  # of lungkit.audit.memorised


@dataclass(frozen=True)
class Memory:
    """What was found: lines by class, lines by arm, and the closest pairs of the first replicate.

    by_class: {dataset, replicate, class, images, copies, control_images, control_copies}.
    by_arm: {dataset, replicate, images, share_<kind>, dropped, auroc, low, high}.
    """

    by_class: list[dict] = field(default_factory=list)
    by_arm: list[dict] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)


def read(dirs: Sequence[Path], found) -> Memory:
    """Of `found`, results of one run, whose datasets of replicate 0, 1, ... lie in `dirs`.

    A dataset that is of other images than its results is left out.
    """
    made = likeness.fingerprints(found)
    memory = Memory()
    for replicate, folder in enumerate(dirs):
        for name in found.datasets:
            path = folder / name / MANIFEST
            manifest = read_json(path) if path.is_file() else {}
            audited = manifest.get("copy_audit") or {}
            same_images = manifest.get("fingerprint") == made.get((name, replicate))
            if not same_images or "by_class" not in audited:  # older ones named no image
                continue
            of = {"dataset": name, "replicate": replicate}
            path = folder / name / likeness.FILE
            measured = read_json(path) if path.is_file() else {}
            held_out, told = measured.get("copy_control", {}), measured.get("membership", {})
            memory.by_class.extend(
                {**of, "class": label, **counts,
                 **{f"control_{key}": held_out.get(label, {}).get(key, 0)
                    for key in ("images", "copies")}}
                for label, counts in audited["by_class"].items())
            memory.by_arm.append({
                **of, "images": audited["images"],
                **{f"share_{kind}": audited[f"share_{kind}"] for kind in KINDS},
                "dropped": audited.get("dropped"),
                **{key: told.get(key) for key in ("auroc", "low", "high")}})
            picture = folder / name / PICTURE
            if name not in memory.pictures and picture.is_file():
                memory.pictures[name] = picture.read_bytes()
    return memory


def class_table(memory: Memory) -> Table | None:
    """Copies among an arm's images and among real's held-out ones, by class; None without any."""
    sums: dict[tuple, list[int]] = {}
    keys = ("images", "copies", "control_images", "control_copies")
    for line in memory.by_class:
        before = sums.setdefault((line["dataset"], line["class"]), [0] * len(keys))
        for place, key in enumerate(keys):
            before[place] += line[key]
    lines = [[*names, str(images), *_rate(copies, images), str(control), *_rate(flagged, control)]
             for names, (images, copies, control, flagged) in sums.items()]
    heads = ["Arm", "Class", "Images", "Copies, %", "95 % interval", "Real, held out", "Flagged, %",
             "95 % interval"]
    return Table("Copies of training images, over all replicates; of real's val and test images, "
                 "of other groups, none is one", heads, lines, named=2) if lines else None


def _rate(hits: int, number: int) -> tuple[str, str]:
    if not number:
        return UNKNOWN, UNKNOWN
    low, high = wilson_interval(hits / number, number)
    return percent(hits / number), f"{percent(low)} to {percent(high)}"


def arm_table(memory: Memory) -> Table | None:
    """How an arm's images are copies, and the membership test, a line a replicate."""
    several = len({line["replicate"] for line in memory.by_arm}) > 1
    lines = []
    for line in memory.by_arm:
        name = f"{line['dataset']}, replicate {line['replicate']}" if several else line["dataset"]
        ends = UNKNOWN if line["low"] is None else f"{line['low']:.2f} to {line['high']:.2f}"
        lines.append([name, *(percent(line[f"share_{kind}"]) for kind in KINDS),
                      UNKNOWN if line["dropped"] is None else str(line["dropped"]),
                      UNKNOWN if line["auroc"] is None else f"{line['auroc']:.2f}", ends])
    heads = ["Arm", "Same, %", "Registered, %", "Alike, %", "Blend, %", "Draws dropped",
             "Membership AUROC", "95 % interval"]
    return Table("How they are copies, and whether training images can be told from other real "
                 "ones by how near an arm's images come: 0.5, they cannot", heads, lines
                 ) if lines else None
