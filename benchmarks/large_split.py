#!/usr/bin/env python
"""Peak memory of a CNN's training and testing on a dataset of 20 MB and on one of 2 GB.

Reads   nothing: two datasets are drawn, smooth pictures of 256 px, and kept in --keep if given.
Prints  a table: peak anonymous memory (RssAnon of /proc, what a process must hold; without the
        pages that are mapped from files) and seconds, of `cnn_classify.py` with one repeat.

The large set is run three times: first, which decodes it into its cache; again, which finds the
cache; and decoded into memory as before there was one, to compare.

    OMP_NUM_THREADS=1 python benchmarks/large_split.py | tee benchmarks/large_split.txt
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from lungkit.data.dataset import MANIFEST, open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.run import cli
from lungkit.run.output import Output

SIZE = 256
IMAGE_BYTES = SIZE * SIZE * 3
POLL_SEC = 0.005
IN_MEMORY = "from lungkit.data import cache; cache.IN_MEMORY_BYTES = 1 << 62; "


def write(path: Path, num_bytes: int) -> Path:
    """A dataset of so many bytes of pixels, 60/20/20; two classes told by their slope."""
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE))
    with DatasetWriter(Output(path, MANIFEST, {"bytes": num_bytes}), stage="benchmark",
                       classes=["falls", "rises"], image_size=SIZE) as writer:
        for index in range(num_bytes // IMAGE_BYTES):
            split, rises = ("train", "train", "train", "val", "test")[index % 5], index // 5 % 2
            shades = (ramp if rises else -ramp) + index
            image = np.stack([shades, shades // 2, shades * 2], axis=-1).astype(np.uint8)
            writer.add(split, ("falls", "rises")[rises], index, image)
        writer.publish(parents=[], seed=0)
    return path


def peak_of(program: str) -> tuple[float, float]:
    """MB of peak anonymous memory and seconds of Python text, in a process of its own."""
    start, peak_kb = time.monotonic(), 0
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "RssAnon:" in status:
                peak_kb = max(peak_kb, int(status.split("RssAnon:")[1].split()[0]))
            time.sleep(POLL_SEC)
    assert process.returncode == 0, f"ended with {process.returncode}"
    return peak_kb / 1024, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large-gb", type=cli.positive_float, default=2.14, metavar="GB",
                        help="pixels of the large dataset")
    parser.add_argument("--steps", type=cli.positive_int, default=20, metavar="INT",
                        help="training steps")
    parser.add_argument("--keep", type=Path, metavar="DIR",
                        help="where to draw the datasets (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        sets = {}
        for name, num_bytes in (("small", 20e6), ("large", options.large_gb * 1e9)):
            sets[name] = root / name / "real"
            if not sets[name].exists():
                write(sets[name], int(num_bytes))
        print(f"{'dataset':<28} {'images':>7} {'pixels, MB':>11} {'peak, MB':>9} {'seconds':>8}")
        for number, (shown, name, before) in enumerate((
                ("small", "small", ""), ("large, decoding it", "large", ""),
                ("large, again", "large", ""), ("large, in memory", "large", IN_MEMORY))):
            images = len(open_dataset(sets[name]).rows)
            argv = ["--data", str(sets[name]), "--real", str(sets[name]), "--results",
                    str(Path(temporary) / str(number)), "--repeats", "1", "--steps",
                    str(options.steps), "--batch-size", "32", "--device", "cpu"]
            peak_mb, elapsed_sec = peak_of(
                f"{before}import sys, cnn_classify; sys.exit(cnn_classify.main({argv!r}))")
            print(f"{shown:<28} {images:>7} {images * IMAGE_BYTES / 1e6:>11.0f} {peak_mb:>9.0f} "
                  f"{elapsed_sec:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
