"""Images to features: what a pretrained network says of an image before its last layer.

The one feature extractor of this project. By default EfficientNet-Lite0 on ImageNet, which comes
as a package; any network of timm with weights from a file in its place. Features are kept in a file
beside the dataset (lungkit/data/cache.py) by its fingerprint, the network and the weights' hash,
so that whoever asks second only reads.

RECIPE is raised when the same images give other features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from lungkit.data.cache import map_rows
from lungkit.data.dataset import Dataset, Row
from lungkit.learn import pretrained
from lungkit.learn.cnns import OF_TORCHVISION, load_weights, without_head
from lungkit.run.faults import BadOptions, check_stop
from lungkit.run.files import sha256, sha256_file

RECIPE = 2
BATCH_SIZE = 4        # ours: of 16 what is between two layers leaves a CPU's cache
CHUNK = 2048          # ours: images a file; what a kill loses is the chunk under way


class Extractor:
    """A network without its head. It is built when first needed: cached features need none.

    name: as timm knows it, or cnns.extractor_name of one of MODELS. weights_path: of a state dict;
    None, the packaged ones, which are of LITE0 alone. Raises BadOptions where a package or the file
    is missing.
    """

    def __init__(self, name: str = pretrained.LITE0, weights_path: Path | None = None,
                 device="cpu") -> None:
        if weights_path is None and name != pretrained.LITE0:
            raise BadOptions(f"the network {name} needs weights from a file: only those of "
                             f"{pretrained.LITE0} come as a package")
        self.name, self.device = name, device
        self.weights_path = pretrained.weights_path() if weights_path is None else weights_path
        if not self.weights_path.is_file():
            raise BadOptions(f"the weights {self.weights_path} are not a file")

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """What decides the features of an image: {network, weights_sha256, recipe}."""
        return {"network": self.name, "weights_sha256": sha256_file(self.weights_path),
                "recipe": RECIPE}

    @cached_property
    def network(self):
        """The network in testing mode on `device`: [B, 3, SIDE, SIDE] to pooled [B, D]."""
        import torch

        if self.name.startswith(OF_TORCHVISION):
            network = without_head(self.name.removeprefix(OF_TORCHVISION), self.weights_path)
        else:
            network = pretrained.build(self.name, num_classes=1)
            load_weights(network, self.weights_path, self.name)
            network.reset_classifier(0)
            if self.name == pretrained.LITE0:
                network = pretrained.fold_norms(network)
        return network.eval().to(self.device, memory_format=torch.channels_last)

    @property
    def width(self) -> int:
        """D, the numbers that an image becomes; of LITE0 it is known before it is built."""
        return pretrained.WIDTH if self.name == pretrained.LITE0 else self.network.num_features

    def inputs(self, images):
        """uint8 [B, S, S, 3 or 1] to float32 [B, 3, SIDE, SIDE] as the network was trained on.

        Bicubic with the prefilter of PIL's when images shrink, cut to 0..255 as bytes would be.
        """
        import torch
        from torch.nn.functional import interpolate

        config = self.network.pretrained_cfg
        lite0 = self.name == pretrained.LITE0
        mean, std = ((pretrained.MEAN, pretrained.STD) if lite0 else
                     (config["mean"], config["std"]))
        side = config["input_size"][1]
        batch = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
        if images.shape[1] != side:
            batch = interpolate(batch, size=(side, side), mode="bicubic", antialias=True)
            batch = batch.clamp(0, 255)
        mean, std = (255 * torch.tensor(each, device=self.device)[:, None, None]
                     for each in (mean, std))
        return ((batch - mean) / std).contiguous(memory_format=torch.channels_last)

    def rows(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The features float32 [D] of each image uint8 [S, S, 3 or 1], all of one size."""
        import torch

        images = iter(images)
        while batch := list(islice(images, BATCH_SIZE)):
            with torch.inference_mode():
                found = self.network(self.inputs(np.stack(batch)))
            yield from found.float().cpu().numpy()
            check_stop()

    def features(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """float32 [N, D] of N images uint8 [S, S, 3 or 1]; nothing is kept."""
        found = list(self.rows(images))
        return np.stack(found) if found else np.empty((0, self.width), np.float32)

    def of_split(self, dataset: Dataset, split: str) -> np.ndarray:
        """float32 [N, D] of a split, in the order of `Dataset.select`; kept as `of_rows` does."""
        return self.of_rows(dataset, dataset.select(split), split)

    def of_rows(self, dataset: Dataset, rows: list[Row], name: str) -> np.ndarray:
        """float32 [N, D] of some images, kept beside the dataset; `name` says which, in a file's.

        Raises Fault where no place for the file is found, Stopped after a signal.
        """
        chunks = [rows[start:start + CHUNK] for start in range(0, len(rows), CHUNK)]
        return np.concatenate([
            self.keep(dataset, f"{name}-{number:04d}", len(chunk), map(dataset.image, chunk))
            for number, chunk in enumerate(chunks)])

    def keep(self, dataset: Dataset, name: str, num_images: int,
             images: Iterable[np.ndarray]) -> np.ndarray:
        """float32 [N, D] of `images`, kept beside `dataset` under `name`.

        images: asked for only where no file holds their features yet. Not to be written to.
        """
        key = sha256(repr(sorted(self.identity.items())).encode())[:12]
        return map_rows(dataset.path, dataset.fingerprint, f"features-{key}-{name}",
                        (num_images, self.width), self.rows(images), dtype=np.float32,
                        what=f"features of {dataset.name} {name}",
                        why=f"features of {dataset.path} are worked out once,")

    def load(self, dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [N, D] and labels int64 [N] of a split, as `Dataset.load` has images."""
        labels = [dataset.classes.index(row.label) for row in dataset.select(split)]
        return self.of_split(dataset, split), np.array(labels, np.int64)
