"""The CNN stage: its draws, its loop, and how repeats are shared and resumed."""

import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cnn_classify
from arms import fork, signal_when
from lungkit.data import metrics, repeats, result
from lungkit.data.dataset import open_dataset, parent_of
from lungkit.data.writer import DatasetWriter
from lungkit.learn import batches, classify_training, cnns, loop
from lungkit.run import files, output
from lungkit.run.output import Output
from result_trees import arrays_of, keys_of, keys_on_page, write_repeat

pytestmark = pytest.mark.usefixtures("found_once")

CLASSES = ["a", "b", "c"]
SIZE = 32
ROOT = Path(cnn_classify.__file__).parent


def make_dataset(path, *, num_train=8, num_val=3, num_test=4, classes=CLASSES, size=SIZE,
                 parents=(), seed=0, warnings=(), symmetries=8):
    """A dataset whose classes differ by their colour, under noise.

    num_train: training images of a class, or {class: images}.
    """
    rng = np.random.default_rng(seed)
    index = 0
    with DatasetWriter(Output(path, "dataset.json", {"seed": seed}), stage="test",
                       classes=classes, image_size=size) as writer:
        for split, num_images in (("train", num_train), ("val", num_val), ("test", num_test)):
            for k, label in enumerate(classes):
                for _ in range(num_images[label] if isinstance(num_images, dict) else num_images):
                    image = rng.integers(40, 120, (size, size, 3))
                    image[..., k % 3] += 60
                    writer.add(split, label, index, image.astype(np.uint8), group=f"g{index}")
                    index += 1
        return writer.publish(parents=list(parents), seed=seed, warnings=list(warnings),
                              symmetries=symmetries)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # another number of threads rounds differently


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("run") / "real", warnings=["one slide only"])


def make_arm(real, path, **more):
    """A synthetic arm made from real's train split."""
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    return make_dataset(path, parents=[made_from], **more)


@pytest.fixture(scope="module")
def pool(real):
    """A synthetic arm with a train pool three times real's."""
    return make_arm(real, real.path.parent / "pool", num_train=24, seed=1)


@pytest.fixture(scope="module")
def other_pool(real):
    return make_arm(real, real.path.parent / "other_pool", num_train=24, seed=2)


@pytest.fixture(scope="module")
def few(real):
    """An arm with fewer training images of one class than real, and more of another."""
    return make_arm(real, real.path.parent / "few", num_train={"a": 3, "b": 8, "c": 9}, seed=3)


@pytest.fixture
def trainings(monkeypatch):
    """What every training is given; none takes place."""
    import torch
    seen = []

    def train(model, images, labels, plan, **more):
        start = np.concatenate([each.detach().numpy().ravel() for each in model.parameters()])
        seen.append({"images": images.numpy(), "labels": labels.numpy(), "plan": plan,
                     "start": start, "torch": torch.get_rng_state().numpy(), **more})
        return 0.5

    monkeypatch.setattr(cnn_classify, "train", train)
    return seen


def classify(data, real, results, *more, repeats="2", steps=6):
    return cnn_classify.main(["--data", str(data.path), "--real", str(real.path), "--results",
                              str(results), "--repeats", repeats, "--steps", str(steps),
                              "--batch-size", "8", "--device", "cpu", *more])


def read(results, name, repeat=0):
    path = results / name / "replicate_000" / f"repeat_{repeat:04d}.json"
    return json.loads(path.read_text())


def content(results):
    """Everything the repeats left that must not differ from run to run."""
    found = {}
    for path in sorted(results.glob("*/*/repeat_*")):
        name = path.relative_to(results).as_posix()
        if path.suffix == ".json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "run"}
        else:
            found[name] = path.read_bytes()
    return found


# ------------------------------------------------------------------ what is scored, what is shared

class KnowsByHeart:
    """A model that answers by a table {bytes of an image: class}."""

    def __init__(self, answers):
        self.answers = answers

    def eval(self):
        return self

    def __call__(self, batch):
        import torch
        pixels = (batch.permute(0, 2, 3, 1).numpy() * batches.STD + batches.MEAN) * 255
        said = [self.answers[each.tobytes()] for each in np.rint(pixels).astype(np.uint8)]
        return 9 * torch.nn.functional.one_hot(torch.tensor(said), 3).float()


@pytest.mark.parametrize("known", ["own", "real", "val"])
def test_an_accuracy_is_that_on_the_images_of_its_own_split(real, pool, known):
    """A CNN that knows one split by heart, and is wrong on all others, is right there only."""
    import torch
    answers = {}
    for name, dataset, split in (("own", pool, "test"), ("real", real, "test"),
                                 ("val", pool, "val"), ("", pool, "train"), ("", real, "val")):
        for image, label in zip(*dataset.load(split)):
            answers[image.tobytes()] = int(label if name == known else (label + 1) % 3)
    scores, arrays = cnn_classify.Bench(pool, real, torch.device("cpu")).test(KnowsByHeart(answers))
    for name in ("own", "real", "val"):
        assert scores[f"accuracy_{name}"] == (name == known), name
    for name, dataset in (("own", pool), ("real", real)):
        images, _ = dataset.load("test")
        assert scores["scores"][name]["accuracy"] == (name == known)
        assert arrays[f"{name}_probabilities"].argmax(1).tolist() == [
            answers[image.tobytes()] for image in images]


def test_a_cnn_is_trained_on_the_train_split_and_on_nothing_else(real, pool, trainings, tmp_path):
    for data in (real, pool):
        assert classify(data, real, tmp_path, repeats="1") == 0
        images, labels = data.load("train")
        assert np.array_equal(trainings[-1]["images"], images)
        assert np.array_equal(trainings[-1]["labels"], labels)
        shown = np.unique(trainings[-1]["plan"]["index"])
        assert np.bincount(labels[shown]).tolist() == [8, 8, 8]
    assert read(tmp_path, "pool")["train_loss"] == 0.5


def test_the_budget_does_not_depend_on_the_pool(real, pool, few, trainings, tmp_path):
    for data in (real, pool, few):
        assert classify(data, real, tmp_path, repeats="1") == 0
    assert [each["plan"]["index"].shape for each in trainings] == [(6, 8)] * 3
    assert {each["learning_rate"] for each in trainings} == {2e-3}
    assert len({repr(read(tmp_path, name)["settings"]) for name in ("real", "pool", "few")}) == 1


def test_no_two_trainings_share_a_draw_an_order_or_initial_weights(
        real, pool, other_pool, trainings, tmp_path):
    """Two arms, two repeats, two replicates: the rank-sum test takes them as independent."""
    for data in (pool, other_pool):
        for replicate in ("0", "1"):
            assert classify(data, real, tmp_path, "--replicate", replicate) == 0
    assert len(trainings) == 8
    for what, of in (("draw", lambda each: np.unique(each["plan"]["index"])),
                     ("order", lambda each: each["plan"]["index"]),
                     ("symmetry", lambda each: each["plan"]["symmetry"]),
                     ("brightness", lambda each: each["plan"]["brightness"]),
                     ("weights", lambda each: each["start"]),
                     ("torch's draws", lambda each: each["torch"])):
        assert len({of(each).tobytes() for each in trainings}) == 8, what


def test_the_first_weights_do_not_depend_on_what_was_drawn_before(real, trainings, tmp_path):
    import torch
    for name, wasted in (("x", 0), ("y", 100)):
        torch.rand(wasted)
        np.random.rand(wasted)
        assert classify(real, real, tmp_path / name, repeats="1") == 0
    assert np.array_equal(*(each["start"] for each in trainings))
    assert np.array_equal(*(each["torch"] for each in trainings))


ONE_DRAW = ("the train pool is no larger than one draw: repeats differ by the CNN's seed only, not "
            "by the images drawn")


@pytest.mark.parametrize("num_train, wanted", [
    (8, [ONE_DRAW]), (24, []), ({"a": 8, "b": 8, "c": 9}, []),
    ({"a": 3, "b": 8, "c": 9}, ["class a has 3 training images, real has 8"]),
    ({"a": 7, "b": 2, "c": 8}, [ONE_DRAW, "class a has 7 training images, real has 8",
                                "class b has 2 training images, real has 8"])])
def test_too_few_images_are_said(num_train, wanted):
    def dataset(counts, warnings):
        return SimpleNamespace(counts={"train": counts}, warnings=warnings)
    have = num_train if isinstance(num_train, dict) else dict.fromkeys(CLASSES, num_train)
    found = cnn_classify.warnings_of(dataset(have, ["of the arm", "of both"]),
                                     dataset(dict.fromkeys(CLASSES, 8), ["of both", "of real"]))
    assert found == ["of the arm", "of both", "of real", *wanted]


def test_a_record_says_that_its_arm_has_too_few_images(real, few, trainings, tmp_path):
    assert classify(few, real, tmp_path, repeats="1") == 0
    record = read(tmp_path, "few")
    assert record["num_train_images"] == 3 + 8 + 8 and record["num_pool_images"] == 20
    assert record["warnings"] == ["one slide only", "class a has 3 training images, real has 8"]


# ------------------------------------------------------------------ the stage

def test_record_is_whole_and_the_comparison_reads_it(real, pool, tmp_path, capsys):
    from lungkit.compare.results import read_results
    assert classify(real, real, tmp_path) == 0
    assert classify(pool, real, tmp_path) == 0
    last_line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "accuracy_real mean" in last_line and "n 2" in last_line
    record = read(tmp_path, "pool")
    assert record["num_train_images"] == 24 and record["num_pool_images"] == 72
    assert record["dataset_fingerprint"] == pool.fingerprint
    assert record["real_fingerprint"] == real.fingerprint
    assert record["trained_on"] == pool.trained_on()
    assert record["warnings"] == ["one slide only"]
    assert any("seed only" in text for text in read(tmp_path, "real")["warnings"])
    arrays = np.load(tmp_path / "pool" / "replicate_000" / "repeat_0000.npz")
    for name, dataset in (("own", pool), ("real", real)):
        rows = dataset.select("test")
        assert arrays[f"{name}_file_names"].tolist() == [row.file_name for row in rows]
        probabilities, labels = arrays[f"{name}_probabilities"], arrays[f"{name}_labels"]
        assert [CLASSES[k] for k in labels] == [row.label for row in rows]
        assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
        again = metrics.split_metrics(probabilities, labels, CLASSES)
        assert (record["scores"][name], record[name]) == again
        assert record[f"accuracy_{name}"] == again[0]["accuracy"]
        assert arrays[f"{name}_groups"].tolist() == [row.group for row in rows]
    assert record["schema"] == "lungkit.result/2" and record["task"] == "classify"
    found = read_results(tmp_path)
    assert found.datasets == ["real", "pool"] and found.repeats == [0, 1]


def test_the_page_lists_every_key_of_a_record_and_no_other(real, pool, trainings, tmp_path):
    assert classify(real, real, tmp_path, repeats="1") == 0
    assert classify(pool, real, tmp_path, repeats="5") == 0
    drawn = [read(tmp_path, "pool", repeat) for repeat in range(5)]
    assert keys_of(drawn[0]) == keys_on_page("The record") | keys_on_page("Of a larger pool")
    assert [record["draws"] for record in drawn] == [3] * 5
    assert [record["shared_with_earlier"] == 0 for record in drawn] == [True] * 3 + [False] * 2
    assert keys_of(read(tmp_path, "real")) == keys_on_page("The record")
    path = tmp_path / "real/replicate_000/repeat_0000.json"
    assert arrays_of(path) == keys_on_page("The .npz")
    assert set(read(tmp_path, "real")["scores"]["own"]) == keys_on_page("The scores of `classify`")


def test_it_learns_what_can_be_learnt(real, tmp_path):
    assert classify(real, real, tmp_path, repeats="1", steps=40) == 0
    record = read(tmp_path, "real")
    assert record["accuracy_real"] == record["accuracy_own"] == record["accuracy_val"] == 1.0


def test_same_seed_same_bytes_and_repeats_differ(pool, real, tmp_path):
    assert classify(pool, real, tmp_path / "x") == 0
    assert classify(pool, real, tmp_path / "y", repeats="1-1") == 0
    assert classify(pool, real, tmp_path / "z", "--seed", "1", repeats="1") == 0
    x, y, z = (content(tmp_path / name) for name in "xyz")
    second = {name: value for name, value in x.items() if "0001" in name}
    assert len(second) == 2 and second == y
    assert z["pool/replicate_000/repeat_0000.npz"] == x["pool/replicate_000/repeat_0001.npz"]
    assert len({value for name, value in x.items() if name.endswith("npz")}) == 2


def test_more_repeats_add_only_what_is_missing(real, tmp_path, capsys):
    assert classify(real, real, tmp_path, repeats="1-2") == 0
    before = read(tmp_path, "real", 1)["run"]
    assert classify(real, real, tmp_path, repeats="4") == 0
    assert "found 2, pending 2 of 4" in capsys.readouterr().err
    assert read(tmp_path, "real", 1)["run"] == before
    assert classify(real, real, tmp_path, repeats="1") == 0
    assert "already complete" in capsys.readouterr().out


def test_a_run_begun_under_version_1_resumes_and_is_compared(trainings, tmp_path, capsys):
    import wilcoxon_test
    kept = ROOT / "tests/fixtures/v1"
    shutil.copytree(kept / "results", tmp_path / "results")
    before = content(tmp_path / "results")
    for repeats_asked, answer in (("2", "already complete"), ("3", "found 2, pending 1 of 3")):
        for name in ("real", "voronoi"):
            assert cnn_classify.main([
                "--data", str(kept / "datasets" / name), "--real", str(kept / "datasets/real"),
                "--results", str(tmp_path / "results"), "--repeats", repeats_asked, "--steps", "2",
                "--batch-size", "4", "--device", "cpu", "--seed", "5"]) == 0
            assert answer in "".join(capsys.readouterr())
    assert len(trainings) == 2 and before.items() <= content(tmp_path / "results").items()
    assert [read(tmp_path / "results", "real", repeat)["schema"] for repeat in range(3)] == [
        "lungkit.result/1", "lungkit.result/1", "lungkit.result/2"]
    assert wilcoxon_test.main([str(tmp_path / "results"), "--output", str(tmp_path / "comparison"),
                               "--metric", "auroc", "--datasets", "real", "voronoi"]) == 0


def forget_leaks(results):
    """Make the records those of before leaks were looked for."""
    shutil.rmtree(results / ".leaks")
    for path in results.rglob("repeat_*.json"):
        record = json.loads(path.read_text())
        del record["leaks"]
        path.write_text(json.dumps(record))


def test_of_older_results_it_is_looked_for_leaks_once_and_nothing_is_trained(
        real, pool, trainings, tmp_path, capsys, monkeypatch):
    both = [real.path, pool.path]
    for dataset in (real, pool):
        assert classify(dataset, real, tmp_path / "results") == 0
    forget_leaks(tmp_path / "results")
    before = content(tmp_path / "results")
    capsys.readouterr()
    for searched in (2, 0):
        for path in both:
            assert classify(open_dataset(path), real, tmp_path / "results") == 0
        said = capsys.readouterr()
        assert said.out.count("already complete") == 2
        assert said.err.count("looking among") == searched
    assert len(trainings) == 4 and content(tmp_path / "results") == before
    assert {path.suffix for path in (tmp_path / "results/.leaks").iterdir()} == {".json"}


def test_complete_answers_without_torch(real, tmp_path, capsys, monkeypatch):
    assert classify(real, real, tmp_path) == 0
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would raise
    assert classify(real, real, tmp_path) == 0
    assert "already complete" in capsys.readouterr().out


def test_other_options_are_refused_by_name_and_overwritten_on_demand(real, pool, tmp_path, capsys):
    assert classify(real, real, tmp_path) == 0
    before = content(tmp_path)
    assert classify(real, real, tmp_path, "--learning-rate", "0.01", repeats="3", steps=7) == 2
    error = capsys.readouterr().err
    assert "steps: 6 there, 7 now" in error and "learning_rate: 0.002 there, 0.01 now" in error
    assert classify(real, real, tmp_path, "--seed", "5", repeats="7-8") == 2  # none of these there
    assert content(tmp_path) == before
    assert classify(real, real, tmp_path, "--overwrite", "--dry-run", steps=7) == 0
    assert content(tmp_path) == before
    assert classify(real, real, tmp_path, "--overwrite", repeats="1", steps=7) == 0
    assert read(tmp_path, "real")["settings"]["steps"] == 7
    assert len(content(tmp_path)) == 2  # repeat 1 of the other steps is gone


@pytest.mark.parametrize("changed", ["dataset_fingerprint", "real_fingerprint"])
def test_results_of_another_version_of_a_dataset_are_not_complete(
        real, pool, trainings, tmp_path, capsys, changed):
    assert classify(pool, real, tmp_path / "results") == 0
    before = content(tmp_path / "results")
    new_real, seed = real, 8
    if changed == "real_fingerprint":
        new_real, seed = make_dataset(tmp_path / "real", seed=7), 1
    other = make_arm(new_real, tmp_path / "pool", num_train=8, seed=seed)
    assert classify(other, new_real, tmp_path / "results") == 2
    assert f"{changed}: " in capsys.readouterr().err and len(trainings) == 2
    assert content(tmp_path / "results") == before
    assert classify(other, new_real, tmp_path / "results", "--overwrite", repeats="1") == 0
    version = other if changed == "dataset_fingerprint" else new_real
    assert read(tmp_path / "results", "pool")[changed] == version.fingerprint
    assert len(content(tmp_path / "results")) == 2 and len(trainings) == 3


def test_the_same_pixels_with_other_orientations_are_another_training(
        real, trainings, tmp_path, capsys):
    turned = make_dataset(tmp_path / "real", symmetries=2)
    assert turned.fingerprint == real.fingerprint
    assert classify(real, real, tmp_path / "results", repeats="1") == 0
    assert "symmetries" not in {*read(tmp_path / "results", "real")["settings"],
                                *trainings[0]["identity"]}  # as before there were others
    assert classify(turned, turned, tmp_path / "results", repeats="1") == 2
    assert "symmetries: None there, 2 now" in capsys.readouterr().err
    assert classify(turned, turned, tmp_path / "results", "--overwrite", repeats="1") == 0
    assert read(tmp_path / "results", "real")["settings"]["symmetries"] == 2
    assert trainings[1]["identity"]["symmetries"] == 2  # of its checkpoint


@pytest.mark.parametrize("preset, more, wanted", [
    ("demo", [], "model small  steps 200  batch_size 32  learning_rate 0.002  recipe 2"),
    ("full", [], "model resnet18  steps 2000  batch_size 128  learning_rate 0.001  recipe 2"),
    ("full", ["--model", "convnext_tiny", "--steps", "9"],
     "model convnext_tiny  steps 9  batch_size 128  learning_rate 0.0005  recipe 2"),
    ("demo", ["--learning-rate", "0.5"],
     "model small  steps 200  batch_size 32  learning_rate 0.5  recipe 2")])
def test_a_preset_fills_what_is_not_given(
        real, tmp_path, capsys, monkeypatch, preset, more, wanted):
    """Another number here is another recipe: raise RECIPE with it."""
    monkeypatch.setattr(cnns, "build_model", lambda *_: None)
    assert cnn_classify.main(["--data", str(real.path), "--real", str(real.path), "--device", "cpu",
                              "--results", str(tmp_path), "--dry-run", "--preset", preset,
                              *more]) == 0
    assert f"{wanted}  " in capsys.readouterr().err


def test_a_dry_run_plans_for_a_gpu_that_is_on_another_machine(real, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert classify(real, real, tmp_path / "results", "--device", "cuda", "--dry-run") == 0
    assert "device cuda" in capsys.readouterr().err
    assert classify(real, real, tmp_path / "results", "--device", "cuda") == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert classify(real, real, tmp_path / "results", "--device", "tpu9", "--dry-run") == 2


def test_a_dataset_named_as_the_baseline_is_refused_where_that_has_results(
        real, tmp_path, capsys, trainings):
    arm = make_arm(real, tmp_path / "nuclei", num_train=24)
    directory = result.replicate_dir(tmp_path / "results", "nuclei", 0)
    write_repeat(directory, dataset="nuclei", kind="baseline")
    before = content(tmp_path / "results")
    for more in ([], ["--overwrite"], ["--dry-run"]):
        assert classify(arm, real, tmp_path / "results", *more) == 2
        error = capsys.readouterr().err
        assert "results of another kind (baseline, not cnn)" in error and error.count("\n") == 1
    assert content(tmp_path / "results") == before and not trainings


def test_dry_run_writes_nothing(real, tmp_path, capsys):
    assert classify(real, real, tmp_path / "results", "--dry-run") == 0
    assert "pending 2 of 2" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


# ------------------------------------------------------------------ stopping, sharing

def stop_at(monkeypatch, step):
    """Send this process SIGTERM while the given step is under way."""
    def one_cycle(now, steps, original=classify_training.one_cycle):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(now, steps)
    monkeypatch.setattr(classify_training, "one_cycle", one_cycle)


def test_stopped_repeat_resumes_to_the_same_bytes(pool, real, tmp_path, monkeypatch):
    from torch import nn

    def cnn_with_dropout(num_classes, small_cnn=cnns.small_cnn):
        # draws from torch's generator, as ConvNeXt's stochastic depth does: it must come back too
        *body, head = small_cnn(num_classes)
        return nn.Sequential(*body, nn.Dropout(), head)

    monkeypatch.setitem(cnns.MODELS, "small", (cnn_with_dropout, 2e-3))
    assert classify(pool, real, tmp_path / "whole", repeats="1", steps=20) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 18)  # among the last tenth, whose losses are reported
        assert classify(pool, real, tmp_path / "cut", repeats="1", steps=20) == 75
    assert content(tmp_path / "cut") == {}
    directory = tmp_path / "cut" / "pool" / "replicate_000"
    assert (directory / ".repeat_0000.partial").exists()
    assert classify(pool, real, tmp_path / "cut", "--learning-rate", "0.9", repeats="1",
                    steps=20) == 2
    first_steps = []

    def restore(*arguments, original=loop.restore, **options):
        first_steps.append(original(*arguments, **options))
        return first_steps[-1]

    monkeypatch.setattr(loop, "restore", restore)
    assert classify(pool, real, tmp_path / "cut", repeats="1", steps=20) == 0
    assert first_steps == [19]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not list(directory.glob(".repeat*"))


@pytest.mark.parametrize("interval_sec, kept", [(0, True), (1e9, False)])
def test_a_killed_repeat_goes_on_from_its_last_checkpoint(
        real, tmp_path, monkeypatch, interval_sec, kept):
    monkeypatch.setattr(loop, "CHECKPOINT_INTERVAL_SEC", interval_sec)
    first_steps = []

    def one_cycle(step, steps, original=classify_training.one_cycle):
        first_steps.append(step)
        if len(first_steps) == 8:
            raise RuntimeError("killed")
        return original(step, steps)

    monkeypatch.setattr(classify_training, "one_cycle", one_cycle)
    with pytest.raises(RuntimeError, match="killed"):
        classify(real, real, tmp_path, repeats="1", steps=10)
    assert classify(real, real, tmp_path, repeats="1", steps=10) == 0
    resumed_at = first_steps[8]
    assert first_steps == [*range(8), *range(resumed_at, 10)]
    assert 0 < resumed_at < 8 if kept else resumed_at == 0


def test_overwrite_does_not_go_on_from_what_other_options_began(real, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert classify(real, real, tmp_path / "cut", repeats="1") == 75
    other = ["--learning-rate", "0.01"]
    assert classify(real, real, tmp_path / "cut", *other, "--overwrite", repeats="1") == 0
    assert classify(real, real, tmp_path / "whole", *other, repeats="1") == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_repeat_begun_by_an_earlier_version_is_one_line_and_overwrite_begins_it_anew(
        real, tmp_path, capsys):
    import torch

    path = tmp_path / "real" / "replicate_000" / ".repeat_0000.partial"
    path.parent.mkdir(parents=True)
    torch.save({"identity": {"seed": 0}, "step": 3, "model": {}, "optimizer": {},
                "losses": torch.zeros(9), "rng": [torch.get_rng_state()]}, path)
    assert classify(real, real, tmp_path, repeats="1") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert path.name in error and "remove it" in error
    assert classify(real, real, tmp_path, "--overwrite", repeats="1") == 0
    assert not path.exists()


def test_waits_for_the_repeat_another_process_holds(real, tmp_path, monkeypatch, capsys):
    path = tmp_path / "real" / "replicate_000" / "repeat_0000.json"
    held = output.try_lock(path)
    monkeypatch.setattr(repeats, "POLL_INTERVAL_SEC", 0.05)

    def say(text, original=repeats.say):
        original(text)
        if "waiting" in text:  # the other one ends only when we have nothing else to do
            assert path.with_name("repeat_0001.json").exists() and not path.exists()
            output.release(held, path)
    monkeypatch.setattr(repeats, "say", say)
    assert classify(real, real, tmp_path) == 0
    assert "1 repeats are with other processes" in capsys.readouterr().err
    assert path.exists()


def test_several_datasets_are_trained_as_each_alone(real, pool, tmp_path, trainings, capsys):
    each = ["--real", real.path, "--repeats", "2", "--steps", "6", "--device", "cpu"]
    for name, data in (("both", [real, pool]), ("real", [real]), ("pool", [pool])):
        assert cnn_classify.main(list(map(str, [
            "--data", *(dataset.path for dataset in data), *each, "--results",
            tmp_path / ("both" if name == "both" else "alone")]))) == 0
    assert content(tmp_path / "both") == content(tmp_path / "alone")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "real", "pool", "real", "pool"]


def test_who_finds_a_dataset_taken_goes_on_with_the_next(real, pool, tmp_path, trainings,
                                                         monkeypatch):
    """It waits for another process only when nothing else is left to do."""
    path = tmp_path / "real/replicate_000/repeat_0000.json"
    held = output.try_lock(path)

    def say(text: str) -> None:
        if "waiting" in text:
            assert len(list(tmp_path.glob("pool/replicate_000/*.json"))) == 2
            output.release(held, path)
    monkeypatch.setattr(repeats, "say", say)
    assert cnn_classify.main(list(map(str, [
        "--data", real.path, pool.path, "--real", real.path, "--results", tmp_path,
        "--repeats", "2", "--steps", "6", "--device", "cpu"]))) == 0
    assert len(list(tmp_path.glob("*/replicate_000/*.json"))) == 4


def test_waiting_ends_at_a_signal(real, tmp_path, monkeypatch):
    held = output.try_lock(tmp_path / "real" / "replicate_000" / "repeat_0000.json")
    monkeypatch.setattr(repeats, "say", lambda text: (
        os.kill(os.getpid(), signal.SIGTERM) if "waiting" in text else None))
    assert classify(real, real, tmp_path, repeats="1") == 75
    held.close()


def test_two_processes_share_and_one_survives_the_others_kill(pool, real, tmp_path):
    directory, holds = tmp_path / "shared" / "pool" / "replicate_000", tmp_path / "holds"

    def share(*, stuck: bool) -> int:
        if stuck:  # in its first training, until it is killed
            cnn_classify.train = lambda *_, **__: (holds.touch(), time.sleep(240))
        return classify(pool, real, tmp_path / "shared", repeats="3", steps=20)

    killed, other = [fork(partial(share, stuck=stuck)) for stuck in (True, False)]
    assert signal_when(killed, lambda: holds.exists() and list(directory.glob("repeat_*.json"))) \
        == -signal.SIGKILL
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert classify(pool, real, tmp_path / "alone", repeats="3", steps=20) == 0
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


# ------------------------------------------------------------------ bad input

def test_a_loss_that_is_not_finite_fails(real, tmp_path, capsys):
    assert classify(real, real, tmp_path, "--learning-rate", "1e30") == 1
    assert "the loss is not finite" in capsys.readouterr().err
    assert content(tmp_path) == {}


@pytest.mark.parametrize("fault", ["classes", "size", "other real", "saw test", "altered"])
def test_datasets_that_must_not_be_compared(real, tmp_path, capsys, fault):
    more = {"classes": {"classes": ["a", "b"]}, "size": {"size": 16}}.get(fault, {})
    made_from = parent_of(real, {"train": ["train", "test"] if fault == "saw test" else ["train"]})
    if fault == "other real":
        made_from["fingerprint"] = "0" * 64
    bad = make_dataset(tmp_path / "bad", parents=[made_from], **more)
    if fault == "altered":
        (bad.path / bad.rows[0].file_name).unlink()
    assert classify(bad, real, tmp_path / "results") == 1
    error = capsys.readouterr().err
    words = {"classes": "has classes", "size": "16 px", "other real": "was not made from",
             "saw test": "saw test images", "altered": "missing or unreadable"}[fault]
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("more, words", [
    (["--repeats", "0"], "at least 1"), (["--repeats", "5-3"], "comes before"),
    (["--batch-size", "1"], "two images"), (["--model", "vgg"], "invalid choice"),
    (["--weights", "missing.safetensors"], "is not a file"), (["--step", "5"], "unrecognized"),
    (["--device", "tpu9"], "not a device")])
def test_bad_options(real, tmp_path, capsys, more, words):
    assert classify(real, real, tmp_path / "results", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_results_inside_the_dataset_are_refused(real, capsys):
    assert classify(real, real, real.path / "results") == 2
    assert "lies in the dataset" in capsys.readouterr().err
    open_dataset(real.path)


class Code:
    """A pickle that runs code where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_are_loaded_checked_and_recorded(real, tmp_path, capsys):
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(0)
    state = cnns.small_cnn(7).state_dict()  # another head
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = cnns.build_model("small", 3, tmp_path / name)
        assert torch.equal(model[0].weight, state["0.weight"]) and model[-1].out_features == 3
    assert classify(real, real, tmp_path / "r", "--weights", str(tmp_path / "w.pt"),
                    repeats="1") == 0
    settings = read(tmp_path / "r", "real")["settings"]
    assert settings["weights_sha256"] == files.sha256_file(tmp_path / "w.pt")
    assert classify(real, real, tmp_path / "r", repeats="1") == 2
    assert "weights_sha256" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("no weights")
    torch.save(Code(tmp_path / "ran"), tmp_path / "code.pt")
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for name, words in (("text.pt", "is not a state dict"), ("code.pt", "is not a state dict"),
                        ("other.pt", "do not fit")):
        assert classify(real, real, tmp_path / "s", "--weights", str(tmp_path / name)) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "s").exists() and not (tmp_path / "ran").exists()


def test_weights_fill_all_but_the_head_even_where_that_would_fit(tmp_path):
    import torch
    state = cnns.small_cnn(3).state_dict()
    state["1.running_mean"] += 3
    for name, saved in (("plain.pt", state), ("nested.pt", {"state_dict": state}),
                        ("headless.pt", dict(list(state.items())[:-2]))):
        torch.save(saved, tmp_path / name)
        model = cnns.build_model("small", 3, tmp_path / name).state_dict()
        assert all(torch.equal(model[key], state[key]) for key in list(state)[:-2])
        assert not any(torch.equal(model[key], state[key]) for key in list(state)[-2:])


def test_a_training_starts_from_the_weights_given(real, trainings, tmp_path):
    import torch
    state = cnns.small_cnn(3).state_dict()
    torch.save(state, tmp_path / "w.pt")
    assert classify(real, real, tmp_path, "--weights", str(tmp_path / "w.pt"), repeats="1") == 0
    assert trainings[0]["start"][:432].tolist() == state["0.weight"].flatten().tolist()


def test_resnet_and_convnext(real, tmp_path):
    import torch
    convnext = cnns.build_model("convnext_tiny", 3, None)
    images = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    assert classify_training.predict(convnext, images).shape == (2, 3)
    assert classify(real, real, tmp_path, "--model", "resnet18", repeats="1", steps=2) == 0
    assert read(tmp_path, "real")["model"] == "resnet18"


@pytest.mark.parametrize(("most_pixels", "batches"), [
    (10**9, [128, 2]), (16 * 16 * 50, [50, 50, 30]), (1, [1] * 130)])
def test_large_images_are_tested_in_smaller_batches(most_pixels, batches, monkeypatch):
    import torch

    seen = []

    class Sees(torch.nn.Module):
        def forward(self, batch):
            seen.append(len(batch))
            return batch.flatten(1)[:, :2]

    monkeypatch.setattr(classify_training, "EVAL_PIXELS", most_pixels)
    classify_training.predict(Sees(), torch.zeros((130, 16, 16, 3), dtype=torch.uint8))
    assert seen == batches


def test_no_training_begins_on_copies_of_test_images(real, trainings, tmp_path, capsys):
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    with DatasetWriter(Output(tmp_path / "copied", "dataset.json", {}), stage="test",
                       classes=CLASSES, image_size=SIZE) as writer:
        for index, row in enumerate(real.rows):  # its train images are real's test, turned
            other = {"test": "train", "train": "val", "val": "test"}[row.split]
            writer.add(other, row.label, index, np.rot90(real.image(row)).copy())
        copied = writer.publish(parents=[made_from], seed=0)
    assert classify(copied, real, tmp_path / "results") == 1
    assert "copied trains on 12 of the 12 test images" in capsys.readouterr().err
    assert not trainings and not list(tmp_path.glob("results/*/*/*"))
