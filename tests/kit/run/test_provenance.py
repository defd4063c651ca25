"""What made a file: the versions that are installed and the project's commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from lungkit.run.provenance import LIBRARIES, provenance

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fresh():
    provenance.cache_clear()
    yield provenance
    provenance.cache_clear()


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


@pytest.mark.parametrize(("answer", "commit"), [
    ("echo 0123abc", "0123abc"), ("echo fatal: not a git repository >&2; exit 128", None)])
def test_the_commit_is_the_projects_wherever_the_stage_runs(answer, commit, fresh, tmp_path, monkeypatch):
    git = tmp_path / "git"
    git.write_text(f'#!/bin/sh\n[ "$1 $3 $4" = "-C rev-parse HEAD" ] && cd "$2" && '
                   f'case $PWD in {ROOT}|{ROOT}/*) {answer};; *) echo another;; esac\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    assert fresh()["commit"] == commit


def test_no_commit_without_git_or_an_answer_of_it(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh()["commit"] is None
    fresh.cache_clear()

    def hang(*arguments, timeout, **options):
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert fresh()["commit"] is None
