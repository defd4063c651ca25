#!/usr/bin/env python3
"""Run every stage at a tiny size with fixed seeds and print one hash per output.

  python tests/golden.py [DIR]          in a temporary directory, or in DIR, which is kept

The check that a refactoring changed nothing: run it before and after, and compare the printouts
(`diff`). Hashed are images, masks, tables, manifests, model weights, probabilities and the tests'
CSVs; left out is what differs from run to run or machine to machine: times, versions, paths.
Takes about a minute on one core; the hashes hold for one machine and one set of versions.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LUNGKIT_PRECISION": "float32",
               "MPLBACKEND": "Agg"}
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from arms import ARMS, arguments  # noqa: E402  (after the path is set)

PASSING = {"versions", "commit", "dirty", "command", "elapsed_sec", "finished_at", "host", "job",
           "threads", "device", "_name_or_path", "_diffusers_version"}
TEXT = {".csv", ".jsonl", ".html", ".txt"}


def run(stage: str, *arguments: str) -> None:
    """Call a stage's main in this process; end if it does not complete."""
    status = importlib.import_module(stage).main([str(argument) for argument in arguments])
    if status:
        sys.exit(f"{stage} ended with {status}")


def make_all(root: Path) -> None:
    """Every stage, each reading what the one before has made."""
    datasets, results = root / "datasets", root / "results"
    sample = root / "sample"
    real = datasets / "real"
    subprocess.run([sys.executable, "-m", "lungkit.phantom", "--output", sample, "--seed", "3",
                    "--num-patients", "12", "--tiles-per-patient", "3", "--image-size", "112"],
                   cwd=ROOT, check=True, capture_output=True)
    run("tumor_seg", "--input", sample / "images", "--groups", sample / "groups.csv", "--output",
        real, "--image-size", "64", "--benign", "lung_n", "--source-mpp", "0.80357", "--seed", "5")
    for arm in ARMS:
        seed = [] if arm == "voronoi" else ["--seed", "5"]
        run(f"{arm}_seg", *arguments(arm, real, datasets / arm, *seed))
    run("controls_seg", "--control", "photocopier", "--real", real, "--output",
        datasets / "control-photocopier", "--seed", "5")
    run("mix_seg", "--real", real, "--real-share", "0.5", "--synthetic", datasets / "voronoi",
        "--dose", "0.5", "--output", datasets / "mix-real-0.5-voronoi-0.5", "--seed", "5")
    for name in ("real", *ARMS):
        run("cnn_classify", "--data", datasets / name, "--real", real, "--results", results,
            "--repeats", "2", "--steps", "4", "--batch-size", "4", "--device", "cpu", "--seed", "5")
    run("nuclei_classify", "--features", datasets / "voronoi", "--real", real, "--results", results,
        "--repeats", "2", "--seed", "5")
    run("unet_segment", "--data", real, "--real", real, "--results", root / "segmentations",
        "--mask", "tissue", "--repeats", "1", "--steps", "6", "--batch-size", "4", "--widths", "8",
        "16", "--learning-rate", "0.02", "--device", "cpu", "--seed", "5")
    for command, more in (("screen", ["--backbones", "small", "--weights", "none"]),
                          ("tune", ["--trials", "2"])):
        run("cnn_search", command, *more, "--data", real, "--output", root / "searches" / command,
            "--folds", "2", "--steps", "4", "--batch-size", "4", "--device", "cpu", "--seed", "5")
    run("wilcoxon_test", results, "--output", root / "comparison", "--datasets", "real", *ARMS,
        "nuclei")


def lasting(value: object) -> object:
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in PASSING}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def content(path: Path, root: Path) -> bytes:
    """What of a file is hashed: pixels and arrays, not their compression; text without `root`."""
    import numpy as np

    if path.suffix in (".png", ".jpg"):
        import cv2
        return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays.files))
    if path.suffix == ".json":
        text = json.dumps(lasting(json.loads(path.read_text())), sort_keys=True)
        return text.replace(str(root), "ROOT").encode()
    if path.suffix in TEXT:
        return path.read_text().replace(str(root), "ROOT").encode()
    return path.read_bytes()


def output_of(path: Path) -> str:
    """The output a file counts to, e.g. `datasets/real/train .png`."""
    parts = path.parts
    depth = min(len(parts) - 1, 4 if "masks" in parts else 3)
    return f"{'/'.join(parts[:depth])} {path.suffix or path.name}"


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 by output, over the sorted names and contents of its files."""
    digests: dict[str, hashlib._Hash] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_file() or hidden or path.name in ("progress.jsonl", "README.md",
                                                         "trials.log"):
            continue  # times; a model's card, which holds versions and what its manifest does
        if path.parent.name == "comparison" and path.suffix != ".csv":
            continue  # the page and the plots hold words and styles
        digest = digests.setdefault(output_of(name), hashlib.sha256())
        digest.update(name.as_posix().encode() + b"\0" + content(path, root) + b"\0")
    return {name: digest.hexdigest()[:16] for name, digest in sorted(digests.items())}


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        stdout, sys.stdout = sys.stdout, sys.stderr  # the stages' own results are not ours
        make_all(root)
        sys.stdout = stdout
        for name, value in hashes(root).items():
            print(value, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
