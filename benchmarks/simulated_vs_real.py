#!/usr/bin/env python
"""Tell simulated tissue from LC25000, and find out by what.

    LC25000=<folder with lung_image_sets/ and groups.csv> \
    python benchmarks/simulated_vs_real.py --pictures docs | tee benchmarks/simulated_vs_real.txt

A CNN is trained to tell the two apart and scored on source tiles and patients it has not seen, as
they come and then with one cue after the other taken away from both: compression, colour, stain,
fine texture, layout, spectrum. What it can still do names what the simulation gets wrong. Beside it
stand logistic regressions on single kinds of measurements, whose largest differences are listed,
and class activation maps (Zhou et al. 2016, arXiv:1512.04150), which are exact for this CNN. Last,
the domain gap in the other direction: a CNN trained on simulated classes, tested on real ones.

AUROC 0.5 is a guess and 1.0 certainty; every number is of held-out source tiles (groups.csv) and
held-out patients, means over seeds. About 40 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from lungkit.histology import background, density, stain
from lungkit.nuclei import detect
from lungkit.phantom import paint, sample, tissue
from lungkit.run.tables import read_table
from lungkit.run.workers import mapper

SIZE = 224
SIMULATED_SEED = 50_000_000  # neither the sample's tissue nor the base model's
NUM_PATIENTS, TILES_PER_PATIENT = 45, 20  # 270-322 tiles a class
REAL_PER_GROUP = 2  # of the up to six siblings of one LC25000 source tile: 300 tiles a class
TEST_SHARE = 0.3
JPEG_QUALITY = 75  # what LC25000's files carry in their quantisation tables
CROP_PX, BATCH, STEPS, PEAK_RATE = 112, 32, 100, 2e-3
LEARNT = 0.98  # a CNN with a lower AUROC may not have learnt enough yet: it is trained for longer
KINDS = ("real", "simulated")


# --- the two collections --------------------------------------------------------------------------

def load_real(root: Path):
    """uint8 [N, 224, 224, 3], class labels [N], groups [N] of LC25000."""
    taken, images, labels, groups = {}, [], [], []
    for _, row in read_table(root / "groups.csv", ("file_name", "label", "group")).rows:
        taken[row["group"]] = taken.get(row["group"], 0) + 1
        if taken[row["group"]] > REAL_PER_GROUP:
            continue
        image = Image.open(root / "lung_image_sets" / row["file_name"]).convert("RGB")
        images.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)
                                 if image.size != (SIZE, SIZE) else image))
        labels.append(paint.CLASSES.index(row["label"]))
        groups.append(row["group"])
    return np.stack(images), np.array(labels), np.array(groups)


def _simulate(item):
    label, patient, index = item
    return paint.draw_tile(label, patient=patient, index=index, seed=SIMULATED_SEED,
                             image_size=SIZE).image


def load_simulated(workers: int):
    plan = sample.plan_sample(NUM_PATIENTS, TILES_PER_PATIENT)
    with mapper(workers) as mapped:
        images = np.stack(list(mapped(_simulate, plan)))
    labels = np.array([paint.CLASSES.index(label) for label, _, _ in plan])
    return images, labels, np.array([f"patient{patient}" for _, patient, _ in plan])


def held_out(groups, rng):
    """bool [N]: whose group is in the test set. A group is on one side only."""
    names = rng.permutation(np.unique(groups))
    return np.isin(groups, names[:round(TEST_SHARE * len(names))])


# --- what is taken away ---------------------------------------------------------------------------

def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


def grey(image):
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


def white_balanced(image):
    """The image with a white background: a tinted one is taken for tissue by the tissue mask."""
    return background.balance_white(image, background.background_light(image))


def stains_of(image):
    """The white-balanced image, and its stains or None."""
    balanced = white_balanced(image)
    inside = balanced[background.tissue_mask(balanced)]
    return balanced, stain.estimate_stains(density.optical_density(inside))


def equal_stain(images, reference):
    done = []
    for image in images:
        balanced, found = stains_of(image)
        done.append(balanced if found is None
                    else stain.normalise_stains(balanced, found, reference))
    return np.stack(done)


def blur(image, sigma_px=2.0):
    return cv2.GaussianBlur(image, (0, 0), sigma_px)


def coarse(image, side=28):
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def ranks(image):
    """Grey levels replaced by their ranks: every image gets the same histogram."""
    values = grey(image)[..., 0].ravel()
    order = np.argsort(values + np.random.default_rng(0).random(values.size), kind="stable")
    flat = np.empty(values.size, np.uint8)
    flat[order] = np.arange(values.size) * 256 // values.size
    return np.repeat(flat.reshape(SIZE, SIZE, 1), 3, 2)


def shuffled(image, side=28):
    """Patches in another order: texture stays, layout goes."""
    count = SIZE // side
    order = np.random.default_rng(int(image[::16, ::16].sum())).permutation(count * count)
    patches = image.reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return patches[order].reshape(count, count, side, side, 3).swapaxes(1, 2).reshape(image.shape)


RADIUS = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
# of the rings, cycles a px; below the first no ring is full
EDGES = np.geomspace(2 / SIZE, 0.5, 20)
BINS = np.searchsorted(EDGES, RADIUS)


def spectrum(image):
    """Natural logarithm of the radially averaged power of the grey image, float [20]."""
    values = grey(image)[..., 0].astype(float)
    window = np.hanning(SIZE)[:, None] * np.hanning(SIZE)
    power = np.abs(np.fft.fft2((values - values.mean()) * window)) ** 2
    mean = np.bincount(BINS.ravel(), power.ravel()) / np.bincount(BINS.ravel())
    return np.log(mean[1:] + 1e-3)


def equal_spectrum(images):
    """Grey images whose rings of the spectrum all have the collection's mean power."""
    values = np.stack([grey(image)[..., 0] for image in images]).astype(np.float32)
    means = values.mean((1, 2), keepdims=True)
    counts = np.bincount(BINS.ravel())
    powers = [np.bincount(BINS.ravel(), (np.abs(np.fft.fft2(one)) ** 2).ravel()) / counts
              for one in values - means]
    target = np.exp(np.mean(np.log(np.array(powers) + 1), 0))
    done = []
    for one, mean, power in zip(values, means, powers):
        gain = np.sqrt(target / (power + 1))
        changed = np.fft.ifft2(np.fft.fft2(one - mean) * gain[BINS]).real + 170
        done.append(np.uint8(np.clip(changed, 0, 255)))
    return np.repeat(np.stack(done)[..., None], 3, 3)


def nuclei_mask(image):
    return np.repeat(np.uint8(255 * (detect.detect_nuclei(image, modality="he").labels > 0))
                     [..., None], 3, 2)


def air_mask(image):
    glass = ~background.tissue_mask(white_balanced(image))
    return np.repeat(np.uint8(255 * glass)[..., None], 3, 2)


# --- the CNN --------------------------------------------------------------------------------------

def small_cnn(num_outputs: int) -> nn.Sequential:
    """The design of the comparison's "small" CNN: five convolutions, 0.14 M weights."""
    def block(num_in, num_out, stride):
        return [nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out),
                nn.ReLU(inplace=True)]

    return nn.Sequential(*block(3, 16, 2), *block(16, 32, 2), *block(32, 64, 2),
                         *block(64, 64, 1), *block(64, 128, 2), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(128, num_outputs))


def as_batch(images):
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return ((batch - 160) / 60).contiguous(memory_format=torch.channels_last)


def train(images, labels, seed: int, *, steps=STEPS, crop=CROP_PX):
    """Train on random crops, turned and mirrored; every label is seen equally often."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = small_cnn(int(labels.max()) + 1).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, steps, pct_start=0.2)
    pools = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    for _ in range(steps):
        chosen = np.array([rng.choice(pools[k % len(pools)]) for k in range(BATCH)])
        batch = []
        for i in chosen:
            y, x = rng.integers(0, images.shape[1] - crop + 1, 2)
            patch = np.rot90(images[i, y:y + crop, x:x + crop], rng.integers(4))
            batch.append(patch[:, ::rng.choice([1, -1])])
        loss = nn.functional.cross_entropy(model(as_batch(np.stack(batch))),
                                           torch.from_numpy(labels[chosen]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def predict(model, images):
    return np.concatenate([model(as_batch(images[i:i + 64])).softmax(1).numpy()
                           for i in range(0, len(images), 64)])


def auroc(scores, truth) -> float:
    """Area under the ROC curve (Mann-Whitney), ties count half."""
    from scipy.stats import rankdata

    rank, positive = rankdata(scores), truth.sum()
    return float((rank[truth == 1].sum() - positive * (positive + 1) / 2)
                 / (positive * (len(truth) - positive)))


class Collections:
    """Both collections as one: images of a condition, kind 0 real and 1 simulated, class, group."""

    def __init__(self, real, simulated):
        self.kind = np.repeat([0, 1], [len(real[1]), len(simulated[1])])
        self.label = np.concatenate([real[1], simulated[1]])
        self.group = np.concatenate([real[2], simulated[2]])
        self.raw = np.concatenate([real[0], simulated[0]])

    def each(self, function, images):
        return np.stack([function(image) for image in images])

    def split(self, seed):
        rng = np.random.default_rng(seed)
        test = np.zeros(len(self.kind), bool)
        for kind in (0, 1):
            test[self.kind == kind] = held_out(self.group[self.kind == kind], rng)
        return ~test, test


def tell_apart(data: Collections, images, seeds: int, steps: int = STEPS):
    """Mean AUROC and accuracy over seeds: all, then AUROC of each class; and the last model."""
    rows = []
    for seed in range(seeds):
        learn, test = data.split(seed)
        model = train(images[learn], data.kind[learn], seed, steps=steps)
        score, truth, label = predict(model, images[test])[:, 1], data.kind[test], data.label[test]
        rows.append([auroc(score, truth), np.mean([np.mean((score[truth == kind] > 0.5) == kind)
                                                   for kind in (0, 1)]),
                     *(auroc(score[label == one], truth[label == one]) for one in range(3))])
    return np.mean(rows, 0), np.std([row[0] for row in rows]), model


# --- measurements ---------------------------------------------------------------------------------

def measure(image) -> dict[str, dict[str, float]]:
    """Kinds of measurements of one image, each {name: value}.

    clark-evans: mean distance to the nearest nucleus over that of as many at random (1954).
    """
    from scipy.spatial import cKDTree

    balanced = white_balanced(image)
    tissue_at = background.tissue_mask(balanced)
    if not tissue_at.any():
        tissue_at[:] = True
    colour, balanced_colour = (
        {f"{kind} {name}": value for kind, values in
         (("mean", pixels.mean(0)), ("sd", pixels.std(0)))
         for name, value in zip(("red", "green", "blue"), values)}
        for pixels in (image[tissue_at].astype(float), balanced[tissue_at].astype(float)))
    found = detect.detect_nuclei(balanced, modality="he")
    inside = found.labels > 0
    density = detect.haematoxylin(balanced)
    ring = (cv2.dilate(np.uint8(inside), np.ones((9, 9))) > 0) & ~inside
    areas = found.areas_px * (tissue.FIELD_UM / SIZE) ** 2 if len(found) else np.zeros(1)
    nearest = (cKDTree(found.centroids).query(found.centroids, k=2)[0][:, 1]
               if len(found) > 1 else np.zeros(1)) * tissue.FIELD_UM / SIZE
    of_nuclei = {"count": len(found), "mean area um2": areas.mean(),
                 "area cv": areas.std() / max(areas.mean(), 1),
                 "nearest neighbour um": np.median(nearest),
                 "clark-evans": nearest.mean() * 2 * np.sqrt(len(found)) / tissue.FIELD_UM}
    of_stain = {"haematoxylin of nuclei": density[inside].mean() if inside.any() else 0.0,
                "its sd between pixels": density[inside].std() if inside.any() else 0.0,
                "contrast to surroundings": (density[inside].mean() - density[ring].mean()
                                             if ring.any() else 0.0)}
    rings = EDGES * SIZE / tissue.FIELD_UM
    return {"colour of tissue": colour, "the same, white-balanced": balanced_colour,
            "share of air": {"air": 1 - tissue_at.mean()},
            "nuclei: number, size, spacing": of_nuclei, "nuclei: staining": of_stain,
            "power spectrum": {f"from {one:.3f}/um": value
                               for one, value in zip(rings, spectrum(image))}}


def logistic(features, truth, penalty=1e-2):
    """Weights of a logistic regression on standardised features [N, D]; last: the constant."""
    from scipy.optimize import minimize

    with_one = np.c_[features, np.ones(len(features))]
    sign = 2.0 * truth - 1

    def loss(weights):
        margin = sign * (with_one @ weights)
        pull = -sign / (1 + np.exp(np.clip(margin, -60, 60)))
        return (np.logaddexp(0, -margin).mean() + penalty * (weights[:-1] ** 2).sum(),
                with_one.T @ pull / len(truth) + np.r_[2 * penalty * weights[:-1], 0])

    return minimize(loss, np.zeros(with_one.shape[1]), jac=True, method="L-BFGS-B").x


def by_measurements(data: Collections, measured, seeds: int):
    """Print the AUROC of each kind of measurement, and the single ones that differ most."""
    print(f"\nLogistic regression on measurements alone, same JPEG\n{'kind of measurement':34s}"
          f"{'AUROC':>7s}   largest single differences, simulated against real (AUROC)")
    for kind in measured[0]:
        names = list(measured[0][kind])
        table = np.array([list(one[kind].values()) for one in measured])
        scores = []
        for seed in range(seeds):
            learn, test = data.split(seed)
            scaled = (table - table[learn].mean(0)) / (table[learn].std(0) + 1e-9)
            weights = logistic(scaled[learn], data.kind[learn])
            scores.append(auroc(scaled[test] @ weights[:-1], data.kind[test]))
        single = [auroc(table[:, k], data.kind) for k in range(len(names))]
        largest = sorted(range(len(names)), key=lambda k: -abs(single[k] - 0.5))[:3]
        words = "; ".join(
            f"{names[k]} {table[data.kind == 1, k].mean():.3g} against "
            f"{table[data.kind == 0, k].mean():.3g} ({single[k]:.2f})" for k in largest)
        print(f"{kind:34s}{np.mean(scores):7.3f}   {words}", flush=True)
    print("\nNuclei by class: simulated / real, means of tiles")
    for label, name in enumerate(paint.CLASSES):
        cells = []
        for key in ("count", "mean area um2", "area cv", "nearest neighbour um", "clark-evans"):
            values = np.array([one["nuclei: number, size, spacing"][key] for one in measured])
            cells.append(f"{key} " + " / ".join(
                f"{values[(data.kind == kind) & (data.label == label)].mean():.3g}"
                for kind in (1, 0)))
        print(f"  {name:9s} {'; '.join(cells)}")


# --- pictures -------------------------------------------------------------------------------------

@torch.inference_mode()
def activation(model, image):
    """Evidence for "simulated" float32 [S, S]: the last layer's weights on the last features."""
    features = model[:-3](as_batch(image[None]))[0]
    weights = model[-1].weight[1] - model[-1].weight[0]
    return cv2.resize((weights[:, None, None] * features).sum(0).numpy(), (SIZE, SIZE),
                      interpolation=cv2.INTER_CUBIC)


def where_it_looks(model, data: Collections, images):
    """Print the mean evidence in nuclei, other tissue and air of each ninth tile, learnt or not."""
    print("\nWhere the CNN finds its evidence (class activation, + speaks for simulated)\n"
          f"{'tiles':11s}{'nuclei':>9s}{'other tissue':>14s}{'air':>9s}")
    for kind, name in enumerate(KINDS):
        rows = []
        for image in images[data.kind == kind][::9]:
            found, solid = nuclei_mask(image)[..., 0] > 0, background.tissue_mask(image)
            at = activation(model, image)
            rows.append([at[mask].mean() if mask.any() else np.nan
                         for mask in (found, solid & ~found, ~solid & ~found)])
        print(f"{name:11s}" + "".join(f"{value:{width}.2f}" for value, width in
                                      zip(np.nanmean(rows, 0), (9, 14, 9))))


def heat(image, at, scale):
    """Evidence laid over a grey tile: red speaks for simulated, blue for real."""
    strength = np.clip(at / scale, -1, 1)[..., None]
    colour = np.where(strength > 0, (220, 30, 30), (30, 60, 220))
    return np.uint8(grey(image) * (1 - 0.6 * abs(strength)) + colour * 0.6 * abs(strength))


def sheet(rows, path: Path, names, tile_px=150, quality=78):
    """Rows of tiles with a name in front, as JPEG."""
    drawn = []
    for name, row in zip(names, rows):
        margin = np.full((tile_px, 120, 3), 255, np.uint8)
        for line, word in enumerate(name.split("\n")):
            cv2.putText(margin, word, (4, 20 + 20 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.45,
                        (0, 0, 0), 1, cv2.LINE_AA)
        tiles = [cv2.copyMakeBorder(cv2.resize(tile, (tile_px - 4,) * 2,
                                               interpolation=cv2.INTER_AREA), 2, 2, 2, 2,
                                    cv2.BORDER_CONSTANT, value=(255, 255, 255)) for tile in row]
        drawn.append(np.hstack([margin, *tiles]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(drawn)).save(path, quality=quality)


def draw_pictures(folder: Path, data: Collections, images, model):
    """docs/simulated_vs_real.jpg: tiles drawn at random, not chosen; and the activation maps."""
    rng = np.random.default_rng(1)
    rows, names, maps = [], [], []
    scale = np.percentile([abs(activation(model, image)) for image in images[::97]], 97)
    for label, name in enumerate(paint.CLASSES):
        for kind in (1, 0):
            pool = np.flatnonzero((data.kind == kind) & (data.label == label))
            pool = pool[np.unique(data.group[pool], return_index=True)[1]]  # one of each group
            chosen = rng.choice(pool, min(6, len(pool)), replace=False)
            rows.append([data.raw[i] for i in chosen])
            names.append(f"{name}\n{KINDS[kind]}")
            maps.append([tile for i in chosen[:3] for tile in
                         (images[i], heat(images[i], activation(model, images[i]), scale))])
    sheet(rows, folder / "simulated_vs_real.jpg", names)
    sheet(maps, folder / "simulated_vs_real_evidence.jpg", names)


# --- the domain gap -------------------------------------------------------------------------------

def balanced_accuracy(model, images, labels):
    right = predict(model, images).argmax(1) == labels
    return np.mean([right[labels == one].mean() for one in range(3)])


def domain_gap(data: Collections, conditions: dict, seeds: int):
    """Print balanced accuracies of three-class CNNs trained on one kind and tested on both."""
    print("\nThree classes, 112 px: balanced accuracy (chance 0.333), mean +- sd of "
          f"{seeds} seeds\n{'trained on':12s}{'images':16s}{'on real':>16s}{'on simulated':>16s}")
    for kind, name in enumerate(KINDS):
        for words, images in conditions.items():
            small = np.stack([cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA)
                              for image in images])
            rows = []
            for seed in range(seeds):
                learn, test = data.split(seed)
                mine = learn & (data.kind == kind)
                model = train(small[mine], data.label[mine], seed, steps=2 * STEPS, crop=96)
                rows.append([balanced_accuracy(model, small[test & (data.kind == other)],
                                               data.label[test & (data.kind == other)])
                             for other in (0, 1)])
            print(f"{name:12s}{words:16s}" + "".join(
                f"{m:10.3f} +-{s:.2f}" for m, s in zip(np.mean(rows, 0), np.std(rows, 0))),
                flush=True)


# long: one comparison after another, each printed as it is done
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lc25000", type=Path, metavar="DIR",
                        default=os.environ.get("LC25000"), help="lung_image_sets/, groups.csv")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write pictures here")
    parser.add_argument("--seeds", type=int, default=2, help="splits and trainings of each CNN")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw tissue")
    options = parser.parse_args()
    if options.lc25000 is None or not (Path(options.lc25000) / "groups.csv").exists():
        parser.error("give --lc25000 or LC25000=<dir>: the folder of lung_image_sets/ and "
                     "groups.csv")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    start = time.monotonic()
    data = Collections(load_real(Path(options.lc25000)), load_simulated(options.workers))
    counts = [[int(((data.kind == kind) & (data.label == label)).sum()) for label in range(3)]
              for kind in (0, 1)]
    print(f"{'/'.join(paint.CLASSES)}: LC25000 {counts[0]} tiles of "
          f"{len(set(data.group[data.kind == 0]))} source tiles, simulated {counts[1]} of "
          f"{NUM_PATIENTS} patients; {TEST_SHARE:.0%} of each held out; {options.seeds} seeds; "
          f"CNN {STEPS} steps of {BATCH} crops of {CROP_PX} px at {SIZE} px a tile")

    same = data.raw.copy()
    for i in np.flatnonzero(data.kind == 1):
        same[i] = jpeg(same[i])
    found = [stains_of(image)[1] for image in same[data.kind == 0][::7]]
    reference = stain.reference_stains([one for one in found if one is not None])
    stained = equal_stain(same, reference)
    def each(function, images):
        return lambda: data.each(function, images)

    conditions = {
        "as they come": lambda: data.raw,
        "same JPEG": lambda: same,
        "same JPEG, grey": each(grey, same),
        "same JPEG, same stain (Macenko)": lambda: stained,
        "same stain, patches of 28 px shuffled": each(shuffled, stained),
        "same stain, blurred, sigma 2 px": each(blur, stained),
        "same stain, blurred, sigma 6 px": each(lambda image: blur(image, 6.0), stained),
        "same stain, 28 x 28 px": each(coarse, stained),
        "same grey histogram": each(ranks, same),
        "same power spectrum, grey": lambda: equal_spectrum(same),
        "mask of detected nuclei only": each(nuclei_mask, stained),
        "mask of air only": each(air_mask, same),
    }
    print(f"\n{'CNN: real or simulated?':40s}{'AUROC':>7s}{'sd':>7s}{'acc.':>7s}"
          + "".join(f"{name:>10s}" for name in paint.CLASSES))
    for words, make in conditions.items():
        images = make()
        for times in (1, 4):
            row, sd, model = tell_apart(data, images, options.seeds, times * STEPS)
            print(f"{words if times == 1 else f'  {times} times the steps':40s}{row[0]:7.3f}"
                  f"{sd:7.3f}{row[1]:7.3f}" + "".join(f"{value:10.3f}" for value in row[2:]),
                  flush=True)
            if row[0] > LEARNT:
                break
        if words == "same JPEG, same stain (Macenko)":
            explained = model
    by_measurements(data, [measure(image) for image in same], options.seeds)
    where_it_looks(explained, data, stained)
    if options.pictures:
        draw_pictures(options.pictures, data, stained, explained)
    domain_gap(data, {"as they come": data.raw, "same stain": stained}, options.seeds)
    print(f"\n{(time.monotonic() - start) / 60:.0f} min on one core")


if __name__ == "__main__":
    main()
