#!/usr/bin/env python
"""Train a U-Net on the masks of a dataset, again and again, and test every training on real ones.

Reads   DATA, a dataset with masks (train, val, test splits) or several, and REAL, the real dataset
        they compete with (`--data REAL --real REAL` is the real arm itself).
Writes  RESULTS/<dataset>/replicate_000/repeat_0000.json   Dice on DATA's own test split and on
                                                           REAL's, lesions found, provenance
        RESULTS/<dataset>/replicate_000/repeat_0000.npz    the same of every item, with its group
        RESULTS/<dataset>/replicate_000/repeat_0000.png    twelve of REAL's test images with
                                                           foreground: true green, found red
        RESULTS/<dataset>/replicate_000/repeat_0000_masks/ with --nifti: what was found in REAL's
                                                           test scans, on their own grids
Prints  mean, standard deviation and number of the Dice scores.

What is found is the foreground of one kind of masks: of a binary mask 255, of label values those
of --labels. An item is what is scored as one: all slices of a scan that the split holds where the
dataset shows whole slices, else an image (lungkit.data.mask_items). Repeat i is an independent
training with seed SEED + i. Threshold and least size of what is found are chosen on DATA's val
split; a network that finds nothing there, or in a whole test split, ends the run with its reason.
RESULTS holds one task: give another directory than cnn_classify.py's.

Running the same command again resumes: complete repeats are kept, missing ones are made. Any
number of processes may run the same command at once; they share the repeats between them.

U-Net: Ronneberger et al. 2015 (arXiv:1505.04597), residual: Zhang et al. 2018 (arXiv:1711.10684);
Dice loss: Milletari et al. 2016 (arXiv:1606.04797); focal loss: Lin et al. 2017 (arXiv:1708.02002);
Tversky loss: Salehi et al. 2017 (arXiv:1706.05721); oversampling, blended windows, mirrors: Isensee
et al. 2021 (Nature Methods 18:203). --recipe published is what tutorials train on the Medical
Segmentation Decathlon's lungs: a plain U-Net, binary cross entropy, Adam at 1e-4, 30 epochs, slices
with and without foreground drawn equally often, stopped early by val, threshold 0.5.
Exit statuses: 0 all repeats complete, 1 bad data or failed run, 2 bad options, 75 stopped, run
it again.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.audit import leaks
from lungkit.ct import scan_masks
from lungkit.data import mask_items, overlay, result, segment_choice, segment_scores
from lungkit.data.dataset import read_manifest
from lungkit.data.draws import draw_images, shared_with_earlier, warnings_of
from lungkit.data.png import encode_png
from lungkit.data.repeats import Repeats, add_options, identities, make_all, open_both, open_repeats
from lungkit.learn.device import device_name, use_device
from lungkit.learn.pixels import as_tensor, hold
from lungkit.learn.segment_settings import LOSSES, OURS, PLANNED, PUBLISHED, of_dataset, settle
from lungkit.run import cli, files, seeds
from lungkit.run.faults import Fault
from lungkit.run.progress import say
from lungkit.run.provenance import provenance

RECIPE = 4  # raise it when the training below changes: results of two recipes must not be mixed
MOST = "most_false_positives"  # the setting, only where it is given
SHOWN = 12  # images outlined; of those with foreground, evenly over the split
# full: ours, by the usual practice; not tuned
PRESETS = {
    "demo": {"widths": [16, 32, 64], "steps": 300, "batch_size": 8},
    "full": {"widths": [32, 64, 128, 256, 320], "steps": 10000, "batch_size": 16},
}


# ------------------------------------------------------------------ one repeat

class Bench:
    """Images and masks of both datasets, decoded once, and what all repeats share."""

    def __init__(self, truth: dict, settings: dict, device) -> None:
        from lungkit.learn.segment_batches import Pairs

        self.truth, self.settings, self.device = truth, settings, device
        self.data, self.real = truth["train"][0], truth["real"][0]
        self.pairs, self.items = {}, {}
        for name, (dataset, split, masks, known) in truth.items():
            if name == "real" and self.data is self.real:
                self.pairs[name], self.items[name] = self.pairs["own"], self.items["own"]
                continue
            images, _ = dataset.load(split)
            beside = mask_items.neighbours(dataset, split, settings["neighbours"])
            ignored = mask_items.load_ignored(dataset, split, settings["mask"])
            images = hold(images, device)
            self.pairs[name] = Pairs(images, *(None if each is None else as_tensor(each).to(
                images.device) for each in (masks, beside, ignored)))
            if name != "train":
                self.items[name] = mask_items.items_to_choose_by(dataset, known) \
                    if name == "val" else mask_items.items_of(dataset, split, known)
        self.labels = np.array([self.data.classes.index(row.label)
                                for row in self.data.select("train")])
        self.wanted = list(self.real.counts["train"].values())
        channels = self.data.channels * (2 * settings["neighbours"] + 1)
        self.build = lambda: _network(channels, settings)

    def run_repeat(self, identity: dict, directory: Path, *, overwrite: bool, checked: dict,
                   scans: scan_masks.Scans | None) -> None:
        """Train, choose, test and record the repeat that `identity` describes.

        checked: what leaks.require said of the two datasets. scans: to write masks of, or None.
        """
        import torch

        from lungkit.learn.segment_batches import memory_format

        start, repeat = time.monotonic(), identity["repeat"]
        key = identity["dataset"], identity["seed"], identity["replicate"]
        known = self.truth["train"][3]
        drawn = draw_images(self.labels, self.wanted, *key)
        drawn = drawn[known[drawn]]
        if not any(self.truth["train"][2][i].any() for i in drawn):
            raise Fault(f"no image that repeat {repeat} draws from {self.data.path} shows "
                        "foreground: nothing can be learnt; make the dataset larger")
        torch.manual_seed(seeds.weights_seed(*key))
        model = self.build().to(self.device, memory_format=memory_format(self.device))
        path = result.checkpoint_path(directory, repeat)
        decided = {**identity, **self.settings}
        del decided["settings"]
        train_loss = self.train(
            model, drawn, seeds.order_draws(*key), what=f"{self.data.name} repeat {repeat}",
            checkpoint_path=path, identity=decided, overwrite=overwrite,
            jsonl_path=directory / "progress.jsonl")
        scores, arrays, shown = self.test(model, scans and partial(
            scan_masks.write_mask, result.masks_dir(directory, repeat), scans))
        files.write_bytes(result.repeat_path(directory, repeat).with_suffix(".png"),
                          encode_png(overlay.sheet(shown)))
        record = {**identity, **scores, "train_loss": train_loss, "num_train_images": len(drawn),
                  "num_pool_images": len(self.labels),
                  "warnings": [*warnings_of(self.data, self.real),
                               *mask_items.warnings_of(self.truth, self.items)],
                  "trained_on": self.data.trained_on(), "leaks": checked,
                  "groups_given": self.real.groups_given,
                  "device": device_name(self.device), "versions": provenance()["versions"]}
        if "draws" in identity:
            record["shared_with_earlier"] = shared_with_earlier(self.labels, self.wanted, *key,
                                                                repeat)
        result.write_record(directory, record, arrays, {
            "elapsed_sec": round(time.monotonic() - start, 3),
            "threads": torch.get_num_threads()})
        path.unlink(missing_ok=True)

    def train(self, model, drawn: np.ndarray, rng: np.random.Generator, **kept: object) -> float:
        """Train in place on the images `drawn`; the mean loss of the last tenth of the steps."""
        from lungkit.learn import segment_batches, segment_training as training, unet
        from lungkit.learn.hard_negatives import HardNegatives

        settings, (data, _, masks, known) = self.settings, self.truth["train"]
        loss_of, rate = unet.LOSSES[settings["loss"]], settings["learning_rate"]
        options = {"batch_size": settings["batch_size"], "symmetries": data.symmetries,
                   "rng": rng}
        if settings["method"] == OURS:
            items = mask_items.only(mask_items.items_of(data, "train", known), drawn)
            plan = segment_batches.plan_batches(
                drawn, segment_batches.lesions_of(items, masks), size=masks.shape[1],
                **{name: settings[name] for name in PLANNED}, **options)
            batch_at = segment_batches.Batches(self.pairs["train"], plan, settings["patch_size"],
                                               self.device)
            negatives = HardNegatives(batch_at, [items[i] for i in rng.permutation(len(items))],
                                      what=kept["what"])
            return training.train(model, batch_at, loss_of, steps=settings["steps"],
                                  learning_rate=rate, negatives=negatives, **kept)
        plan = segment_batches.plan_epochs(drawn, masks, epochs=settings["epochs"], **options)
        batch_at = segment_batches.Batches(self.pairs["train"], plan, masks.shape[1], self.device)
        val = np.flatnonzero(self.truth["val"][3])
        return training.train_published(
            model, batch_at, loss_of, steps=len(plan["index"]),
            steps_per_epoch=len(plan["index"]) // settings["epochs"], learning_rate=rate,
            val_loss=lambda model: training.mean_loss(model, self.pairs["val"], val, loss_of,
                                                      self.device), **kept)

    def predict(self, model, name: str):
        """(levels, truth) of every item of val, own or real, in turn."""
        from lungkit.learn.segment_training import FLIPS, predict_items

        dataset = self.truth[name][0]
        items, mirror = self.items[name], self.settings["mirror"]
        levels = predict_items(model, self.pairs[name], items, self.device,
                               patch_size=self.settings["patch_size"],
                               flips=FLIPS[dataset.symmetries] if mirror else FLIPS[1])
        for item, said in zip(items, levels):
            marked = self.pairs[name].marked(item.images)
            yield said, marked[0] if item.slices is None else marked

    def test(self, model, keep) -> tuple[dict, dict[str, np.ndarray], list[overlay.Shown]]:
        """Choose on val, then score both test splits: the record's part, the .npz's, pictures.

        keep: called with what is found in each item of real, as `scan_masks.write_mask`, or None.
        """
        grid = [segment_choice.HALF] if self.settings["method"] == PUBLISHED else []
        choice = segment_choice.choose(self.predict(model, "val"), *grid,
                                       most_false_positives=self.settings.get(MOST))
        record = {"task": "segment", "scores": {}, "dice_val": choice.dice,
                  "threshold": choice.threshold, "least_voxels": choice.least}
        if MOST in self.settings:
            record |= {"lesion_sensitivity_val": choice.sensitivity,
                       "false_positives_val": choice.false_positives}
        arrays = {}
        for name in result.SPLITS:
            if name == "own" or self.data is not self.real:
                scores, about, of_items, shown = self.score(
                    model, name, choice, keep if self.truth[name][0] is self.real else None)
            record["scores"][name], record[name] = scores, about
            record[f"dice_{name}"] = scores["dice"]
            arrays |= {f"{name}_{key}": values for key, values in of_items.items()}
        return record, arrays, shown

    def score(self, model, name: str, choice: segment_choice.Choice, keep) -> tuple:
        """`segment_scores.summarise` of a test split, and some of its images.

        Raises Fault where nothing is found in it.
        """
        dataset, items = self.truth[name][0], self.items[name]
        tolerance = segment_scores.TOLERANCE_MM if dataset.modality == "ct" else None
        of_lesions = [i for i, item in enumerate(items) if self.truth[name][2][list(
            item.images)].any()]
        picked, shown, scored = {*overlay.spread(of_lesions, SHOWN)}, [], []
        for i, (levels, marked) in enumerate(self.predict(model, name)):
            found = choice.mask(levels)
            if keep:
                keep(items[i], levels, found, segment_choice.level_of(choice.threshold))
            said, true = segment_scores.of_interest(found, marked)
            scored.append(segment_scores.score_item(
                said, true, items[i].spacing_mm, tolerance_mm=tolerance,
                with_surface=not items[i].has_gaps))
            if i in picked:
                shown.append(self.outline(name, items[i], said, true, scored[-1]["dice"]))
        if not any(each["said"] for each in scored):
            raise Fault(f"the network finds nothing in any test image of {dataset.path} (threshold "
                        f"{choice.threshold:g}, components of {choice.least} voxels and more, by "
                        "val): train it longer, or with another --loss or more --oversample")
        return *segment_scores.summarise(items, scored), shown

    def outline(self, name: str, item: mask_items.Item, said: np.ndarray, true: np.ndarray,
                dice: float) -> overlay.Shown:
        """The image of an item, of a volume the slice with most foreground."""
        z = 0 if true.ndim == 2 else int(true.sum((1, 2)).argmax())
        true, said = (mask if mask.ndim == 2 else mask[z] for mask in (true, said))
        image = self.pairs[name].images[item.images[z]].cpu().numpy()
        return overlay.Shown(image, true, said, f"{item.name[-20:]} Dice {dice:.2f}")


def _network(channels: int, settings: dict):
    from lungkit.learn.unet import UNet

    return UNet(channels, settings["widths"], residual=settings["method"] == OURS)


# ------------------------------------------------------------------ the stage

def run(*, data: list[Path], real: Path, results: Path, repeats: range, replicate: int,
        mask: str | None, labels: list[int], nifti: bool, preset: str, seed: int, device: str,
        overwrite: bool, dry_run: bool, **how: object) -> None:
    settings = settle({**how, "preset": preset}, PRESETS, RECIPE)
    manifests = {path: read_manifest(path) for path in (real, *data)}
    kind = mask_items.choose(manifests[real]["masks"], mask, labels, real).kind  # the yardstick's
    targets = {path: mask_items.choose(manifest["masks"], kind, labels, path)
               for path, manifest in manifests.items()}
    asked = {path: open_repeats(results, mask_items.with_masks(identities(
        manifests[path], manifests[real], repeats, replicate=replicate, seed=seed, model="unet",
        settings=of_dataset(settings, targets[path], manifests[path])), path, real, kind),
        overwrite=overwrite) for path in data}
    if nifti:
        scan_masks.check_kept(asked.values())
    pending = [path for path in data if not asked[path].are_complete]
    datasets = {path: open_both(path, real, results) for path in pending}
    truths = {}
    for path, pair in datasets.items():
        mask_items.check_images(*pair, settings["neighbours"])
        truths[path] = mask_items.read_truth(*pair, targets[path])
    scans = scan_masks.open_scans(datasets[pending[0]][1]) if nifti and pending else None
    if pending:
        torch_device = use_device(device, needed=not dry_run)
        shown = "  ".join(f"{name} {value}" for name, value in settings.items())
        say(f"mask {targets[real].kind}  {shown}  device {torch_device}")
        for path in pending:
            asked[path].say_plan()
    checked = dict(zip(datasets, leaks.require(list(datasets.values()), results, dry_run=dry_run)))
    make_all(asked, lambda path, waits: train_all(
        asked[path], truths[path], torch_device, waits=waits, overwrite=overwrite,
        checked=checked[path], scans=scans), dry_run=dry_run, score="dice")


def train_all(asked: Repeats, truth: dict, device, *, waits: bool, **options) -> None:
    """Make the repeats of one dataset that are missing; decode its images for the first of them."""
    if device.type == "cuda":
        import torch
        torch.backends.cudnn.benchmark = True
    bench = None

    def work(identity: dict) -> None:
        nonlocal bench
        bench = bench or Bench(truth, identity["settings"], device)
        bench.run_repeat(identity, asked.directory, **options)

    asked.make(work, waits=waits)


# long: one call an option, and what it means
def build_parser():
    parser = cli.stage_parser("unet_segment.py", __doc__)
    group = parser.add_argument_group("Main")
    group.add_argument("--data", type=cli.directory, required=True, nargs="+", metavar="DIR",
                       help="the dataset to train on, or several, one after the other")
    add_options(group)
    group.add_argument("--mask", metavar="KIND",
                       help="kind of masks to find (default: nodule or tumour, the first there is)")
    group.add_argument("--labels", type=cli.positive_int, nargs="+", default=[], metavar="VALUE",
                       help="which label values are foreground, of masks of label values")
    group.add_argument("--nifti", action="store_true",
                       help="of whole slices: also write what is found in real's test scans as "
                            "NIfTI masks on their own grids")
    group = parser.add_argument_group("Hyperparameters (no default shown: preset or recipe decide)")
    group.add_argument("--recipe", choices=(OURS, PUBLISHED), default=OURS,
                       help="ours, or published: see above")
    group.add_argument("--loss", choices=LOSSES,
                       help="of ours: Dice of the batch with focal, half of it of every image, so "
                            "that small lesions count (image-dice-focal), Tversky or cross entropy "
                            "(dice-focal)")
    group.add_argument("--oversample", type=cli.fraction, metavar="SHARE",
                       help="of ours: share of every batch that must show foreground (1/3)")
    group.add_argument("--hard-negatives", type=cli.fraction, metavar="SHARE",
                       help="of ours: share of every batch that shows what was found in vain in "
                            "train after one and after two thirds of the steps (1/3 where patches "
                            "are shown, else 0)")
    group.add_argument("--widths", type=cli.positive_int, nargs="+", metavar="CHANNELS",
                       help="channels of every level, from full size down by halves")
    group.add_argument("--patch-size", type=cli.positive_int, metavar="PX",
                       help="of ours: side of what is shown at a time; larger images are predicted "
                            "in blended windows (whole images)")
    group.add_argument("--neighbours", type=cli.non_negative_int, default=0, metavar="SLICES",
                       help="of scans: slices below and above that are shown as channels")
    group.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None,
                       help="of ours: average predictions over the flips that the images allow "
                            "(yes)")
    group.add_argument("--most-false-positives", type=cli.non_negative_float, metavar="NUMBER",
                       help="of ours: choose threshold and least component for the most lesions "
                            "of val found with no more false positives an image, of scans a scan "
                            "(chosen for the best Dice)")
    group.add_argument("--steps", type=cli.positive_int, metavar="INT",
                       help="of ours: optimiser steps")
    group.add_argument("--epochs", type=cli.positive_int, metavar="INT",
                       help="of published: at most so many (30)")
    group.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES",
                       help="images a step")
    group.add_argument("--learning-rate", type=cli.positive_float, metavar="RATE",
                       help="peak of ours (2e-3), or that of published (1e-4)")
    cli.add_common(parser, presets=PRESETS)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
