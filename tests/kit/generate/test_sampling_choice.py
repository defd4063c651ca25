"""Guidance and steps chosen: one noise for all, train images alone, found again after a stop."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest

from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.generate import sampling_choice
from lungkit.generate.held_out import HoldOut
from lungkit.generate.items import Arm
from lungkit.generate.sampling_choice import (
    FILE,
    FIRST,
    KEPT,
    MOST_HELD,
    PER_CLASS,
    RECIPE,
    Sampling,
    choose,
    edge_of,
    spread,
    ways_of,
)
from lungkit.run.faults import BadOptions, Stopped
from lungkit.run.output import Output

GIVEN, BETTER, OTHER = Sampling(2, 1.0), Sampling(2, 3.0), Sampling(2, 5.0)
OPTIONS = {"sampling_steps": 2, "guidance_scale": 1.0, "validation_share": 0.34,
           "choose_guidance": [3.0, 5.0], "choose_steps": None}


class Stub:
    """Features of an image: the class that its first pixel shows, and a little of all others."""

    identity = {"network": "stub"}

    def __init__(self, **options) -> None:
        pass

    def load(self, data, split):
        images, labels = data.load(split)
        return self.features(images), labels

    def features(self, images):
        shown = np.eye(2)[[int(image[0, 0, 0]) for image in images]].repeat(20, axis=1)
        return np.float32(shown + 0.1 * np.stack([
            np.random.default_rng(crc32(image.tobytes())).normal(size=40) for image in images]))


def image_of(shown: int, index: int, channels: int = 1) -> np.ndarray:
    image = np.random.default_rng(index).integers(0, 256, (8, 8, channels), np.uint8)
    image[0, 0] = shown
    return image


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two classes of 15 train images, each of a group, grey as CT's; val and test are not there."""
    path = tmp_path_factory.mktemp("choice") / "real"
    with DatasetWriter(Output(path, "dataset.json", {}), stage="x", classes=["a", "b"],
                       image_size=8, channels=1) as writer:
        for split, number in (("train", 15), ("val", 1), ("test", 1)):
            for place in range(2 * number):
                writer.add(split, "ab"[place % 2], place, image_of(place % 2, place),
                           group=f"{split} {place}")
        writer.publish(parents=[], seed=0)
    data = open_dataset(path)
    for split in ("val", "test"):
        shutil.rmtree(path / split)
    return data


class Painter:
    """Draws in colour: at the given scale half of the images show the other class."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked, self.stop_at = [], stop_at

    def __call__(self, label):
        def draw(items, *, steps, guidance_scale):
            way = Sampling(steps, guidance_scale)
            self.asked.append((way, label, [item.index for item in items]))
            if len(self.asked) == self.stop_at:
                raise Stopped
            shown = [(item.label == "b") ^ (way == GIVEN and item.index % 2) for item in items]
            return np.stack([image_of(one, item.index, 3) for one, item in zip(
                shown, items, strict=True)]), [{}] * len(items)
        return draw

    def noise(self, way: Sampling) -> list[tuple[str, int]]:
        return [(label, index) for asked, label, indices in self.asked if asked == way
                for index in indices]


@pytest.fixture
def chosen(real, tmp_path, monkeypatch):
    """chosen(painter, options, share): (how, told, folder) of `choose`."""
    monkeypatch.setattr("lungkit.learn.features.Extractor", Stub)

    def call(painter: Painter, share: float = 0.34, name: str = "set", rule=None, **options):
        ways = ways_of({**OPTIONS, **options})
        target = Output(tmp_path / name, "dataset.json", ways.as_setting())
        arm = Arm("x_seg", real, [], target, None, True, "cpu", 0, rule=rule or HoldOut(share))
        return *choose(arm, ways, painter), target.work_dir
    return call


def test_every_candidate_draws_each_class_alike_from_one_noise_that_no_set_has(chosen):
    painter = Painter()
    chosen(painter)
    first = painter.noise(GIVEN)
    assert [painter.noise(way) for way in (BETTER, OTHER)] == [first, first]
    assert [label for label, _ in first] == ["a"] * PER_CLASS + ["b"] * PER_CLASS
    assert len({index for _, index in first}) == 2 * PER_CLASS
    assert min(index for _, index in first) >= FIRST


def test_what_is_best_is_taken_and_recorded_with_all_figures(chosen, monkeypatch):
    from lungkit.learn import linear

    fitted, fit = [], linear.fit
    monkeypatch.setattr(linear, "fit", lambda features, labels: fitted.append(len(labels))
                        or fit(features, labels))
    how, told, folder = chosen(Painter(), choose_guidance=[3.0])
    found = told["choice"]
    assert how == {"steps": 2, "guidance_scale": 3.0}
    assert found == json.loads((folder / FILE).read_text())
    assert found["chosen"] == BETTER._asdict() and found["given"] == GIVEN._asdict()
    assert found["because"].startswith("least KID")
    assert found["because"].endswith("; no larger scale was tried")
    assert fitted == [found["classifier"]["train_images"]] == [30 - sum(found["held_out"].values())]
    assert min(found["held_out"].values()) >= 4, "too few to know a spread of KID by"
    given, better = found["candidates"]
    assert (given["p_label_fidelity"], given["p_kid"]) == (None, None)
    assert better["p_label_fidelity"] == 2.0**-PER_CLASS and better["p_kid"] < 0.001
    lines = {(line["guidance_scale"], line["label"]): line for line in found["lines"]}
    assert set(lines) == {(scale, label) for scale in (1.0, 3.0) for label in ("all", "a", "b")}
    assert [lines[scale, "all"]["label_fidelity"]["value"] for scale in (1.0, 3.0)] == [0.5, 1]
    for line in lines.values():
        assert line["n"] == PER_CLASS * (1 + (line["label"] == "all"))
        assert line["kid"]["low"] < line["kid"]["value"] < line["kid"]["high"]
    assert lines[3.0, "all"]["kid"]["high"] < lines[1.0, "all"]["kid"]["low"]
    assert found["real_label_fidelity"]["value"] == 1


def test_what_was_stopped_goes_on_and_ends_with_the_same_bytes(chosen):
    _, _, whole = chosen(Painter(), name="whole")
    stopped, again, after = Painter(stop_at=6), Painter(), Painter()
    with pytest.raises(Stopped):
        chosen(stopped)
    _, told, folder = chosen(again)
    assert again.asked[:2] == stopped.asked[4:], "the part that was begun"
    assert len(again.asked) == 12 - 4, "a part that was whole is drawn anew"
    assert (folder / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert not (folder / KEPT).exists()
    assert chosen(after)[1] == told and not after.asked


@pytest.mark.parametrize("share", [0.01, 0.08])
def test_where_too_few_are_held_out_what_is_given_stays_and_nothing_is_drawn(share, chosen):
    painter = Painter()
    how, told, _ = chosen(painter, share)
    assert how == GIVEN.how() and not painter.asked
    assert "fewer than 2" in told["choice"]["because"]


def test_one_class_with_too_few_held_out_is_enough_that_nothing_is_judged(chosen, real):
    labels = [row.label for row in real.select("train")]
    held = {place for place, label in enumerate(labels) if label == "a"} | {labels.index("b")}
    painter = Painter()
    how, told, _ = chosen(painter, rule=SimpleNamespace(choose=lambda data, seed: held))
    assert how == GIVEN.how() and not painter.asked
    assert told["choice"]["because"].startswith("1 train images of b are held out")


def test_the_spread_of_kid_is_that_over_whole_groups(chosen, monkeypatch):
    seen, distances = [], sampling_choice.distances
    monkeypatch.setattr(sampling_choice, "distances", lambda reference, groups, drawn:
                        seen.extend(groups) or distances(reference, groups, drawn))
    chosen(Painter())
    assert len(seen) == 2 and all(name.startswith("train ") for own in seen for name in own)


def test_nothing_is_drawn_or_written_unless_it_is_asked_for(chosen):
    painter = Painter()
    how, told, folder = chosen(painter, choose_guidance=None)
    assert (how, told) == (GIVEN.how(), {}) and not painter.asked and not folder.exists()


@pytest.mark.parametrize(("chosen", "candidates", "words"), [
    (OTHER, [GIVEN, BETTER, OTHER], "; no larger scale was tried"), (BETTER, [OTHER, BETTER], ""),
    (GIVEN, [GIVEN, BETTER], ""), (GIVEN, [GIVEN, Sampling(4, 1.0)], "")])
def test_where_the_largest_scale_is_best_it_is_said_that_none_larger_was_tried(
        chosen, candidates, words):
    assert edge_of(chosen, candidates) == words


def test_of_many_held_out_images_some_that_lie_evenly_are_looked_at():
    assert spread([4, 7, 9]).tolist() == [4, 7, 9] and spread([]).tolist() == []
    some = spread(list(range(0, 4 * MOST_HELD, 2)))
    assert len(some) == MOST_HELD and (some[0], some[-1]) == (0, 4 * MOST_HELD - 2)
    assert set(np.diff(some)) <= {4, 6}


# ------------------------------------------------------------------ options

@pytest.mark.parametrize(("scales", "steps", "others", "asked"), [
    (None, None, [], {}),
    ([5.0, 3.0, 1.0, 3.0], None, [BETTER, OTHER],
     {"choose_guidance": [1.0, 3.0, 5.0], "choice_recipe": RECIPE}),
    (None, [4, 1], [Sampling(1, 1.0), Sampling(4, 1.0)],
     {"choose_steps": [1, 4], "choice_recipe": RECIPE}),
    ([3.0], [4], [BETTER, Sampling(4, 1.0), Sampling(4, 3.0)],
     {"choose_guidance": [3.0], "choose_steps": [4], "choice_recipe": RECIPE})])
def test_candidates_are_all_pairs_the_given_one_first_and_decide_a_set_where_asked_for(
        scales, steps, others, asked, monkeypatch):
    monkeypatch.setattr("lungkit.learn.features.Extractor", Stub)
    ways = ways_of({**OPTIONS, "choose_guidance": scales, "choose_steps": steps})
    assert ways.candidates == (GIVEN, *others)
    assert ways.as_setting() == {**GIVEN._asdict(), **asked}


@pytest.mark.parametrize(("options", "words"), [
    ({"choose_guidance": [1.0]}, "--choose-guidance names only what is drawn with anyway"),
    ({"choose_guidance": None, "choose_steps": [2]}, "--choose-steps names only"),
    ({"validation_share": 0.0}, "--validation-share 0 holds out none")])
def test_a_choice_of_nothing_or_by_nothing_is_refused(options, words, monkeypatch):
    monkeypatch.setattr("lungkit.learn.features.Extractor", Stub)
    with pytest.raises(BadOptions, match=words):
        ways_of({**OPTIONS, **options})


def test_without_the_network_that_judges_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadOptions, match="^a pretrained network needs the package .*setup_env.sh"):
        ways_of(OPTIONS)
