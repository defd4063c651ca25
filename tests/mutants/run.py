#!/usr/bin/env python3
"""Break the code on purpose, one small fault at a time, and see that a test notices.

  python tests/mutants/run.py                        every table, two at a time
  python tests/mutants/run.py --table cnn generators only these
  python tests/mutants/run.py --only "label smooth"  only rules or files that hold these words
  python tests/mutants/run.py --every 5              every fifth of each table
  python tests/mutants/run.py --check                only say what is stale, in a second

Reads tests/mutants/*.toml, a table [[mutant]] a fault: `rule` (the sentence that is broken),
`file`, `text` (found exactly once in it), `replacement`, `tests` (node ids that must fail) and,
where none can notice it, `survives` (why). Each fault is applied in a temporary copy of the
checkout, never in the tree. The tests named must pass in an untouched copy first.

caught    a test failed, or did not end in time
survived  the tests passed: the rule is only a wish
stale     the text is not found once, or the tests cannot be collected: mend the table

Exit status: 0 all caught or explained, 1 otherwise. Speed: the libraries are imported once and
every run is forked off, so a mutant costs what its tests cost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest needs it there too
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT_SEC = 300   # a mutant that makes its tests hang is caught
BASELINE_LIMIT_SEC = 3600


@dataclass(frozen=True)
class Mutant:
    table: str
    rule: str
    file: str
    text: str
    replacement: str
    tests: list[str]
    survives: str | None = None

    def apply(self, copy: Path) -> None:
        path = copy / self.file
        path.write_text(path.read_text().replace(self.text, self.replacement))

    def fault(self) -> str | None:
        """Why it cannot be applied, or its tests cannot be run."""
        path = ROOT / self.file
        if not path.is_file():
            return "no such file"
        count = path.read_text().count(self.text)
        if count != 1:
            return f"text found {count} times"
        lacking = [test for test in self.tests if not names_a_test(test)]
        return f"no such test: {', '.join(lacking)}" if lacking else None


def names_a_test(node_id: str) -> bool:
    """Whether the file of a node id is there and defines the test that it names, if any."""
    name, _, test = node_id.partition("::")
    path = ROOT / name
    test = test.rpartition("::")[2].partition("[")[0]
    return path.is_file() and (not test or f"def {test}(" in path.read_text())


def load(tables: list[str] | None, words: str | None) -> list[Mutant]:
    paths = sorted(HERE.glob("*.toml"))
    if tables:
        paths = [HERE / f"{name}.toml" for name in tables]
    mutants = [Mutant(path.stem, **entry) for path in paths
               for entry in tomllib.loads(path.read_text())["mutant"]]
    return [m for m in mutants if not words or words in m.rule or words in m.file]


def copy_checkout(target: Path) -> Path:
    """Copy what git tracks, and what it would, to `target`."""
    names = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    if (ROOT / ".venv").exists():
        (target / ".venv").symlink_to(ROOT / ".venv")
    return target


def preload() -> None:
    """Import the libraries, so that a forked test run finds them there."""
    import cv2
    import diffusers
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import skimage.segmentation  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    _ = diffusers.StableDiffusionControlNetPipeline, diffusers.UNet2DModel
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def start(copy: Path, tests: list[str], log: Path, *more: str) -> int:
    """Run pytest in a forked process; return its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        os.chdir(copy)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, HERE)]
        import pytest

        code = pytest.main(["-n0", "-q", "-p", "no:cacheprovider", "--tb=short",
                            f"--basetemp={copy}.tmp", *more, *tests])
        sys.stdout.flush()
        os._exit(int(code))
    except BaseException:
        os._exit(99)


def wait(pid: int, end: float) -> int | None:
    """The exit status of a process that ended by `end`; it is killed, and None, otherwise."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, 9)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


def judge(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """Apply a mutant in a copy, run its tests, take it back: (outcome, remark)."""
    if fault := mutant.fault():
        return "stale", fault
    log = Path(f"{copy}.log")
    mutant.apply(copy)
    try:
        code = wait(start(copy, mutant.tests, log, "-x"), time.monotonic() + LIMIT_SEC)
    finally:
        shutil.copy2(ROOT / mutant.file, copy / mutant.file)
        shutil.rmtree(f"{copy}.tmp", ignore_errors=True)
    if code in (0, 1, None):
        return ("survived", "") if code == 0 else ("caught", "hung" if code is None else "")
    return "stale", f"pytest ended with {code}: {log.read_text()[-600:]}"


def judge_all(mutants: list[Mutant], work: Path, copies: list[Path]) -> list[tuple[str, str]]:
    """Judge every mutant, each in a process of its own, one at a time in each copy."""
    waiting, free, running = list(enumerate(mutants)), list(copies), {}
    outcomes: list = [None] * len(mutants)
    while waiting or running:
        while waiting and free:
            (number, mutant), copy = waiting.pop(0), free.pop()
            answer = work / f"{number}.answer"
            pid = os.fork()
            if pid == 0:
                try:
                    answer.write_text("\0".join(judge(mutant, copy)))
                    os._exit(0)
                except BaseException as error:
                    answer.write_text(f"stale\0{error!r}")
                    os._exit(1)
            running[pid] = number, answer, copy
        pid, _ = os.wait()
        number, answer, copy = running.pop(pid)
        free.append(copy)
        outcomes[number] = tuple(answer.read_text().split("\0", 1))
        print(f"[{sum(map(bool, outcomes))}/{len(mutants)}] {outcomes[number][0]:8s} "
              f"{mutants[number].file}: {mutants[number].rule}", file=sys.stderr, flush=True)
    return outcomes


def prepare(mutants: list[Mutant], work: Path, jobs: int, trusted: bool) -> list[Path]:
    """Copies of the checkout, compiled; end unless the named tests pass there untouched.

    trusted: they are only collected, which compiles as well.
    From here on nothing is compiled into a file: a mutant's bytes would be taken for the next's.
    """
    first = copy_checkout(work / "copy0")
    tests = sorted({test for mutant in mutants if not mutant.fault() for test in mutant.tests})
    log = work / "baseline.log"
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    code = wait(start(first, tests, log, *["--collect-only"] * trusted),
                time.monotonic() + BASELINE_LIMIT_SEC)
    if code != 0:
        sys.exit(f"the tests fail before anything is broken ({code}):\n{log.read_text()[-4000:]}")
    shutil.rmtree(f"{first}.tmp", ignore_errors=True)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    others = [work / f"copy{number}" for number in range(1, jobs)]
    for other in others:
        shutil.copytree(first, other, symlinks=True)
    return [first, *others]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", metavar="NAME", help="tables to run (default: all)")
    parser.add_argument("--only", metavar="WORDS", help="only mutants whose rule or file holds it")
    parser.add_argument("--every", type=int, default=1, metavar="N",
                        help="only every N-th mutant (default: 1, all)")
    parser.add_argument("--check", action="store_true",
                        help="apply and run nothing: name the mutants whose text is not there")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at once (default: 2)")
    parser.add_argument("--no-baseline", action="store_true",
                        help="trust that the tests pass on the code as it is")
    args = parser.parse_args()
    mutants = load(args.table, args.only)[::args.every]
    if not mutants:
        sys.exit("no such mutant")
    if args.check:
        stale = [(mutant, fault) for mutant in mutants if (fault := mutant.fault())]
        for mutant, fault in stale:
            print(f"stale     {mutant.table:10s} {mutant.file}: {mutant.rule} ({fault})")
        print(f"{len(mutants)} mutants, {len(stale)} stale")
        return int(bool(stale))
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        copies = prepare(mutants, Path(work), args.jobs, args.no_baseline)
        outcomes = judge_all(mutants, Path(work), copies)
    counts, bad = Counter(), 0
    for mutant, (outcome, remark) in zip(mutants, outcomes):
        if outcome == "survived" and mutant.survives:
            outcome, remark = "explained", mutant.survives
        bad += outcome in ("survived", "stale")
        counts[outcome] += 1
        print(f"{outcome:9s} {mutant.table:10s} {mutant.file}: {mutant.rule}"
              + f" ({remark})" * bool(remark))
    shown = ", ".join(f"{counts[name]} {name}" for name in ("caught", "explained", "survived",
                                                            "stale"))
    print(f"{len(mutants)} mutants: {shown}; {counts['caught'] / len(mutants):.1%} caught")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
