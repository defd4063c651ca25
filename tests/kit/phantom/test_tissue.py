"""Simulated tissue: each class from its own parameters, each patient's biology in its cells."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from lungkit.phantom import morphology, paint, tissue
from lungkit.phantom.morphology import Parameter
from lungkit.phantom.paint import CLASSES

LAYOUTS = {"lung_aca": tissue.adenocarcinoma, "lung_n": tissue.benign, "lung_scc": tissue.squamous}
OF = {"lung_aca": "ADENOCARCINOMA", "lung_n": "BENIGN", "lung_scc": "SQUAMOUS"}
PERSON = tissue.Biology(nuclear_size=1.0, pleomorphism=0.1, nucleoli=0.2, vesicular=0.8,
                        keratin=0.5, differentiation=0.9, inflammation=0.1)


class Closed:
    """Parameters that must not be asked for."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} of another class was asked for")


def tumour_of(scene) -> np.ndarray:
    return scene.nuclei[scene.nuclei["owner"] == tissue.TUMOUR]


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_is_drawn_from_its_own_parameters_only(label, monkeypatch):
    for other in CLASSES:
        if other != label:
            monkeypatch.setattr(tissue, OF[other], Closed())
    tile = paint.draw_tile(label, patient=1, index=0, image_size=32)
    assert tile.label == label and tile.patient == 1 and len(tile.centroids) > 5
    assert tile.tumour.any() == (label != "lung_n")


@pytest.mark.parametrize("label", CLASSES)
def test_stains_of_a_scene_are_those_of_the_class(label, monkeypatch):
    own, values = getattr(morphology, OF[label]), {
        "stroma_eosin": 0.41, "cytoplasm_eosin": 0.42, "cytoplasm_haematoxylin": 0.43,
        "border_eosin": 0.03, "vacuoles": 0.44, "debris": 0.45}
    known = {name: value for name, value in values.items() if hasattr(own, name)}
    changed = SimpleNamespace(**vars(own) | {
        name: Parameter("fixed", (value,), "", "", "ours") for name, value in known.items()})
    monkeypatch.setattr(tissue, OF[label], changed)
    scene = LAYOUTS[label](np.random.default_rng(0), PERSON)
    assert {name: getattr(scene, name) for name in known} == known
    assert len(known) == (2 if label == "lung_n" else 6)


@pytest.mark.parametrize(("label", "radius", "least", "more"), [
    ("lung_aca", 5.3, 0.15, 0.7), ("lung_scc", 5.1, 0.1, 0.6)])
def test_tumour_nuclei_are_those_of_the_patient(label, radius, least, more):
    def measured(**changed):
        person = dataclasses.replace(PERSON, **changed)
        cells = np.concatenate([tumour_of(LAYOUTS[label](np.random.default_rng(seed), person))
                                for seed in range(4)])
        size = np.sqrt(cells["a"] * cells["b"])
        return (np.median(size), np.log(size).std(), cells["vesicle"].mean(),
                cells["nucleolus"].mean())

    size, spread, vesicle, nucleolus = measured(nucleoli=1.0, vesicular=0.3)
    assert size == pytest.approx(radius, rel=0.12)
    assert vesicle == pytest.approx(0.3, abs=0.03)
    assert nucleolus == pytest.approx(least + more, abs=0.06)
    assert measured(nucleoli=0.0)[3] == pytest.approx(least, abs=0.06)
    assert measured(vesicular=0.7)[2] == pytest.approx(0.7, abs=0.03)
    assert measured(nuclear_size=1.3)[0] == pytest.approx(1.3 * size, rel=0.05)
    assert measured(pleomorphism=0.3)[1] > 1.8 * spread


class Choosing(np.random.Generator):
    """Notes among what it chooses, and with which chances."""

    def choice(self, kinds, p):
        self.chances = dict(zip(kinds, p))
        return super().choice(kinds, p=p)


@pytest.mark.parametrize("differentiation", [0.0, 0.6, 1.0])
def test_little_differentiated_adenocarcinoma_is_mostly_solid(differentiation):
    rng = Choosing(np.random.PCG64(0))
    tissue.adenocarcinoma(rng, dataclasses.replace(PERSON, differentiation=differentiation))
    weight = {"acinar": 1.0, "lepidic": 0.6, "solid": 1.1 * (1.1 - differentiation)}
    assert rng.chances == pytest.approx({kind: one / sum(weight.values())
                                         for kind, one in weight.items()})


def test_benign_tissue_is_of_the_kinds_in_their_shares():
    rng = Choosing(np.random.PCG64(0))
    tissue.benign(rng, PERSON)
    assert rng.chances == {"aerated": 0.45, "scarred": 0.18, "inflamed": 0.19, "collapsed": 0.18}


def test_keratin_and_inflammation_show_in_the_layout():
    def count(label, kind, **changed):
        person = dataclasses.replace(PERSON, **changed)
        scenes = [LAYOUTS[label](np.random.default_rng(seed), person) for seed in range(6)]
        return sum(kind(scene) for scene in scenes)

    def lymphocytes(scene):
        return (scene.nuclei["owner"] == tissue.LYMPHOCYTE).sum()

    for label in ("lung_aca", "lung_scc"):
        few, many = (count(label, lymphocytes, inflammation=degree) for degree in (0.0, 0.9))
        assert many > 2 * few
    assert count("lung_scc", lambda scene: len(scene.pearls), keratin=1.0) > 3
    assert count("lung_scc", lambda scene: len(scene.pearls), keratin=0.0) == 0
    keratinised = count("lung_scc", lambda scene: scene.keratinised, keratin=0.0)
    assert keratinised == pytest.approx(6 * 0.02)
    assert count("lung_aca", lambda scene: scene.keratinised) == pytest.approx(6 * 0.02)


@pytest.mark.parametrize(("cells", "radius", "elongation", "density", "owner"), [
    (lambda rng, where: tissue._inflammation(rng, where, 1.0), 2.9, 1.1, 1.9, tissue.LYMPHOCYTE),
    (lambda rng, where: tissue._fibroblasts(rng, where, np.zeros(where.shape)), 2.6, 3.2, 1.45,
     tissue.FREE),
    (lambda rng, where: tissue._blood(rng, where, 1.0), 2.75, 1.3, 1.6, tissue.FREE)])
def test_cells_of_a_kind_have_its_size_shape_and_stain(cells, radius, elongation, density, owner):
    where = np.zeros((tissue.SIDE_PX, tissue.SIDE_PX), bool)
    where[:, 130:] = True
    found = cells(np.random.default_rng(0), where)
    assert len(found) > 30
    assert np.median(np.sqrt(found["a"] * found["b"])) == pytest.approx(radius, rel=0.06)
    assert np.median(found["a"] / found["b"]) == pytest.approx(elongation, rel=0.08)
    assert np.median(found["density"]) == pytest.approx(density, rel=0.06)
    assert (found["owner"] == owner).all()
    assert found["x"].min() > (130 - tissue.PAD_PX - 1) * tissue.LAYOUT_UM  # x is the column


def test_a_point_is_looked_up_at_its_column_and_row_of_the_padded_field():
    values = np.zeros((tissue.SIDE_PX, tissue.SIDE_PX))
    values[tissue.PAD_PX + 3, tissue.PAD_PX + 200] = 1
    at = (np.array([[200, 3], [3, 200]]) + 0.5) * tissue.LAYOUT_UM
    assert tissue._at(values, at).tolist() == [1, 0]


def test_noise_is_the_same_picture_at_any_size_and_of_unit_deviation():
    import cv2

    drawn = [tissue.noise(np.random.default_rng(0), 6.0, size) for size in (448, 224)]
    half = cv2.resize(drawn[0], (224, 224), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(half.ravel(), drawn[1].ravel())[0, 1] > 0.99
    assert drawn[1].std() == pytest.approx(1, abs=0.2)
    stretched = tissue.noise(np.random.default_rng(0), 3.0, 224, stretch=9)
    across, down = (np.abs(np.diff(stretched, axis=axis)).mean() for axis in (1, 0))
    assert down > 4 * across  # fibres lie along the rows
