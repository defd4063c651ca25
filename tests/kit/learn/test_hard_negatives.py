"""Hard negatives: what is found in vain, where it is shown again, and what is resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungkit.data.mask_items import Item
from lungkit.learn import segment_batches, segment_training
from lungkit.learn.hard_negatives import HardNegatives, found_in_vain

SIZE, NUMBER = 16, 8


class Bright(torch.nn.Module):
    """Foreground is what is brighter than the middle."""

    def forward(self, images):
        return 40 * images[:, :1]


def pairs_of(bright, true, ignored=()):
    """Images with bright squares and foreground: {image: [(row, column), ...]}, of 2 x 2 pixels."""
    def drawn(squares):
        marks = np.zeros((NUMBER, SIZE, SIZE), np.uint8)
        for image, corners in squares.items():
            for row, column in corners:
                marks[image, row:row + 2, column:column + 2] = 1
        return torch.from_numpy(marks)

    return segment_batches.Pairs(255 * drawn(bright)[..., None], drawn(true),
                                 torch.arange(NUMBER)[:, None],
                                 drawn(ignored) if ignored else None)


def images(number=NUMBER):
    return [Item(str(i), "", (i,), None, None) for i in range(number)]


def places(regions):
    """Of each region the images, and the least row and column."""
    return sorted((sorted(set((each // SIZE**2).tolist())), int((each % SIZE**2 // SIZE).min()),
                   int((each % SIZE).min())) for each in regions)


def negatives_of(pairs, items, *, steps=30, batch_size=4, hard=0.5, oversample=0.25, patch_size=4):
    plan = segment_batches.plan_batches(
        np.arange(NUMBER), segment_batches.lesions_of(items, pairs.masks.numpy()), steps=steps,
        batch_size=batch_size, oversample=oversample, hard_negatives=hard, size=SIZE,
        patch_size=patch_size, symmetries=1, rng=np.random.default_rng(0))
    batches = segment_batches.Batches(pairs, plan, patch_size, torch.device("cpu"))
    return HardNegatives(batches, items, what="x"), batches


# ------------------------------------------------------------------ what is found in vain

def test_what_touches_no_foreground_is_found_in_vain():
    pairs = pairs_of({1: [(2, 2), (9, 9)], 3: [(5, 4)]}, {1: [(3, 3)]})
    found = found_in_vain(Bright(), pairs, images(), torch.device("cpu"), patch_size=SIZE)
    assert places(found) == [([1], 9, 9), ([3], 5, 4)] and {len(each) for each in found} == {4}


def test_in_a_volume_a_component_goes_through_slices():
    bright = {2: [(2, 2), (9, 9)], 3: [(2, 2), (9, 9)], 4: [(9, 9)]}
    pairs = pairs_of(bright, {4: [(10, 10)]})
    volume = Item("", "", (4, 3, 2), (0, 1, 2), None)
    whole = found_in_vain(Bright(), pairs, [volume], torch.device("cpu"), patch_size=SIZE)
    assert places(whole) == [([2, 3], 2, 2)] and len(whole[0]) == 8
    alone = found_in_vain(Bright(), pairs, images(), torch.device("cpu"), patch_size=SIZE)
    assert len(alone) == 4  # image by image what is true in one slice is in vain in the others


def test_what_touches_what_is_ignored_is_not_in_vain():
    pairs = pairs_of({1: [(2, 2), (9, 9)]}, {1: [(2, 2)]}, ignored={1: [(9, 9)]})
    assert found_in_vain(Bright(), pairs, images(), torch.device("cpu"), patch_size=SIZE) == []


# ------------------------------------------------------------------ showing it again

def test_each_is_shown_as_often_as_any_other_at_the_places_planned():
    large = [(row, 11) for row in range(2, 12)]
    pairs = pairs_of({1: [(2, 2)], 3: [(12, 3)], 5: large}, {1: [(2, 2)]})
    negatives, batches = negatives_of(pairs, images(), steps=300)
    before = batches.index.clone(), batches.held["centre"].clone()
    negatives.look(Bright())
    assert torch.equal(batches.index[:, :2], before[0][:, :2])  # foreground, and a free one
    assert torch.equal(batches.held["centre"][:, :2], before[1][:, :2])
    again, centre = batches.index[:, 2:].ravel(), batches.held["centre"][:, 2:].reshape(-1, 2)
    assert set(again.tolist()) == {3, 5} and 0.45 < (again == 3).float().mean() < 0.55
    column, row = (centre[again == 3] - torch.tensor([4.0, 13.0])).abs().max(0).values
    assert column <= 0.5 and row <= 0.5
    assert len(centre[again == 5].unique(dim=0)) > 15  # of the large one everywhere


def test_where_nothing_is_found_in_vain_batches_stay_as_they_are():
    negatives, batches = negatives_of(pairs := pairs_of({1: [(2, 2)]}, {1: [(2, 2)]}), images())
    before = batches.index.clone()
    negatives.look(Bright())
    assert torch.equal(batches.index, before) and negatives.state_dict()["voxels"] is None
    assert pairs.masks.any()


def test_no_look_is_due_without_a_place_for_what_is_found():
    pairs = pairs_of({}, {1: [(2, 2)]})
    assert negatives_of(pairs, images(), hard=0.0)[0].due == set()
    assert negatives_of(pairs, images())[0].due == {10, 20}
    assert negatives_of(pairs, images(), steps=1)[0].due == {1}  # never at step 0, nor after it


@pytest.mark.parametrize(("hard", "oversample", "number"), [(0.5, 0.5, 2), (0.5, 0.75, 1),
                                                            (0.25, 0.25, 1), (0.5, 1.0, 0)])
def test_foreground_is_never_put_aside(hard, oversample, number):
    negatives, batches = negatives_of(pairs_of({0: [(5, 5)]}, {1: [(2, 2)]}), images(), hard=hard,
                                      oversample=oversample)
    assert batches.again.shape == (2, 30, number)
    negatives.look(Bright())
    forced = round(4 * oversample)
    assert (batches.index[:, :forced] == 1).all()
    assert (batches.index[:, 4 - number:] == 0).all()


# ------------------------------------------------------------------ in turn, and resumed

def test_items_are_looked_at_in_turn_and_what_was_found_in_others_is_kept():
    pairs = pairs_of({i: [(5, 5)] for i in range(NUMBER)}, {})
    items = images()
    # 30 steps of 4 patches: 40 windows a look, of 16 an image 2.5 images, so three
    negatives, _ = negatives_of(pairs, items, oversample=0.0)
    looked_at = []
    for _ in range(3):
        negatives.look(Bright())
        looked_at.append([image for (image,), _, _ in places(negatives.regions)])
    assert looked_at == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
    pairs.images[6:8] = 0  # and image 0 again
    negatives.look(Bright())
    assert [image for (image,), _, _ in places(negatives.regions)] == [0, 1, 2, 3, 4, 5, 6, 7]
    negatives.next = 6
    negatives.look(Bright())
    assert [image for (image,), _, _ in places(negatives.regions)] == [0, 1, 2, 3, 4, 5]


def test_what_was_found_comes_back_on_resuming():
    pairs = pairs_of({i: [(5, 5)] for i in range(NUMBER)}, {})
    first, batches = negatives_of(pairs, images(), oversample=0.0)
    first.look(Bright())
    second, resumed = negatives_of(pairs, images(), oversample=0.0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(batches.index, resumed.index) and second.next == first.next == 3
    assert torch.equal(batches.held["centre"], resumed.held["centre"])
    for each in (first, second):
        each.look(Bright())
    assert torch.equal(batches.index, resumed.index)


def test_where_a_later_look_finds_nothing_what_is_shown_comes_back_on_resuming():
    pairs = pairs_of({1: [(5, 5)], 4: [(9, 2)]}, {})
    first, batches = negatives_of(pairs, images(), steps=300, oversample=0.0)
    first.look(Bright())
    shown = batches.index.clone()
    pairs.images[:] = 0
    first.look(Bright())
    assert torch.equal(batches.index, shown)
    second, resumed = negatives_of(pairs, images(), steps=300, oversample=0.0)
    assert not torch.equal(resumed.index, shown)
    second.load_state_dict(first.state_dict())
    assert torch.equal(resumed.index, shown)
    assert torch.equal(resumed.held["centre"], batches.held["centre"])


def test_a_training_looks_by_the_average_of_its_weights(monkeypatch):
    looks = []

    class Looks:
        due = {3, 6}

        def look(self, model):
            looks.append((len(seen), model.weight.detach().clone()))

        def state_dict(self):
            return {}

    torch.manual_seed(0)
    model, seen = torch.nn.Conv2d(1, 1, 1), []

    def loss_of(logits, truth):
        seen.append(model.weight.detach().clone())
        return ((logits - truth)**2).mean()

    batch = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    segment_training.train(model, lambda _: batch, loss_of, steps=9, learning_rate=0.1,
                           negatives=Looks(), what="x", identity={}, checkpoint_path=None)
    assert [number for number, _ in looks] == [3, 6]
    assert all(not torch.equal(weight, seen[number]) for number, weight in looks)
