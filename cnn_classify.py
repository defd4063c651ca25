#!/usr/bin/env python
"""Train a CNN on a dataset, again and again, and test every training on real images.

Reads   DATA, a dataset (train, val, test splits) or several, and REAL, the real dataset they
        compete with (`--data REAL --real REAL` is the real arm itself).
Writes  RESULTS/<dataset>/replicate_000/repeat_0000.json   accuracy on DATA's own test split and
                                                           on REAL's, metrics, provenance
        RESULTS/<dataset>/replicate_000/repeat_0000.npz    probabilities of every test image
Prints  mean, standard deviation and number of the accuracies.

Repeat i is an independent training with seed SEED + i: its own initial weights, order of the
images and augmentation, and, where DATA's train split holds more images of a class than REAL's,
its own draw of as many as REAL has; draws share no image while the pool lasts. Every repeat of
every dataset takes the same number of optimiser steps. The val split is only reported: nothing is
chosen by it.

Running the same command again resumes: complete repeats are kept, missing ones are made. Any
number of processes may run the same command at once; they share the repeats between them, and
each ends when all are complete. On a CPU give each process one thread (OMP_NUM_THREADS=1).

The loop keeps the images as bytes on the device and augments whole batches there, after
Jordan 2024 (arXiv:2404.00498); one-cycle schedule: Smith and Topin 2018 (arXiv:1708.07120);
AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101); label smoothing: Szegedy et al. 2016
(arXiv:1512.00567); ResNet: He et al. 2016 (arXiv:1512.03385); ConvNeXt: Liu et al. 2022
(arXiv:2201.03545); EfficientNet: Tan and Le 2019 (arXiv:1905.11946).
Exit statuses: 0 all repeats complete, 1 bad data or failed run, 2 bad options, 75 stopped, run
it again.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from lungkit.audit import leaks
from lungkit.data import metrics, result
from lungkit.data.controls import control_of
from lungkit.data.dataset import Dataset, read_manifest
from lungkit.data.draws import draw_images, shared_with_earlier, warnings_of
from lungkit.data.orientations import as_setting
from lungkit.data.repeats import Repeats, add_options, identities, make_all, open_both, open_repeats
from lungkit.learn import augment, heads, kept_weights, training_options, tta
from lungkit.learn.classify_training import drop_before_head, plan_batches, predict, train
from lungkit.learn.cnns import MODELS, build_model, extractor_name, resolve
from lungkit.learn.device import device_name, use_device
from lungkit.learn.features import Extractor
from lungkit.learn.pixels import hold
from lungkit.run import cli, faults, files, seeds
from lungkit.run.progress import say
from lungkit.run.provenance import provenance

RECIPE = 2  # raise it when the training changes: results of two recipes must not be mixed
# demo: on LC25000's val split (64 px) 150, 200 and 250 steps gave 0.89-0.92, 0.92-0.93, 0.92-0.93,
# and peaks of 1e-3 to 4e-3 were alike. full: ours, by the usual practice; not tuned.
PRESETS = {
    "demo": {"model": "small", "steps": 200, "batch_size": 32},
    "full": {"model": "resnet18", "steps": 2000, "batch_size": 128},
}


# ------------------------------------------------------------------ one repeat

class Bench:
    """Both datasets, decoded once and at hand for the device, and what all repeats share.

    extractor: of features, which are then what is trained on and tested; None: the images.
    """

    def __init__(self, data: Dataset, real: Dataset, device, extractor=None) -> None:
        self.data, self.real, self.device, self.extractor = data, real, device, extractor
        self.images, self.labels = {}, {}
        for name, dataset, split in (("train", data, "train"), ("val", data, "val"),
                                     ("own", data, "test"), ("real", real, "test")):
            if name == "real" and data is real:
                self.images[name], self.labels[name] = self.images["own"], self.labels["own"]
            else:
                self.images[name], self.labels[name] = self._load(dataset, split)
        # a mixture is trained on whole, whatever its size
        self.wanted = list((data if "mix" in data.manifest else real).counts["train"].values())

    def _load(self, dataset: Dataset, split: str):
        import torch

        load = self.extractor.load if self.extractor else Dataset.load
        images, labels = load(dataset, split)
        return hold(images, self.device), torch.from_numpy(labels).to(self.device)

    def run_repeat(self, identity: dict, directory: Path, *, weights_path: Path | None,
                   compile_model: bool, keep_weights: bool, overwrite: bool,
                   checked: dict) -> None:
        """Train, test and record the repeat that `identity` describes.

        checked: what leaks.require said of the two datasets.
        """
        import torch

        start = time.monotonic()
        settings, repeat = identity["settings"], identity["repeat"]
        key = identity["dataset"], identity["seed"], identity["replicate"]
        train_labels = self.labels["train"].cpu().numpy()
        drawn = draw_images(train_labels, self.wanted, *key)
        plan = plan_batches(drawn, settings["steps"], settings["batch_size"],
                            seeds.order_draws(*key), self.data.symmetries,
                            augment.hu_per_level(self.data.modality, self.data.intensity),
                            train_labels, settings)
        torch.manual_seed(seeds.weights_seed(*key))
        if self.extractor:
            model = heads.build(self.images["train"][drawn], len(self.data.classes))
        else:
            model = build_model(identity["model"], len(self.data.classes), weights_path)
        model = drop_before_head(model, settings.get("dropout", 0)).to(
            self.device, memory_format=torch.channels_last)
        path = result.checkpoint_path(directory, repeat)
        decided = {**identity, **settings}
        del decided["settings"]
        train_loss = train(model, self.images["train"], self.labels["train"], plan,
                           learning_rate=settings["learning_rate"], compile_model=compile_model,
                           symmetries=self.data.symmetries, settings=settings,
                           what=f"{self.data.name} repeat {repeat}", checkpoint_path=path,
                           identity=decided, overwrite=overwrite,
                           jsonl_path=directory / "progress.jsonl")
        scores, arrays = self.test(model, settings.get("tta", tta.NONE))
        record = {**identity, **scores, "train_loss": train_loss,
                  "num_train_images": len(drawn), "num_pool_images": len(train_labels),
                  "warnings": warnings_of(self.data, self.real),
                  "trained_on": self.data.trained_on(), "leaks": checked,
                  "groups_given": self.real.groups_given,
                  "device": device_name(self.device), "versions": provenance()["versions"]}
        if control := control_of(self.data.manifest):
            record["control"] = control
        if "mix" in self.data.manifest:
            record["mix"] = self.data.manifest["mix"]
        if "draws" in identity:
            record["shared_with_earlier"] = shared_with_earlier(train_labels, self.wanted, *key,
                                                                repeat)
        kept = kept_weights.write(directory, repeat, model) if keep_weights else {}
        result.write_record(directory, record, arrays, {
            "elapsed_sec": round(time.monotonic() - start, 3),
            "threads": torch.get_num_threads(), **kept})
        path.unlink(missing_ok=True)

    def test(self, model, averaged: str = tta.NONE) -> tuple[dict, dict[str, np.ndarray]]:
        """Score a trained model on val and both test splits: the record's part, the .npz's part.

        averaged: as --tta says.
        """
        tested = {}
        for name, dataset in (("own", self.data), ("real", self.real)):
            if name == "real" and self.data is self.real:
                probabilities = tested["own"][0]
            else:
                probabilities = self.predict(model, name, dataset.symmetries, averaged)
            tested[name] = (probabilities, self.labels[name].cpu().numpy(), dataset.select("test"))
        scores, arrays = metrics.score_classes(tested, self.data.classes,
                                               ordinal=self.real.is_ordinal)
        predicted = self.predict(model, "val", self.data.symmetries, averaged).argmax(1)
        scores["accuracy_val"] = float((predicted == self.labels["val"].cpu().numpy()).mean())
        return scores, arrays

    def predict(self, model, name: str, symmetries: int, averaged: str) -> np.ndarray:
        """Class probabilities float32 [N, C] of the images of val, own or real."""
        return predict(model, self.images[name], self.device, tta.turns(averaged, symmetries),
                       symmetries)


# ------------------------------------------------------------------ the stage

def run(*, data: list[Path], real: Path, results: Path, repeats: range, replicate: int,
        frozen: bool, steps: int | None, settings_file: Path | None, preset: str, seed: int,
        device: str, compile_model: bool, keep_weights: bool, overwrite: bool, dry_run: bool,
        **how: object) -> None:
    manifests = {path: read_manifest(path) for path in (real, *data)}
    if settings_file:
        how = training_options.with_file(settings_file, how, manifests[real]["fingerprint"])
    model, weights = resolve(how["model"], how["weights"], frozen=frozen)
    training_options.check(how, frozen=frozen, pretrained=weights is not None)
    chosen = cli.fill_preset({"preset": preset, "model": model, "steps": steps,
                              "batch_size": how["batch_size"]}, PRESETS)
    peak = heads.PEAK_RATE if frozen else MODELS[chosen["model"]][1]
    settings = {"steps": chosen["steps"], "batch_size": chosen["batch_size"],
                "learning_rate": how["learning_rate"] or peak,
                "recipe": RECIPE, "weights_sha256": weights and files.sha256_file(weights),
                **heads.as_setting(frozen), **training_options.as_setting(how)}
    if settings["batch_size"] < 2:
        raise faults.BadOptions("--batch-size 1: batch normalisation needs two images or more")
    for manifest in manifests.values():
        tta.turns(settings.get("tta", tta.NONE), manifest["symmetries"])  # refused where it may not
    asked = {path: open_repeats(results, identify(
        manifests[path], manifests[real], repeats, replicate=replicate, seed=seed,
        model=chosen["model"], settings=settings), overwrite=overwrite) for path in data}
    if keep_weights:
        kept_weights.require(asked.values())
    pending = [path for path in asked if not asked[path].are_complete]
    unasked = [path for path in asked if path not in pending  # records of before it was asked
               and leaks.are_lacking(asked[path].records(), results)]
    datasets = {path: open_both(path, real, results) for path in [*pending, *unasked]}
    if pending:
        torch_device = use_device(device, needed=not dry_run)
        if weights or not dry_run:  # which may be bad, or of another model
            build_model(chosen["model"], len(datasets[pending[0]][0].classes), weights)
        shown = "  ".join(f"{name} {value}" for name, value in settings.items())
        say(f"model {chosen['model']}  {shown}  device {torch_device}")
        for path in pending:
            asked[path].say_plan()
    checked = dict(zip(datasets, leaks.require(list(datasets.values()), results, dry_run=dry_run)))
    make_all(asked, lambda path, waits: train_all(
        asked[path], datasets[path], torch_device, waits=waits, frozen=frozen,
        weights_path=weights, compile_model=compile_model, keep_weights=keep_weights,
        overwrite=overwrite, checked=checked[path]), dry_run=dry_run)


def train_all(asked: Repeats, datasets: tuple[Dataset, Dataset], device, *, waits: bool,
              frozen: bool, **options) -> None:
    """Make the repeats of one dataset that are missing; decode it for the first of them."""
    if device.type == "cuda":
        import torch
        torch.backends.cudnn.benchmark = True
    bench = None

    def work(identity: dict) -> None:
        nonlocal bench
        if not bench:
            weights_path = options["weights_path"]
            bench = Bench(*datasets, device, Extractor(
                extractor_name(identity["model"]), weights_path, device) if frozen else None)
        bench.run_repeat(identity, asked.directory, **options)

    asked.make(work, waits=waits)


def identify(data: dict, real: dict, repeats: range, *, replicate: int, seed: int, model: str,
             settings: dict) -> list[dict]:
    """What decides each repeat asked for; data and real are manifests."""
    settings = {**settings, "image_size": data["image_size"], **as_setting(data["symmetries"]),
                **augment.as_setting(data["modality"])}
    return identities(data, real, repeats, replicate=replicate, seed=seed, model=model,
                      settings=settings)


def build_parser():
    parser = cli.stage_parser("cnn_classify.py", __doc__)
    main_group = parser.add_argument_group("Main")
    main_group.add_argument("--data", type=cli.directory, required=True, nargs="+", metavar="DIR",
                            help="the dataset to train on, or several, one after the other")
    add_options(main_group)
    main_group.add_argument("--keep-weights", action="store_true",
                            help="also keep each repeat's weights, repeat_0000.safetensors, for "
                                 "cnn_explain.py")
    group = parser.add_argument_group("Hyperparameters (no default shown: the preset decides)")
    group.add_argument("--model", choices=list(MODELS), help="architecture")
    group.add_argument("--weights", type=Path, metavar="FILE",
                       help="weights to start from, .safetensors or a torch state dict; or "
                            "imagenet-lite0, ImageNet's, which come as a package (with them the "
                            "model is efficientnet_lite0); or imagenet, torchvision's of --model, "
                            "from torch's cache or fetched into it")
    group.add_argument("--frozen", action="store_true",
                       help="leave the weights as they are: features are worked out once, and "
                            "each repeat trains a linear head on them, without augmentation")
    group.add_argument("--steps", type=cli.positive_int, metavar="INT", help="optimiser steps")
    group.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES",
                       help="images a step")
    group.add_argument("--learning-rate", type=cli.positive_float, metavar="RATE",
                       help="peak of the schedule; by model: "
                            + ", ".join(f"{name} {rate:g}" for name, (_, rate) in MODELS.items()))
    group = parser.add_argument_group("Training")
    training_options.add_options(group)
    group.add_argument("--settings", dest="settings_file", type=Path, metavar="FILE",
                       help="take these, model, weights, batch size and rate from best.json of "
                            "cnn_search.py tune; what is given here as well holds")
    cli.add_common(parser, presets=PRESETS)
    parser.add_argument("--compile", dest="compile_model", action="store_true",
                        help="torch.compile the model: minutes of warm-up, for long GPU trainings")
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
