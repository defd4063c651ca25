"""How often does a sound comparison fail a control? Simulated results of a known truth.

  python benchmarks/controls.py [RUNS] [RUNS]      at level B, at level C

All arms and controls are as they should be: real, copy, photocopier, other-half and oracle have one
true accuracy, shuffled and noise are at chance, colour-only is lower. Counted is what lungkit/
compare/instrument.py says of every control. The last output: benchmarks/controls.txt.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent),
                str(Path(__file__).resolve().parent.parent / "tests")]

from lungkit.compare import instrument  # noqa: E402
from lungkit.compare.set_aside import set_aside  # noqa: E402
from simulated_results import Truth, simulate_controls  # noqa: E402

CHANCE = Truth(1 / 3)
SOUND = {"copy": Truth(), "other-half": Truth(), "oracle": Truth(), "photocopier": Truth(),
         "shuffled": CHANCE, "colour-only": Truth(0.6), "noise": CHANCE}
DRAWN = {"other-half": 1, "oracle": 2}  # deviation of a replicate's set, in those of the trainings


def run(title: str, runs: int, controls: dict[str, Truth], **how: int) -> None:
    print(f"\n{title}, {runs} runs")
    outcomes: dict[str, Counter] = {name: Counter() for name in controls}
    for seed in range(runs):
        made = simulate_controls({"real": Truth()}, controls, seed=seed, groups=12, images=2, **how)
        found = made.found()
        set_aside(found)
        for said in instrument.judge(Path("results"), found, "accuracy_real", None, alpha=0.05,
                                     margin=0.02, read=made.read)[0]:
            outcomes[said.control][said.outcome] += 1
    for name, counted in outcomes.items():
        print(f"{name:14}" + "  ".join(f"{word} {counted[word]:4}" for word in (
            instrument.PASSED, instrument.FAILED, instrument.OPEN)), flush=True)


def main() -> int:
    at_b, at_c = map(int, (*sys.argv[1:], 100, 60)[:2])
    run("level B, 6 trainings", at_b, SOUND, repeats=6)
    drawn = {name: replace(truth, draw=DRAWN.get(name, 0)) for name, truth in SOUND.items()}
    run("level B, 6 trainings, other-half and oracle drawn", at_b, drawn, repeats=6)
    run("level C, 6 replicates of 3 trainings, other-half and oracle drawn", at_c, drawn,
        repeats=3, replicates=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
