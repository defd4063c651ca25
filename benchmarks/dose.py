"""Does the interval of what a real image is worth hold the truth? Simulated results.

  python benchmarks/dose.py [RUNS]

Real reduced to 30, 75 and 150 of 300 images reaches 60, 70 and 80 %, all of it 87 %; an arm alone
reaches 75 % with 600 images, which the curve of real reaches with 106. Counted is how often the
interval of lungkit/compare/dose.py holds 600 / 106, how often it has both ends, and how often
something is told where real reduced by half is as good as all of it. The last output:
benchmarks/dose.txt.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent),
                str(Path(__file__).resolve().parent.parent / "tests")]

from lungkit.compare import dose  # noqa: E402
from lungkit.compare.set_aside import set_aside  # noqa: E402
from simulated_results import Truth, simulate_mixtures  # noqa: E402

ARM = {"mix-prompt-2": (Truth(0.75), 0.0, "prompt", 2.0)}
RISES = {"mix-real-0.1": (Truth(0.6), 0.1, "", 0.0), "mix-real-0.25": (Truth(0.7), 0.25, "", 0.0),
         "mix-real-0.5": (Truth(0.8), 0.5, "", 0.0)}
FLAT = {"mix-real-0.5": (Truth(0.87), 0.5, "", 0.0)}
RATE = 600 / math.sqrt(75 * 150)


def worths(runs: int, mixtures: dict, groups: int) -> list[dose.Worth]:
    found = []
    for seed in range(runs):
        made = simulate_mixtures({"real": Truth(0.87)}, mixtures | ARM, seed=seed, groups=groups,
                                 images=2, repeats=5)
        results = made.found()
        set_aside(results)
        found += dose.curve(Path("results"), results, "accuracy_real", None, alpha=0.05,
                            margin=0.02, read=made.read)[1]
    return found


def main() -> int:
    runs = int((*sys.argv[1:], 100)[0])
    for groups in (12, 30):
        found = worths(runs, RISES, groups)
        told = [each for each in found if each.rate is not None]
        holds = sum(each.low <= RATE <= each.high for each in told)
        ends = sum(each.told.startswith("one real image") for each in told)
        flat = sum(each.rate is not None for each in worths(runs, FLAT, groups))
        print(f"{groups} test groups a class, 5 trainings, {runs} runs: told in {len(told)}, of "
              f"which {holds} hold the truth and {ends} have both ends; where the curve is flat "
              f"told in {flat}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
