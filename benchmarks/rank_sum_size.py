#!/usr/bin/env python
"""Measure the rank-sum test's size, and what the equivalence test can show, by simulation.

    python benchmarks/rank_sum_size.py | tee benchmarks/rank_sum_size.txt      (under a minute)

Size: how often two samples of one distribution are called different at 0.05, by our exact test,
by scipy.stats.ranksums (no tie correction) and by scipy's mannwhitneyu with its default method.
Accuracies are k / test images, so that small test sets tie. Equivalence: how often the two
one-sided tests with a margin of 2 points call samples equivalent, at no shift (power) and at a
shift of the whole margin (size). Last, the unit of replication: size when the arms differ by the
draw of one generated dataset, and only the CNN's seed is repeated.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import mannwhitneyu, ranksums

from lungkit.compare.rank_sum import (
    margin_on_grid,
    margin_tests,
    rank_sum_test,
    shift_with_interval,
)

ALPHA, MARGIN, ACCURACY, SEED_SD = 0.05, 0.02, 0.90, 0.015
NUM_SIMULATIONS = 1000
NUMBERS = (6, 10, 20)


def draw(rng, n: int, mean: float, sd: float, num_images: int | None):
    """n accuracies, on a test set of num_images; None means without rounding, hence ties."""
    values = np.clip(rng.normal(mean, sd, n), 0, 1)
    return values if num_images is None else np.round(values * num_images) / num_images


def rate(simulate) -> str:
    """The mean of 0/1 outcomes over the simulations, with its standard error, in percent."""
    mean = np.mean([simulate() for _ in range(NUM_SIMULATIONS)], axis=0)
    return "  ".join(f"{100 * m:5.1f} ±{100 * np.sqrt(m * (1 - m) / NUM_SIMULATIONS):.1f}"
                     for m in np.atleast_1d(mean))


def main() -> None:
    rng = np.random.default_rng(20)
    print(f"{NUM_SIMULATIONS} simulations each; accuracy {ACCURACY}, sd of the trainings "
          f"{SEED_SD}; percent ± standard error\n")
    print(f"Called different at {ALPHA}, though nothing differs (nominal 5.0)")
    print(f"{'test images':>12} {'n':>3}   {'exact':>9}  {'ranksums':>9}  {'mannwhitneyu':>9}")
    for num_images in (None, 300, 60):
        for n in NUMBERS:
            def both(n=n, num_images=num_images):
                a, b = (draw(rng, n, ACCURACY, SEED_SD, num_images) for _ in "ab")
                return (rank_sum_test(a, b).p_two_sided <= ALPHA, ranksums(a, b).pvalue <= ALPHA,
                        mannwhitneyu(a, b).pvalue <= ALPHA)
            print(f"{num_images or 'no ties':>12} {n:>3}   {rate(both)}")

    for words, on_grid in (("whole test images, as it is tested", True), ("taken as it is", False)):
        print(f"\nCalled equivalent within ±{100 * MARGIN:g} points at {ALPHA}, one pair; "
              f"the margin in {words}" if on_grid else f"\nThe same, the margin {words}")
        print(f"{'test images':>12} {'n':>3}   {'no shift':>9}  {'1 point':>9}  "
              f"{'2 points (nominal 5.0)':>9}")
        for num_images in (None, 300, 60):
            step = 1 / num_images if num_images and on_grid else 0
            margin = margin_on_grid(MARGIN, step)
            for n in NUMBERS:
                def equivalent(n=n, num_images=num_images, margin=margin):
                    return [max(margin_tests(draw(rng, n, ACCURACY - shift, SEED_SD, num_images),
                                             draw(rng, n, ACCURACY, SEED_SD, num_images),
                                             margin)) <= ALPHA for shift in (0, MARGIN / 2, MARGIN)]
                print(f"{num_images or 'no ties':>12} {n:>3}   {rate(equivalent)}")

    print("\n95 % interval of the shift holds the true shift, 2 points (nominal 95); "
          "and were the grid ignored")
    for num_images in (None, 300, 60):
        for n in NUMBERS:
            def held(n=n, num_images=num_images):
                a, b = (draw(rng, n, mean, SEED_SD, num_images)
                        for mean in (ACCURACY, ACCURACY - MARGIN))
                ends = [shift_with_interval(a, b, ALPHA, grid)[1:]
                        for grid in (1 / num_images if num_images else 0, 0)]
                return [low - 1e-9 <= MARGIN <= high + 1e-9 for low, high in ends]
            print(f"{num_images or 'no ties':>12} {n:>3}   {rate(held)}")

    print("\nCalled different when two equally good methods made one dataset each, whose draw "
          "varies\nhalf as much as the CNN's seed, and n counts seeds (nominal 5.0): the wrong "
          "unit")
    for n in (*NUMBERS, 50):
        def one_draw(n=n):
            a, b = (draw(rng, n, rng.normal(ACCURACY, SEED_SD / 2), SEED_SD, None) for _ in "ab")
            return rank_sum_test(a, b).p_two_sided <= ALPHA
        print(f"{'no ties':>12} {n:>3}   {rate(one_draw)}")


if __name__ == "__main__":
    main()
