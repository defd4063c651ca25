"""The tables of tests/mutants: none stale, and no module, stage or job script without a fault."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run():
    """tests/mutants/run.py as a module; it sets no environment variable of this process."""
    spec = importlib.util.spec_from_file_location("mutants_run", ROOT / "tests/mutants/run.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        patch.setattr("os.environ", {})
        spec.loader.exec_module(module)
    return module


def test_no_mutant_is_stale(run):
    stale = [f"{mutant.table}: {mutant.file}: {mutant.rule} ({fault})"
             for mutant in run.load(None, None) if (fault := mutant.fault())]
    assert not stale, "\n".join(stale)


def test_a_stale_mutant_is_found(run, tmp_path):
    known = {"table": "x", "rule": "r", "file": "tests/mutants/run.py", "replacement": ""}
    here = "tests/contract/test_mutants.py"
    for changed, words in (({"file": "no.py"}, "no such file"), ({"text": "return"}, "found"),
                           ({"text": "surely not there"}, "found 0 times"),
                           ({"tests": [f"{here}::test_gone"]}, "no such test")):
        given = known | {"text": "def copy_checkout(", "tests": [here]} | changed
        assert words in run.Mutant(**given).fault()


def test_every_module_stage_and_job_script_has_a_mutant(run):
    broken = {mutant.file for mutant in run.load(None, None)}
    code = [*(ROOT / "lungkit").rglob("*.py"), ROOT / "lungkit/job.sh",
            *(path for kind in ("*.py", "*.sh", "*.slurm") for path in ROOT.glob(kind))]
    names = {path.relative_to(ROOT).as_posix() for path in code
             if path.name not in ("__init__.py", "__main__.py")}  # a map and a door: no rule
    assert not names - broken, f"no mutant breaks {', '.join(sorted(names - broken))}"
