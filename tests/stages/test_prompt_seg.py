"""The arm "prompt": what its adapters are trained on, and what its images are drawn from."""

from __future__ import annotations

import json
import shutil
from random import Random

import numpy as np
import pytest

import context_seg
import prompt_seg
from adapters import COUNTS, LORA, run_arm, write_prompts, write_real
from arms import content, main_of
from lungkit.data.dataset import open_dataset
from lungkit.generate.prompts import Prompts
from lungkit.run.faults import BadOptions

pytestmark = pytest.mark.usefixtures("found_once")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_real(tmp_path_factory.mktemp("prompt") / "real")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.json")


@pytest.fixture(scope="module")
def made(real, prompts, tmp_path_factory):
    record = run_arm("prompt", real, tmp_path_factory.mktemp("run"), "--prompts", str(prompts),
                     "--pool", "4", "--adapter", "lora", "--rank", "5", "--target", "attention",
                     "--train-steps", "7", "--batch-size", "9", "--learning-rate", "0.02",
                     "--sampling-steps", "11", "--guidance-scale", "3.5", "--sampler", "ddim")
    assert record.status == 0
    return record


# ------------------------------------------------------------------ training

def test_each_adapter_is_trained_on_all_training_images_of_its_class_alone(made):
    first, expected = 1, {}
    for label, (number, _, _) in COUNTS.items():
        expected[label] = list(range(first, first + number))
        first += number
    assert {call.label: call.loss.numbers for call in made.trained} == expected
    assert len(made.trained) == len(COUNTS)


def test_it_is_trained_on_the_captions_that_its_class_is_drawn_from(made, prompts):
    words = Prompts(prompts)
    for call in made.trained:
        taught = {call.loss.caption(0, Random(i)) for i in range(400)}
        assert taught == {words.caption(call.label, Random(i)) for i in range(400)}
        rows = [row for row in open_dataset(made.output).rows if row.label == call.label]
        assert {row.prompt for row in rows} <= taught
        assert len({row.prompt for row in rows}) > 4


def test_no_two_classes_and_no_two_seeds_share_random_numbers(made, real, prompts, tmp_path):
    other = run_arm("prompt", real, tmp_path, "--prompts", str(prompts), "--seed", "1")
    seeds = [call.options["seed"] for record in (made, other) for call in record.trained]
    seeds += sorted({call.options["seed"] for record in (made, other) for call in record.drawn})
    assert len(set(seeds)) == len(seeds) == 2 * len(COUNTS) + 2


def test_the_options_reach_the_training(made):
    for call in made.trained:
        assert {key: call.options[key] for key in ("rank", "target", "steps", "learning_rate")} == {
            "rank": 5, "target": "attention", "steps": 7, "learning_rate": 0.02}
        assert call.options["kind"] == "lora" and call.loss.batch_size == 9


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_images_are_turned_as_their_dataset_allows(arm, tmp_path):
    record = run_arm(arm, write_real(tmp_path / "real", symmetries=2), tmp_path)
    assert record.status == 0 and {call.symmetries for call in record.losses} == {2}
    assert open_dataset(record.output).symmetries == 2


def test_the_same_pixels_with_other_orientations_are_another_training(tmp_path, capsys):
    arm = "prompt"  # `open_arm` remembers them, and is every generator's
    usual, turned = (write_real(tmp_path / str(number) / "real", symmetries=number)
                     for number in (8, 2))
    made = run_arm(arm, usual, tmp_path)
    assert made.status == 0
    assert "symmetries" not in open_dataset(made.output).manifest["parameters"]  # as before
    assert run_arm(arm, turned, tmp_path).status == 2
    assert "symmetries: None there, 2 now" in capsys.readouterr().err
    assert run_arm(arm, turned, tmp_path, "--overwrite").status == 0
    for path in (made.output / "dataset.json", made.model / "model.json"):
        assert json.loads(path.read_text())["parameters"]["symmetries"] == 2


def test_grey_images_are_drawn_for_a_grey_dataset(tmp_path):
    record = run_arm("prompt", write_real(tmp_path / "real", channels=1), tmp_path)
    made = open_dataset(record.output)
    assert record.status == 0 and made.channels == 1
    for row in made.rows:  # the stand-in draws in colour, from the item's index
        drawn = np.random.default_rng(int(row.stem)).integers(0, 256, (64, 64, 3), np.uint8)
        assert np.array_equal(made.image(row), drawn.mean(-1, keepdims=True).round())


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_nothing_of_the_real_val_and_test_images_is_read(arm, tmp_path):
    real = write_real(tmp_path / "real")
    more = ("--validation-share", "0.34")
    seeing = run_arm(arm, real, tmp_path / "seeing", *more)
    blind = run_arm(arm, real, tmp_path / "blind", *more, blind=True)
    assert seeing.status == blind.status == 0 and not list(real.glob("test/*/*.png"))
    assert content(seeing.root) == content(blind.root)


def test_the_losses_are_kept_with_the_model(made):
    manifest = json.loads((made.model / "model.json").read_text())
    assert manifest["losses"] == dict.fromkeys(COUNTS, 0.25)
    assert manifest["classes"] == list(COUNTS)
    assert manifest["parents"][0]["splits"]["train"] == ["train"]


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_the_decoder_is_fitted_once_and_drawn_by(arm, real, tmp_path):
    given = ["--decoder-steps", "9", "--decoder-batch-size", "7"]
    settings = {"decoder_steps": 9, "decoder_batch_size": 7}
    record = run_arm(arm, real, tmp_path / "fit", *given)
    assert record.status == 0 and record.drawn_by == [settings]
    losses = json.loads((record.model / "model.json").read_text())["losses"]
    assert losses["decoder"] == 0.125 and len(losses) > 1
    fitted, = record.fitted
    assert (fitted.vae, fitted.before, fitted.settings) == ("vae", 0, settings)
    shutil.rmtree(record.output)
    again = run_arm(arm, real, tmp_path / "fit", *given)  # of a finished model
    assert again.status == 0 and not again.fitted and again.drawn_by == [settings]
    none = run_arm(arm, real, tmp_path / "none", "--decoder-steps", "0")
    assert none.status == 0 and none.drawn_by == [{}] and none.fitted[0].settings == {}
    assert not (none.model / "vae").exists()


def test_who_trains_nothing_needs_no_image_of_each_batch(real, tmp_path, monkeypatch):
    """More ranks than a batch has images may draw from a finished model, or find all complete."""
    def refuse(settings):
        raise BadOptions("ranks share each batch")

    record = run_arm("prompt", real, tmp_path / "run")
    monkeypatch.setattr("lungkit.run.ranks.check_batches", refuse)
    assert run_arm("prompt", real, tmp_path / "run").status == 0
    shutil.rmtree(record.output)
    assert run_arm("prompt", real, tmp_path / "run").status == 0 and record.output.is_dir()
    assert run_arm("prompt", real, tmp_path / "other").status == 2


@pytest.mark.parametrize("preset", ["demo", "full"])
@pytest.mark.parametrize("arm", [prompt_seg, context_seg])
def test_unless_asked_the_decoder_stays_as_it_is(arm, preset):
    """Their bases know latents of other images: docs/training.md."""
    assert arm.PRESETS[preset]["decoder_steps"] == 0


@pytest.mark.parametrize("arm", ["prompt", "context"])
def test_full_adapts_stable_diffusion_and_demo_the_embedded_base(arm, real, tmp_path, capfd):
    assert run_arm(arm, real, tmp_path, "--preset", "full").status == 2
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in capfd.readouterr().err
    assert run_arm(arm, real, tmp_path, "--preset", "demo", "--dry-run").status == 0
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ drawing

def test_each_image_is_drawn_by_its_own_class_adapter(made):
    images = made.images_drawn()
    for row in open_dataset(made.output).rows:
        drawn = images[int(row.stem)]
        assert drawn.pipe.adapter == row.label and drawn.pipe.sampler == "ddim"
    assert [pipe.adapter for pipe in made.pipelines] == list(COUNTS)


def test_each_image_is_drawn_away_from_its_class_negative_prompt(made):
    images = made.images_drawn()
    for row in open_dataset(made.output).rows:
        assert images[int(row.stem)].negative == f"never {row.label}"


def test_a_row_tells_what_its_image_was_drawn_from(made, prompts):
    images, words = made.images_drawn(), Prompts(prompts)
    dataset = open_dataset(made.output)
    assert len(images) == len(dataset.rows)
    for row in dataset.rows:
        drawn = images[int(row.stem)]
        assert row.prompt == drawn.prompt == words.caption(row.label, Random(row.seed))
        assert row.seed == f"{drawn.seed}:{int(row.stem)}" and row.source == "prompt"
        expected = np.random.default_rng(int(row.stem)).integers(0, 256, (64, 64, 3), np.uint8)
        assert np.array_equal(dataset.image(row), expected), "another item's image"


def test_guidance_steps_and_size_reach_the_drawing(made):
    for drawn in made.images_drawn():
        assert (drawn.guidance_scale, drawn.steps, drawn.image_size) == (3.5, 11, 64)


# ------------------------------------------------------------------ a finished model

def test_a_model_that_is_complete_is_drawn_from_and_not_trained_again(
        made, real, prompts, tmp_path):
    options = json.loads((made.output / "dataset.json").read_text())["parameters"]
    again = run_arm("prompt", real, tmp_path, "--prompts", str(prompts), "--model", str(made.model),
                    *(part for key in ("adapter", "rank", "target", "train_steps", "batch_size",
                                       "learning_rate")
                      for part in (f"--{key.replace('_', '-')}", str(options[key]))))
    assert again.status == 0 and not again.trained and len(again.drawn) == len(COUNTS)


@pytest.mark.parametrize("change", [
    ["--seed", "3"], ["--rank", "6"], ["--adapter", "dora"], ["--target", "all"],
    ["--train-steps", "8"], ["--batch-size", "8"], ["--learning-rate", "0.03"],
    ["--validation-share", "0.2"], ["--patience", "3"],
    ["--prompts", "prompts.json"]], ids=lambda change: change[0])
def test_a_model_trained_otherwise_is_not_drawn_from(made, real, prompts, change, tmp_path, capfd):
    options = json.loads((made.output / "dataset.json").read_text())["parameters"]
    given = {f"--{key.replace('_', '-')}": str(options[key]) for key in (
        "seed", "adapter", "rank", "target", "train_steps", "batch_size", "learning_rate")}
    given |= {"--prompts": str(prompts), **dict([change])}
    if change[0] == "--prompts":
        text = prompts.read_text()
        other = tmp_path / "prompts.json"
        other.write_text(text.replace("never", "not"))
        given["--prompts"] = str(other)
    again = run_arm("prompt", real, tmp_path, "--model", str(made.model),
                    *(part for pair in given.items() for part in pair))
    assert again.status == 2 and not again.drawn
    assert change[0][2:].replace("-", "_") in capfd.readouterr().err


def test_an_adapter_missing_from_a_finished_model_is_one_line(real, tmp_path, capfd):
    made = run_arm("prompt", real, tmp_path)
    (made.model / "lung_n" / LORA).unlink()
    again = run_arm("prompt", real, tmp_path, "--guidance-scale", "3", "--overwrite")
    assert again.status == 1 and not again.trained and not again.drawn
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"lung_n/{LORA}" in error and "lung_aca" not in error


@pytest.mark.parametrize(("arm", "modality", "channels", "more", "status", "said"), [
    ("context", "ct", 1, [], 2, "no nuclei"),
    ("prompt", "ct", 1, ["--base-model", "assets/base_model"], 2, "knows simulated tissue alone"),
    ("prompt", "he", 3, ["--base-model", "assets/ct_base_model"], 2, "knows simulated CT alone"),
    ("context", "he", 3, ["--base-model", "assets/ct_base_model"], 2, "knows simulated CT alone"),
    ("prompt", "he", 3, ["--base-model", "copy"], 2, "vae is of grey images"),
    ("prompt", "ct", 1, ["--prompts", "assets/prompts/lung_he.json"], 1, "is of tissue, and"),
    ("prompt", "he", 3, ["--prompts", "assets/prompts/lung_ct.json"], 1, "is of CT, and --"),
    ("diffusion", "he", 3, ["--autoencoder", "copy"], 2, "takes images of 1 channels")])
def test_what_is_of_another_modality_is_refused_in_one_line(
        arm, modality, channels, more, status, said, tmp_path, capsys):
    from lungkit.generate.base_model import ASSETS, CT_BASE_MODEL_DIR

    shutil.copytree(CT_BASE_MODEL_DIR, tmp_path / "copy")  # a user's own, for all that is known
    more = [str(tmp_path / word) if word == "copy" else word.replace("assets", str(ASSETS))
            for word in more]
    real = write_real(tmp_path / "real", channels=channels, modality=modality)
    given = ["--real", str(real), "--output", str(tmp_path / "datasets" / arm), "--dry-run", *more]
    assert main_of(arm)(given) == status
    line, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said in line


@pytest.mark.parametrize("view", ["crop", "slice"])
def test_ct_has_prompts_and_a_base_of_its_own(view, tmp_path):
    from lungkit.generate.base_model import CT_BASE_MODEL_DIR
    from lungkit.generate.items import folder_fingerprint
    from lungkit.generate.prompts import CT_PROMPTS_PATH

    real = write_real(tmp_path / "real", channels=1, modality="ct")
    manifest = json.loads((real / "dataset.json").read_text())
    manifest["parameters"]["view"] = view
    (real / "dataset.json").write_text(json.dumps(manifest))
    record = run_arm("prompt", real, tmp_path)
    made, words = open_dataset(record.output), Prompts(CT_PROMPTS_PATH, view=view)
    assert made.manifest["parameters"]["prompts"] == words.fingerprint
    assert made.manifest["parameters"]["base_model"] == folder_fingerprint(CT_BASE_MODEL_DIR)
    for row in made.rows:
        assert row.prompt == words.caption(row.label, Random(row.seed))
