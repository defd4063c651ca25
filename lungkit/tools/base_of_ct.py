"""The embedded base model of chest CT: what it learns from simulated chests, and in which order.

The autoencoder goes on from that of tissue, its first and last layer made for one channel; so does
the UNet. Chests are drawn from a stream of their own: no sample shows one of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.run import faults
from lungkit.run.files import read_json, write_json
from lungkit.run.progress import Progress, say
from lungkit.run.seeds import stream
from lungkit.tools.base_networks import (
    IMAGE_SIZE,
    MODEL_INDEX,
    build_models,
    captioned_batches,
    precise,
    save,
    train_unet,
)
from lungkit.tools.tokenizer import build_tokenizer

WINDOW = (-1000.0, 400.0)  # of ct_seg.py
CROP_MM, SLICE_MM = 64.0, 384.0
NODULES, HEALTHY, SLICES, ZOOMED = 10, 6, 4, 4  # of a patient; each nodule is cut twice
DRAWN = ("chests*",)  # files that only the making needs
SLICE_SIZE = 128  # slices are kept at this size, as ct_seg.py makes them at demo
COARSE_SHARE = 0.5  # of patients whose pixels are twice as large, as the demo's sample has them
AUTOENCODER_RATE, AUTOENCODER_BATCH = 1e-3, 8  # as of tissue
SLICES_OF_BATCH = 2
FAR_MM = 10.0  # healthy images keep so far from nodules, as ct_seg.py's
PLANES = 100  # of the grid in which nodules are placed: 100 mm and more of the chest


@dataclass(frozen=True)
class Chests:
    """What is trained on: uint8 [N, S, S, 1], and of each image the classes that it is of.

    zoomed: crops of other fields, for the autoencoder alone.
    """

    crops: np.ndarray
    crop_labels: list[list[str]]
    slices: np.ndarray
    slice_labels: list[list[str]]
    zoomed: np.ndarray


# ------------------------------------------------------------------ simulated chests

class Patient:
    """One simulated chest with its scanner, to be cut anywhere."""

    def __init__(self, number: int, seed: int) -> None:
        from lungkit.phantom.thorax import scans
        from lungkit.phantom.thorax.nodules import Law

        plan = scans.Plan(stream("base model of ct", seed), number + 1, NODULES, 256, PLANES,
                          None, Law(), False)
        self.scene, grids = scans.draw_scene(plan, number)
        self.grid, self.scanner = grids[0], plan.scanner(number, 0)
        self.rng = plan.draws(number, 1000)
        self.coarse = 2 if self.rng.random() < COARSE_SHARE else 1
        self.nodules = [each for each in self.scene.nodules if each.diameter_mm >= 3]

    def cut(self, centre_mm, side_mm: float, size: int, *, whole: bool = False) -> np.ndarray:
        """uint8 [size, size]: a field in the axial plane of a point, scanned and in the window."""
        from lungkit.ct.crops import OUTSIDE_HU, Field, sample, to_grey
        from lungkit.phantom.thorax import scanner, scene

        x, y, z = (float(each) for each in centre_mm)
        spacing, thickness = self.scanner.spacing_mm * self.coarse, self.scanner.thickness_mm
        pixels = int(1.15 * side_mm / spacing) + 8
        corner = (x - spacing * (pixels - 1) / 2, y - spacing * (pixels - 1) / 2, z)
        if whole:
            spacing, pixels = self.grid.spacing_mm, self.grid.size
            corner = (*self.grid.origin_mm[:2], z)
        grid = scene.Grid(pixels, spacing, 1, thickness, thickness, corner)
        hu = scanner.expose(next(scene.slices(self.scene, grid)), self.scanner, spacing, self.rng,
                            whole=whole)
        column, row, _ = grid.index_of((x, y, z))
        window = Field(side_mm, size, WINDOW)
        return to_grey(sample(np.clip(hu, OUTSIDE_HU, 3071), window, (row, column),
                              (spacing, spacing), OUTSIDE_HU), WINDOW)

    def shows_a_nodule(self, point_mm, half_mm: float) -> bool:
        """Whether a nodule, however small, is in the field around a point or near its plane."""
        for each in self.scene.nodules:
            away = np.abs(np.asarray(each.centre_mm) - point_mm) - each.diameter_mm / 2
            if away[2] < FAR_MM and away[:2].max() < half_mm:
                return True
        return False

    def healthy_points(self, count: int, half_mm: float) -> list[np.ndarray]:
        """Up to `count` places in the lungs in whose field no nodule shows."""
        from lungkit.phantom.thorax import anatomy, vessels

        found = []
        for side in (-1, 1):
            points = vessels.lung_points(self.rng, self.scene.chest, side, 200)
            found += [point for point in anatomy.to_scanner(self.scene.chest, points)
                      if not self.shows_a_nodule(point, half_mm)]
        self.rng.shuffle(found)
        return found[:count]


def classes_of(nodule) -> list[str]:
    """The classes of ct_seg.py's tasks that a nodule belongs to."""
    from lungkit.ct.truth import BENIGN, GRADES, MALIGNANT, NODULE

    histology = {"A": "adenocarcinoma", "B": "small_cell_carcinoma", "E": "large_cell_carcinoma",
                 "G": "squamous_cell_carcinoma"}[nodule.histology]
    side = {1: [BENIGN], 2: [BENIGN], 3: [], 4: [MALIGNANT, histology],
            5: [MALIGNANT, histology]}[nodule.grade]
    return [*side, GRADES[nodule.grade - 1], NODULE]


def draw_patient(number: int, seed: int) -> Chests:
    """The images of one patient."""
    from lungkit.ct.truth import HEALTHY as CLEAR

    patient = Patient(number, seed)
    rng, half = patient.rng, CROP_MM / 2
    crops, labels, slices, slice_labels = [], [], [], []
    for nodule in patient.nodules:
        for height in (0.0, rng.uniform(-0.3, 0.3) * nodule.diameter_mm):
            centre = np.asarray(nodule.centre_mm) + (*rng.normal(0, 0.7, 2), height)
            crops.append(patient.cut(centre, CROP_MM, IMAGE_SIZE))
            labels.append(classes_of(nodule))
    for point in patient.healthy_points(HEALTHY, half):
        crops.append(patient.cut(point, CROP_MM, IMAGE_SIZE))
        labels.append([CLEAR])
    middle = np.asarray(patient.grid.origin_mm) + patient.grid.spacing_mm * patient.grid.size / 2
    shown = [(each.centre_mm[2], classes_of(each)) for each in patient.nodules[:SLICES // 2]]
    shown += [(point[2], [CLEAR]) for point in
              patient.healthy_points(SLICES - len(shown), SLICE_MM / 2)]
    for height, classes in shown:
        at = (*(middle[:2] + rng.normal(0, 4, 2)), height)
        slices.append(patient.cut(at, SLICE_MM, SLICE_SIZE, whole=True))
        slice_labels.append(classes)
    zoomed = [patient.cut(each.centre_mm, rng.uniform(CROP_MM / 2, 2 * CROP_MM), IMAGE_SIZE)
              for each in patient.nodules[:ZOOMED]]
    return Chests(np.stack(crops)[..., None], labels, np.stack(slices)[..., None], slice_labels,
                  np.stack(zoomed)[..., None])


def draw_chests(num_patients: int, seed: int, work_dir: Path) -> Chests:
    """The images of all patients, in the directory in the making once they are drawn."""
    truth_path = work_dir / "chests.json"
    if not truth_path.exists():
        progress, drawn = Progress("simulated patients", num_patients), []
        for number in range(num_patients):
            drawn.append(draw_patient(number, seed))
            progress.update(number + 1)
            faults.check_stop()
        for kind in ("crops", "slices", "zoomed"):
            np.save(work_dir / f"chests_{kind}.npy",
                    np.concatenate([getattr(each, kind) for each in drawn]))
        write_json(truth_path, {kind: [labels for each in drawn for labels in getattr(each, kind)]
                                for kind in ("crop_labels", "slice_labels")})
    images = {kind: np.load(work_dir / f"chests_{kind}.npy")
              for kind in ("crops", "slices", "zoomed")}
    return Chests(**images, **read_json(truth_path))


# ------------------------------------------------------------------ training

def start_from_tissue(models: dict) -> None:
    """Give the autoencoder of one channel and the UNet the weights of the base of tissue.

    Grey that is repeated thrice and averaged after goes through the first as through tissue's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from lungkit.generate.base_model import BASE_MODEL_DIR

    weights = AutoencoderKL.from_pretrained(BASE_MODEL_DIR / "vae").float().state_dict()
    weights["encoder.conv_in.weight"] = weights["encoder.conv_in.weight"].sum(1, keepdim=True)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        weights[name] = weights[name].mean(0, keepdim=True)
    models["vae"].load_state_dict(weights)
    models["unet"].load_state_dict(
        UNet2DConditionModel.from_pretrained(BASE_MODEL_DIR / "unet").float().state_dict())


def train_autoencoder(vae, chests: Chests, *, steps: int, seed: int, work_dir: Path,
                      precision: str) -> float:
    """KL autoencoder on crops, other fields and parts of slices, each its own way up.

    L1 on pixels and on their differences, tiny KL, as of tissue.
    """
    import torch

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import to_model_range
    from lungkit.learn.loop import train

    device = next(iter(vae.parameters())).device
    fields = np.concatenate([chests.crops, chests.zoomed])

    def batch_at(generator):
        def integers(high: int, count: int = 1) -> list[int]:
            return torch.randint(high, (count,), generator=generator).tolist()
        images = list(fields[integers(len(fields), AUTOENCODER_BATCH - SLICES_OF_BATCH)])
        for i in integers(len(chests.slices), SLICES_OF_BATCH):
            top, left = integers(SLICE_SIZE - IMAGE_SIZE + 1, 2)
            images.append(chests.slices[i, top:top + IMAGE_SIZE, left:left + IMAGE_SIZE])
        turned = [orient(image, which, axes=(0, 1)) for image, which in
                  zip(images, integers(8, AUTOENCODER_BATCH), strict=True)]
        return to_model_range(np.stack(turned), 1)

    def loss_at(step, generator):
        batch = batch_at(generator).to(device)
        noise = torch.randn((len(batch), 4, IMAGE_SIZE // 4, IMAGE_SIZE // 4), generator=generator)
        with precise(device, precision):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.mean + posterior.std * noise.to(device)).sample.float()
        edges = sum((decoded.diff(dim=axis) - batch.diff(dim=axis)).abs().mean() for axis in (2, 3))
        return (decoded - batch).abs().mean() + edges + 1e-6 * posterior.kl().float().mean()

    return train(vae.parameters(), loss_at, what="base vae", steps=steps, seed=seed,
                 learning_rate=AUTOENCODER_RATE, ema_decay=0.999, weight_decay=1e-4,
                 checkpoint_path=work_dir / "vae.ckpt", jsonl_path=work_dir / "progress.jsonl")


def captions_of(labels: list[list[str]], num_crops: int) -> Callable:
    """caption(image, draw): a tenth are empty, the rest of one of the image's classes.

    The first `num_crops` images are crops, the others whole slices.
    """
    from lungkit.generate.prompts import CT_PROMPTS_PATH, VIEWS, Prompts

    prompts = [Prompts(CT_PROMPTS_PATH, view=view) for view in VIEWS]

    def caption(i: int, draw: random.Random) -> str:
        if draw.random() < 0.1:
            return ""
        return prompts[i >= num_crops].caption(draw.choice(labels[i]), draw)
    return caption


def images_of(chests: Chests, seed: int) -> np.ndarray:
    """What the UNet learns from, uint8 [N, 64, 64, 1]: crops, each turned its own way, then slices.

    Slices stay upright. There are so many crops that one orientation of each is enough.
    """
    import cv2

    from lungkit.data.orientations import orient

    ways = np.random.default_rng(seed).integers(0, 8, len(chests.crops))
    crops = [orient(crop, int(way), axes=(0, 1))
             for crop, way in zip(chests.crops, ways, strict=True)]
    slices = [cv2.resize(image, (IMAGE_SIZE,) * 2, interpolation=cv2.INTER_AREA)[..., None]
              for image in chests.slices]
    return np.stack(crops + slices)


def pretrain(work_dir: Path, *, num_patients: int, autoencoder_steps: int, unet_steps: int,
             batch_size: int, seed: int, precision: str, device) -> dict[str, float]:
    """Train autoencoder, then UNet with text encoder on `device`; save each in work_dir."""
    from lungkit.generate.latents import Latents, training_schedule
    from lungkit.generate.prompts import CT_PROMPTS_PATH, Prompts

    chests = draw_chests(num_patients, seed, work_dir)
    tokenizer = build_tokenizer(work_dir / "tokenizer", Prompts(CT_PROMPTS_PATH))
    models = build_models(tokenizer, channels=1)
    start_from_tissue(models)
    vae, text_encoder, unet = (models[name].to(device) for name in ("vae", "text_encoder", "unet"))
    say("parameters: " + ", ".join(f"{name} {sum(p.numel() for p in model.parameters()):,}"
                                   for name, model in models.items()))
    losses = {"vae": train_autoencoder(vae, chests, steps=autoencoder_steps, seed=seed,
                                       work_dir=work_dir, precision=precision)}
    vae.requires_grad_(False).eval()
    latents = Latents(vae, images_of(chests, seed), symmetries=1)
    scale = 1 / latents.deviation()
    vae.register_to_config(scaling_factor=scale)
    save(vae, work_dir / "vae")

    caption = captions_of(chests.crop_labels + chests.slice_labels, len(chests.crops))
    schedule = training_schedule()
    schedule.save_pretrained(work_dir / "scheduler")
    batch_at = captioned_batches(latents, scale, tokenizer, caption, batch_size)
    losses["unet"] = train_unet(unet, text_encoder, schedule, batch_at, steps=unet_steps,
                                seed=seed + 1, work_dir=work_dir, precision=precision)
    save(unet, work_dir / "unet")
    save(text_encoder, work_dir / "text_encoder")
    write_json(work_dir / "model_index.json", MODEL_INDEX)
    return losses
