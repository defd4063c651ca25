#!/usr/bin/env python
"""Does another length of the average of weights pay? The loss on what is held out, by its length.

  python benchmarks/ema_length.py [--work DIR] [--steps INT]

Trains the from-scratch diffusion model and an adapter a class on simulated tissue, by the stages
themselves at the demo preset, and follows power-function averages of several lengths beside the
stage's own (Karras et al. 2024, arXiv:2312.02696, equation 121: what a post-hoc reconstruction of
that length would give, without its error). After the last step each is asked for its loss on all
the held-out images, at the same noise. length: standard deviation of the average's weights over
time, as a share of the training. Shown is the loss less that of the stage's own average in per cent
of it, with the 95 % interval of the mean over BATCHES batches. The last output:
benchmarks/ema_length.txt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import diffusion_seg
import prompt_seg
from lungkit.learn import loop
from lungkit.learn.validation import Validation, exchanged
from lungkit.run.seeds import generator_for

LENGTHS = 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3
BATCHES = 64
PATIENTS, TILES = 60, 6


def exponent_of(length: float) -> float:
    """gamma of the power-function average whose deviation is a share `length` of the training."""
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


class Followed:
    """Averages of LENGTHS beside every training of this process."""

    def __init__(self) -> None:
        self.update, self.steps, self.averages = loop.update, 0, {}
        loop.update = self.follow
        self.restore = Validation.restore
        followed = self

        def restore(validation, parameters):
            followed.report(validation, parameters)
            followed.restore(validation, parameters)

        Validation.restore = restore

    def follow(self, loss, parameters, optimizer, ema) -> None:
        self.update(loss, parameters, optimizer, ema)
        self.steps, self.ema, self.parameters = self.steps + 1, ema, parameters
        for length in LENGTHS:
            average = self.averages.setdefault(length, [p.detach().clone() for p in parameters])
            kept = (1 - 1 / self.steps)**(exponent_of(length) + 1)
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - kept)

    def report(self, validation: Validation, parameters) -> None:
        def losses(others) -> np.ndarray:
            with exchanged(parameters, others), torch.no_grad():
                return np.array([float(validation.loss_at(number, generator_for(
                    validation.seed + 1, number))) for number in range(BATCHES)])

        own = losses(self.ema.shadow_params)
        print(f"  {self.steps} steps, loss of the stage's own average {own.mean():.4f}", flush=True)
        rows = [("last weights", None), *((f"{length:g}", self.averages[length])
                                          for length in LENGTHS)]
        kept = [each.detach().clone() for each in parameters]
        self.restore(validation, parameters)
        rows.append((f"best of the looks ({validation.best_step})",
                     [each.detach().clone() for each in parameters]))
        with torch.no_grad():
            for each, value in zip(parameters, kept):
                each.copy_(value)
        for name, others in rows:
            away = 100 * (losses(others) - own) / own.mean()
            half = 1.96 * away.std(ddof=1) / np.sqrt(len(away))
            print(f"    {name:24s}{away.mean():+7.2f} % ({away.mean() - half:+.2f} to "
                  f"{away.mean() + half:+.2f})", flush=True)
        self.steps, self.averages = 0, {}


def make(work: Path) -> Path:
    """The real dataset of simulated tissue."""
    for words in ([sys.executable, "-m", "lungkit.phantom", "--output", work / "sample",
                   "--num-patients", PATIENTS, "--tiles-per-patient", TILES, "--seed", 5],
                  [sys.executable, "tumor_seg.py", "--input", work / "sample/images", "--groups",
                   work / "sample/groups.csv", "--output", work / "real", "--preset", "demo"]):
        subprocess.run(list(map(str, words)), cwd=ROOT, check=True, capture_output=True)
    return work / "real"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, metavar="INT", help="of each (the demo preset's)")
    options = parser.parse_args()
    more = ["--device", "cpu", "--sampling-steps", "2", "--patience", "0", *(
        ["--train-steps", str(options.steps)] if options.steps else [])]
    with tempfile.TemporaryDirectory() as made:
        work = options.work or Path(made)
        work.mkdir(parents=True, exist_ok=True)
        real = make(work)
        Followed()
        for stage, name in ((diffusion_seg, "latent diffusion from scratch"),
                            (prompt_seg, "an adapter a class")):
            print(name)
            if stage.main(["--real", str(real), "--output", str(work / stage.__name__), "--model",
                           str(work / f"{stage.__name__}_model"), *more]):
                sys.exit(1)


if __name__ == "__main__":
    main()
