"""What made a file: the versions that are installed and the project's commit."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lungkit.run import provenance as module
from lungkit.run.provenance import LIBRARIES, origin, provenance

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fresh():
    for function in (provenance, origin):
        function.cache_clear()
    yield provenance
    for function in (provenance, origin):
        function.cache_clear()


def test_versions_are_the_installed_ones(fresh, monkeypatch):
    version = metadata.version

    def without_peft(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_peft)
    versions = fresh()["versions"]
    assert versions.pop("python") == platform.python_version()
    assert versions == {name: version(name) for name in LIBRARIES if name != "peft"}
    assert {"torch", "torchvision", "diffusers", "transformers", "numpy", "scipy"} <= set(versions)


def git(*arguments: object) -> str:
    return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c",
                           *map(str, arguments)],
                          check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_changes_are_the_projects_wherever_the_stage_runs(fresh, tmp_path, monkeypatch):
    """A copy of the module in a repository of its own, asked from within another repository."""
    for name in ("project", "elsewhere"):
        (tmp_path / name / "run").mkdir(parents=True)
        git("init", "-q", tmp_path / name)
        shutil.copy(module.__file__, tmp_path / name / "run")
        git("-C", tmp_path / name, "add", ".")
        git("-C", tmp_path / name, "commit", "-q", "-m", name)
        git("-C", tmp_path / name, "tag", "v1")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "project/run/provenance.py"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    head = git("-C", tmp_path / "project", "rev-parse", "HEAD")
    assert (fresh()["commit"], fresh()["dirty"]) == (head, False)
    with open(tmp_path / "project/run/provenance.py", "a") as file:
        file.write("\n")
    fresh.cache_clear(), origin.cache_clear()
    assert (fresh()["commit"], fresh()["dirty"]) == (head, True)


def test_no_commit_outside_a_checkout(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert fresh()["commit"] is None is fresh()["dirty"]


def test_the_command_can_be_pasted_into_a_shell(fresh, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tumor_seg.py", "--input", "my images", "--seed", "3"])
    assert fresh()["command"] == "tumor_seg.py --input 'my images' --seed 3"


def test_no_commit_without_git_or_an_answer_of_it(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh()["commit"] is None
    fresh.cache_clear(), origin.cache_clear()

    def hang(*arguments, timeout, **options):
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert fresh()["commit"] is None
