"""The U-Net, its losses, what it is shown and how it predicts larger images than it was shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import unet_segment
from lungkit.data import mask_items, segment_scores
from lungkit.data.mask_items import Item
from lungkit.learn import segment_augment, segment_batches, segment_training, unet
from lungkit.run import faults


def plan(steps, batch, symmetries=8, **still):
    """Moves of a training, those named in `still` put out of action."""
    moves = segment_augment.draw_moves((steps, batch), symmetries, np.random.default_rng(0))
    identity = {"matrix": np.eye(2), "shift": 0, "elastic": 0, "gamma": 1, "noise": 0}
    return {name: np.broadcast_to(np.float32(identity[name]), values.shape).copy()
            if still.get(name, True) else values for name, values in moves.items()}


def at(moves, step):
    return {name: torch.from_numpy(values[step]) for name, values in moves.items()}


# ------------------------------------------------------------------ what is ignored

@pytest.mark.parametrize("name", unet.LOSSES)
def test_nothing_is_learnt_where_the_truth_is_unknown(name):
    truth = torch.zeros(2, 2, 8, 8)
    truth[:, 0, :3] = truth[:, 1, 6:] = 1
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for shift in (0.0, 3.0):
        shifted = (logits + shift * truth[:, 1:]).requires_grad_()
        loss = segment_training.known_loss(unet.LOSSES[name], shifted, truth)
        loss.backward()
        assert (shifted.grad[:, :, 6:] == 0).all() and (shifted.grad[:, :, :6] != 0).all()
        found.append(loss.item())
    assert found[0] == found[1]
    truth[:, 0, 7] = 1  # where a move brings both to one pixel
    assert segment_training.known_loss(unet.LOSSES[name], logits, truth).item() == found[0]
    truth[:, 0, 7] = 0
    assert segment_training.known_loss(unet.LOSSES[name], logits, truth[:, :1]) == \
        unet.LOSSES[name](logits, truth[:, :1])


def test_what_is_ignored_is_moved_with_the_image_and_marked_beside_the_truth():
    masks = (np.random.default_rng(0).random((3, 16, 16)) < 0.4).astype(np.uint8)
    pairs = segment_batches.Pairs(
        torch.from_numpy(np.repeat(255 * masks[..., None], 1, -1)), torch.from_numpy(masks),
        torch.arange(3)[:, None], torch.from_numpy(1 - masks))
    drawn = {"index": np.array([[0, 2]]), "centre": np.full((1, 2, 2), 8, np.float32),
             **plan(1, 2, matrix=False, elastic=False)}
    _, truth = segment_batches.Batches(pairs, drawn, 16, torch.device("cpu"))(0)
    assert truth.shape == (2, 2, 16, 16) and set(truth.unique().tolist()) == {0, 1}
    assert (truth.sum(1) == 1).float().mean() > 0.95  # a tie of both is of both
    assert (pairs.marked([2]) == np.where(masks[2:] == 0, segment_scores.IGNORED, 1)).all()


# ------------------------------------------------------------------ the network and its losses

@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sides", [(16, 16), (13, 21)])
def test_a_logit_of_every_pixel_whatever_the_sides(residual, sides):
    model = unet.UNet(3, [8, 12, 20], residual=residual)
    assert model(torch.zeros(2, 3, *sides)).shape == (2, 1, *sides)


@pytest.mark.parametrize("residual", [True, False])
def test_a_step_back_ends_well_at_widths_at_which_a_strided_pixel_does_not(residual):
    model = unet.UNet(3, [8, 16], residual=residual).to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model(images).mean().backward()
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())


@pytest.mark.parametrize("size", [(10, 6), (9, 6)])
def test_an_enlarged_level_is_pytorch_s_and_so_is_its_gradient(size):
    inputs = torch.rand(2, 3, 5, 3, dtype=torch.float64, requires_grad=True)
    enlarged = [unet.enlarge(inputs, size),
                torch.nn.functional.interpolate(inputs, size=size, mode="bilinear")]
    weight = torch.rand(2, 3, *size, dtype=torch.float64)
    grads = [torch.autograd.grad((each * weight).sum(), inputs)[0] for each in enlarged]
    assert torch.equal(*enlarged) and torch.allclose(*grads, rtol=1e-12)


def test_a_network_lies_in_memory_as_its_device_likes_it():
    layouts = {device: segment_batches.memory_format(torch.device(device))
               for device in ("cpu", "cuda")}
    assert layouts == {"cpu": torch.contiguous_format, "cuda": torch.channels_last}
    assert segment_batches.as_network_sees(torch.rand(2, 3, 4, 4)).is_contiguous()


def test_foreground_is_rare_at_first_and_the_published_network_has_no_norms():
    torch.manual_seed(0)
    with torch.no_grad():
        said = unet.UNet(1, [16, 32])(torch.rand(2, 1, 16, 16)).sigmoid().mean()
    assert 0.001 < float(said) < 0.1
    kinds = {type(each) for each in unet.UNet(1, [16, 32], residual=False).modules()}
    assert torch.nn.GroupNorm not in kinds and torch.nn.MaxPool2d in kinds


def test_the_losses_the_stage_offers_are_those_there_are():
    assert set(unet_segment.LOSSES) == set(unet.LOSSES)


def test_losses_by_hand():
    true = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
    said = torch.tensor([0.8, 0.4, 0.1, 0.3])
    logits = said.logit().view(1, 1, 2, 2)
    both, vain, missed = 1.2, 0.4, 0.8
    assert float(unet.dice_loss(logits, true)) == pytest.approx(1 - 2 * both / (1.6 + 2))
    assert float(unet.tversky_loss(logits, true)) == pytest.approx(
        1 - both / (both + 0.3 * vain + 0.7 * missed))
    right = torch.tensor([0.8, 0.4, 0.9, 0.7])
    assert float(unet.focal_loss(logits, true)) == pytest.approx(
        float((-(1 - right)**2 * right.log()).mean()))
    assert float(unet.cross_entropy(logits, true)) == pytest.approx(float(-right.log().mean()))
    assert float(unet.dice_focal_loss(logits, true)) == pytest.approx(
        float(unet.dice_loss(logits, true) + unet.focal_loss(logits, true)))


def test_a_batch_without_foreground_has_a_finite_gradient():
    logits = torch.full((1, 1, 4, 4), -200.0, requires_grad=True)
    for loss in unet.LOSSES.values():
        value = loss(logits, torch.zeros(1, 1, 4, 4))
        value.backward()
        assert torch.isfinite(value.detach()) and torch.isfinite(logits.grad).all()


def test_a_small_lesion_counts_as_a_large_one_and_an_empty_image_for_nothing():
    true = torch.zeros(3, 1, 8, 8)
    true[0, 0, 1, 1] = 1                # one pixel, and nearly an image; the last shows nothing
    true[1, 0, :7] = 1
    sure = torch.full_like(true, -20.0)
    for missed in (0, 1):
        logits = torch.where(true > 0, 20.0, sure)
        logits[missed] = -20
        assert float(unet.image_dice_loss(logits, true)) == pytest.approx(0.5, abs=1e-4)
        batch = float(unet.dice_loss(logits, true))
        assert batch < 0.02 if missed == 0 else batch > 0.9
        assert float(unet.image_dice_focal_loss(logits, true)) == pytest.approx(
            (0.5 + batch) / 2 + float(unet.focal_loss(logits, true)), abs=1e-4)
    assert float(unet.image_dice_loss(sure, torch.zeros_like(true))) == 0
    logits = torch.logit(torch.tensor([0.9, 0.6])).view(1, 1, 1, 2)
    assert float(unet.image_dice_loss(logits, torch.tensor([[[[1.0, 0]]]]))) == pytest.approx(
        1 - 2 * 0.9 / (1.5 + 1))


# ------------------------------------------------------------------ augmentation

def pair(size=32):
    """A blob off the middle as image and as mask."""
    rows, columns = np.indices((size, size))
    mask = torch.from_numpy(np.float32((abs(rows - 20) < 6) & (abs(columns - 12) < 4)))[None, None]
    return mask, mask


def test_unmoved_pairs_come_back_as_they_are():
    images, masks = torch.rand(3, 2, 16, 16), (torch.rand(3, 1, 16, 16) > 0.5).float()
    moved = segment_augment.place(images, masks, torch.full((3, 2), 8.0), at(plan(1, 3), 0), 16)
    assert torch.allclose(moved[0], images, atol=1e-5) and torch.equal(moved[1], masks)
    assert torch.allclose(segment_augment.light(images, at(plan(1, 3), 0)), images)


def test_a_patch_is_what_lies_around_its_centre():
    images = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16) / 16
    moved, _ = segment_augment.place(images, images, torch.tensor([[10.0, 8.0]]),
                                     at(plan(1, 1), 0), 4)
    assert torch.allclose(moved[0, 0, 0] * 16, torch.tensor([8.0, 9, 10, 11]), atol=1e-4)


@pytest.mark.parametrize("moved", ["matrix", "shift", "elastic"])
def test_image_and_mask_are_moved_alike(moved):
    image, mask = pair()
    moves = plan(6, 1, **{moved: False})
    for step in range(6):
        got, truth = segment_augment.place(image, mask, torch.full((1, 2), 16.0),
                                           at(moves, step), 32)
        assert torch.equal((got >= 0.5).float(), truth) and 40 < truth.sum() < 250
        assert not torch.equal(truth, mask)


def test_each_image_is_moved_and_lit_by_itself():
    moves = segment_augment.draw_moves((4, 8), 8, np.random.default_rng(0))
    for name, values in moves.items():
        flat = values.reshape(4, 8, -1)
        assert (flat != flat[:, :1]).any() and (flat != flat[:1]).any(), name


def test_light_changes_the_grey_and_keeps_its_order_but_for_noise():
    images = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    darker = segment_augment.light(images, at(plan(1, 1, gamma=False), 0))
    assert not torch.allclose(darker, images) and (darker.flatten().diff() >= 0).all()
    noisy = segment_augment.light(images, at(plan(1, 1, noise=False), 0)) - images
    assert 0.001 < float(noisy.std()) < segment_augment.NOISE * 1.5


@pytest.mark.parametrize(("symmetries", "mirrored", "turned"), [(8, True, True), (2, True, False),
                                                                (1, False, False)])
def test_images_are_turned_as_far_as_they_stay_valid(symmetries, mirrored, turned):
    matrix = segment_augment.draw_moves((1, 400), symmetries, np.random.default_rng(0))["matrix"]
    mirror = np.linalg.det(matrix) < 0
    assert mirror.any() == mirrored and (mirror.mean() < 0.6)
    up = matrix[0, :, 1, 1]  # how far down the image goes what goes down the patch
    assert (up < 0.3).any() == turned


# ------------------------------------------------------------------ what every step sees

def masks_with(shown, number=10, size=16):
    masks = np.zeros((number, size, size), np.uint8)
    for i in shown:
        masks[i, 2:4, 11:13] = 1
    return masks


def drawn_plan(**given):
    options = {"steps": 50, "batch_size": 6, "oversample": 1 / 3, "hard_negatives": 0.0,
               "patch_size": 16, "symmetries": 8, "rng": np.random.default_rng(0)} | given
    lesions = segment_batches.lesions_of(images(10), masks_with([1, 4]))
    return segment_batches.plan_batches(np.arange(10), lesions, size=16, **options)


def images(number):
    return [Item(str(i), "", (i,), None, None) for i in range(number)]


def test_the_first_of_each_batch_show_foreground_the_others_are_epochs():
    index = drawn_plan()["index"]
    assert set(index[:, :2].ravel()) == {1, 4}
    free = index[:, 2:].ravel()
    assert all(sorted(free[begin:begin + 10]) == list(range(10)) for begin in range(0, 200, 10))
    assert (np.isin(drawn_plan(oversample=0.0)["index"], [1, 4]).mean()) == pytest.approx(0.2)


def test_each_lesion_is_shown_as_often_as_any_other_in_all_of_its_slices():
    masks = np.zeros((10, 16, 16), np.uint8)
    masks[2:8, 1:9, 1:9], masks[5, 12:14, 12] = 1, 1     # one through six slices, one of two pixels
    volume = Item("", "", (*range(9, 0, -1),), (*range(9),), None)
    lesions = segment_batches.lesions_of([volume, images(1)[0]], masks)
    assert sorted(map(len, lesions)) == [2, 6 * 64]
    assert sorted(np.concatenate(lesions)) == np.flatnonzero(masks).tolist()
    alone = segment_batches.lesions_of(images(10)[5:6], masks)  # an image is one, with all it has
    assert [each.tolist() for each in alone] == [(np.flatnonzero(masks[5]) + 5 * 256).tolist()]
    drawn = np.arange(10)
    plan = {"steps": 300, "batch_size": 4, "oversample": 0.5, "hard_negatives": 0.0, "size": 16,
            "patch_size": 4, "symmetries": 1}
    rng = np.random.default_rng(0)
    found = segment_batches.plan_batches(drawn, lesions, rng=rng, **plan)
    index, centre = found["index"][:, :2], found["centre"][:, :2]
    small = (centre > 10).all(-1)
    assert 0.45 < small.mean() < 0.55 and set(index[small]) == {5}
    assert (np.bincount(index[~small], minlength=8)[2:8] > 20).all()
    assert len(np.unique(centre[~small], axis=0)) > 40
    few = mask_items.only([volume, images(1)[0]], drawn[:5])  # without the slice of the small
    assert [each.images for each in few] == [(4, 3, 2, 1), (0,)]
    assert [each.slices for each in few] == [(5, 6, 7, 8), None]
    assert mask_items.only([volume], drawn[:1]) == []
    found = segment_batches.plan_batches(drawn[:5], segment_batches.lesions_of(few, masks), rng=rng,
                                         **plan)
    assert set(found["index"][:, :2].ravel()) == {2, 3, 4}


def test_a_patch_of_foreground_is_around_a_pixel_of_it():
    plan = drawn_plan(patch_size=4)
    centre = plan["centre"]
    assert (abs(centre[:, :2] - [12, 3]) <= 1).all()
    assert centre.min() >= 2 and centre.max() <= 14 and centre[:, 2:].std() > 2
    assert (drawn_plan()["centre"] == 8).all()


def test_the_published_sampler_draws_both_kinds_equally_often():
    plan = segment_batches.plan_epochs(np.arange(10), masks_with([1]), epochs=100, batch_size=5,
                                        symmetries=1, rng=np.random.default_rng(0))
    assert plan["index"].shape == (200, 5)
    assert 0.45 < (plan["index"] == 1).mean() < 0.55
    assert set(plan["index"].ravel()) == set(range(10))


def test_a_training_ends_with_the_average_of_its_weights():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 1)
    seen = []

    def loss_of(logits, truth):
        seen.append(model.weight.detach().clone())
        return ((logits - truth)**2).mean()

    batch = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    segment_training.train(model, lambda _: batch, loss_of, steps=30, learning_rate=0.1,
                           what="x", identity={}, checkpoint_path=None)
    weight, ends = model.weight.detach(), sorted((float(seen[3]), float(seen[-1])))
    assert ends[0] < float(weight) < ends[1] and abs(float(weight - seen[-1])) > 0.01


def test_the_published_training_keeps_the_best_weights_and_stops():
    model = torch.nn.Conv2d(1, 1, 1)
    batch = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    losses, kept = iter([5.0, 3, 2, 4, 4, 4, 4, 4, 1, 1]), []

    def val_loss(model):
        kept.append(model.weight.detach().clone())
        return next(losses)

    segment_training.train_published(
        model, lambda _: batch, lambda logits, truth: ((logits - truth)**2).mean(), steps=20,
        steps_per_epoch=2, learning_rate=0.1, val_loss=val_loss, what="x", identity={},
        checkpoint_path=None)
    assert len(kept) == 3 + segment_training.PATIENCE and torch.equal(model.weight, kept[2])


# ------------------------------------------------------------------ predicting

class Mean(torch.nn.Module):
    """A logit that is the pixel's own grey: what windows and mirrors must give back."""

    def forward(self, images):
        return images.mean(1, keepdim=True)


@pytest.mark.parametrize("patch_size", [16, 20, 64])
def test_windows_cover_all_and_give_back_what_each_pixel_says(patch_size):
    images = torch.rand(2, 1, 40, 40)
    whole = (2 * images - 1).sigmoid()[:, 0]
    for flips in (((),), segment_training.FLIPS[8]):
        said = segment_training.probabilities(Mean(), images, patch_size, flips)
        assert torch.allclose(said, whole, atol=1e-5)


def test_windows_overlap_by_half_and_reach_both_ends():
    starts = segment_training.window_starts(100, 32)
    assert starts[0] == 0 and starts[-1] == 68 and max(np.diff(starts)) <= 16
    assert segment_training.window_starts(32, 32) == [0]


class Left(torch.nn.Module):
    """Sees foreground at the left end alone: mirrored, at both."""

    def forward(self, images):
        ramp = torch.linspace(9, -9, images.shape[-1])
        return ramp.expand(len(images), 1, *images.shape[-2:])


def test_mirrors_are_averaged_in_their_places():
    images = torch.rand(1, 1, 8, 8)
    said = segment_training.probabilities(Left(), images, 8, segment_training.FLIPS[2])
    assert torch.allclose(said, torch.full_like(said, 0.5), atol=1e-5)
    alone = segment_training.probabilities(Left(), images, 8, segment_training.FLIPS[1])
    assert alone[0, 0, 0] > 0.9 and alone[0, 0, -1] < 0.1


def test_blending_trusts_the_middle_of_a_window():
    weight = segment_training.blend(16, "cpu")
    assert weight[8, 8] > 50 * weight[8, 0] > 0 and torch.equal(weight, weight.T)


def test_the_published_recipe_goes_on_with_its_best_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("lungkit.learn.loop.SYNC_STEPS", 1)
    batch, losses = (torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)), [1.0, 2, 3, 4, 5, 6, 7]

    def train(path, stop_at=None):
        torch.manual_seed(0)
        model, at = torch.nn.Conv2d(1, 1, 1), []

        def batch_at(step):
            at.append(step)
            if step == stop_at:
                faults.note_signal(15, None)
            return batch
        segment_training.train_published(
            model, batch_at, lambda said, true: ((said - true)**2).mean(), steps=20,
            steps_per_epoch=1, learning_rate=0.1, val_loss=lambda _: losses[at[-1]], what="x",
            identity={}, checkpoint_path=path)
        return model.weight.detach(), at
    whole, steps = train(tmp_path / "whole")
    with pytest.raises(faults.Stopped):
        train(tmp_path / "parts", stop_at=2)
    faults.forget_signals()
    again, rest = train(tmp_path / "parts")
    assert torch.equal(whole, again) and steps == [0, 1, 2, *rest]


def test_a_loss_that_is_not_finite_is_a_fault_of_the_published_recipe_too(tmp_path):
    with pytest.raises(faults.Fault, match="not finite"):
        segment_training.train_published(
            torch.nn.Conv2d(1, 1, 1), lambda step: (torch.full((1, 1, 4, 4), math.nan),
                                                    torch.ones(1, 1, 4, 4)),
            lambda said, true: said.mean(), steps=30, steps_per_epoch=1, learning_rate=0.1,
            val_loss=lambda _: math.nan, what="x", identity={}, checkpoint_path=tmp_path / "x")


def test_the_val_loss_is_the_mean_over_images_however_many_are_seen_at_a_time(monkeypatch):
    images = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    pairs = segment_batches.Pairs(images, (images[..., 0] > 128).byte(), torch.arange(5)[:, None])
    model, cpu, found = torch.nn.Conv2d(1, 1, 1), torch.device("cpu"), []
    for pixels in (2**20, 2 * 64):
        monkeypatch.setattr(segment_training, "EVAL_PIXELS", pixels)
        found.append(segment_training.mean_loss(model, pairs, np.arange(5), unet.cross_entropy,
                                                cpu))
    every = torch.arange(5)
    with torch.no_grad():
        said = model(segment_batches.as_network_sees(pairs.inputs(every, cpu)))
    expected = float(unet.cross_entropy(said, pairs.truth(every, cpu)))
    assert found == pytest.approx([expected, expected])
