"""The pages are true: what they name is there, and the arm that docs/adding.md builds works."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lungkit
from arms import content
from lungkit.data.dataset import SPLITS, open_dataset
from lungkit.run.faults import BAD_OPTIONS, COMPLETE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md",
         *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
STAGES = sorted(path.stem for path in ROOT.glob("*.py"))
TOOLS = ["lungkit.phantom.sample", "lungkit.phantom.thorax.sample", "lungkit.compare.contact_sheet",
         "lungkit.tools.adopt", "lungkit.tools.exclude", "lungkit.tools.fidelity",
         "lungkit.tools.fit_fragments",
         "lungkit.tools.pretrain_autoencoder", "lungkit.tools.pretrain_base_model"]
OURS = ("lungkit", "tests", "docs", "benchmarks", "assets", ".ci")  # other paths are of a run
EXAMPLES = {"blur_seg.py", "--sigma"}  # what docs/adding.md builds
# options of sbatch, hf, pytest and our bash scripts' tools
OTHERS_OPTIONS = {"--gpus", "--gpus-per-task", "--mem", "--mem-per-cpu", "--ntasks", "--exclude",
                  "--array", "--only", "--check", "--cpus-per-task", "--wrap",
                  "--kill-on-bad-exit", "--nproc-per-node"}


def code_of(text: str) -> str:
    """What stands in backticks or in code blocks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))


def missing(text: str, folder: str = ".") -> list[str]:
    """Links and paths of a page in `folder` that lead nowhere; paths in the package may lack it."""
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text)
             if not link.startswith(("http:", "https:"))]
    bad = [link for link in links if not (ROOT / folder / link).exists()]
    for word in re.findall(r"(?<![\w>])[\w.][\w./-]*", code_of(text)):
        name = word.rstrip("./")
        first, _, rest = name.partition("/")
        if first in OURS and rest or name.endswith((".py", ".sh", ".slurm")):
            found = (ROOT / name).exists() or any((ROOT / "lungkit").rglob(name))
            bad += [] if found or name in EXAMPLES else [name]
    return bad


@functools.cache
def options() -> set[str]:
    """Every option of every stage, tool and benchmark."""
    parsers = [importlib.import_module(name).build_parser() for name in (*STAGES, *TOOLS)]
    parsers += [command for parser in parsers for action in parser._actions
                if isinstance(action, argparse._SubParsersAction)
                for command in action.choices.values()]
    benchmarks = "".join(path.read_text(encoding="utf-8")
                         for path in (ROOT / "benchmarks").glob("*.py"))
    return {option for parser in parsers for action in parser._actions
            for option in action.option_strings} | set(
                re.findall(r'add_argument\("(--[a-z-]+)"', benchmarks))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_path_is_there(page):
    assert missing((ROOT / page).read_text(encoding="utf-8"), str(Path(page).parent)) == []


def test_what_is_not_there_is_found():
    text = "`lungkit/run/cli.py` `run/no.py` [a](docs/no.md) `lungkit/no` `no_seg.py` `runs/x/y`"
    assert missing(text) == ["docs/no.md", "run/no.py", "lungkit/no", "no_seg.py"]


@pytest.mark.parametrize("page", PAGES)
def test_every_option_is_one(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", (ROOT / page).read_text(encoding="utf-8")))
    assert named - options() - OTHERS_OPTIONS - EXAMPLES == set()


def test_every_stage_has_its_row_in_the_readme():
    rows = re.findall(r"^\| `(\w+)\.py` \|", (ROOT / "README.md").read_text(encoding="utf-8"),
                      flags=re.MULTILINE)
    assert sorted(rows) == STAGES


def test_the_map_and_its_rule_are_those_of_the_package():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^\| `(\w+)/` \|", page, flags=re.MULTILINE)
    assert sorted(drawn) == sorted({path.parent.name for path in (ROOT / "lungkit").glob("*/*.py")})
    page_rule, rule = (next(line for line in text.splitlines() if "<-" in line).split()
                       for text in (page, lungkit.__doc__))
    assert page_rule[:len(rule)] == rule or page_rule == [*rule[:-1], "tools,", "stages"]


def test_the_variables_of_the_readme_are_read_by_the_scripts_or_the_package():
    text = code_of((ROOT / "README.md").read_text(encoding="utf-8"))
    named = set(re.findall(r"\b([A-Z][A-Z_]+)=", text)) | set(re.findall(r"`([A-Z][A-Z_]+)`", text))
    scripts = "".join((ROOT / name).read_text(encoding="utf-8") for name in
                      ("run_pipeline.slurm", "compare_models.sh", "setup_env.sh", "lungkit/job.sh",
                       "tests/run", "tests/slurm", "tests/steady"))
    package = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lungkit").rglob("*.py"))
    unread = {name for name in named if not re.search(rf"\$\{{?{name}\b", scripts)
              and f'environ.get("{name}"' not in package}
    made_up = {name for name in named if name.endswith("_OPTIONS")}  # of any stage, by its name
    assert unread - made_up == set() and {name[:-8].lower() for name in made_up} <= {
        stage.split("_")[0] for stage in STAGES} | {"sample"}


# ------------------------------------------------------------------ what a RECIPE number guards

def test_a_module_that_feeds_a_recipe_names_one_that_there_is():
    feeds = {path.relative_to(ROOT).as_posix(): name for path in (ROOT / "lungkit").rglob("*.py")
             for name in re.findall(r"^Feeds ([\w.]+)\.RECIPE:", path.read_text(encoding="utf-8"),
                                    flags=re.MULTILINE)}
    for name in set(feeds.values()):
        assert isinstance(importlib.import_module(name).RECIPE, int)
    assert {"tumor_seg", "voronoi_seg", "cnn_classify"} <= set(feeds.values())
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    with_recipe = [path for path in (*ROOT.glob("*.py"), *(ROOT / "lungkit").rglob("*.py"))
                   if re.search(r"^RECIPE = \d", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert all(f"`{path.relative_to(ROOT).as_posix()}`" in page for path in with_recipe)
    science = [path for folder in ("formats", "histology") for path in
               (ROOT / "lungkit" / folder).glob("*.py") if path.name not in (
                   "sources.py", "groups.py", "qc_report.py")]
    assert {path.relative_to(ROOT).as_posix() for path in science} <= set(feeds)


# ------------------------------------------------------------------ the arm of docs/adding.md

@pytest.fixture(scope="module")
def example(tmp_path_factory, few_real) -> Path:
    """A folder with the page's code block as blur_seg.py, and a small real dataset."""
    folder = tmp_path_factory.mktemp("adding")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding.md").read_text("utf-8"),
                        flags=re.DOTALL)
    assert code.count("\n") < 60
    (folder / "blur_seg.py").write_text(code, encoding="utf-8")
    shutil.copytree(few_real, folder / "datasets/real")
    return folder


def blur(*more: str, output: str = "blur") -> list[str]:
    return ["--real", "datasets/real", "--output", f"datasets/{output}", "--preset", "demo", *more]


def test_the_arm_of_the_page_keeps_the_contract_and_trains(example, monkeypatch, capfd):
    import cnn_classify

    dry = subprocess.run([sys.executable, "blur_seg.py", *blur("--dry-run")], cwd=example,
                         env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                         capture_output=True, check=False)
    assert dry.returncode == COMPLETE, dry.stderr
    assert os.listdir(example / "datasets") == ["real"]
    monkeypatch.chdir(example)
    monkeypatch.syspath_prepend(example)
    main = importlib.import_module("blur_seg").main
    assert main(blur()) == COMPLETE
    real, made = (open_dataset(example / "datasets" / name) for name in ("real", "blur"))
    assert [(row.split, row.label, row.group) for row in made.rows] \
        == [(row.split, row.label, row.group) for row in real.rows]
    assert json.loads((made.path / "dataset.json").read_text())["parents"] == [
        {"name": "real", "fingerprint": real.fingerprint,
         "splits": {split: [split] for split in SPLITS}}]
    assert made.load("train")[0].std() < real.load("train")[0].std()
    before = content(made.path)
    capfd.readouterr()
    assert main(blur()) == COMPLETE and "already complete" in capfd.readouterr().err
    assert main(blur("--sigma", "3")) == BAD_OPTIONS
    assert "sigma: 2.0 there, 3.0 now" in capfd.readouterr().err
    assert before == content(made.path)
    assert main(blur(output="x/blur")) == COMPLETE
    assert open_dataset(example / "datasets/x/blur").fingerprint == made.fingerprint

    assert cnn_classify.main(["--data", "datasets/blur", "--real", "datasets/real",
                              "--results", "results", "--repeats", "1", "--steps", "2",
                              "--batch-size", "4", "--device", "cpu"]) == COMPLETE
    assert (example / "results/blur/replicate_000/repeat_0000.json").is_file()
