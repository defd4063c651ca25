#!/usr/bin/env python3
"""Show where a trained CNN looks on real's test images, and score it against what was outlined.

Reads   --data     real, whose test split is shown, with its masks where it has any
        --results  records of cnn_classify.py --keep-weights, of one repeat the network
Writes  --output   explain.png: chosen images, the surest errors, and images of every class that are
                   right: each as it is, with the network's map, with that of shuffled weights
                   explain.csv: every test image: what is said of it, how surely, its scores
                   explain.json: the scores with intervals, and a verdict; last
Prints  the verdict

The map is Grad-CAM++ of the class that the network says (Chattopadhay et al. 2018,
lungkit/learn/grad_cam.py), of its last feature map with --places or more places a side. Scored are
maps of images with both foreground and background in a mask of one kind (default: nodule or
tumour; with --mask nuclei, of a dataset without masks of them, nuclei that are found in the images
by the rules of lungkit/nuclei/detect.py): the share of the map inside (energy), and whether its
maximum lies inside or within half a place of the map (points). Beside them stand the maps of the
same network with its weights shuffled, in several draws (Adebayo et al. 2018), one blob in the
middle that is as large as the maps are on average, and the ceiling: the mask itself seen at the
map's places. Intervals are of bootstraps by group; they are of this one network.

Running the same command again resumes; a complete output is left as it is.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.audit import pointing
from lungkit.compare.report import table_csv
from lungkit.data import heat, mask_items, overlay
from lungkit.data.dataset import Dataset, open_dataset
from lungkit.data.manifest import read_manifest
from lungkit.data.png import encode_png
from lungkit.data.result import replicate_dir
from lungkit.learn import kept_weights
from lungkit.learn.device import use_device
from lungkit.learn.feature_grid import Grid
from lungkit.nuclei import detect, masks as nuclei
from lungkit.run import cli, faults, files
from lungkit.run.output import Output, check_apart
from lungkit.run.progress import say

SCHEMA, RECIPE = "lungkit.explain/1", 1  # raise RECIPE when other maps or scores come out
MANIFEST = "explain.json"
SHUFFLES = 5          # ours: networks of shuffled weights
WORST, RIGHT = 8, 8   # images on the sheet: the surest errors, and right ones
MAP, SHUFFLED, BLOB, CEILING = KINDS = ("map", "shuffled", "blob", "ceiling")
WORDS = {SHUFFLED: "those of the same network with shuffled weights", BLOB: "a blob in the middle"}


FOUND = ("the nuclei were found in the images by rules (lungkit/nuclei/detect.py); nobody outlined "
         "them")


@dataclass(frozen=True)
class Maps:
    """Of N test images: own float32 [N, S, S], 0 to 1; of K networks of shuffled weights [K, N, S,
    S]; probabilities float32 [N, classes]; grid: of the maps' places.
    """

    own: np.ndarray
    shuffled: np.ndarray
    probabilities: np.ndarray
    grid: Grid


# ------------------------------------------------------------------ maps and their scores

def make_maps(model, data: Dataset, *, places: int, shuffles: int, seed: int, device) -> Maps:
    """The maps of all test images, of the network and of it with shuffled weights."""
    from lungkit.learn import grad_cam
    from lungkit.learn.pixels import as_tensor

    images, model = as_tensor(data.load("test")[0]), model.to(device)
    own, probabilities, grid = grad_cam.explain(model, images, least_side=places)
    shuffled = []
    for draw in range(shuffles):
        other = grad_cam.shuffle_weights(model, images, seed + draw)
        shuffled.append(grad_cam.explain(other, images, least_side=places)[0])
        say(f"explain: {draw + 1} of {shuffles} networks of shuffled weights")
    return Maps(own, np.stack(shuffled), probabilities, grid)


def at_places(masks: np.ndarray, grid: Grid) -> np.ndarray:
    """Masks bool [M, S, S] as maps float32 [M, S, S] of their share around each place of a grid."""
    import cv2
    import torch

    size, shares = masks.shape[1], []
    first = grid.start + 0.5 - grid.step / 2  # the left edge of the first place, in pixels
    shift = np.float32([[1, 0, -first], [0, 1, -first]])
    side = round(grid.step * grid.side)
    for mask in masks.astype(np.float32):
        moved = cv2.warpAffine(mask, shift, (side, side), borderMode=cv2.BORDER_CONSTANT)
        shares.append(cv2.resize(moved, (grid.side,) * 2, interpolation=cv2.INTER_AREA))
    return grid.enlarge(torch.from_numpy(np.stack(shares)), size).numpy()


def score(maps: Maps, masks: np.ndarray, scored: np.ndarray,
          groups: np.ndarray) -> tuple[dict, dict[str, np.ndarray]]:
    """What is said of the images `scored`, int64 [M], and the values: {"energy_map": [M], ...}.

    masks: bool [N, S, S]; groups: str [N].
    """
    inside, own = masks[scored], maps.own[scored]
    blob = pointing.centred_blob(float(own.mean(dtype=float)), masks.shape[1])
    drawn = {MAP: own[None], SHUFFLED: maps.shuffled[:, scored],
             BLOB: np.broadcast_to(blob, (1, *own.shape)),
             CEILING: at_places(inside, maps.grid)[None]}
    margin = maps.grid.step / 2
    said, values = {}, {}
    for name, measure, target in (
            ("energy", pointing.energy, inside),
            ("points", pointing.points, np.stack([pointing.near(m, margin) for m in inside]))):
        of = {kind: np.array([list(map(measure, each, target)) for each in every])
              for kind, every in drawn.items()}
        said[name] = {kind: pointing.mean_by_group(each, groups[scored]).as_json()
                      for kind, each in of.items()}
        said[name]["by_area"] = float(target.mean(dtype=float))
        for kind in (SHUFFLED, BLOB):
            more = pointing.mean_by_group(of[MAP] - of[kind], groups[scored])
            said[name][f"above_{kind}"] = {**more.as_json(), "more": pointing.more_often(more)}
        values |= {f"{name}_{kind}": each.mean(0) for kind, each in of.items()}
    return {"scores": said, "num_scored": len(scored), "num_groups": len(set(groups[scored])),
            "num_flat": int((own.max((1, 2)) == 0).sum())}, values


def verdict(found: dict, what: str) -> list[str]:
    """A sentence for each comparison. what: that which was outlined."""
    if found.get("scores") is None:
        return [f"nothing was outlined that a map could point at: {found['why']}"]
    lines = []
    for kind in (BLOB, SHUFFLED):
        said, more = found["scores"]["points"], found["scores"]["points"][f"above_{kind}"]
        lines.append(f"the maps point at the {what} more often than {WORDS[kind]}: {more['more']} "
                     f"({_percent(said[MAP])} against {_percent(said[kind])} of "
                     f"{found['num_scored']} images of {found['num_groups']} groups; difference "
                     f"{_points(more)})")
    places, said = found["places"], found["scores"]["points"]
    lines.append(f"a map of {places} x {places} places could point at it in "
                 f"{_percent(said[CEILING])}; by area it would be {100 * said['by_area']:.1f} %")
    said = found["scores"]["energy"]
    lines.append(f"of the maps' sum {_percent(said[MAP])} lies in the {what}, of a blob's in the "
                 f"middle {_percent(said[BLOB])}, of shuffled weights' {_percent(said[SHUFFLED])}, "
                 f"of a perfect map's {_percent(said[CEILING])}; by area it would be "
                 f"{100 * said['by_area']:.1f} %")
    return lines


def _percent(mean: dict) -> str:
    return f"{100 * mean['value']:.1f} %"


def _points(mean: dict) -> str:
    """A difference in points with its interval."""
    ends = "no interval: too few groups" if mean["low"] is None else \
        f"95 % interval {100 * mean['low']:+.1f} to {100 * mean['high']:+.1f}"
    return f"{100 * mean['value']:+.1f} points, {ends}"


def scorable(data: Dataset, target: mask_items.Target | None) -> tuple[np.ndarray, dict]:
    """Masks bool [N, S, S] of the test images, and {scored: int64 [M], what is left out and why}.

    Left out: images without a mask of this kind, of background alone, of foreground alone.
    """
    size, rows = data.image_size, data.select("test")
    if target is None:
        return np.zeros((len(rows), size, size), bool), {
            "scored": np.array([], int), "why": "the dataset has no masks"}
    load = nuclei.find if finds_nuclei(target, data.manifest) else partial(
        mask_items.load_masks, target=target)
    masks, known = load(data, "test")
    shares = masks.mean((1, 2), dtype=float)
    scored = np.flatnonzero(known & (shares > 0) & (shares < 1))
    about = {"mask": target.kind, "labels": list(target.labels),
             "num_without_mask": int((~known).sum()),
             "num_empty": int((known & (shares == 0)).sum()),
             "num_full": int((known & (shares == 1)).sum()), "scored": scored}
    if not len(scored):
        about["why"] = (f"of {len(rows)} masks/{target.kind} {about['num_empty']} are background "
                        f"alone, {about['num_full']} foreground alone, and "
                        f"{about['num_without_mask']} are missing")
    return masks > 0, about


# ------------------------------------------------------------------ what is shown

def pick(labels: np.ndarray, probabilities: np.ndarray, chosen: list[int]) -> list[int]:
    """Which test images are shown: those chosen, the surest errors, and of every class right ones.
    """
    said, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(said != labels)
    picked = [*chosen, *wrong[np.argsort(-sure[wrong], kind="stable")][:WORST].tolist()]
    classes = np.unique(labels)
    for label in classes:
        right = np.flatnonzero((said == label) & (labels == label)).tolist()
        picked += overlay.spread(right, -(-RIGHT // len(classes)))
    return list(dict.fromkeys(picked))


def picture(data: Dataset, maps: Maps, masks: np.ndarray, about: dict, chosen: list[int]) -> bytes:
    """The sheet as a PNG."""
    rows, said = data.select("test"), maps.probabilities.argmax(1)
    labels, outlined = np.array([data.classes.index(row.label) for row in rows]), {*about["scored"]}
    seen = []
    for i in pick(labels, maps.probabilities, chosen):
        verb = "said" if said[i] == labels[i] else "ERROR: said"
        words = (f"{rows[i].label} {rows[i].stem}, {verb} {data.classes[said[i]]} "
                 f"{maps.probabilities[i].max():.2f}")
        seen.append(heat.Seen(data.image(rows[i]), (maps.own[i], maps.shuffled[0][i]),
                              masks[i] if i in outlined else None, words))
    return encode_png(heat.sheet(seen))


def table(data: Dataset, maps: Maps, masks: np.ndarray, scored: np.ndarray,
          values: dict[str, np.ndarray]) -> str:
    """A line a test image; what was not scored has empty cells."""
    names = [f"{name}_{kind}" for name in ("energy", "points") for kind in KINDS]
    place, lines = {int(i): n for n, i in enumerate(scored)}, []
    for i, row in enumerate(data.select("test")):
        said = data.classes[maps.probabilities[i].argmax()]
        line = {"file_name": row.file_name, "label": row.label, "group": row.group, "said": said,
                "confidence": f"{maps.probabilities[i].max():.4f}",
                "right": "yes" if said == row.label else "no",
                "mask_share": f"{masks[i].mean():.4f}" if i in place else None}
        lines.append(line | {name: f"{values[name][place[i]]:.4f}" if i in place else None
                             for name in names})
    return table_csv(lines)


# ------------------------------------------------------------------ the stage

def find_target(manifest: dict, kind: str | None, labels: list[int],
                where: Path) -> mask_items.Target | None:
    """Which masks; None where nothing was asked for and there are none that are usual."""
    if kind is None and not labels and not set(mask_items.USUAL) & set(manifest["masks"]):
        return None
    if kind == nuclei.KIND:
        return nuclei.choose(manifest, labels, where)
    return mask_items.choose(manifest["masks"], kind, labels, where)


def finds_nuclei(target: mask_items.Target | None, manifest: dict) -> bool:
    """Whether what maps are scored by are nuclei that nobody outlined."""
    return target is not None and target.kind == nuclei.KIND and nuclei.are_found(manifest)


def run(*, data: Path, results: Path, output: Path, trained_on: str | None, replicate: int,
        repeat: int, mask: str | None, labels: list[int], places: int, shuffles: int,
        images: list[str], seed: int, device: str, overwrite: bool, dry_run: bool) -> None:
    check_apart(data, output, option="--data")
    manifest = read_manifest(data)
    target = find_target(manifest, mask, labels, data)
    name = trained_on or manifest["name"]
    record, model = kept_weights.load(results, name, replicate, repeat)
    if record["real_fingerprint"] != manifest["fingerprint"]:
        raise faults.BadOptions(
            f"the network of {replicate_dir(results, name, replicate)} was tested on other real "
            f"images than {data} (fingerprint {record['real_fingerprint'][:12]}, here "
            f"{manifest['fingerprint'][:12]}): it may have been trained on its test images")
    is_found = finds_nuclei(target, manifest)
    options = {"data": manifest["fingerprint"], "network": record["run"][kept_weights.SHA256],
               "masks": target and (f"found, recipe {detect.RECIPE}" if is_found
                                    else mask_items.fingerprint(data, target.kind)),
               "target": target and target.setting(), "places": places, "shuffles": shuffles,
               "images": images, "seed": seed, "recipe": RECIPE}
    made = Output(output, MANIFEST, options, overwrite=overwrite)
    if made.is_complete():
        print("\n".join([*made.manifest()["verdict"], f"{output}: already complete"]))
        return
    dataset = open_dataset(data)
    names = [row.file_name for row in dataset.select("test")]
    if unknown := [each for each in images if each not in names]:
        raise faults.BadOptions(f"--images {faults.several(unknown, 3)}: not among the test images "
                                f"of {data}, such as {names[0]}")
    masks, about = scorable(dataset, target)
    say(f"explain: found {len(names)} test images, {len(about['scored'])} to be scored; "
        f"{record['model']} trained on {name}, replicate {replicate}, repeat {repeat}")
    if dry_run:
        print(f"{output}: would explain {len(names)} images")
        return
    maps = make_maps(model, dataset, places=places, shuffles=shuffles, seed=seed,
                     device=use_device(device))
    groups = np.array([row.group or row.file_name for row in dataset.select("test")])
    scored = about.pop("scored")
    found, values = score(maps, masks, scored, groups) if len(scored) else ({"scores": None}, {})
    found = {**about, **found, "places": maps.grid.side}
    found["verdict"] = verdict(found, target.kind if target else "")
    if is_found:
        found |= {"nuclei_recipe": detect.RECIPE, "verdict": [*found["verdict"], FOUND]}
    with made.writing() as folder:
        files.write_text(folder / "explain.csv", table(dataset, maps, masks, scored, values))
        files.write_bytes(folder / "explain.png", picture(
            dataset, maps, masks, {"scored": scored.tolist()}, [names.index(i) for i in images]))
        made.publish({"schema": SCHEMA, "dataset": name, "replicate": replicate, "repeat": repeat,
                      "model": record["model"], "real_fingerprint": manifest["fingerprint"],
                      "accuracy_real": record["accuracy_real"], "num_images": len(names), **found})
    print("\n".join([*found["verdict"], str(output / "explain.png")]))


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("cnn_explain.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--data", type=cli.directory, required=True, metavar="DIR",
                       help="the real dataset whose test images are shown")
    group.add_argument("--results", type=cli.directory, required=True, metavar="DIR",
                       help="root of the results, of cnn_classify.py --keep-weights")
    group.add_argument("--output", type=cli.directory, required=True, metavar="DIR",
                       help="folder to write")
    group.add_argument("--trained-on", metavar="NAME",
                       help="dataset that the network was trained on (default: that of --data)")
    group.add_argument("--replicate", type=cli.non_negative_int, default=0, metavar="K",
                       help="whole-pipeline replicate of the network")
    group.add_argument("--repeat", type=cli.non_negative_int, default=0, metavar="I",
                       help="repeat of the network")
    group.add_argument("--images", nargs="+", default=[], metavar="FILE_NAME",
                       help="test images to show first, as test/lung_n/000012.png")
    group = parser.add_argument_group("Maps and scores")
    group.add_argument("--mask", metavar="KIND",
                       help="kind of masks to score by (default: nodule or tumour, the first there "
                            "is; without them nothing is scored); nuclei where there are no masks "
                            "of them are found in the images")
    group.add_argument("--labels", type=cli.positive_int, nargs="+", default=[], metavar="VALUE",
                       help="which label values are foreground, of masks of label values")
    group.add_argument("--places", type=cli.positive_int, default=2, metavar="INT",
                       help="least side of the feature map explained: more is an earlier layer, "
                            "finer and less about the class")
    group.add_argument("--shuffles", type=cli.positive_int, default=SHUFFLES, metavar="N",
                       help="networks of shuffled weights to compare with")
    cli.add_common(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
