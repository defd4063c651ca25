#!/usr/bin/env python
"""Show the arms of a run of CT side by side, and how often they show the class that was meant.

    MODALITY=ct bash run_pipeline.slurm
    python benchmarks/ct_arms.py runs/ct-crop-binary-demo --picture docs/pictures/ct_arms.jpg \
        > benchmarks/ct_arms.txt

Label fidelity and the distances are those of lungkit.tools.fidelity: a linear classifier of
pretrained features, trained on real's train images, is asked for the class of each arm's train
images and of real's val and test images; KID stands between that of real's own train images and
that of noise. Intervals are 95 %, over an arm's images and over real's patients.

The picture is of a simulated thorax alone: no patient belongs on a page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402  (after the path is set)

from lungkit.compare.contact_sheet import labelled_grid  # noqa: E402
from lungkit.data.dataset import Dataset, open_dataset  # noqa: E402

ARMS = ("real", "layout", "diffusion", "prompt")
OF_CLASS, SIDE_PX, MARGIN_PX = 6, 96, 90
SIMULATED = "THORAX-"  # how lungkit.phantom.thorax names its patients


def measure(folders: list[Path], real: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "lungkit.tools.fidelity", "--device", "cpu",
                           "--real", str(real), "--data", *map(str, folders)], cwd=ROOT,
                          stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(f"lungkit.tools.fidelity ended with {done.returncode}")


def interval(found: dict, form: str) -> str:
    if found.get("low") is None:
        return f"{found['value']:{form}}"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def show(folder: Path) -> None:
    """Print what fidelity.json says of an arm, a line a class."""
    for label, found in json.loads((folder / "fidelity.json").read_text())["classes"].items():
        says = found["label"]
        line = (f"  {folder.name:<10}{label:<10}label {interval(says['arm'], '.2f')} of "
                f"{says['arm']['n']}, real's held out {interval(says['real'], '.2f')} of "
                f"{says['real']['n']}")
        if "scores" in found:
            kid = found["scores"]["kid"]
            line += (f"   KID {interval(kid, '.3f')}, real's own {kid['floor']:.3f}, noise "
                     f"{kid['ceiling']:.3f}; n {found['n']}")
        print(line)


def examples(dataset: Dataset) -> list[np.ndarray]:
    """uint8 [SIDE_PX, SIDE_PX, 3] of evenly spaced train images, OF_CLASS of each class."""
    import cv2

    found = []
    for label in dataset.classes:
        rows = dataset.select("train", label)
        for at in np.linspace(0, len(rows) - 1, min(OF_CLASS, len(rows))).round().astype(int):
            grey = dataset.image(rows[at]).reshape(dataset.image_size, dataset.image_size, -1)
            large = cv2.resize(np.ascontiguousarray(grey[..., 0]), (SIDE_PX, SIDE_PX),
                               interpolation=cv2.INTER_CUBIC)
            found.append(np.repeat(large[..., None], 3, -1))
    return found


def write_picture(datasets: list[Dataset], path: Path) -> None:
    import cv2
    from PIL import Image

    if not all(row.group.startswith(SIMULATED) for row in datasets[0].rows):
        sys.exit(f"{datasets[0].path} is not of a simulated thorax: no picture is made of it")
    sheet = labelled_grid({each.name: examples(each) for each in datasets}, margin_px=MARGIN_PX)
    head = np.full((22, sheet.shape[1], 3), 255, np.uint8)
    wide = (sheet.shape[1] - MARGIN_PX) // len(datasets[0].classes)
    for number, label in enumerate(datasets[0].classes):
        cv2.putText(head, label, (MARGIN_PX + number * wide + 4, 16), cv2.FONT_HERSHEY_SIMPLEX,
                    0.45, (0, 0, 0), 1, cv2.LINE_AA)
    Image.fromarray(np.concatenate([head, sheet])).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, with datasets/")
    parser.add_argument("--picture", type=Path, metavar="JPG", help="also write the picture")
    how = parser.parse_args()
    folders = [path for path in (how.run / "datasets" / name for name in ARMS)
               if (path / "dataset.json").exists()]
    datasets = [open_dataset(path) for path in folders]
    real = datasets[0]
    counts = "; ".join(f"{split} {sum(row.values())}" for split, row in real.counts.items())
    print(f"{', '.join(real.classes)}; {real.image_size} px; real: {counts}, of "
          f"{len({row.group for row in real.rows})} patients; made by "
          + ", ".join(f"{each.name} {str(each.manifest['commit'])[:7]}" for each in datasets))
    measure(folders[1:], folders[0])
    for folder in folders[1:]:
        show(folder)
    if how.picture:
        write_picture(datasets, how.picture)


if __name__ == "__main__":
    main()
