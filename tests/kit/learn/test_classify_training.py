"""A CNN's training: the order of its images, how they are shown, its steps, its predictions."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data import orientations
from lungkit.learn import batches, classify_training, cnns

# ------------------------------------------------------------------ order, augmentation

def test_plan_shows_every_image_once_an_epoch():
    drawn = np.array([3, 5, 7, 11, 13])
    plan = classify_training.plan_batches(drawn, 4, 5, np.random.default_rng(0))
    assert all(sorted(epoch) == drawn.tolist() for epoch in plan["index"])
    assert len({tuple(epoch) for epoch in plan["index"]}) > 1
    assert plan["symmetry"].min() >= 0 and plan["symmetry"].max() <= 7
    assert abs(plan["brightness"] - 1).max() <= classify_training.BRIGHTNESS


def test_each_image_is_turned_and_lit_by_itself_over_the_whole_range():
    plan = classify_training.plan_batches(np.arange(64), 32, 64, np.random.default_rng(0))
    for name, values in (("symmetry", plan["symmetry"]), ("brightness", plan["brightness"])):
        assert (values != values[:, :1]).any() and (values != values[:1]).any(), name
    turned = np.bincount(plan["symmetry"].ravel(), minlength=8)
    assert turned.min() > 200  # 256 of each of the eight
    assert plan["brightness"].min() == pytest.approx(0.9, abs=1e-3)
    assert plan["brightness"].max() == pytest.approx(1.1, abs=1e-3)
    assert plan["brightness"].mean() == pytest.approx(1, abs=5e-3)


def test_a_last_epoch_is_cut_short_and_a_batch_may_hold_more_images_than_the_pool():
    plan = classify_training.plan_batches(np.arange(3), 2, 4, np.random.default_rng(0))
    order = plan["index"].ravel()
    assert len(order) == 8 and sorted(order[:3]) == sorted(order[3:6]) == [0, 1, 2]
    assert len(set(order[6:])) == 2


@pytest.mark.parametrize("step, share", [(0, 0.5), (1, 1.0), (5, 0.5), (8, 0.0380602337)])
def test_learning_rate_rises_for_a_fifth_and_falls_by_half_a_cosine(step, share):
    assert classify_training.one_cycle(step, 9) == pytest.approx(share)


def test_learning_rate_rises_and_falls_to_nothing():
    rates = [classify_training.one_cycle(step, 100) for step in range(100)]
    peak = int(np.argmax(rates))
    assert 0.95 < rates[peak] <= 1 and 15 <= peak <= 25
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:])[::-1]
    assert 0 < rates[-1] < 0.01


def test_symmetries_are_the_eight_of_a_square():
    image = np.arange(9).reshape(3, 3)
    turned = {tuple(image.reshape(-1)[order])
              for order in orientations.square_symmetries(3).numpy()}
    wanted = {tuple(np.rot90(each, k).reshape(-1)) for each in (image, image.T) for k in range(4)}
    assert turned == wanted and len(turned) == 8


def test_normalise_is_exact():
    import torch
    batch = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    wanted = (batch.numpy() / 255 - batches.MEAN) / batches.STD
    found = batches.normalise(batch, *batches.pixel_scale("cpu"))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), atol=1e-5)


def test_a_red_image_has_imagenets_numbers_of_red():
    import torch
    red = torch.tensor([[[[255, 0, 0]]]], dtype=torch.uint8)
    found = batches.normalise(red, *batches.pixel_scale("cpu")).flatten().tolist()
    assert found == pytest.approx([0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-5)


ALONE = {"what": "test", "identity": {}, "checkpoint_path": None}  # a training kept nowhere


def test_the_loop_shows_the_model_what_the_plan_says():
    import torch
    images = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8)
    plan = {"index": np.array([[4, 2], [0, 4]]), "symmetry": np.array([[0, 1], [4, 3]]),
            "brightness": np.array([[1, 1.5], [1, 0.5]], np.float32)}
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    model.register_forward_pre_hook(
        lambda model, inputs: seen.append(inputs[0].numpy()) if model.training else None)
    classify_training.train(model, images, torch.zeros(5, dtype=torch.int64), plan,
                       learning_rate=0.1, **ALONE)
    assert len(seen) == 2
    pixels = images.numpy().astype(float)
    wanted = [[pixels[4], 1.5 * pixels[2, ::-1]],  # up and down, left and right, main diagonal
              [pixels[0].transpose(1, 0, 2), 0.5 * pixels[4, ::-1, ::-1]]]
    for batch, image_pair in zip(seen, wanted):
        normal = (np.stack(image_pair) / 255 - batches.MEAN) / batches.STD
        assert np.allclose(batch, normal.transpose(0, 3, 1, 2), atol=1e-5)


def linear(num_classes=3, size=4):
    """A model whose training can be followed by hand."""
    import torch
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size**2, num_classes))


def made_batches(steps, *, size=4):
    """Images, labels, a plan that shows them as they are, and what a `linear` model then sees."""
    import torch
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, size, size, 3)).astype(np.uint8)
    labels = np.arange(6) % 3
    plan = {"index": rng.integers(0, 6, (steps, 4)), "symmetry": np.zeros((steps, 4), int),
            "brightness": np.ones((steps, 4), np.float32)}
    inputs = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return (torch.from_numpy(images), torch.from_numpy(labels), plan,
            inputs.transpose(0, 3, 1, 2).reshape(6, -1))


def smoothed_loss(inputs, labels, weight, bias):
    """Cross-entropy with a tenth of the target spread over all classes, and what it leaves."""
    logits = inputs @ weight.T + bias
    log_said = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.9 * np.eye(3)[labels] + 0.1 / 3
    return -(target * log_said).sum(1).mean(), (np.exp(log_said) - target) / len(labels)


def test_the_loss_is_smoothed_and_that_of_the_last_tenth():
    images, labels, plan, inputs = made_batches(20)
    model = linear()
    weight, bias = (each.detach().double().numpy() for each in model[1].parameters())
    found = classify_training.train(model, images, labels, plan, learning_rate=0.0,
                               **ALONE)
    losses = [smoothed_loss(inputs[index], labels.numpy()[index], weight, bias)[0]
              for index in plan["index"]]
    assert found == pytest.approx(np.mean(losses[-2:]), rel=1e-5)


def test_every_step_is_adamws():
    """Four steps of Loshchilov and Hutter's algorithm 2 by hand, decay 0.05 on every weight."""
    images, labels, plan, inputs = made_batches(4)
    model = linear()
    weights = [each.detach().double().numpy() for each in model[1].parameters()]
    first, second = ([np.zeros_like(each) for each in weights] for _ in range(2))
    found = classify_training.train(model, images, labels, plan, learning_rate=0.01,
                               **ALONE)
    for step, index in enumerate(plan["index"]):
        rate = 0.01 * (1 + np.cos(np.pi * step / 4)) / 2  # a warm-up of a fifth ends with step 0
        loss, left = smoothed_loss(inputs[index], labels.numpy()[index], *weights)
        for k, gradient in enumerate((left.T @ inputs[index], left.sum(0))):
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            change = first[k] / (1 - 0.9**(step + 1)) / (
                np.sqrt(second[k] / (1 - 0.999**(step + 1))) + 1e-8)
            weights[k] = weights[k] * (1 - rate * 0.05) - rate * change
    assert found == pytest.approx(loss, rel=1e-4)
    for parameter, wanted in zip(model[1].parameters(), weights):
        assert np.allclose(parameter.detach().numpy(), wanted, atol=2e-5)


def test_a_prediction_depends_on_its_image_alone():
    """Not on the batch it is in, nor on the state that training left the model in."""
    import torch
    model = cnns.small_cnn(3)
    images = torch.randint(0, 256, (classify_training.EVAL_BATCH_SIZE + 5, 16, 16, 3),
                           dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.train()
    together = classify_training.predict(model, images)
    assert together.shape == (len(images), 3) and together.dtype == np.float32
    for k in (0, len(images) - 1):
        model.train()
        alone = classify_training.predict(model, images[k:k + 1])
        assert np.allclose(together[k], alone, atol=1e-6)
    model.eval()
    inputs = (images[:3].numpy() / 255 - batches.MEAN) / batches.STD
    with torch.no_grad():
        wanted = model(torch.tensor(inputs.transpose(0, 3, 1, 2), dtype=torch.float32)).softmax(1)
    assert np.allclose(together[:3], wanted, atol=1e-5)


def test_the_small_cnn_is_as_small_as_it_says():
    import torch
    model = cnns.small_cnn(3)
    assert sum(each.numel() for each in model.parameters()) == 135_059
    shapes, features = [], torch.zeros(2, 3, 64, 64)
    for layer in model:
        features = layer(features)
        if isinstance(layer, torch.nn.ReLU):
            shapes.append(tuple(features.shape[1:3]))
    assert shapes == [(16, 32), (32, 16), (64, 8), (64, 8), (128, 4)]
    assert features.shape == (2, 3)
