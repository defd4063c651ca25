#!/usr/bin/env python3
"""Find training images that are unlike all others of their class. Nothing is left out by itself.

Reads   --data    a dataset, real or an arm; of it the train split alone
Writes  --output  outliers.csv: every training image, the strangest first: flagged or not, p, by
                  which measure, the nearest image; its distance, and the share of its class's
                  images of other groups that are less far off
                  outliers.png: the strangest of every class, beneath each the nearest, which is of
                  another group and, where the label is doubtful, of another class; framed in red:
                  flagged
                  embedding.png: where the features put the images, by PCA and by t-SNE
                  outliers.json: what is usual of every class, how many are flagged and expected to
                  be; last
Prints  a line a class

Three things are measured (lungkit/audit/outliers.py): by `features` that a pretrained network has
of an image, and by the light and colour of its `pixels`, how far it is from the k-th nearest other
group of its class (Ramaswamy et al. 2000), so that images of one patient or slide do not vouch for
one another; and whether it is nearer to another class than its `label` says (Jiang et al. 2018).
p is the share of ordinary images expected to be as strange, at most: flagged are those below
--share. What to leave out is for you to say: delete the others' `yes`, and give the table to
python -m lungkit.tools.exclude, before the arms are made.

t-SNE: van der Maaten and Hinton 2008 (JMLR 9:2579). Running the same command again resumes; a
complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lungkit.audit import outliers
from lungkit.compare.report import table_csv
from lungkit.data import overlay
from lungkit.data.dataset import Dataset, open_dataset
from lungkit.data.manifest import read_manifest
from lungkit.data.png import encode_png
from lungkit.learn.device import use_device
from lungkit.learn.features import Extractor
from lungkit.learn.pretrained import LITE0
from lungkit.run import cli, faults, files
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import say

SCHEMA, RECIPE = "lungkit.outliers/1", 1  # raise RECIPE when other distances or p come out
MANIFEST = "outliers.json"
SHARE = 0.01          # ours: of ordinary images so many are shown for nothing
SHOWN = 8             # of each class on the sheet
FEWEST = 3            # images of which there is a picture of who is near whom
MOST_DRAWN = 600      # images in the embeddings: t-SNE of so many takes seconds
COLUMNS = ("file_name", "label", "group", "flagged", "p", "measure", "nearest", "distance",
           "quantile", *(f"p_{name}" for name in outliers.MEASURES))


# ------------------------------------------------------------------ what is measured

def images_of(data: Dataset, features: np.ndarray) -> dict[str, outliers.Images]:
    """The training images by class. features: float32 [N, D], in the order of `Dataset.select`."""
    rows = data.select("train")
    levels, groups = [], np.array([row.group or row.file_name for row in rows])
    for row in rows:
        levels.append(outliers.levels(data.image(row)))
        faults.check_stop()
    labels = np.array([row.label for row in rows])
    return {label: outliers.Images(features[labels == label], np.stack(levels)[labels == label],
                                   groups[labels == label]) for label in data.classes}


def judge(data: Dataset, classes: dict[str, outliers.Images],
          neighbours: int) -> tuple[dict[str, dict], list[dict]]:
    """What is usual of every class, and a line an image; of too few images these say no p."""
    about, lines = {}, []
    names = {label: [row.file_name for row in data.select("train", label)] for label in classes}
    for label, images in classes.items():
        mine = [{"file_name": row.file_name, "label": label, "group": row.group}
                for row in data.select("train", label)]
        about[label] = {"images": len(mine), "groups": len(set(images.groups))}
        lines += mine
        if not images.is_enough(neighbours):
            about[label]["too_few"] = True
            continue
        found = outliers.judge(label, classes, neighbours)
        about[label] |= {"usual": float(np.exp(found.usual.centre)), "spread": found.usual.spread,
                         "measures": list(found.p_of)}
        for i, line in enumerate(mine):
            where, place = found.nearest[i]
            line |= {"distance": float(found.distance[i]), "quantile": float(found.quantile[i]),
                     **{f"p_{name}": float(p[i]) for name, p in found.p_of.items()},
                     "p": float(found.p[i]), "measure": found.measure[i],
                     "nearest": names[where][place]}
        faults.check_stop()
    return about, lines


def flag(classes: dict[str, dict], lines: list[dict], share: float) -> None:
    """Say of every line whether its p is below `share`, and of every class how many are."""
    for line in lines:
        line["flagged"] = "yes" if line.get("p", 1) < share else ""
    for label, about in classes.items():
        if "too_few" not in about:
            about["flagged"] = sum(line["label"] == label and line["flagged"] == "yes"
                                   for line in lines)
            about["expected"] = share * about["images"]


# ------------------------------------------------------------------ what is shown

def sheet(data: Dataset, lines: list[dict]) -> np.ndarray:
    """uint8 [H, W, 3]: the strangest of every class, and beneath each row the nearest images."""
    row_of = {row.file_name: row for row in data.select("train")}
    none, all_of = (np.full((data.image_size,) * 2, each) for each in (False, True))
    shown = []
    for label in data.classes:
        strangest = [line for line in lines if line["label"] == label and "p" in line][:SHOWN]
        for start in range(0, len(strangest), overlay.COLUMNS):
            part = strangest[start:start + overlay.COLUMNS]
            pairs = [(row_of[line["file_name"]], row_of[line["nearest"]]) for line in part]
            shown += [overlay.Shown(data.image(row), none, all_of if line["flagged"] else none,
                                    f"{label} {row.stem}: {line['measure']} {line['p']:.1g}")
                      for line, (row, _) in zip(part, pairs)]
            shown += [overlay.Shown(data.image(row), none, none,
                                    f"nearest: {row.label} {row.stem}") for _, row in pairs]
    return overlay.sheet(shown)


def drawn(lines: list[dict], most: int, rng: np.random.Generator) -> np.ndarray:
    """Which lines the embeddings show, int64 in order: those flagged, and others at random."""
    flagged = [i for i, line in enumerate(lines) if line["flagged"]][:most]
    others = rng.permutation(np.setdiff1d(np.arange(len(lines)), flagged))
    return np.sort([*flagged, *others[:most - len(flagged)]]).astype(int)


def embeddings(data: Dataset, features: dict[str, np.ndarray], lines: list[dict],
               seed: int) -> bytes:
    """The PNG of both embeddings of at most MOST_DRAWN images. features: by file name."""
    from lungkit.audit import embedding

    picked = [lines[i] for i in drawn(lines, MOST_DRAWN, np.random.default_rng(seed))]
    row_of = {row.file_name: row for row in data.select("train")}
    placed = embedding.place(np.stack([features[line["file_name"]] for line in picked]), seed)
    return embedding.picture(
        placed, [data.image(row_of[line["file_name"]]) for line in picked],
        [data.classes.index(line["label"]) for line in picked], data.classes,
        np.array([line["flagged"] == "yes" for line in picked]))


# ------------------------------------------------------------------ the stage

def run(*, data: Path, output: Path, neighbours: int, share: float, network: str,
        weights: Path | None, seed: int, device: str, overwrite: bool, dry_run: bool) -> None:
    check_apart(data, output, option="--data")
    if not 0 < share < 0.5:
        raise faults.BadOptions(f"--share {share:g} is not between 0 and 0.5")
    extractor = Extractor(network, weights, use_device(device, needed=False))
    options = {"data": read_manifest(data)["fingerprint"], "neighbours": neighbours,
               "share": share, "seed": seed, "features": extractor.identity, "recipe": RECIPE}
    target = Output(output, MANIFEST, options, overwrite=overwrite)
    if target.is_complete():
        print(f"{in_words(target.manifest()['classes'])}\n{output}: already complete")
        return
    dataset = open_dataset(data)
    rows = dataset.select("train")
    say(f"outliers: found {len(rows)} training images of {len(dataset.classes)} classes in {data}; "
        f"neighbours {neighbours}, share {share:g}, {extractor.name}")
    if len(rows) < FEWEST:
        raise faults.Fault(f"{data}: {len(rows)} training images are too few to lie near one "
                           f"another: {FEWEST} are needed; give more images")
    if dry_run:
        print(f"{output}: would judge {len(rows)} images")
        return
    extractor.device = use_device(device)
    features = extractor.of_split(dataset, "train")
    classes, lines = judge(dataset, images_of(dataset, features), neighbours)
    if all("too_few" in about for about in classes.values()):
        say(f"outliers: warning: no class of {data} has {outliers.FEWEST} training images of more "
            f"than {neighbours} groups: nothing says what is usual; give more images, or less "
            "--neighbours")
    flag(classes, lines, share)
    lines.sort(key=lambda line: (line.get("p", 2), line["file_name"]))
    write(target, dataset, dict(zip([row.file_name for row in rows], features)), classes, lines,
          seed)
    print(f"{in_words(classes)}\n{output}: {sum(line['flagged'] == 'yes' for line in lines)} of "
          f"{len(lines)} training images flagged")


def write(target: Output, dataset: Dataset, features: dict, classes: dict, lines: list[dict],
          seed: int) -> None:
    """Write table and pictures, and publish."""
    shown = [{**dict.fromkeys(COLUMNS), **line, **{
        name: f"{line[name]:.6g}" for name in COLUMNS if isinstance(line.get(name), float)}}
        for line in lines]
    with target.writing() as folder:
        files.write_text(folder / "outliers.csv", table_csv(shown))
        if any("p" in line for line in lines):
            files.write_bytes(folder / "outliers.png", encode_png(sheet(dataset, lines)))
        files.write_bytes(folder / "embedding.png", embeddings(dataset, features, lines, seed))
        target.publish({"schema": SCHEMA, "dataset": dataset.name, "classes": classes,
                        "dataset_fingerprint": dataset.fingerprint})


def in_words(classes: dict[str, dict]) -> str:
    return "\n".join(
        f"{label}: {about['images']} images of {about['groups']} groups: too few to say"
        if "too_few" in about else
        f"{label}: {about['flagged']} of {about['images']} images flagged, {about['expected']:.1f} "
        f"expected of ordinary ones; usual distance {about['usual']:.3g}"
        for label, about in classes.items())


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("outliers.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--data", type=cli.directory, required=True, metavar="DIR",
                       help="the dataset whose training images are judged")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="folder to write")
    group.add_argument("--neighbours", type=cli.positive_int, default=outliers.NEIGHBOURS,
                       metavar="GROUPS", help="the distance is to this nearest other group")
    group.add_argument("--share", type=cli.fraction, default=SHARE, metavar="SHARE",
                       help="of ordinary images that may be flagged for nothing")
    group.add_argument("--network", default=LITE0, metavar="NAME",
                       help="of timm's, whose features are compared")
    group.add_argument("--weights", type=Path, metavar="FILE",
                       help=f"its weights (default: ImageNet's, as a package, of {LITE0} alone)")
    cli.add_common(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
