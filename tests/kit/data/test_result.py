"""The records: when one is complete, who makes it, what is printed and how it is written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lungkit.data import metrics, repeats, result
from lungkit.run import faults, output

CLASSES = ["a", "b", "c"]


def identity(repeat: int = 0, **changed) -> dict:
    return {"dataset": "pool", "dataset_fingerprint": "d1", "real_fingerprint": "r1",
            "replicate": 0, "repeat": repeat, "seed": 10 + repeat, "model": "small",
            "settings": {"steps": 6, "recipe": 2, "weights_sha256": None}, **changed}


def write(directory, repeat: int = 0, *, accuracy: float = 0.5, **changed) -> None:
    result.write_record(directory, {**identity(repeat, **changed), "accuracy_real": accuracy,
                                     "accuracy_own": accuracy / 2},
                         {"x": np.arange(3)}, {"elapsed_sec": 1})


def there(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ------------------------------------------------------------------ what counts as complete

def test_a_record_lies_by_arm_replicate_and_repeat(tmp_path):
    directory = result.replicate_dir(tmp_path, "pool", 3)
    assert directory == tmp_path / "pool" / "replicate_003"
    assert result.repeat_path(directory, 12) == directory / "repeat_0012.json"
    assert result.checkpoint_path(directory, 12) == directory / ".repeat_0012.partial"


def test_what_was_made_by_the_same_identity_is_complete(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 12345)
    asked = [identity(repeat) for repeat in (0, 1, 12345)]
    assert repeats.survey(tmp_path, asked) == ({}, [asked[1]])


@pytest.mark.parametrize("name, value", [
    ("dataset", "other"), ("dataset_fingerprint", "d2"), ("real_fingerprint", "r2"),
    ("replicate", 1), ("seed", 11), ("model", "resnet18"),
    ("settings", {"steps": 7, "recipe": 2, "weights_sha256": None}),
    ("settings", {"steps": 6, "recipe": 1, "weights_sha256": None}),
    ("settings", {"steps": 6, "weights_sha256": None}),
    ("settings", {"steps": 6, "recipe": 2, "weights_sha256": None, "trees": 200}),
    ("settings", {"steps": 6, "recipe": 2, "weights_sha256": "f" * 64})])
def test_what_was_made_otherwise_is_not_complete_and_says_why(tmp_path, name, value):
    write(tmp_path, **{name: value})
    asked = [identity()]
    stale, pending = repeats.survey(tmp_path, asked)
    if name == "settings":
        name, = {each for each in value | asked[0]["settings"]
                 if value.get(each) != asked[0]["settings"].get(each)}
    assert pending == asked and list(stale) == [0]
    assert stale[0].startswith(f"repeat 0: {name}: ") and ";" not in stale[0]


def test_results_outside_the_asked_range_count_too(tmp_path):
    write(tmp_path, 7, seed=16)  # SEED 9, where SEED 10 is asked for
    asked = [identity(repeat) for repeat in (2, 3)]
    stale, pending = repeats.survey(tmp_path, asked)
    assert list(stale) == [7] and "seed: 16 there, 17 now" in stale[7] and pending == asked


def test_a_difference_names_both_sides_and_cuts_hashes_short():
    changed = result.differences(identity(dataset_fingerprint="0123456789abcdef" * 4), identity())
    assert changed == ["dataset_fingerprint: '0123456789ab...' there, 'd1' now"]
    assert result.differences({**identity(), "train_loss": 2}, identity()) == []


# ------------------------------------------------------------------ who makes what is missing

def test_only_stale_results_are_discarded_with_all_that_is_theirs(tmp_path):
    for repeat, model in ((0, "small"), (1, "resnet18"), (2, "small"), (5, "resnet18")):
        write(tmp_path, repeat, model=model)
    repeats.discard(tmp_path, [identity(0), identity(1)])
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz",
                               "repeat_0002.json", "repeat_0002.npz"]


def test_a_stale_result_is_not_discarded_while_another_process_redoes_it(tmp_path, monkeypatch):
    write(tmp_path, 0, model="resnet18")
    held = output.try_lock(result.repeat_path(tmp_path, 0))
    repeats.discard(tmp_path, [identity()])
    assert "repeat_0000.json" in there(tmp_path)
    output.release(held, result.repeat_path(tmp_path, 0))

    def lock_after_it_was_redone(path):
        write(tmp_path, 0)
        return output.try_lock(path)

    monkeypatch.setattr(repeats, "try_lock", lock_after_it_was_redone)
    repeats.discard(tmp_path, [identity()])
    assert repeats.survey(tmp_path, [identity()]) == ({}, [])
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz"]


def test_every_missing_repeat_is_done_once_and_no_other(tmp_path):
    write(tmp_path, 1)
    done = []

    def work(asked):
        done.append(asked["repeat"])
        write(tmp_path, asked["repeat"])

    for _ in range(2):
        repeats.share(tmp_path, [identity(repeat) for repeat in range(4)], work)
        assert done == [0, 2, 3]
    assert not [name for name in there(tmp_path) if name.endswith(".lock")]


def test_what_another_process_has_done_meanwhile_is_not_done_again(tmp_path):
    write(tmp_path, 0, accuracy=0.25)
    assert repeats.take(tmp_path, identity(), lambda _: pytest.fail("done twice"))
    assert result.read_records(tmp_path)[0]["accuracy_real"] == 0.25


def test_results_of_other_options_written_meanwhile_end_the_sharing(tmp_path, monkeypatch):
    looks = iter([None] * 5)  # then StopIteration: it would go on for ever
    monkeypatch.setattr(repeats, "check_stop", lambda: next(looks))

    def work(asked):
        write(tmp_path, asked["repeat"])
        write(tmp_path, 1, model="resnet18")

    with pytest.raises(faults.BadOptions, match="another process writes other results.*model: "):
        repeats.share(tmp_path, [identity(0), identity(1)], work)


def test_sharing_ends_only_when_the_others_have_ended(tmp_path, monkeypatch):
    path = result.repeat_path(tmp_path, 0)
    held, looks = output.try_lock(path), []

    def look():
        looks.append(None)
        if len(looks) == 4:
            write(tmp_path, 0)
            output.release(held, path)

    monkeypatch.setattr(repeats, "POLL_INTERVAL_SEC", 0)
    monkeypatch.setattr(repeats, "check_stop", look)
    repeats.share(tmp_path, [identity()], lambda _: pytest.fail("done twice"))
    assert repeats.survey(tmp_path, [identity()]) == ({}, [])


def test_a_failed_repeat_is_free_for_the_next_and_what_a_kill_left_of_it_goes(tmp_path):
    def fail(_):
        raise faults.Fault("no luck")

    with pytest.raises(faults.Fault, match="no luck"):
        repeats.take(tmp_path, identity(), fail)
    for name in (".repeat_0000.77.tmp.npz", ".repeat_0001.77.tmp.npz", ".repeat_0000.partial"):
        (tmp_path / name).touch()
    assert repeats.take(tmp_path, identity(), lambda asked: write(tmp_path, asked["repeat"]))
    assert there(tmp_path) == [".repeat_0000.partial", ".repeat_0001.77.tmp.npz",
                               "repeat_0000.json", "repeat_0000.npz"]


# ------------------------------------------------------------------ what is printed and written

def test_mean_deviation_and_number_are_of_the_repeats_asked_for(tmp_path, capsys):
    for repeat, accuracy in enumerate((0.5, 0.6, 0.9, 0.1)):
        write(tmp_path, repeat, accuracy=accuracy)
    repeats.report(tmp_path, [identity(repeat) for repeat in range(3)], "complete")
    assert capsys.readouterr().out == (
        "pool complete: accuracy_real mean 0.6667 sd 0.2082  accuracy_own mean 0.3333 sd 0.1041  "
        f"n 3  {tmp_path}\n")
    repeats.report(tmp_path, [identity(3)], "already complete")
    assert "accuracy_real mean 0.1000 sd -" in capsys.readouterr().out


def test_where_the_json_is_the_probabilities_are_whole(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(result, "write_bytes", fail)
        write(tmp_path)
    assert there(tmp_path) == []
    write(tmp_path)
    assert there(tmp_path) == ["repeat_0000.json", "repeat_0000.npz"]


def test_what_differs_from_run_to_run_is_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    write(tmp_path / "x")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    write(tmp_path / "y")
    x, y = (json.loads((tmp_path / name / "repeat_0000.json").read_text()) for name in "xy")
    assert x.pop("run").keys() == {"elapsed_sec", "host", "job", "finished_at", "commit",
                                   "dirty", "command"}
    assert y.pop("run")["job"] == "78"
    assert x == y == {**identity(), "schema": "lungkit.result/1", "accuracy_real": 0.5,
                      "accuracy_own": 0.25}
    assert (tmp_path / "x/repeat_0000.npz").read_bytes() == \
        (tmp_path / "y/repeat_0000.npz").read_bytes()


# ------------------------------------------------------------------ metrics

def test_means_over_classes_weigh_a_rare_class_as_much_as_a_common_one():
    # 6 of class a, all right; 2 of class b, one right; 1 of class c, said to be a
    labels, said = np.array([0] * 6 + [1] * 2 + [2]), np.array([0] * 6 + [1, 0] + [0])
    found = metrics.split_metrics(np.eye(3)[said], labels, CLASSES)
    assert found["accuracy"] == pytest.approx(7 / 9)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((12 / 14 + 2 / 3 + 0) / 3)
    # ties count half: a 6 x (1 of 3 below, 2 tied), b 2 x 7 pairs, c 1 x 8 all tied
    assert found["auroc"] == pytest.approx(((6 + 6) / 18 + 10.5 / 14 + 0.5) / 3)
    assert found["auprc_baseline"] == pytest.approx((36 + 4 + 1) / 81)
    # a: 6 of 8 said; b: one alone, then 2 of 9; c: 1 of 9
    assert found["auprc_weighted"] == pytest.approx(
        6 / 9 * 6 / 8 + 2 / 9 * (1 + 2 / 9) / 2 + 1 / 9 * 1 / 9)
    assert found["confusion_matrix"] == [[6, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert found["classes"] == CLASSES


@pytest.mark.parametrize("scores, wanted", [
    ([0.1, 0.2, 0.8, 0.9], 1), ([0.9, 0.8, 0.2, 0.1], 0), ([0.5] * 4, 0.5),
    ([0.1, 0.5, 0.5, 0.9], 0.875)])
def test_auroc_is_the_share_of_pairs_in_order(scores, wanted):
    assert metrics.auroc(np.array(scores), np.array([False, False, True, True])) == wanted
    assert metrics.auroc(np.array(scores), np.ones(4, bool)) == 0.5  # nothing to rank
