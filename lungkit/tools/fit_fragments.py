"""Fit the rule by which `lungkit.nuclei.fragments` joins fragments of nuclei; writes its
weights, assets/nuclei_fragments.json.

    python -m lungkit.tools.fit_fragments

Tiles of simulated tissue are drawn (H&E and DAPI), five pictures of each: as they are, and
changed: enlarged and stretched (nuclei up to twice as large and 2.2 times as long, as those of
real tumours can be), with coarser chromatin, blurred, sharpened, with noise, as JPEG. Each is cut
into fragments as `lungkit.nuclei.detect` does; a pair of touching fragments is one nucleus where
both lie mostly in the same true one. Unions count too: true pairs are joined at random and the
pairs that result are added. The network (fragments.log_odds) is fitted by its cross-entropy; a
fifth of the tiles is held out to report on. Seeds below MAX_SEED are used: benchmarks report on
others.

Exit status: 0 complete, 2 bad options.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lungkit.run import cli

MAX_SEED = 50
HIDDEN = 16
ROUNDS = 4  # of random joins of true pairs, of which JOIN_SHARE is joined in each
JOIN_SHARE = 0.5
BATCH_SIZE, NUM_EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 1024, 20, 8e-3, 1e-3  # ours


def change(image: np.ndarray, truth: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Change uint8 [S, S, 3] and its labels [S, S] as slides and tumours vary; ranges ours."""
    import cv2

    from lungkit.phantom import tissue

    size = len(image)
    scale, stretch = np.exp(rng.uniform(0, 0.64)), np.exp(rng.uniform(0, 0.8))
    turn = rng.uniform(0, np.pi)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.diag([scale * stretch, scale]) @ turned.T
    centre = np.full(2, (size - 1) / 2)
    matrix = np.c_[matrix, centre - matrix @ centre]
    image = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC,
                           borderMode=cv2.BORDER_REFLECT)
    truth = cv2.warpAffine(truth.astype(np.float32), matrix, (size, size),
                           flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT).astype(np.int32)
    density = -np.log((image.astype(np.float32) + 1) / 256)
    inside = cv2.GaussianBlur((truth > 0).astype(np.float32), (0, 0), 0.8)
    clumps = np.clip(tissue.noise(rng, rng.uniform(1, 3.5), size), -2, 2) * inside
    density *= 1 + rng.choice([0, 1], p=[0.3, 0.7]) * rng.uniform(0, 0.3) * clumps[..., None]
    if rng.random() < 0.5:
        density = cv2.GaussianBlur(density, (0, 0), rng.uniform(0.2, 0.9))
    if rng.random() < 0.4:
        density += rng.uniform(0.2, 0.8) * (density - cv2.GaussianBlur(density, (0, 0), 1.2))
    image = 256 * np.exp(-density) - 1 + rng.normal(0, rng.uniform(0, 3), image.shape)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        quality = int(rng.integers(70, 96))
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return image, truth


def pictures(seed: int, num_changed: int):
    """Yield (image, truth, modality) of the three classes and both modalities, from one seed."""
    from lungkit.phantom import paint

    rng = np.random.default_rng(seed)
    for label in paint.CLASSES:
        which = {"patient": seed % 7, "index": seed % 3, "seed": seed}
        tile = paint.draw_tile(label, **which)
        dapi = paint.draw_fluorescence(label, **which)[0, 0].astype(np.float32)
        low, high = np.percentile(dapi, (1, 99.8))
        dapi = np.clip((dapi - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        yield tile.image, tile.nuclei, "he"
        yield np.repeat(dapi[..., None], 3, axis=2), tile.nuclei, "fluorescence"
        for _ in range(num_changed):
            yield *change(tile.image, tile.nuclei, rng), "he"


def measure(image: np.ndarray, truth: np.ndarray, modality: str,
            rng) -> tuple[np.ndarray, np.ndarray]:
    """Features [P, 15] of pairs of fragments, and whether they are one nucleus, bool [P]."""
    from lungkit.nuclei import detect, fragments

    px_per_um = len(image) / detect.FIELD_UM
    labels, height, stain, *_ = detect.cut_fragments(image, modality, px_per_um)
    shared = np.zeros((labels.max() + 1, truth.max() + 1), np.int64)
    np.add.at(shared, (labels.ravel(), truth.ravel()), 1)
    owner = np.where(shared[:, 1:].any(axis=1), shared[:, 1:].argmax(axis=1), -1)
    sums, peaks, hulls = fragments.measure_regions(labels, height, stain)
    pairs, edges = fragments.find_touching(labels, height, stain)
    measured, same = [np.zeros((0, len(fragments.FEATURES)))], [np.zeros(0, bool)]
    for _ in range(ROUNDS):
        known = (owner[pairs] >= 0).all(axis=1)
        one = known & (owner[pairs[:, 0]] == owner[pairs[:, 1]])
        measured.append(fragments.features(pairs[known], edges[known], sums, peaks, hulls,
                                           px_per_um))
        same.append(one[known])
        chosen = one & (rng.random(len(pairs)) < JOIN_SHARE)
        if not chosen.any():
            break
        target = fragments.join_pairs(pairs[chosen], sums, peaks, hulls)
        pairs, edges, _ = fragments.rewire(pairs, edges, np.zeros(len(pairs)), target)
    return np.concatenate(measured), np.concatenate(same)


def fit(measured: np.ndarray, same: np.ndarray, held_out: np.ndarray) -> dict:
    """Fit the network to the rows that are not held out; returns what its file holds."""
    import torch
    from torch import nn

    from lungkit.nuclei.fragments import FEATURES

    torch.manual_seed(0)
    mean, scale = measured.mean(axis=0), measured.std(axis=0)
    values = torch.tensor((measured - mean) / scale, dtype=torch.float32)
    wanted = torch.tensor(same, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(len(FEATURES), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN),
                          nn.ReLU(), nn.Linear(HIDDEN, 1))
    loss_of = nn.BCEWithLogitsLoss()
    rows = torch.tensor(np.flatnonzero(~held_out))
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, NUM_EPOCHS * -(-len(rows) // BATCH_SIZE))
    for _ in range(NUM_EPOCHS):
        for batch in rows[torch.randperm(len(rows))].split(BATCH_SIZE):
            optimiser.zero_grad()
            loss_of(model(values[batch])[:, 0], wanted[batch]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        odds = model(values)[:, 0].numpy()
    right = ((odds > 0) == same)[held_out].mean()
    always = max(same[held_out].mean(), 1 - same[held_out].mean())
    print(f"{len(rows)} pairs fitted; of {held_out.sum()} held out {right:.3f} are told right "
          f"(the more frequent answer alone: {always:.3f})")
    stored = {"features": FEATURES, "mean": mean, "scale": scale}
    for k, layer in enumerate(model[::2]):
        stored[f"weight_{k}"], stored[f"bias_{k}"] = layer.weight.T.detach(), layer.bias.detach()
    return {name: value if name == "features"
            else np.round(np.asarray(value, np.float64), 4).tolist()
            for name, value in stored.items()}


def run(*, output: Path, num_seeds: int, num_changed: int) -> None:
    """Draw, measure, fit, write."""
    from lungkit.run import files
    from lungkit.run.progress import Progress

    rng = np.random.default_rng(0)
    measured, same, seeds = [], [], []
    progress = Progress("seeds drawn and cut", num_seeds)
    for seed in range(num_seeds):
        for image, truth, modality in pictures(seed, num_changed):
            features, one = measure(image, truth, modality, rng)
            measured.append(features)
            same.append(one)
            seeds.append(np.full(len(one), seed))
        progress.update(seed + 1)
    stored = fit(np.concatenate(measured), np.concatenate(same), np.concatenate(seeds) % 5 == 4)
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in stored.items())
    files.write_text(output, f"{{\n{lines}\n}}\n")


def build_parser() -> argparse.ArgumentParser:
    """Options of the fit."""
    from lungkit.nuclei.fragments import WEIGHTS_PATH

    parser = cli.stage_parser("python -m lungkit.tools.fit_fragments", __doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS_PATH, metavar="FILE",
                        help="weights to write")
    parser.add_argument("--num-seeds", type=int, choices=range(5, MAX_SEED + 1), default=MAX_SEED,
                        metavar=f"5..{MAX_SEED}", help="tiles a class")
    parser.add_argument("--num-changed", type=cli.positive_int, default=3, metavar="N",
                        help="changed pictures of each tile")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse options and run."""
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
