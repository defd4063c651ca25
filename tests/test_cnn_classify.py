"""The CNN stage: its metrics, its draws, its loop, and how repeats are shared and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cnn_classify
from lungkit import files, records
from lungkit.dataset import DatasetWriter, open_dataset, parent_of
from lungkit.files import Output

CLASSES = ["a", "b", "c"]
SIZE = 32
ROOT = Path(cnn_classify.__file__).parent


def make_dataset(path, *, num_train=8, classes=CLASSES, size=SIZE, parents=(), seed=0,
                 warnings=()):
    """A dataset whose classes differ by their colour, under noise."""
    rng = np.random.default_rng(seed)
    index = 0
    with DatasetWriter(Output(path, "dataset.json", {"seed": seed}), stage="test",
                       classes=classes, image_size=size) as writer:
        for split, num_images in (("train", num_train), ("val", 3), ("test", 4)):
            for k, label in enumerate(classes):
                for _ in range(num_images):
                    image = rng.integers(40, 120, (size, size, 3))
                    image[..., k % 3] += 60
                    writer.add(split, label, index, image.astype(np.uint8), group=f"g{index}")
                    index += 1
        return writer.publish(parents=list(parents), seed=seed, warnings=list(warnings))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # another number of threads rounds differently


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("run") / "real", warnings=["one slide only"])


@pytest.fixture(scope="module")
def pool(real):
    """A synthetic arm with a train pool three times real's."""
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    return make_dataset(real.path.parent / "pool", num_train=24, parents=[made_from], seed=1)


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


# ------------------------------------------------------------------ metrics

def test_metrics_by_hand():
    # true 0 0 0 1 1 2; said 0 0 1 1 2 2
    probabilities = np.array([[.8, .1, .1], [.6, .3, .1], [.3, .5, .2],
                              [.2, .7, .1], [.4, .1, .5], [.1, .2, .7]])
    found = records.split_metrics(probabilities, np.array([0, 0, 0, 1, 1, 2]), CLASSES)
    assert found["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["num_images"] == 6 and found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    # class 0: 8 of 9 pairs right; class 1: 4.5 of 8 (a tie at .1); class 2: 5 of 5
    assert found["auroc"] == pytest.approx((8 / 9 + 4.5 / 8 + 1) / 3)
    # class 0: hits at ranks 1, 2, 4; class 1: at rank 1, then both ties at .1 close at rank 6
    first, second = (1 + 1 + 3 / 4) / 3, (1 + 2 / 6) / 2
    assert found["auprc_weighted"] == pytest.approx(first / 2 + second / 3 + 1 / 6)
    assert found["auprc_baseline"] == pytest.approx(1 / 4 + 1 / 9 + 1 / 36)


def test_metrics_with_a_class_nobody_has_and_without_information():
    found = records.split_metrics(np.full((4, 3), 1 / 3), np.array([0, 0, 1, 1]), CLASSES)
    assert found["accuracy"] == 0.5 and found["balanced_accuracy"] == 0.5
    assert found["auroc"] == 0.5 and found["auprc_weighted"] == found["auprc_baseline"] == 0.5


def test_metrics_against_scikit_learn():
    reference = pytest.importorskip(
        "sklearn.metrics", reason="pip install scikit-learn to compare with its metrics")
    rng = np.random.default_rng(3)
    labels = np.r_[np.arange(3), rng.integers(0, 3, 60)]
    probabilities = np.round(rng.dirichlet(np.ones(3), 63), 1)  # rounded: ties
    found = records.split_metrics(probabilities, labels, CLASSES)
    said, one_hot = probabilities.argmax(1), labels[:, None] == np.arange(3)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, said, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, said))
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(one_hot, probabilities))
    assert found["auprc_weighted"] == pytest.approx(
        reference.average_precision_score(one_hot, probabilities, average="weighted"))


# ------------------------------------------------------------------ draws, order, augmentation

def test_draw_is_as_large_as_real_and_its_own():
    labels = np.repeat([0, 1, 2], [30, 30, 5])
    draws = [cnn_classify.draw_images(labels, [8, 10, 6], np.random.default_rng(seed))
             for seed in (0, 0, 1)]
    assert np.bincount(labels[draws[0]]).tolist() == [8, 10, 5]  # all five where there are fewer
    assert len(set(draws[0])) == 23
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


def test_plan_shows_every_image_once_an_epoch():
    drawn = np.array([3, 5, 7, 11, 13])
    plan = cnn_classify.plan_batches(drawn, 4, 5, np.random.default_rng(0))
    assert all(sorted(epoch) == drawn.tolist() for epoch in plan["index"])
    assert len({tuple(epoch) for epoch in plan["index"]}) > 1
    assert plan["symmetry"].min() >= 0 and plan["symmetry"].max() <= 7
    assert abs(plan["brightness"] - 1).max() <= cnn_classify.BRIGHTNESS


def test_learning_rate_rises_and_falls_to_nothing():
    rates = [cnn_classify.one_cycle(step, 100) for step in range(100)]
    peak = int(np.argmax(rates))
    assert 0.95 < rates[peak] <= 1 and 15 <= peak <= 25
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:])[::-1]
    assert 0 < rates[-1] < 0.01


def test_symmetries_are_the_eight_of_a_square():
    image = np.arange(9).reshape(3, 3)
    turned = {tuple(image.reshape(-1)[order])
              for order in cnn_classify.square_symmetries(3).numpy()}
    wanted = {tuple(np.rot90(each, k).reshape(-1)) for each in (image, image.T) for k in range(4)}
    assert turned == wanted and len(turned) == 8


def test_normalise_is_exact():
    import torch
    batch = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    wanted = (batch.numpy() / 255 - cnn_classify.MEAN) / cnn_classify.STD
    found = cnn_classify.normalise(batch, *cnn_classify.pixel_scale("cpu"))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), atol=1e-5)


class Silent:
    """A checkpoint and a progress line that do nothing."""

    load = staticmethod(lambda *_: 0)
    is_due = staticmethod(lambda: False)
    update = staticmethod(lambda *_, **__: None)


def test_the_loop_shows_the_model_what_the_plan_says():
    import torch
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    plan = {"index": np.array([[4, 2], [0, 4]]), "symmetry": np.array([[0, 1], [4, 3]]),
            "brightness": np.array([[1, 1.5], [1, 0.5]], np.float32)}
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    cnn_classify.train(model, images, torch.zeros(5, dtype=torch.int64), plan,
                       learning_rate=0.1, checkpoint=Silent(), progress=Silent())
    assert len(seen) == 2
    pixels = images.numpy().astype(float)
    wanted = [[pixels[4], 1.5 * pixels[2, ::-1]],  # up and down, left and right, main diagonal
              [pixels[0].transpose(1, 0, 2), 0.5 * pixels[4, ::-1, ::-1]]]
    for batch, image_pair in zip(seen, wanted):
        normal = (np.stack(image_pair) / 255 - cnn_classify.MEAN) / cnn_classify.STD
        assert np.allclose(batch, normal.transpose(0, 3, 1, 2), atol=1e-5)


# ------------------------------------------------------------------ the stage

def test_record_is_whole_and_the_comparison_reads_it(real, pool, tmp_path, capsys):
    from lungkit.results import read_results
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
        again = records.split_metrics(probabilities, labels, CLASSES)
        assert record[name] == again and record[f"accuracy_{name}"] == again["accuracy"]
    found = read_results(tmp_path)
    assert found.datasets == ["real", "pool"] and found.repeats == [0, 1]


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


def test_dry_run_writes_nothing(real, tmp_path, capsys):
    assert classify(real, real, tmp_path / "results", "--dry-run") == 0
    assert "pending 2 of 2" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


# ------------------------------------------------------------------ stopping, sharing

def stop_at(monkeypatch, step):
    """Send this process SIGTERM while the given step is under way."""
    def one_cycle(now, steps, original=cnn_classify.one_cycle):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(now, steps)
    monkeypatch.setattr(cnn_classify, "one_cycle", one_cycle)


def test_stopped_repeat_resumes_to_the_same_bytes(pool, real, tmp_path, monkeypatch):
    from torch import nn

    def cnn_with_dropout(num_classes, small_cnn=cnn_classify.small_cnn):
        # draws from torch's generator, as ConvNeXt's stochastic depth does: it must come back too
        *body, head = small_cnn(num_classes)
        return nn.Sequential(*body, nn.Dropout(), head)

    monkeypatch.setattr(cnn_classify, "small_cnn", cnn_with_dropout)
    assert classify(pool, real, tmp_path / "whole", repeats="1") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert classify(pool, real, tmp_path / "cut", repeats="1") == 75
    assert content(tmp_path / "cut") == {}
    directory = tmp_path / "cut" / "pool" / "replicate_000"
    assert (directory / ".repeat_0000.partial").exists()
    assert classify(pool, real, tmp_path / "cut", "--learning-rate", "0.9", repeats="1") == 2
    first_steps = []

    def load(*arguments, original=cnn_classify.Checkpoint.load):
        first_steps.append(original(*arguments))
        return first_steps[-1]

    monkeypatch.setattr(cnn_classify.Checkpoint, "load", load)
    assert classify(pool, real, tmp_path / "cut", repeats="1") == 0
    assert first_steps == [4]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not list(directory.glob(".repeat*"))


def test_waits_for_the_repeat_another_process_holds(real, tmp_path, monkeypatch, capsys):
    path = tmp_path / "real" / "replicate_000" / "repeat_0000.json"
    held = files.try_lock(path)
    monkeypatch.setattr(records, "POLL_INTERVAL_SEC", 0.05)

    def say(text, original=records.say):
        original(text)
        if "waiting" in text:  # the other one ends only when we have nothing else to do
            assert path.with_name("repeat_0001.json").exists() and not path.exists()
            files.release(held, path)
    monkeypatch.setattr(records, "say", say)
    assert classify(real, real, tmp_path) == 0
    assert "1 repeats are with other processes" in capsys.readouterr().err
    assert path.exists()


def test_waiting_ends_at_a_signal(real, tmp_path, monkeypatch):
    held = files.try_lock(tmp_path / "real" / "replicate_000" / "repeat_0000.json")
    monkeypatch.setattr(records, "say", lambda text: (
        os.kill(os.getpid(), signal.SIGTERM) if "waiting" in text else None))
    assert classify(real, real, tmp_path, repeats="1") == 75
    held.close()


def test_two_processes_share_and_one_survives_the_others_kill(pool, real, tmp_path):
    arguments = ["--data", pool.path, "--real", real.path, "--results", tmp_path / "shared",
                 "--repeats", "4", "--steps", "40", "--batch-size", "8", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "cnn_classify.py"), *map(str, arguments)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                             stdout=subprocess.DEVNULL) for _ in range(2)]
    directory = tmp_path / "shared" / "pool" / "replicate_000"
    give_up = time.monotonic() + 120
    try:
        while len(list(directory.glob(".*.lock"))) < 2 and time.monotonic() < give_up:
            time.sleep(0.01)
        both[0].kill()
        error = both[1].communicate(timeout=300)[1]  # generous: the machine may be busy
        assert both[1].returncode == 0, error
    finally:
        for each in both:
            each.kill()
            each.communicate()
    assert classify(pool, real, tmp_path / "alone", repeats="4", steps=40) == 0
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


# ------------------------------------------------------------------ bad input

def test_a_loss_that_is_not_finite_fails(real, tmp_path, capsys):
    assert classify(real, real, tmp_path, "--learning-rate", "1e30") == 1
    assert "the loss is" in capsys.readouterr().err
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
    state = cnn_classify.small_cnn(7).state_dict()  # another head
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = cnn_classify.build_model("small", 3, tmp_path / name)
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


def test_resnet_and_convnext(real, tmp_path):
    import torch
    convnext = cnn_classify.build_model("convnext_tiny", 3, None)
    images = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    assert cnn_classify.predict(convnext, images).shape == (2, 3)
    assert classify(real, real, tmp_path, "--model", "resnet18", repeats="1", steps=2) == 0
    assert read(tmp_path, "real")["model"] == "resnet18"


def test_help_is_quick_and_imports_nothing_heavy():
    code = ("import sys, cnn_classify; cnn_classify.main(['--help']); "
            "sys.exit(bool({'torch', 'torchvision', 'cv2', 'scipy'} & set(sys.modules)))")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
