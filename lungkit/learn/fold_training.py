"""One training inside a train split: on a fold's images, scored on those that it holds out.

Trained as cnn_classify.py trains, by the same functions; what is drawn depends on the search's
seed, the training's name and the fold alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from lungkit.data import metrics
from lungkit.data.dataset import Dataset
from lungkit.learn import augment, cnns, heads
from lungkit.learn.classify_training import drop_before_head, plan_batches, predict, train
from lungkit.learn.features import Extractor
from lungkit.learn.folds import group_names, grouped_folds
from lungkit.learn.pixels import as_tensor, hold
from lungkit.run import seeds

PREDICTED = 2048  # images that are gathered at a time to be predicted; ours


class Bench:
    """A dataset's train split under its folds: images when first needed, features by network.

    data: opened with its train split alone.
    """

    def __init__(self, data: Dataset, folds: int, seed: int, device=None) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.rows = data.select("train")
        self.labels = np.array([data.classes.index(row.label) for row in self.rows], np.int64)
        self.groups = group_names(self.rows)
        self.folds = grouped_folds(self.labels, self.groups, data.classes, folds, seed)
        self._features: dict[str, object] = {}

    @cached_property
    def images(self):
        """uint8 [N, S, S, C] as `hold` keeps them."""
        return hold(self.data.load("train")[0], self.device)

    def features(self, extractor: Extractor):
        """float32 [N, D] of every image, worked out once and kept beside the dataset."""
        if extractor.name not in self._features:
            self._features = {extractor.name: as_tensor(
                extractor.of_split(self.data, "train")).to(self.device)}
        return self._features[extractor.name]

    def train_fold(self, name: str, number: int, settings: Mapping, *, model: str,
                   weights_path: Path | None, extractor: Extractor | None = None,
                   folds=None, **kept: object) -> dict:
        """Train on fold `number` and score it: a record of plain numbers.

        settings: steps, batch_size, learning_rate, and those of lungkit.learn.settings that are
        not the usual. extractor: of the features that a linear head is trained on, as they are;
        None: `model` is trained on images. folds: None means the bench's own. kept: how `loop`
        keeps the training (checkpoint_path). Raises as `loop` does.
        """
        import torch

        start = time.monotonic()
        fold, classes = (folds or self.folds)[number], self.data.classes
        key = f"search {name}", self.seed, number
        inputs = self.features(extractor) if extractor else self.images
        labels = torch.from_numpy(self.labels).to(self.device)
        plan = plan_batches(fold.trained, settings["steps"], settings["batch_size"],
                            seeds.order_draws(*key), self.data.symmetries,
                            augment.hu_per_level(self.data.modality, self.data.intensity),
                            self.labels, settings)
        torch.manual_seed(seeds.weights_seed(*key))
        if extractor:
            network = heads.build(inputs[fold.trained], len(classes))
        else:
            network = cnns.build_model(model, len(classes), weights_path)
        network = drop_before_head(network, settings.get("dropout", 0)).to(
            self.device, memory_format=torch.channels_last)
        train_loss = train(network, inputs, labels, plan, learning_rate=settings["learning_rate"],
                           symmetries=self.data.symmetries, settings=settings,
                           what=f"fold {number + 1} {name}",
                           identity={"name": name, "fold": number, "seed": self.seed, **settings},
                           **kept)
        parts = np.array_split(fold.held_out, -(-len(fold.held_out) // PREDICTED))
        said = np.concatenate([predict(network, inputs[part], self.device) for part in parts])
        scores, _ = metrics.split_metrics(said, self.labels[fold.held_out], classes)
        return {"scores": scores, "train_loss": train_loss, "fold": number,
                "num_train_images": len(fold.trained), "num_held_out_images": len(fold.held_out),
                "elapsed_sec": round(time.monotonic() - start, 3)}


def parameters(model: str, num_classes: int, *, frozen: bool) -> tuple[int, int]:
    """How many weights a network has, and how many of them are trained; nothing is allocated."""
    import torch

    with torch.device("meta"):
        network = cnns.build_model(model, num_classes, None)
    every = sum(each.numel() for each in network.parameters())
    head = list(network.state_dict())[-1].rpartition(".")[0]
    of_head = sum(each.numel() for each in network.get_submodule(head).parameters())
    return every, of_head if frozen else every
