"""How like real an arm is, in a file beside its manifest: what is compared with what."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lungkit.audit import fidelity as numbers, memorised
from lungkit.data.dataset import Row, open_dataset, parent_of
from lungkit.data.writer import DatasetWriter
from lungkit.learn import pretrained
from lungkit.learn.features import Extractor
from lungkit.nuclei import detect, statistics
from lungkit.nuclei.detect import FIELD_UM, Nuclei
from lungkit.run.faults import Fault
from lungkit.run.output import Output
from lungkit.tools import fidelity

NETWORK = "test_efficientnet"  # timm's own for tests
CLASSES = ["dark", "light"]


def write(path, *, channels, draw, parents=(), num_train=20, modality="he", seed=None):
    """draw(rng, label) gives an image's grey level and its noise."""
    rng = np.random.default_rng(list((seed or path.name).encode()))
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=CLASSES,
                       image_size=16, channels=channels) as writer:
        index = 0
        for split, num in (("train", num_train), ("val", 8), ("test", 12)):
            for label in CLASSES:
                for _ in range(num):
                    level, noise = draw(rng, label)
                    image = rng.normal(level, noise, (16, 16, channels)).clip(0, 255)
                    writer.add(split, label, index, image.astype(np.uint8), group=f"g{index}")
                    index += 1
        return writer.publish(parents=list(parents), seed=0, modality=modality)


def as_real(rng, label):
    return (80 if label == "dark" else 170) + rng.normal(0, 15), 10


ARMS = {"same": as_real,
        "swapped": lambda rng, label: as_real(rng, "dark" if label == "light" else "light"),
        "noise": lambda rng, label: (127, 200)}


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def made(request, tmp_path_factory):
    """real and three arms, measured by a small network; {name: fidelity.json's content}."""
    root = tmp_path_factory.mktemp("run")
    modality = "he" if request.param == 3 else "ct"
    real = write(root / "real", channels=request.param, draw=as_real, modality=modality)
    made_from = parent_of(real, {split: ["train"] for split in ("train", "val", "test")})
    for name, draw in ARMS.items():
        write(root / name, channels=request.param, draw=draw, parents=[made_from],
              modality=modality)
    write(root / "copies", channels=request.param, draw=as_real, parents=[made_from],
          modality=modality, seed="real")
    manifest = json.loads((root / "copies/dataset.json").read_text()) | {"copy_audit": {}}
    (root / "copies/dataset.json").write_text(json.dumps(manifest))
    torch.manual_seed(0)
    torch.save(pretrained.build(NETWORK, 2).state_dict(), root / "w.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "detect_nuclei", by_brightness)
        patch.setattr(numbers, "HALVES", 40)
        patch.setattr(pretrained, "build", build_small)
        assert measure(root, "real", *ARMS, "copies") == 0
        yield root


def by_brightness(image, *, modality, field_um):
    """As many nuclei as the image's grey over 10, of 4 px each, 2 px apart."""
    number = int(image.mean() / 10)
    centroids = np.stack([np.arange(number) * 2.0, np.zeros(number)], 1)
    return Nuclei(np.zeros((16, 16), np.int32), centroids, np.full(number, 4.0, np.float32))


def build_small(name, num_classes, build=pretrained.build):
    """A network that looks at images of 32 px: a twentieth of the work."""
    network = build(name, num_classes)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 32, 32)}
    return network


def measure(root, *names, more=()):
    return fidelity.main(["--data", *(str(root / name) for name in names), "--real",
                          str(root / "real"), "--network", NETWORK, "--weights",
                          str(root / "w.pt"), "--device", "cpu", *more])


def found(root, name):
    return json.loads((root / name / fidelity.FILE).read_text())


def test_the_network_runs_where_device_says(made, monkeypatch):
    places = []

    def side(extractor, *of, **more):
        places.append(extractor.device)
        raise Fault("enough is known")

    monkeypatch.setattr(fidelity, "Side", side)
    monkeypatch.setattr(fidelity, "use_device",
                        lambda name, needed=True: f"{name}, {'in use' if needed else 'by name'}")
    assert measure(made, "same", more=["--per-class", "7"]) == 1 and places == ["cpu, in use"]


def test_an_arm_like_real_lies_at_the_floor_and_noise_at_the_ceiling(made):
    for label in CLASSES:
        same, noise = (found(made, name)["classes"][label]["scores"] for name in ("same", "noise"))
        for name in ("fid", "kid"):
            near, far = same[name], noise[name]
            assert near["floor"] < far["value"] and near["ceiling"] == far["ceiling"]
            assert near["value"] - near["floor"] < 0.2 * (near["ceiling"] - near["floor"])
            assert far["value"] - far["floor"] > 0.8 * (far["ceiling"] - far["floor"])
            assert near["low"] <= near["value"] <= near["high"]
            assert near["floor_low"] <= near["floor"] <= near["floor_high"]
        assert same["precision"]["value"] > 0.5 > noise["precision"]["value"]


def test_a_label_is_what_a_classifier_of_real_images_says_it_is(made):
    for name, wanted in (("same", 1.0), ("swapped", 0.0)):
        for each in found(made, name)["classes"].values():
            assert each["label"]["arm"]["value"] == pytest.approx(wanted, abs=0.11)
            assert each["label"]["real"]["value"] > 0.89 and each["label"]["real"]["n"] == 20


def test_what_is_compared_with_what(made):
    """By hand: real's val and test are the reference, its train images the floor, at equal n."""
    real, arm = (open_dataset(made / name) for name in ("real", "same"))
    extractor = Extractor(NETWORK, made / "w.pt")
    some = {}
    for name, dataset, splits in (("arm", arm, ["train"]), ("floor", real, ["train"]),
                                  ("reference", real, ["val", "test"])):
        rows = [row for split in splits for row in dataset.select(split, "dark")]
        assert len(rows) == 20
        some[name] = extractor.features(map(dataset.image, rows))
    said = found(made, "same")["classes"]["dark"]
    assert said["n"] == 20
    for key, name in (("value", "arm"), ("floor", "floor")):
        compared = numbers.Compared(some["reference"], some[name])
        wanted = numbers.frechet(*compared.parts(*compared.all()))
        assert said["scores"]["fid"][key] == pytest.approx(wanted, rel=1e-4)


def test_nuclei_are_those_of_the_arm_beside_those_of_held_out_real_images(made):
    real, arm = (open_dataset(made / name) for name in ("real", "swapped"))
    for label in CLASSES:
        said = found(made, "swapped")["classes"][label]["nuclei"]
        if real.modality == "ct":
            assert said == {}
            continue
        for of, data, splits in (("arm", arm, ["train"]), ("real", real, ["val", "test"])):
            rows = [row for split in splits for row in data.select(split, label)]
            numbers = [int(data.image(row).mean() / 10) for row in rows]
            each = {name: said[name][of] for name in said}
            assert each["num_nuclei"]["value"] == pytest.approx(np.mean(numbers))
            assert each["num_nuclei"]["low"] < np.mean(numbers) < each["num_nuclei"]["high"]
            px_um = FIELD_UM / 16
            assert each["area_um2"]["value"] == pytest.approx(4 * px_um**2)
            assert each["spacing_um"]["value"] == pytest.approx(2 * px_um)


def test_a_copier_gives_its_training_images_away_and_an_independent_draw_does_not(made):
    told, same = (found(made, name)["membership"] for name in ("copies", "same"))
    assert told["auroc"] == told["low"] == 1 and told["num_members"] == told["num_others"] == 40
    assert same["low"] <= 0.5 <= same["high"]


def test_the_audit_for_copies_is_tried_on_held_out_real_images(made):
    assert "copy_control" not in found(made, "same")  # nothing was looked for in it
    assert {label: each["images"] for label, each in found(made, "copies")["copy_control"].items()
            } == dict.fromkeys(CLASSES, 8 + 12)


@pytest.mark.parametrize(("train", "held_out", "looked_at"), [
    (90, 70, 70), (70, 90, 70), (200, 300, 100), (20, 90, 50), (90, 20, 50)])
def test_of_an_arm_as_many_are_looked_at_as_are_compared_or_as_its_labels_need(
        train, held_out, looked_at):
    sides = [SimpleNamespace(features={"a": np.zeros((number, 2))}) for number in (train, held_out)]
    assert fidelity.most_of_arm(*sides, 100) == {"a": looked_at}
    assert fidelity.most_compared(*sides) == min(train, held_out)


def test_nuclei_are_counted_where_they_are_compared(made):
    kept = [path.name for path in made.glob(".real.cache/*/nuclei-*")]
    real = open_dataset(made / "real")
    assert len(kept) == (0 if real.modality == "ct" else len(CLASSES))


def test_real_has_no_file_and_a_dataset_stays_one(made):
    assert not (made / "real" / fidelity.FILE).exists()
    open_dataset(made / "same")


def test_the_same_command_changes_nothing_and_other_options_make_it_anew(made, monkeypatch):
    before = (made / "same" / fidelity.FILE).read_bytes()
    monkeypatch.setattr(numbers, "HALVES", 40)
    monkeypatch.setattr(statistics, "detect_nuclei", by_brightness)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "of_dataset", None)
        patch.setattr(Extractor, "inputs", None)
        assert measure(made, "same") == 0
        assert measure(made, "same", more=["--dry-run", "--per-class", "7"]) == 0
    assert (made / "same" / fidelity.FILE).read_bytes() == before
    assert measure(made, "same", more=["--per-class", "16"]) == 0
    assert found(made, "same")["classes"]["dark"]["n"] == 16
    assert measure(made, "same") == 0
    assert (made / "same" / fidelity.FILE).read_bytes() == before


def test_all_are_compared_at_the_number_of_the_fewest(monkeypatch):
    sizes = []
    monkeypatch.setattr(numbers, "measure", lambda one, other, *groups, seed=0: sizes.append(
        tuple(map(len, (one, other, *groups)))) or numbers.Likeness({"kid": 0.0}, 0.0, None))
    arm, train, held_out = (SimpleNamespace(features={"a": np.zeros((n, 2))},
                                            groups={"a": np.arange(n)}) for n in (18, 30, 24))
    said = fidelity.of_class("a", arm, train, held_out, np.zeros((40, 2)))
    assert said["n"] == 18 and sizes == [(18,) * 4, (18,) * 4, (18,) * 2]


@pytest.mark.parametrize("key", ["recipe", "real_fingerprint", "dataset_fingerprint", "features"])
def test_what_was_measured_otherwise_is_measured_anew(made, monkeypatch, key):
    there = found(made, "same")
    monkeypatch.setattr(fidelity, "read_json", lambda path: there | {key: "another"})
    monkeypatch.setattr(fidelity, "Side", None)
    with pytest.raises(TypeError):
        measure(made, "same")


@pytest.mark.parametrize("module", [memorised, detect])
def test_where_another_code_finds_copies_or_nuclei_it_is_measured_anew(made, monkeypatch, module):
    measured = []
    monkeypatch.setattr(fidelity, "Side", lambda *_, **_more: SimpleNamespace(
        features={"dark": [0]}))
    monkeypatch.setattr(fidelity, "noise_of", lambda *_: None)
    monkeypatch.setattr(fidelity, "of_dataset", lambda *_: measured.append(1) or {
        "classes": {}, "membership": {"auroc": 0.5, "low": None}})
    monkeypatch.setattr(fidelity, "write_json", lambda *_: None)
    assert measure(made, "same") == 0 and not measured
    monkeypatch.setattr(module, "RECIPE", module.RECIPE + 1)
    assert measure(made, "same") == 0 and measured


def test_too_few_images_are_said_to_be_too_few(made, capsys, monkeypatch):
    monkeypatch.setattr(statistics, "detect_nuclei", by_brightness)
    assert measure(made, "noise", more=["--per-class", "14"]) == 0
    each = found(made, "noise")["classes"]["dark"]
    assert each["n"] == 14 and each["too_few"] and "scores" not in each and "label" in each
    assert "too few images" in capsys.readouterr().out


def test_one_image_of_each_group_comes_before_a_second_of_any():
    rows = [Row(f"train/a/{number:06d}.png", "a", "train", group=f"g{number % 4}")
            for number in range(12)]
    chosen = fidelity.choose(rows, 8)
    assert [sorted(row.group for row in part) for part in (chosen[:4], chosen[4:])] == \
        [["g0", "g1", "g2", "g3"]] * 2
    assert fidelity.choose(rows[::-1], 8) == chosen and fidelity.choose(rows, 3) == chosen[:3]


def test_what_cannot_be_compared_is_one_line(made, tmp_path, capsys):
    with DatasetWriter(Output(tmp_path / "other", "dataset.json", {}), stage="test",
                       classes=["dark"], image_size=16) as writer:
        for number, split in enumerate(("train", "val", "test")):
            writer.add(split, "dark", number, np.zeros((16, 16, 3), np.uint8))
        writer.publish(parents=[], seed=0)
    capsys.readouterr()
    assert fidelity.main(["--data", str(tmp_path / "other"), "--real", str(made / "real")]) == 1
    error = capsys.readouterr().err
    assert "has classes" in error and error.count("\n") == 1


def test_noise_is_as_many_images_as_real_compares_of_the_class_with_most():
    train, held_out = (SimpleNamespace(features={"a": np.zeros((a, 2)), "b": np.zeros((b, 2))})
                       for a, b in ((9, 30), (40, 12)))
    assert fidelity.most_compared(train, held_out) == 12
