"""The arm "context": the context measured, layouts drawn, what is trained and drawn with it."""

from __future__ import annotations

import json
import shutil
import zipfile
from random import Random

import numpy as np
import pytest

import context_seg
from adapters import (
    COUNTS,
    LORA,
    SIZE,
    layout_of,
    number_of,
    run_arm,
    tissue_of,
    write_prompts,
    write_real,
    write_weights,
)
from lungkit.data.dataset import open_dataset
from lungkit.generate.prompts import Prompts
from lungkit.nuclei import point_process
from lungkit.nuclei.agreement import Nearest, describe, layout_report
from lungkit.nuclei.layouts import Layout, Levels, load_layouts, structure_map
from lungkit.run.seeds import stream

pytestmark = pytest.mark.usefixtures("found_once")

NUM_TRAIN = sum(number for number, _, _ in COUNTS.values())


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_real(tmp_path_factory.mktemp("context") / "real")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.json")


OPTIONS = ["--pool", "2", "--adapter", "lora", "--rank", "5", "--target", "attention",
           "--train-steps", "7", "--batch-size", "9", "--learning-rate", "0.02",
           "--controlnet-steps", "6", "--controlnet-learning-rate", "0.001",
           "--sampling-steps", "11", "--guidance-scale", "3.5"]


@pytest.fixture(scope="module", params=["sampled", "training"])
def made(request, real, prompts, tmp_path_factory):
    record = run_arm("context", real, tmp_path_factory.mktemp("run"), "--prompts", str(prompts),
                     "--layouts", request.param, *OPTIONS)
    assert record.status == 0
    record.mode = request.param
    return record


# where layouts come from concerns drawing alone
of_training = pytest.mark.parametrize("made", ["sampled"], indirect=True)


CHOSEN = {"steps": 3, "guidance_scale": 7.0}


@pytest.fixture(scope="module")
def plain(real, tmp_path_factory):
    """The arm by its usual options, but for what was chosen to draw with. Read only."""
    return run_arm("context", real, tmp_path_factory.mktemp("plain"), chosen=CHOSEN)


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    """Those of the training images, which are numbered from 1."""
    return [Layout(*layout_of(number), tissue_of(number)) for number in range(1, NUM_TRAIN + 1)]


def label_of(number: int) -> str:
    return [label for label, (count, _, _) in COUNTS.items() for _ in range(count)][number - 1]


def numbers_of(label: str) -> list[int]:
    return [number for number in range(1, NUM_TRAIN + 1) if label_of(number) == label]


# ------------------------------------------------------------------ measured context

def test_nuclei_and_tissue_of_the_training_images_are_found_once_each_and_kept(made, layouts):
    assert [found.number for found in made.detected[:NUM_TRAIN]] == list(range(1, NUM_TRAIN + 1))
    kept = load_layouts(made.model / "layouts.npz")
    assert len(kept) == NUM_TRAIN and len(kept[3].areas_px) == 0
    for one, other in zip(kept, layouts, strict=True):
        assert np.array_equal(one.centroids, other.centroids)
        assert np.array_equal(one.areas_px, other.areas_px)
        assert np.array_equal(one.tissue, other.tissue)


def test_the_detector_is_told_the_modality_and_the_side_of_a_tile(made):
    assert {(found.modality, found.field_um) for found in made.detected} == {("he", 200.0)}


def test_the_weights_given_find_the_nuclei(real, tmp_path):
    weights = tmp_path / "instanseg.pt"
    with zipfile.ZipFile(weights, "w") as archive:  # as TorchScript's are
        archive.writestr("instanseg/constants.pkl", b"")
    record = run_arm("context", real, tmp_path, "--nuclei-weights", str(weights))
    assert record.status == 0
    assert record.detector_of == 2 * [(weights, "cpu")], "for training and for generated images"


def test_context_words_that_would_be_cut_are_refused_before_training(
        real, prompts, tmp_path, capfd):
    data = json.loads(prompts.read_text())
    data["context"]["size"][1] = "very " * 100
    long = tmp_path / "prompts.json"
    long.write_text(json.dumps(data))
    record = run_arm("context", real, tmp_path, "--prompts", str(long))
    assert record.status == 1 and not record.detected and not record.trained
    assert "77" in capfd.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------ training

def taught(call, number: int, words: Prompts, layouts: list[Layout]) -> set[str]:
    """The captions that image `number` can have, by what its own layout measures."""
    levels = Levels(layouts, SIZE).of(layouts[number - 1])
    return {words.context_caption(label_of(number), Random(i), levels) for i in range(300)}


@of_training
def test_the_controlnet_is_trained_first_on_all_training_images(made):
    assert [call.kind for call in made.trained] == ["controlnet", *["adapter"] * len(COUNTS)]
    assert made.trained[0].loss.numbers == list(range(1, NUM_TRAIN + 1))
    assert made.trained[0].loss.classes == [0] * 3 + [1] * 4 + [2] * 5
    assert {call.loss.classes for call in made.trained[1:]} == {None}, "an adapter has one class"


@of_training
def test_each_adapter_is_trained_on_all_training_images_of_its_class_alone(made):
    assert {call.label: call.loss.numbers for call in made.trained[1:]} \
        == {label: numbers_of(label) for label in COUNTS}


@of_training
def test_every_image_has_captions_of_its_own_class_and_layout(made, prompts, layouts):
    words = Prompts(prompts)
    for call in made.trained:
        for place, number in enumerate(call.loss.numbers):
            captions = {call.loss.caption(place, Random(i)) for i in range(300)}
            assert captions == taught(call, number, words, layouts), (call.kind, number)


@of_training
def test_every_image_has_the_map_of_its_own_layout(made, layouts):
    for call in made.trained:
        for place, number in enumerate(call.loss.numbers):
            expected = structure_map(layouts[number - 1], SIZE)
            assert np.array_equal(call.loss.maps[place], expected), (call.kind, number)


@of_training
def test_the_controlnet_learns_alone_and_is_frozen_while_the_adapters_learn(made):
    first = made.trained[0]
    assert first.training and not first.frozen and first.control is first.loss.controlnet
    for call in made.trained[1:]:
        assert call.loss.control.frozen and not call.loss.control.training
        assert call.loss.control.source.endswith("/controlnet"), "not the one just trained"


@of_training
def test_no_two_parts_and_no_two_seeds_share_random_numbers(made, real, prompts, tmp_path):
    records = [made, run_arm("context", real, tmp_path / "a", "--seed", "1"),
               run_arm("prompt", real, tmp_path / "b")]
    seeds = [call.options["seed"] for record in records for call in record.trained]
    seeds += [seed for record in records
              for seed in {call.options["seed"] for call in record.drawn}]
    assert len(set(seeds)) == len(seeds) == 5 + 5 + 4


@of_training
def test_the_options_reach_the_training(made):
    control, *adapters = made.trained
    assert control.options["curve_path"].name == "loss.csv"
    assert (control.options["steps"], control.options["learning_rate"]) == (6, 0.001)
    for call in adapters:
        assert {key: call.options[key] for key in ("kind", "rank", "target", "steps",
                                                   "learning_rate")} == {
            "kind": "lora", "rank": 5, "target": "attention", "steps": 7, "learning_rate": 0.02}
    assert {call.loss.batch_size for call in made.trained} == {9}


@of_training
def test_the_losses_are_kept_with_the_model(made):
    manifest = json.loads((made.model / "model.json").read_text())
    assert manifest["losses"] == {"controlnet": 0.5, **dict.fromkeys(COUNTS, 0.25)}
    assert manifest["parents"][0]["splits"]["train"] == ["train"]


# ------------------------------------------------------------------ drawing

def test_each_image_is_drawn_by_its_own_class_adapter_over_the_trained_controlnet(made):
    images = made.images_drawn()
    for row in open_dataset(made.output).rows:
        pipe = images[int(row.stem)].pipe
        assert pipe.adapter == row.label
        assert pipe.control.source == str(made.model / "controlnet") and not pipe.control.training


def test_the_control_has_its_full_weight(made):
    assert {drawn.control_scale for drawn in made.images_drawn()} == {1.0}


def test_each_image_is_drawn_away_from_its_class_negative_prompt(made):
    images = made.images_drawn()
    for row in open_dataset(made.output).rows:
        assert images[int(row.stem)].negative == f"never {row.label}"


@pytest.fixture(scope="module")
def redrawn(made, layouts) -> dict[str, Layout]:
    """The layout that each image is to be drawn over, by its stem, drawn once more."""
    found = {}
    for label in COUNTS:
        own = [layouts[number - 1] for number in numbers_of(label)]
        statistics = point_process.PointStatistics(own, SIZE)
        found |= {row.stem: point_process.layout_for(
            int(row.stem), stream("context_seg", 0), made.mode, statistics, own)
            for row in open_dataset(made.output).rows if row.label == label}
    return found


def test_each_image_is_drawn_over_a_layout_of_its_own_class(made, redrawn):
    """An image's nuclei have the areas of one training image of its class, and no two share any."""
    images = made.images_drawn()
    for row in open_dataset(made.output).rows:
        expected = redrawn[row.stem]
        assert np.array_equal(images[int(row.stem)].map, structure_map(expected, SIZE))
        found = set(expected.areas_px.tolist())
        assert len(found) <= 1 and found <= {number + 0.5 for number in numbers_of(row.label)}


def test_the_mask_is_the_layout_that_the_image_was_drawn_from(made, redrawn):
    images, dataset = made.images_drawn(), open_dataset(made.output)
    for row in dataset.rows:
        mask = dataset.mask("nuclei", row)
        assert np.array_equal(mask == 255, images[int(row.stem)].map[..., 0] >= 128)
        drawn = redrawn[row.stem]
        assert np.array_equal(dataset.mask("tissue", row) == 255, drawn.tissue)
        assert int(row.extra["asked_num_nuclei"]) == len(drawn.areas_px)


def test_what_was_asked_of_an_image_stands_beside_what_it_shows(made, layouts, redrawn):
    dataset, own = open_dataset(made.output), {}
    for row in dataset.rows:
        own.setdefault(row.label, [layouts[number - 1] for number in numbers_of(row.label)])
        number, drawn = number_of(dataset.image(row)), redrawn[row.stem]
        shown = Layout(*layout_of(number), tissue_of(number))
        for kind, layout in (("asked", drawn), ("measured", shown)):
            for name, value in describe(layout, SIZE).items():
                assert row.extra[f"{kind}_{name}"] == ("" if value is None else str(value)), name
        assert float(row.extra["nearest_layout_px"]) \
            == Nearest(own[row.label], SIZE).least(drawn)
    records = [{"label": row.label, **row.extra} for row in dataset.rows]
    assert {"layouts": dataset.manifest["layouts"]} == layout_report(records, own, SIZE)
    least = dataset.manifest["layouts"]["nearest_training"]["lung_aca"]["least_px"]
    assert (least == 0) == (made.mode == "training"), "no drawn layout is one of the training ones"


def test_of_many_images_some_are_measured_and_none_is_invented(real, tmp_path, monkeypatch):
    monkeypatch.setattr(context_seg, "MOST_MEASURED", 8)
    made = run_arm("context", real, tmp_path)
    rows = open_dataset(made.output).rows
    measured = [int(row.stem) for row in rows if row.extra["measured_tissue_share"]]
    assert sorted(measured) == list(range(0, len(rows), 3)) and len(rows) == 20
    found = open_dataset(made.output).manifest["layouts"]["asked_against_measured"]
    assert found["tissue_share"]["all"]["n"] == 7


def test_masks_are_binary_as_the_manifest_says(made):
    dataset = open_dataset(made.output)
    assert dataset.masks == {"nuclei": "binary", "tissue": "binary"}
    masks = np.stack([dataset.mask(kind, row) for row in dataset.rows for kind in dataset.masks])
    assert np.unique(masks).tolist() == [0, 255]


def test_a_row_tells_the_words_of_the_layout_that_its_image_was_drawn_from(
        made, prompts, layouts, redrawn):
    images, words = made.images_drawn(), Prompts(prompts)
    levels = Levels(layouts, SIZE)
    rows = open_dataset(made.output).rows
    assert len(images) == len(rows)
    for row in rows:
        drawn = images[int(row.stem)]
        expected = words.context_caption(row.label, Random(row.seed),
                                         levels.of(redrawn[row.stem]))
        assert row.prompt == drawn.prompt == expected
        assert row.seed == f"{drawn.seed}:{int(row.stem)}"
        assert row.source == f"context, {made.mode} layout"


def test_a_set_is_drawn_with_what_was_chosen_and_says_so(plain):
    assert {(drawn.steps, drawn.guidance_scale) for drawn in plain.images_drawn()} == {(3, 7.0)}
    manifest = open_dataset(plain.output).manifest
    assert manifest["choice"] == CHOSEN and "layouts" in manifest


def test_guidance_steps_and_size_reach_the_drawing(made):
    for drawn in made.images_drawn():
        assert (drawn.guidance_scale, drawn.steps, drawn.image_size) == (3.5, 11, SIZE)


# ------------------------------------------------------------------ a finished model

@pytest.mark.parametrize("name", ["layouts.npz", "controlnet/config.json", f"lung_n/{LORA}"])
def test_what_is_missing_from_a_finished_model_is_one_line_and_not_made_up(name, plain, real,
                                                                           tmp_path, capfd):
    shutil.copytree(plain.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "models" / "arm" / name).unlink()
    again = run_arm("context", real, tmp_path, "--guidance-scale", "3", "--overwrite")
    assert again.status == 1 and not (again.detected or again.trained or again.drawn)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert name in error and "error" in error and not (again.model / name).exists()


def test_layouts_lost_before_drawing_are_not_measured_again(plain, real, tmp_path, capfd):
    shutil.copytree(plain.root, tmp_path, dirs_exist_ok=True)
    again = run_arm("context", real, tmp_path, "--guidance-scale", "3", "--overwrite",
                    lose="layouts.npz")
    assert again.status == 1 and not again.detected and not again.drawn
    assert "layouts.npz" in capfd.readouterr().err.strip().splitlines()[-1]
    assert not (again.model / "layouts.npz").exists()


@pytest.mark.parametrize("change", [
    ["--controlnet-steps", "5"], ["--controlnet-learning-rate", "0.002"], ["--rank", "6"],
    ["--controlnet", "folder"], ["--nuclei-weights", "file"]], ids=lambda change: change[0])
def test_a_model_trained_otherwise_is_not_drawn_from(made, real, prompts, change, tmp_path, capfd):
    option, value = change
    if option == "--controlnet":
        (tmp_path / "config.json").write_text("{}")
        write_weights(tmp_path / "diffusion_pytorch_model.safetensors", "another")
        value = str(tmp_path)
    if option == "--nuclei-weights":
        (tmp_path / "weights.pt").write_bytes(b"weights")
        value = str(tmp_path / "weights.pt")
    again = run_arm("context", real, tmp_path, "--model", str(made.model), "--prompts",
                    str(prompts), *OPTIONS, option, value)
    assert again.status == 2 and not again.drawn
    error = capfd.readouterr().err
    assert "made with other options" in error and option[2:].replace("-", "_") in error


@pytest.mark.parametrize("recipe", ["NUCLEI_RECIPE", "LAYOUT_RECIPE"])
def test_a_model_measured_by_another_recipe_is_not_drawn_from(recipe, made, real, prompts,
                                                              tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(context_seg, recipe, -1)
    again = run_arm("context", real, tmp_path, "--model", str(made.model), "--prompts",
                    str(prompts), *OPTIONS)
    assert again.status == 2 and recipe.lower() in capfd.readouterr().err


def test_a_controlnet_that_is_not_there_is_refused(real, tmp_path, capfd):
    assert run_arm("context", real, tmp_path, "--controlnet", "nowhere").status == 2
    assert "--controlnet nowhere" in capfd.readouterr().err
    with pytest.raises(context_seg.cli.BadOptions, match="nowhere"):
        context_seg.get_controlnet(None, "nowhere")


# ------------------------------------------------------------------ point statistics

def two_points(distance_px: float, size: int = 100) -> Layout:
    return Layout(np.array([[30, 40], [30 + distance_px, 40]]), np.ones(2))


def test_the_pair_correlation_of_two_points_is_as_computed_by_hand():
    """One pair, 10.6 of 100 px apart: ring 8 of 16 up to 20 px holds 10 to 11.25 px.

    Chance to lie closer than r: pi r^2 - 8/3 r^3 + r^4/2; at 0.1125 0.0360440, at 0.1 0.0287993.
    """
    g = point_process.PointStatistics([two_points(10.6)], 100).pair_correlation
    assert len(g) == 16
    assert g[8] == pytest.approx(1 / (0.0360440 - 0.0287993), rel=1e-4)
    assert np.delete(g, 8) == pytest.approx(0)


def test_pairs_are_pooled_over_layouts_and_one_nucleus_has_none():
    one = point_process.PointStatistics([two_points(10.6)], 100).pair_correlation
    alone = Layout(np.array([[5.0, 5.0]]), np.ones(1))
    three = Layout(np.array([[10, 10], [90, 10], [10, 90]]), np.ones(3))  # none within reach
    pooled = point_process.PointStatistics([two_points(10.6), alone, three], 100).pair_correlation
    assert pooled == pytest.approx(one / 4), "one pair of 1 + 0 + 3"
    assert (point_process.PointStatistics([alone], 100).pair_correlation == 1).all()


def test_counts_and_areas_are_resampled_from_those_observed():
    layouts = [Layout(np.full((n, 2), 9.0), np.full(n, float(n))) for n in (0, 1, 3, 3)]
    statistics = point_process.PointStatistics(layouts, SIZE)
    drawn = [statistics.sample(np.random.default_rng(i)) for i in range(400)]
    counts = np.bincount([len(layout.areas_px) for layout in drawn], minlength=4) / len(drawn)
    assert counts == pytest.approx([0.25, 0.25, 0, 0.5], abs=0.07)
    areas = np.concatenate([layout.areas_px for layout in drawn])
    assert set(areas.tolist()) == {1.0, 3.0}
    assert (areas == 1).mean() == pytest.approx(1 / 7, abs=0.06), "by nucleus, not by image"


def test_a_sampled_layout_depends_on_its_draw_alone_and_stays_in_the_image():
    layouts = [Layout(np.random.default_rng(i).uniform(0, 63, (20, 2)), np.ones(20))
               for i in range(3)]
    statistics = point_process.PointStatistics(layouts, SIZE)
    drawn = [statistics.sample(np.random.default_rng(i)) for i in range(30)]
    again = statistics.sample(np.random.default_rng(7))
    assert np.array_equal(again.centroids, drawn[7].centroids)
    assert not np.array_equal(drawn[8].centroids, drawn[7].centroids)
    points = np.concatenate([layout.centroids for layout in drawn])
    assert points.min() >= -0.5 and points.max() <= SIZE - 0.5
    assert points.mean(0) == pytest.approx([31.5, 31.5], abs=3) and points.std(0).min() > 15
    assert drawn[0].centroids.dtype == drawn[0].areas_px.dtype == np.float32


@pytest.mark.parametrize(("close", "least", "most"), [(0.0, 0.0, 0.02), (8.0, 0.4, 1.0)])
def test_pairs_are_as_rare_or_frequent_as_the_pair_correlation_says(close, least, most):
    """Ten nuclei: by chance a fifth of the nuclei has another within 5 of 64 px."""
    statistics = point_process.PointStatistics(
        [Layout(np.random.default_rng(0).uniform(0, 63, (10, 2)), np.ones(10))], SIZE)
    reach_px = statistics.reach_px
    statistics.pair_correlation = np.where((np.arange(16) + 0.5) / 16 * reach_px < 5, close, 1.0)
    near = []
    for i in range(100):
        points = statistics.sample(np.random.default_rng(i)).centroids
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 99 * np.eye(10)
        near += (distance.min(1) < 5).tolist()
    assert least <= np.mean(near) <= most


def test_the_layout_of_an_item_depends_on_the_seed_and_its_index():
    own = [Layout(np.random.default_rng(n).uniform(0, 63, (n, 2)), np.full(n, float(n)))
           for n in range(3, 9)]
    statistics = point_process.PointStatistics(own, SIZE)

    def picks(seed: int, mode: str) -> list[bytes]:
        return [point_process.layout_for(i, seed, mode, statistics, own).centroids.tobytes()
                for i in range(60)]
    for mode in ("sampled", "training"):
        assert picks(5, mode) == picks(5, mode) != picks(6, mode)
    known = {layout.centroids.tobytes() for layout in own}
    assert set(picks(5, "training")) == known, "every training layout is taken"
    assert len(set(picks(5, "sampled"))) == 60 and not set(picks(5, "sampled")) & known
