#!/usr/bin/env python
"""What autoencoders lose of images: decibels, what a CNN makes of it, and their latents.

    python -m lungkit.tools.pretrain_autoencoder --output fine --precision bf16
    LC25000=<folder with lung_image_sets/ and groups.csv> \
    LIDC_CROPS=<folder with images/ and manifest.csv> \
    OMP_NUM_THREADS=1 python benchmarks/autoencoder.py assets/base_model/vae fine/vae \
        --ct assets/ct_base_model/vae | tee benchmarks/autoencoder.txt

Each folder is an AutoencoderKL in diffusers layout; several are compared on the same images. PSNR
is of each image by itself; in brackets, its mean in 95 % of 2,000 draws of the groups: source tiles
of LC25000 (one image of each), simulated patients that no base model was shown, and of CT one crop
of each patient of LIDC-IDRI.

A CNN trained on source tiles of LC25000 at 64 px is asked for the class of other tiles, as they are
and as each autoencoder gives them back: nothing that is drawn in an autoencoder's latents is likely
to be better than the second. Three trainings. --fit 100 200 300 also fits each decoder to the tiles
of that training, as the arms do (--decoder-steps), and asks again.

The deviation of the latents is at their own scaling factor, by channel; about 10 CPU minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch

from diffusion_seg import PRESETS
from lungkit.data.orientations import orient
from lungkit.generate.autoencoder import train_autoencoder
from lungkit.generate.latents import Latents, to_model_range, to_pixels
from lungkit.learn.cnns import small_cnn
from lungkit.learn.loop import train
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.run import cli
from lungkit.run.tables import read_table

SIMULATED_SEED = 60_000_000  # neither the sample's tissue nor the base model's
PATIENTS, TILES = 24, 6      # of simulated tissue
TEST_SHARE, TRAININGS, STEPS, BATCH = 0.4, 3, 500, 32
BATCH_OF_IMAGES = 25


# --- the images -----------------------------------------------------------------------------------

def shrunk(images: list[np.ndarray], size: int) -> np.ndarray:
    """uint8 [N, size, size, C]: area averages."""
    return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
                     .reshape(size, size, -1) for image in images])


def lc25000(root: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two images of each source tile, uint8 [S, S, 3], their classes and groups [N]."""
    seen: dict[str, int] = {}
    images, labels, groups = [], [], []
    for _, row in read_table(root / "groups.csv", ("file_name", "label", "group")).rows:
        seen[row["group"]] = seen.get(row["group"], 0) + 1
        if seen[row["group"]] <= 2:
            images.append(cv2.imread(str(root / "lung_image_sets" / row["file_name"]))[..., ::-1])
            labels.append(CLASSES.index(row["label"]))
            groups.append(row["group"])
    return images, np.array(labels), np.array(groups)


def simulated() -> tuple[list[np.ndarray], np.ndarray]:
    """Tiles uint8 [224, 224, 3] and their patients [N]."""
    plan = [(CLASSES[tile % 3], patient, patient * TILES + tile)
            for patient in range(PATIENTS) for tile in range(TILES)]
    return [draw_tile(label, patient=patient, index=index, seed=SIMULATED_SEED,
                      image_size=224).image for label, patient, index in plan], \
        np.array([patient for _, patient, _ in plan])


def lidc(root: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """A crop uint8 [128, 128] of each patient, and their patients [N]."""
    table = read_table(root / "manifest.csv", ("file", "patient_id")).rows
    rows = {row["patient_id"]: row for _, row in table}.values()
    return [cv2.imread(str(root / "images" / row["file"]), cv2.IMREAD_GRAYSCALE)
            for row in rows], np.array([row["patient_id"] for row in rows])


# --- what is measured -----------------------------------------------------------------------------

def given_back(vae, images: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, C] through the latents' mean; where colour gives grey back, its mean."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(images), BATCH_OF_IMAGES):
            batch = to_model_range(images[first:first + BATCH_OF_IMAGES], vae.config.in_channels)
            decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample
            if images.shape[-1] == 1:
                decoded = decoded.mean(1, keepdim=True)
            parts.append(to_pixels(decoded))
    return np.concatenate(parts)


def decibels(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """PSNR of each image, float64 [N]."""
    error = np.square(images.astype(float) - others).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


def with_interval(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> str:
    """The mean of [N], and the ends of 95 % over draws of its groups."""
    names, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(names), (2000, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return f"{values.mean():6.2f} ({low:.2f} to {high:.2f})"


def trained_cnn(images: np.ndarray, labels: np.ndarray, seed: int):
    """A small CNN of uint8 [N, 64, 64, 3] and int64 [N], in testing mode."""
    torch.manual_seed(seed)
    network = small_cnn(len(CLASSES))

    def loss_at(step, generator):
        picks = torch.randint(len(images), (BATCH,), generator=generator)
        which = int(torch.randint(8, (1,), generator=generator))
        batch = orient(to_model_range(images[picks.numpy()]), which)
        return torch.nn.functional.cross_entropy(network(batch), torch.from_numpy(labels)[picks])
    with tempfile.TemporaryDirectory() as place:
        train(network.parameters(), loss_at, what="CNN", steps=STEPS, seed=seed,
              learning_rate=2e-3, checkpoint_path=Path(place) / "cnn.ckpt")
    return network.eval()


def is_right(network, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        said = torch.cat([network(to_model_range(images[first:first + BATCH_OF_IMAGES])).argmax(1)
                          for first in range(0, len(images), BATCH_OF_IMAGES)])
    return said.numpy() == labels


# --- the table ------------------------------------------------------------------------------------

def open_autoencoder(folder: Path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    shape = f"{vae.config.latent_channels} latent channels"
    return vae, f"{folder}: {shape}, {sum(p.numel() for p in vae.parameters()):,} parameters"


def describe(vae, images: np.ndarray) -> None:
    """Print the latents' deviation at the autoencoder's own factor, and its speed."""
    start = time.process_time()
    kept = Latents(vae, images, symmetries=1)
    encoding = (time.process_time() - start) / len(images)
    scaled = kept.mean[0].float() * vae.config.scaling_factor
    by_channel = " ".join(f"{each:.2f}" for each in scaled.std((0, 2, 3)).tolist())
    deviation, noise = (each * vae.config.scaling_factor
                        for each in (kept.deviation(), float(kept.std.float().mean())))
    print(f"  latents of simulated tissue: deviation {deviation:.3f}, by channel {by_channel}; "
          f"noise {noise:.3f}; {encoding * 1e3:.1f} CPU ms an image of 64 px to encode")


def fitted(vae, images: np.ndarray, steps: int) -> float:
    """Fit the decoder of `vae` to uint8 [N, S, S, 3] as the arms do at demo; CPU seconds."""
    before = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        train_autoencoder(vae, images, steps=steps, seed=0, work_dir=Path(place),
                          batch_size=PRESETS["demo"]["decoder_batch_size"],
                          device=torch.device("cpu"), decoder_alone=True)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tissue", type=cli.directory, nargs="+", help="autoencoders of colour")
    parser.add_argument("--ct", type=cli.directory, nargs="*", default=[], help="those of grey")
    parser.add_argument("--fit", type=cli.positive_int, nargs="*", default=[], metavar="STEPS",
                        help="also with the decoder fitted so many steps to the LC25000 images "
                             "that the CNN was trained on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tiles, tile_groups = simulated()
    real, labels, groups = lc25000(Path(os.environ["LC25000"]))
    crops, patients = lidc(Path(os.environ["LIDC_CROPS"])) if options.ct else ([], None)
    rng = np.random.default_rng(0)
    names = rng.permutation(np.unique(groups))
    held_out = np.isin(groups, names[:round(TEST_SHARE * len(names))])
    small = shrunk(real, 64)
    first = np.unique(groups, return_index=True)[1]
    alone = [real[i] for i in first]
    networks = [trained_cnn(small[~held_out], labels[~held_out], seed)
                for seed in range(TRAININGS)]
    print(f"LC25000: {len(real)} images of {len(names)} source tiles; simulated tissue: "
          f"{len(tiles)} of {PATIENTS} patients; mean (95 % over groups)")
    right = np.mean([is_right(each, small[held_out], labels[held_out]) for each in networks], 0)
    print(f"CNN on {int(held_out.sum())} real images: accuracy "
          f"{with_interval(right, groups[held_out])}")
    for folder in options.tissue:
        vae, words = open_autoencoder(folder)
        print(words)
        for what, images, of in (("LC25000", alone, groups[first]),
                                 ("simulated", tiles, tile_groups)):
            for size in (64, 128):
                seen = shrunk(images, size)
                found = decibels(seen, given_back(vae, seen))
                print(f"  {what:9} {size:3} px: {with_interval(found, of)} dB")
        back = given_back(vae, small[held_out])
        right = np.mean([is_right(each, back, labels[held_out]) for each in networks], 0)
        print(f"  CNN on what it gives back: accuracy {with_interval(right, groups[held_out])}")
        describe(vae, shrunk(tiles, 64))
        for steps in options.fit:
            vae, _ = open_autoencoder(folder)
            spent = fitted(vae, small[~held_out], steps)
            back = given_back(vae, small[held_out])
            right = np.mean([is_right(each, back, labels[held_out]) for each in networks], 0)
            print(f"  decoder fitted, {steps:4} steps, {spent:.0f} CPU s: LC25000's others  64 px: "
                  f"{with_interval(decibels(small[held_out], back), groups[held_out])} dB, "
                  f"accuracy {with_interval(right, groups[held_out])}", flush=True)
    for folder in options.ct + options.tissue if options.ct else []:
        vae, words = open_autoencoder(folder)
        print(words)
        for size in (64, 128):
            images = shrunk(crops, size)
            found = decibels(images, given_back(vae, images))
            print(f"  {len(images)} crops of LIDC-IDRI, {size:3} px: "
                  f"{with_interval(found, patients)} dB")


if __name__ == "__main__":
    main()
