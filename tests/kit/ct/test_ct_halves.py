"""One half of the patients, whatever the task: the other is what nothing has used."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

import ct_seg
from lungkit.ct import plan, truth
from lungkit.run.faults import Fault


def scan(patient: int, number: int = 0, grade: float = 1.0):
    nodules = [SimpleNamespace(grade=grade, label=None)]
    return SimpleNamespace(name=f"p{patient}/{number}", patient=f"p{patient}",
                           annotated=SimpleNamespace(nodules=nodules))


SCANS = [scan(number, grade=1.0 + number % 2 * 4) for number in range(12)] + [
    scan(number, 1) for number in range(3)]


def test_two_halves_hold_every_scan_once_and_a_patient_lies_in_one():
    halves = [plan.in_half(SCANS, half, seed=4) for half in (1, 2)]
    assert sorted(each.name for half in halves for each in half) == sorted(
        each.name for each in SCANS)
    patients = [{each.patient for each in half} for half in halves]
    assert not patients[0] & patients[1]
    for half in halves:
        grades = Counter({each.patient: each.annotated.nodules[0].grade for each in half[::-1]
                          if each.name.endswith("/0")}.values())
        assert set(grades) == {1.0, 5.0} and max(grades.values()) - min(grades.values()) <= 1
    assert halves[0] == plan.in_half(SCANS, 1, seed=4)
    assert any(halves[0] != plan.in_half(SCANS, 1, seed=seed) for seed in range(5, 9))


def test_one_patient_has_no_half():
    with pytest.raises(Fault, match="one for each half"):
        plan.in_half([scan(0)], 1, seed=0)


def test_a_half_is_another_dataset_and_all_of_them_is_what_it_was(tmp_path):
    def decided(*words: str) -> dict:
        how = vars(ct_seg.build_parser().parse_args(
            ["--input", str(tmp_path), "--output", "x", *words]))
        return ct_seg.identity({name: value for name, value in how.items() if name not in (
            "input", "output", "nnunet", "preset", "workers", "overwrite", "dry_run", "seed")},
            tmp_path)

    assert "half" not in decided()
    assert decided("--half", "2") == decided() | {"half": 2}


def test_a_patient_counts_in_a_split_for_every_nodule_whatever_the_task():
    nodules = [SimpleNamespace(grade=grade, label=label) for grade, label in (
        (3.0, None), (1.5, None), (None, "adenocarcinoma"), (None, None))]
    assert truth.strata(nodules) == ["grade 3", "grade 2", "adenocarcinoma", truth.NODULE]
    assert truth.strata([]) == ["none"]
