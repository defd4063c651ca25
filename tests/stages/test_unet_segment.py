"""The U-Net stage: what it trains on, chooses, scores and refuses, and how it resumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import unet_segment
import wilcoxon_test
from lungkit.data import overlay, result, segment_choice
from lungkit.data.dataset import open_dataset, parent_of
from lungkit.data.png import decode_png, encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.learn import segment_batches, segment_training, unet
from lungkit.run.output import Output
from result_trees import keys_of, keys_on_page

pytestmark = pytest.mark.usefixtures("found_once")

SIZE = 32
TINY = ["--widths", "8", "16", "--steps", "8", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # another number of threads rounds differently


def disc(rng, size=SIZE, radius=5):
    """A grey image with a bright disc anywhere, and its mask."""
    row, column = rng.uniform(radius, size - radius, 2)
    rows, columns = np.indices((size, size))
    mask = np.hypot(rows - row, columns - column) < radius
    return np.clip(60 + 120 * mask + rng.normal(0, 30, mask.shape), 0, 255).astype(np.uint8), mask


def make_dataset(path, *, seed=0, num_train=6, parents=(), form="binary", values=(0, 255),
                 empty=(), channels=1, masked=lambda split, index: True, kind="nodule",
                 ignored=(), **more):
    """Two classes of images with a disc each; of the splits in `empty` no mask has foreground.

    ignored: numbers of the images whose disc is no foreground, but to be ignored.
    """
    rng, index = np.random.default_rng(seed), 0
    with DatasetWriter(Output(path, "dataset.json", {"seed": seed}), stage="test",
                       channels=channels, classes=["a", "b"], image_size=SIZE,
                       mask_forms={kind: form}) as writer:
        for split, number in (("train", num_train), ("val", 2), ("test", 3)):
            for label in writer.classes:
                for _ in range(number):
                    image, mask = disc(rng)
                    doubtful = {"ignored": mask * np.uint8(255)} if index in ignored else {}
                    mask = mask & (split not in empty) & (index not in ignored)
                    mask = np.array(values, np.uint8)[mask.astype(int)]
                    writer.add(split, label, index, np.stack([image] * channels, -1),
                               group=f"g{index}",
                               masks={kind: mask, **doubtful} if masked(split, index) else {})
                    index += 1
        return writer.publish(parents=list(parents), seed=seed,
                              **{"modality": "ct", "um_per_px": 1000.0, **more})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("run") / "real", warnings=["one scanner"])


@pytest.fixture(scope="module")
def arm(real):
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    return make_dataset(real.path.parent / "arm", seed=1, num_train=12, parents=[made_from])


def segment(data, real, results, *more, repeats="1"):
    return unet_segment.main(["--data", *(str(each.path) for each in data), "--real",
                              str(real.path), "--results", str(results), "--repeats", repeats,
                              *TINY, *more])


def torch_of(batches):
    import torch

    return torch.cat(batches)


def read(results, name, repeat=0):
    return json.loads((results / name / "replicate_000" / f"repeat_{repeat:04d}.json").read_text())


def content(results):
    """Everything the repeats left that must not differ from run to run."""
    return {path.name: {k: v for k, v in json.loads(path.read_text()).items() if k != "run"}
            if path.suffix == ".json" else path.read_bytes()
            for path in sorted(results.glob("*/*/repeat_*"))}


@pytest.fixture
def told(monkeypatch):
    """What every training is given; instead of training, the network reads the truth's brightness.

    Foreground is what is brighter than 120 of 255, as the discs of `make_dataset` are.
    """
    import torch
    seen = []

    class Bright(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.channels = channels

        def forward(self, images):
            assert images.shape[1] == self.channels
            return 40 * (images.mean(1, keepdim=True) - (2 * 120 / 255 - 1)) + self.weight

    def train(model, batch_at, loss_of, *, steps, **kept):
        seen.append({"steps": steps, "batch_at": batch_at, "loss": loss_of.__name__, **kept})
        return 0.5

    monkeypatch.setattr(unet_segment, "_network", lambda channels, settings: Bright(channels))
    monkeypatch.setattr(segment_training, "train", train)
    monkeypatch.setattr(segment_training, "train_published", train)
    return seen


# ------------------------------------------------------------------ the record

def test_a_network_that_is_right_scores_one_and_the_record_says_of_what(real, told, tmp_path):
    assert segment([real], real, tmp_path) == 0
    record = read(tmp_path, "real")
    result.check_record(record, tmp_path / "real/replicate_000/repeat_0000.json")
    assert record["task"] == "segment" and record["model"] == "unet"
    assert set(record["scores"]["real"]) == set(result.SCORES["segment"])
    assert record["dice_real"] == record["scores"]["real"]["dice"] > 0.7
    about = record["real"]
    assert (about["num_items"], about["num_with_foreground"], about["items"]) == (6, 6, "images")
    assert about["dice_by_group"].keys() == {row.group for row in real.select("test")}
    assert record["settings"]["mask"] == "nodule" and record["settings"]["image_size"] == SIZE
    assert record["trained_on"] == real.trained_on() and record["warnings"][0] == "one scanner"
    sheet = decode_png((tmp_path / "real/replicate_000/repeat_0000.png").read_bytes())
    assert all((sheet == colour).all(-1).any() for colour in (overlay.TRUE, overlay.FOUND))
    assert record["leaks"]["passed"] is True and not list(tmp_path.rglob(".*partial"))
    with np.load(tmp_path / "real/replicate_000/repeat_0000.npz") as arrays:
        assert arrays["real_dice"].mean() == pytest.approx(record["dice_real"])
        assert arrays["real_groups"].tolist() == [row.group for row in real.select("test")]
        assert arrays["real_file_names"].tolist() == [row.file_name for row in real.select("test")]


def test_the_real_score_is_of_real_s_test_images_and_the_own_of_the_arm_s(
        real, arm, told, tmp_path):
    assert segment([arm], real, tmp_path) == 0
    with np.load(tmp_path / "arm/replicate_000/repeat_0000.npz") as arrays:
        for name, dataset in (("own", arm), ("real", real)):
            wanted = [int((dataset.mask("nodule", row) > 0).sum()) for row in
                      dataset.select("test")]
            assert arrays[f"{name}_true"].tolist() == wanted
    record = read(tmp_path, "arm")
    assert record["num_pool_images"] == 24 and record["num_train_images"] == 12
    assert record["draws"] == 2


def test_surfaces_are_measured_in_the_pixels_millimetres(told, tmp_path, monkeypatch):
    from lungkit.data import segment_scores
    spacings, score = [], segment_scores.score_item

    def note(said, true, spacing_mm, **more):
        spacings.append((spacing_mm, more["tolerance_mm"]))
        return score(said, true, spacing_mm, **more)

    monkeypatch.setattr(segment_scores, "score_item", note)
    for modality, tolerance in (("ct", 2.0), ("he", None)):
        data = make_dataset(tmp_path / modality / "real", um_per_px=3000.0, modality=modality)
        assert segment([data], data, tmp_path / f"{modality} results") == 0
        assert set(spacings) == {((3.0, 3.0), tolerance)}
        spacings.clear()


def test_surfaces_of_unknown_pixels_are_not_measured(told, tmp_path):
    unknown = make_dataset(tmp_path / "real", um_per_px=None)
    assert segment([unknown], unknown, tmp_path / "results") == 0
    record = read(tmp_path / "results", "real")
    assert "surface_dice" not in record["scores"]["real"] and record["real"]["hd95_mm"] is None


def test_threshold_and_components_are_chosen_on_val(real, told, tmp_path, monkeypatch):
    from lungkit.data import segment_choice
    asked = []

    def choose(predicted, *grid, **more):
        asked.append([true.sum() for _, true in predicted])
        return segment_choice.Choice(0.99, 10**6, 0.5, 0.0, 0.5)

    monkeypatch.setattr(segment_choice, "choose", choose)
    assert segment([real], real, tmp_path) == 1  # so large a component is nowhere
    assert asked == [[(real.mask("nodule", row) > 0).sum() for row in real.select("val")]]


def test_the_page_names_all_that_a_record_holds(real, arm, told, tmp_path):
    pages = [keys_on_page(heading) for heading in ("The record", "Of a larger pool",
                                                   "Of what is segmented")]
    assert segment([arm], real, tmp_path) == 0
    keys = keys_of(read(tmp_path, "arm"))
    assert keys - set.union(*pages) == set()
    assert pages[2] - keys - set(result.SCORES["segment"]) == {
        "settings.epochs", "settings.most_false_positives", "lesion_sensitivity_val",
        "false_positives_val"}


# ------------------------------------------------------------------ volumes

@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Slices of scans, two a split: discs in three of five of each, and none in the others."""
    path, index = tmp_path_factory.mktemp("scans") / "real", 0
    rng = np.random.default_rng(0)
    with DatasetWriter(Output(path, "dataset.json", {"view": "slice"}), stage="test", channels=1,
                       classes=["healthy", "nodule"], image_size=SIZE) as writer:
        for split in ("train", "val", "test"):
            for number in range(2):
                for z in range(5):
                    shown, mask = disc(rng, radius=6)
                    if z not in (1, 2, 3):
                        shown, mask = rng.integers(30, 90, shown.shape).astype(np.uint8), 0 * mask
                    writer.add(split, writer.classes[int(0 < z < 4)], index, shown[..., None],
                               group=f"{split}{number}", masks={"nodule": mask * np.uint8(255)},
                               series=f"{split}{number}", slice_index=z, z_mm=2 * z,
                               centre_row=15.5, centre_column=15.5)
                    index += 1
        (writer.work_dir / "scans.json").write_text(json.dumps({
            f"{split}{number}": {"shape": [SIZE, SIZE, 5], "origin_mm": [0, 0, 0],
                                 "steps_mm": [[-1, 0, 0], [0, 1, 0], [0, 0, 2]]}
            for split in ("train", "val", "test") for number in range(2)}))
        writer.publish(parents=[], seed=0, modality="ct", um_per_px=1000.0, symmetries=1)
    return open_dataset(path)  # with the columns of its table


def test_slices_of_a_scan_are_scored_as_a_volume(scans, told, tmp_path):
    assert segment([scans], scans, tmp_path) == 0
    record = read(tmp_path, "real")
    about = record["real"]
    assert (about["items"], about["num_items"], about["num_images"]) == ("volumes", 2, 10)
    assert about["num_with_foreground"] == 2 and about["dice_by_group"].keys() == {"test0", "test1"}
    with np.load(tmp_path / "real/replicate_000/repeat_0000.npz") as arrays:
        wanted = [sum(int((scans.mask("nodule", row) > 0).sum()) for row in scans.select("test")
                      if row.group == group) for group in ("test0", "test1")]
        assert arrays["real_true"].tolist() == wanted
        assert arrays["real_true_mm"].tolist() == [2 * voxels for voxels in wanted]


def test_surfaces_of_volumes_that_lack_slices_are_not_measured(scans, told, tmp_path, monkeypatch):
    from lungkit.data import mask_items
    items_of = mask_items.items_of

    def with_gaps(data, split, known, **more):
        return [replace(item, images=item.images[::2], slices=item.slices[::2])
                if split == "test" else item for item in items_of(data, split, known, **more)]

    monkeypatch.setattr(mask_items, "items_of", with_gaps)
    assert segment([scans], scans, tmp_path) == 0
    record = read(tmp_path, "real")
    assert record["real"]["num_with_gaps"] == 2 and record["real"]["hd95_mm"] is None
    assert "surface_dice" not in record["scores"]["real"]
    assert "missing slices: 2 of 2 volumes" in "; ".join(record["warnings"])


def test_val_that_lacks_slices_is_chosen_by_image_by_image(scans, told, tmp_path, monkeypatch):
    from lungkit.data import mask_items, segment_choice
    asked, items_of = [], mask_items.items_of

    def with_gaps(data, split, known, **more):
        found = items_of(data, split, known, **more)
        return [replace(item, images=item.images[::2], slices=item.slices[::2])
                if split == "val" and item.slices else item for item in found]

    def note(predicted, *grid, **more):
        asked.append([true.ndim for _, true in predicted])
        return segment_choice.Choice(0.5, 0, 1.0, 0.0, 1.0)

    monkeypatch.setattr(segment_choice, "choose", note)
    assert segment([scans], scans, tmp_path / "whole") == 0
    monkeypatch.setattr(mask_items, "items_of", with_gaps)
    assert segment([scans], scans, tmp_path / "gaps") == 0
    assert asked == [[3, 3], [2] * 10]


def test_neighbouring_slices_are_channels(scans, told, tmp_path):
    from lungkit.data import mask_items

    assert segment([scans], scans, tmp_path, "--neighbours", "1") == 0
    assert read(tmp_path, "real")["settings"]["neighbours"] == 1
    inputs, _ = told[0]["batch_at"](0)           # Bright has seen to their number at the test
    assert inputs.shape == (4, 3, SIZE, SIZE)
    index = mask_items.neighbours(scans, "train", 1)
    middle = [int(row.extra["slice_index"]) in (1, 2, 3) for row in scans.select("train")]
    assert (index[:, 0] != index[:, 1])[middle].all() and (index[:, 2] != index[:, 1])[middle].all()


def masks_of(results, repeat=0):
    return sorted((results / f"real/replicate_000/repeat_{repeat:04d}_masks").glob("*"))


def test_what_is_found_in_the_test_scans_is_written_for_viewers(scans, told, tmp_path):
    import nibabel

    unfinished = tmp_path / "real/replicate_000/repeat_0000_masks/.test0.nii.gz.9.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()  # by a kill
    assert segment([scans], scans, tmp_path, "--nifti") == 0
    images = [nibabel.load(path) for path in masks_of(tmp_path)]
    assert [path.name for path in masks_of(tmp_path)] == ["test0.nii.gz", "test1.nii.gz"]
    with np.load(tmp_path / "real/replicate_000/repeat_0000.npz") as arrays:
        # pixels are the scans' voxels here
        assert [int(np.asarray(each.dataobj).sum()) for each in images] == \
            arrays["real_said"].tolist()
    assert np.array_equal(images[0].affine, np.diag([1, -1, 2, 1]))
    assert segment([scans], scans, tmp_path, "--nifti") == 0  # complete, with its masks


def test_masks_of_scans_are_asked_for_before_a_network_is_gone(scans, told, tmp_path, capfd):
    assert segment([scans], scans, tmp_path) == 0 and not masks_of(tmp_path)
    assert segment([scans], scans, tmp_path, "--nifti") == 2
    assert "repeat 0 of" in (said := capfd.readouterr().err) and "made without" in said
    assert segment([scans], scans, tmp_path, "--nifti", "--loss", "bce", "--overwrite",
                   repeats="1-1") == 0
    assert len(masks_of(tmp_path, 1)) == 2
    assert segment([scans], scans, tmp_path, "--loss", "tversky", "--overwrite") == 0
    assert not masks_of(tmp_path, 1)  # those of another network are not left


# ------------------------------------------------------------------ training

def test_repeats_are_resumed_and_end_with_the_same_bytes(real, arm, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for repeats, results in (("2", whole), ("1-1", parts), ("2", parts)):
        assert segment([arm], real, results, "--learning-rate", "0.02", repeats=repeats) == 0
    assert content(whole) == content(parts) and len(content(whole)) == 6
    first, second = (read(whole, "arm", repeat) for repeat in (0, 1))
    assert first["train_loss"] != second["train_loss"]


@pytest.mark.parametrize("step", [2, 3, 4, 6], ids="stopped in step {}".format)
def test_a_killed_training_goes_on_where_it_was(step, real, tmp_path, monkeypatch):
    from lungkit.learn import hard_negatives, loop
    from lungkit.run import faults

    def found_in_vain(model, pairs, items, device, *, patch_size):
        """A pixel of every image, by the weights: what is shown again is of the looks in turn."""
        looks.append(len(stepped))
        pixel = int(1e6 * model.head.weight.abs().sum()) % SIZE**2
        return [np.array([item.images[0] * SIZE**2 + pixel]) for item in items]

    def stop_in_step(*given):
        stepped.append(len(stepped))
        if len(stepped) == stop_at:
            faults.note_signal(15, None)
        return take_step(*given)

    options = ["--learning-rate", "0.02", "--patch-size", "16"]
    stepped, looks, take_step, stop_at = [], [], segment_training._step, None
    monkeypatch.setattr(hard_negatives, "found_in_vain", found_in_vain)
    monkeypatch.setattr(loop, "SYNC_STEPS", 1)
    monkeypatch.setattr(segment_training, "_step", stop_in_step)
    assert segment([real], real, tmp_path / "whole", *options) == 0
    stop_at = len(stepped) + step
    assert segment([real], real, tmp_path / "parts", *options) == 75
    assert segment([real], real, tmp_path / "parts", *options) == 0
    assert len(stepped) == 16 and looks == [3, 5, 11, 13]
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert segment([real], real, tmp_path / "none", *options, "--hard-negatives", "0") == 0
    assert read(tmp_path / "none", "real")["train_loss"] != read(tmp_path / "whole",
                                                                 "real")["train_loss"]


def test_it_learns_to_find_discs(real, tmp_path):
    status = segment([real], real, tmp_path, "--steps", "60", "--learning-rate", "0.02")
    assert status == 0 and read(tmp_path, "real")["dice_real"] > 0.75


def test_results_of_other_options_are_refused(real, told, tmp_path, capfd):
    assert segment([real], real, tmp_path) == 0
    assert segment([real], real, tmp_path, "--loss", "tversky") == 2
    assert "loss: 'dice-focal' there, 'tversky' now" in capfd.readouterr().err
    assert segment([real], real, tmp_path, "--loss", "tversky", "--overwrite") == 0
    assert [each["loss"] for each in told] == ["dice_focal_loss", "tversky_loss"]


@pytest.mark.parametrize(("options", "wanted"), [
    ([], "dice-focal"), (["--patch-size", "16"], "dice-focal"),
    (["--loss", "image-dice-focal"], "image-dice-focal"), (["--loss", "bce"], "bce")])
def test_the_loss_is_the_one_that_was_asked_for(options, wanted, real, told, tmp_path):
    assert segment([real], real, tmp_path, *options) == 0
    assert read(tmp_path, "real")["settings"]["loss"] == wanted
    assert told[0]["loss"] == unet.LOSSES[wanted].__name__


def test_the_published_recipe_is_fixed_but_for_its_size(real, told, tmp_path):
    arguments = ["--data", str(real.path), "--real", str(real.path), "--results", str(tmp_path),
                 "--repeats", "1", "--recipe", "published", "--batch-size", "4"]
    assert unet_segment.main(arguments) == 0
    record = read(tmp_path, "real")
    settings, [training] = record["settings"], told
    assert (settings["method"], settings["loss"], settings["learning_rate"], settings["epochs"]) \
        == ("published", "bce", 1e-4, 30)
    assert training["loss"] == "cross_entropy" and training["steps"] == 30 * 3
    assert training["steps_per_epoch"] == 3 and training["learning_rate"] == 1e-4
    assert record["threshold"] == 0.5 and record["least_voxels"] == 0


@pytest.mark.parametrize(("options", "name", "key", "wanted"), [
    ([], "predict_items", "flips", segment_training.FLIPS[8]),
    (["--no-mirror"], "predict_items", "flips", ((),)),
    (["--patch-size", "16"], "predict_items", "patch_size", 16),
    (["--patch-size", "16"], "plan_batches", "patch_size", 16),
    ([], "plan_batches", "oversample", 1 / 3),
    ([], "plan_batches", "hard_negatives", 0),
    (["--patch-size", "16"], "plan_batches", "hard_negatives", 1 / 3),
    (["--hard-negatives", "0.25"], "plan_batches", "hard_negatives", 0.25),
    (["--patch-size", "16", "--oversample", "0.75"], "plan_batches", "hard_negatives", 0.25),
    (["--oversample", "0.5"], "plan_batches", "oversample", 0.5)])
def test_an_option_reaches_what_it_is_for(options, name, key, wanted, real, told, tmp_path,
                                          monkeypatch):
    place = segment_batches if hasattr(segment_batches, name) else segment_training
    seen, call = [], getattr(place, name)
    monkeypatch.setattr(place, name,
                        lambda *given, **more: seen.append(more[key]) or call(*given, **more))
    assert segment([real], real, tmp_path, *options) == 0
    assert set(seen) == {wanted} and read(tmp_path, "real")["settings"]["method"] == "ours"


def test_lesions_of_val_are_chosen_by_where_it_is_asked_for(real, told, tmp_path, monkeypatch):
    seen, choose = [], segment_choice.choose
    monkeypatch.setattr(segment_choice, "choose", lambda *given, **more: seen.append(more) or
                        choose(*given, **more))
    assert segment([real], real, tmp_path / "dice") == 0
    assert segment([real], real, tmp_path / "lesions", "--most-false-positives", "1.5") == 0
    assert seen == [{"most_false_positives": None}, {"most_false_positives": 1.5}]
    plain, asked = read(tmp_path / "dice", "real"), read(tmp_path / "lesions", "real")
    assert "most_false_positives" not in plain["settings"]
    assert asked["settings"]["most_false_positives"] == 1.5
    assert 0 <= asked["lesion_sensitivity_val"] <= 1 and asked["false_positives_val"] >= 0
    assert asked.keys() - plain.keys() == {"lesion_sensitivity_val", "false_positives_val"}


def test_the_widths_are_those_of_the_network():
    made = unet_segment._network(3, {"widths": [8, 24], "method": "published"})
    assert [each.num_channels for each in made.modules() if hasattr(each, "num_channels")] == []
    assert made.down[0][0].weight.shape == (8, 3, 3, 3) and made.down[1][1].weight.shape[0] == 24


def test_a_dry_run_writes_nothing(real, tmp_path):
    assert segment([real], real, tmp_path / "results", "--dry-run") == 0
    assert not (tmp_path / "results").exists()


# ------------------------------------------------------------------ the comparison

def test_arms_are_compared_by_dice(real, arm, told, tmp_path, capfd):
    results = tmp_path / "results"
    assert segment([real, arm], real, results, repeats="3") == 0
    assert "dice_real mean" in capfd.readouterr().out
    assert wilcoxon_test.main([str(results), "--output", str(tmp_path / "comparison"),
                               "--metric", "dice"]) == 0
    found = json.loads((tmp_path / "comparison/comparison.json").read_text())
    assert found["metric"] == "dice_real" and found["pairs"][0]["arm"] == "arm"
    table = (tmp_path / "comparison/accuracies.csv").read_text().splitlines()
    assert len(table) == 7 and "dice_real" in table[0] and "lesion_sensitivity_own" in table[0]


# ------------------------------------------------------------------ bad inputs

def rewrite(path, change):
    """Alter every mask of a dataset."""
    for file in path.glob("masks/*/*/*.png"):
        file.write_bytes(change(file))


@pytest.mark.parametrize(("given", "change", "options", "status", "words"), [
    ({}, lambda path: shutil.rmtree(path / "masks"), [], 1, "masks"),
    ({}, lambda path: rewrite(path, lambda _: encode_png(np.zeros((9, 9), np.uint8))), [], 1,
     "not a grey PNG of 32 x 32"),
    ({"empty": ["train"]}, None, [], 1, "train split"),
    ({"empty": ["val"]}, None, [], 1, "val split"),
    ({"empty": ["test"]}, None, [], 1, "test split"),
    ({"values": (255, 255)}, None, [], 1, "foreground only"),
    ({"values": (0, 1)}, None, [], 1, "holds 1 where a binary mask holds 0, background, and 255"),
    ({"values": (1, 2), "form": "labels"}, None, [], 1, "by --labels"),
    ({"masked": lambda split, _: split != "val"}, None, [], 1, "no image has one"),
    ({}, None, ["--mask", "lung"], 2, "no such masks; there are nodule (binary)"),
    ({}, None, ["--labels", "1"], 2, "are binary: leave it out"),
    ({"form": "labels"}, None, ["--labels", "256"], 2, "from 1 to 255"),
    ({"kind": "lung"}, None, [], 2, "say which kind by --mask; there are lung (binary)"),
    ({}, None, ["--patch-size", "33"], 2, "the images have 32 px"),
    ({}, None, ["--widths", *"888888"], 2, "levels are too many"),
    ({}, None, ["--neighbours", "1"], 1, "does not show slices of scans"),
    ({}, None, ["--nifti"], 1, "does not show whole slices of scans"),
    ({}, None, ["--epochs", "3"], 2, "--epochs: not of --recipe ours"),
    ({}, None, ["--recipe", "published"], 2, "--steps: not of --recipe published"),
    ({}, None, ["--oversample", "0.1"], 2, "less than an image when rounded"),
    ({}, None, ["--oversample", "0.125"], 2, "less than an image when rounded"),
    ({}, None, ["--hard-negatives", "0.1"], 2, "--hard-negatives 0.1 of --batch-size 4 is less"),
    ({}, None, ["--oversample", "0.75", "--hard-negatives", "0.5"], 2, "are more than a batch"),
    ({}, None, ["--recipe", "published", "--steps", "1", "--hard-negatives", "0.5"], 2,
     "--steps, --hard-negatives: not of --recipe published"),
    ({}, None, ["--recipe", "published", "--most-false-positives", "1"], 2,
     "--steps, --most-false-positives: not of --recipe published"),
    ({}, None, ["--most-false-positives", "-1"], 2, "-1 is not at least 0"),
    ({}, None, ["--patch-size", "2"], 2, "2 levels are too many for patches of 2 px"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_trained_on_is_one_line(given, change, options, status, words, told,
                                               tmp_path, capfd):
    data = make_dataset(tmp_path / "real", **given)
    if change:
        change(data.path)
    assert segment([data], data, tmp_path / "results", *options) == status
    said = capfd.readouterr().err.splitlines()
    assert words in said[-1] and said[-1].startswith("unet_segment.py: error: ")
    assert not list(tmp_path.rglob("repeat_*")) and not told


def test_an_arm_without_masks_or_of_other_channels_is_refused(real, tmp_path, capfd):
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    bare = make_dataset(tmp_path / "bare", masked=lambda *_: False, parents=[made_from])
    assert segment([bare], real, tmp_path / "results") == 2
    assert "--mask nodule: " in (said := capfd.readouterr().err) and "bare has no such" in said
    colour = make_dataset(tmp_path / "colour", channels=3, parents=[made_from])
    assert segment([colour], real, tmp_path / "results") == 1
    assert "of 3 channels" in capfd.readouterr().err


@pytest.mark.parametrize("level", ["val", "test"])
def test_a_network_that_finds_nothing_ends_the_run_with_its_reason(
        level, real, told, tmp_path, monkeypatch, capfd):
    predict = segment_training.predict_items
    splits = []

    def blind(model, pairs, items, *given, **more):
        splits.append(len(items))
        empty = len(items) == (4 if level == "val" else 6)
        return (0 * each if empty else each
                for each in predict(model, pairs, items, *given, **more))

    monkeypatch.setattr(segment_training, "predict_items", blind)
    assert segment([real], real, tmp_path) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert f"the network finds nothing in any {level} image" in said
    assert splits[0] == 4 and not list(tmp_path.rglob("repeat_*.json"))


def test_label_values_0_and_255_are_a_binary_mask(told, tmp_path):
    data = make_dataset(tmp_path / "real", form="labels")
    assert segment([data], data, tmp_path / "results") == 0
    assert read(tmp_path / "results", "real")["dice_real"] > 0.7


def test_the_labels_that_are_named_are_foreground(told, tmp_path):
    data = make_dataset(tmp_path / "real", form="labels", values=(3, 5))
    assert segment([data], data, tmp_path / "results", "--labels", "5") == 0
    record = read(tmp_path / "results", "real")
    assert record["dice_real"] > 0.7 and record["settings"]["labels"] == [5]


def test_findings_that_are_ignored_are_neither_right_nor_wrong(told, tmp_path):
    doubtful = make_dataset(tmp_path / "real", ignored=(1, 13, 17, 20))  # train, val, test, test
    assert segment([doubtful], doubtful, tmp_path / "results") == 0
    record = read(tmp_path / "results", "real")
    assert record["real"]["num_lesions"] == 4 and record["real"]["false_positives"] == 0
    assert record["scores"]["real"]["lesion_sensitivity"] == 1 and record["dice_real"] > 0.7
    truth = torch_of([told[0]["batch_at"](step)[1] for step in range(8)])
    assert truth.shape[1] == 2 and truth[:, 1].any() and truth[:, 0].any()
    shutil.rmtree(doubtful.path / "masks/ignored/a")  # other findings are another truth
    assert segment([doubtful], doubtful, tmp_path / "results") == 2


def test_images_without_a_mask_are_left_out_and_named(told, tmp_path):
    data = make_dataset(tmp_path / "real", masked=lambda split, index: split != "train" or index)
    assert segment([data], data, tmp_path / "results") == 0
    record = read(tmp_path / "results", "real")
    assert record["num_train_images"] == 11
    assert "no mask: 1 of 12 train images" in "; ".join(record["warnings"])
    assert open_dataset(data.path).masks == {"nodule": "binary"}


def test_the_published_recipe_stops_by_val(real, told, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        segment_training, "mean_loss", lambda model, pairs, images, *_: asked.append(
            (int(pairs.masks[images].sum()), len(images))) or 1.0)
    arguments = ["--data", str(real.path), "--real", str(real.path), "--results", str(tmp_path),
                 "--repeats", "1", "--recipe", "published", "--batch-size", "4"]
    assert unet_segment.main(arguments) == 0
    told[0]["val_loss"](None)
    val = real.select("val")
    assert asked == [(sum(int((real.mask("nodule", row) > 0).sum()) for row in val), len(val))]


def test_no_slice_is_lost_where_few_are_predicted_at_a_time(scans, told, tmp_path, monkeypatch):
    assert segment([scans], scans, tmp_path / "whole") == 0
    monkeypatch.setattr(segment_training, "EVAL_PIXELS", 3 * SIZE**2)  # 3 of 5 slices
    assert segment([scans], scans, tmp_path / "parts") == 0
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_scans_are_moved_and_mirrored_as_their_symmetries_allow(scans, told, tmp_path, monkeypatch):
    seen = []
    for place, name, key in ((segment_batches, "plan_batches", "symmetries"),
                             (segment_training, "predict_items", "flips")):
        call = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, call=call, key=key, **more:
                            seen.append(more[key]) or call(*given, **more))
    assert segment([scans], scans, tmp_path) == 0
    assert seen[0] == 1 and set(seen[1:]) == {((),)}


def test_lesions_of_a_scan_are_those_of_its_slices_together(scans, told, tmp_path, monkeypatch):
    items, call = [], segment_batches.lesions_of
    monkeypatch.setattr(segment_batches, "lesions_of", lambda of, masks: items.extend(of)
                        or call(of, masks))
    assert segment([scans], scans, tmp_path) == 0
    assert items and all(len(each.slices) > 1 for each in items)
    places = sorted(i for each in items for i in each.images)
    assert places == list(range(len(scans.select("train"))))


def test_of_a_larger_pool_only_what_is_drawn_is_shown(real, arm, told, tmp_path):
    assert segment([arm], real, tmp_path, "--steps", "40") == 0
    drawn = set(told[0]["batch_at"].index[:, 2:].ravel().tolist())  # the free ones, in epochs
    assert len(drawn) == read(tmp_path, "arm")["num_train_images"] == 12
    assert set(told[0]["batch_at"].index.ravel().tolist()) == drawn
    assert {i for item in told[0]["negatives"].items for i in item.images} == drawn


def test_the_slice_shown_of_a_volume_has_foreground(scans, told, tmp_path, monkeypatch):
    shown, sheet = [], overlay.sheet
    monkeypatch.setattr(overlay, "sheet", lambda each: shown.extend(each) or sheet(each))
    assert segment([scans], scans, tmp_path) == 0
    assert len(shown) == 2 and all(each.true.any() for each in shown)


def test_results_of_other_masks_are_no_results_of_these(real, told, tmp_path, capsys):
    data = open_dataset(shutil.copytree(real.path, tmp_path / "real"))
    assert segment([data], data, tmp_path / "results") == 0
    path = next((data.path / "masks/nodule").rglob("*.png"))
    path.write_bytes(encode_png(255 - decode_png(path.read_bytes())))
    capsys.readouterr()
    assert segment([data], data, tmp_path / "results") == 2
    assert "masks_sha256" in capsys.readouterr().err
    written = bytearray(path.read_bytes())
    written[written.index(b"IDAT") + 8] ^= 0xFF  # its header is whole
    path.write_bytes(written)
    assert segment([data], data, tmp_path / "other") == 1
    line, = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "damaged" in line
