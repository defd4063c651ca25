"""layout_seg.py: what of an image is left in its label map, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest

import layout_seg
from arms import content, fork, signal_when
from lungkit.ct.crops import LAYOUT
from lungkit.data.dataset import SPLITS, Dataset, check_same_task, open_dataset, parent_of
from lungkit.data.manifest import MANIFEST
from lungkit.data.png import encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

SIZE = 16
WINDOW = (-1000, 400)


def write_real(path, *, per_class=5, window=WINDOW, labels=LAYOUT, without=(), **manifest):
    """Images of noise; item i has label i % 6 in its map, on lung, and nothing else of interest.

    without: items that have no map.
    """
    rng = np.random.default_rng(0)
    with DatasetWriter(Output(path, MANIFEST, {}), stage="test", classes=["benign", "malignant"],
                       image_size=SIZE, channels=1, mask_forms={"layout": "labels"},
                       targets={"diameter_mm": {"kind": "number", "values": []}}) as writer:
        for index in range(per_class * 2):
            layout = np.full((SIZE, SIZE), 2, np.uint8)
            layout[4:8, 4:8] = index % len(labels)
            writer.add(("train", "val", "test", "train", "train")[index % 5],
                       writer.classes[index // per_class], index,
                       rng.integers(0, 256, (SIZE, SIZE, 1)).astype(np.uint8),
                       masks={} if index in without else {"layout": layout},
                       group=f"patient {index}", diameter_mm=index + 0.5)
        writer.publish(**{"parents": [], "seed": 7, "modality": "ct", "layout": list(labels),
                          "intensity": {"unit": "HU", "window": list(window)}, "symmetries": 2,
                          "um_per_px": 1000.0, "warnings": ["one scanner"], **manifest})
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_real(tmp_path_factory.mktemp("layout") / "real")


def run(real, output, *more) -> int:
    return layout_seg.main(["--real", str(real), "--output", str(output), *map(str, more)])


@pytest.fixture(scope="module")
def made(real):
    output = real.parent / "layout"
    assert run(real, output) == 0
    return output


def fault_of(capsys) -> str:
    line, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


def test_an_image_is_the_map_of_its_own_image_in_one_grey_a_label(real, made):
    data, before = open_dataset(made), open_dataset(real)
    greys = layout_seg.greys(list(LAYOUT), "tissues", WINDOW)
    assert [row.file_name for row in data.rows] == [row.file_name for row in before.rows]
    for row, own in zip(data.rows, before.rows, strict=True):
        assert (data.image(row)[..., 0] == greys[before.mask("layout", own)]).all()
        assert (row.label, row.split, row.group, row.source) == \
            (own.label, own.split, own.group, own.file_name)
        assert row.extra["diameter_mm"] == own.extra["diameter_mm"]


def test_no_pixel_of_the_images_is_in_it(tmp_path, made):
    """Other images with the same maps give the same arm, but for whose it is."""
    other = write_real(tmp_path / "real")
    for path in other.glob("t*/*/*.png"):
        path.write_bytes(encode_png(np.zeros((SIZE, SIZE), np.uint8)))
    data = open_dataset(made)
    layouts = Dataset(other, data.manifest, data.rows)
    greys = layout_seg.greys(list(LAYOUT), "tissues", WINDOW)
    for row in data.rows:
        assert (layout_seg.draw(layouts, row, greys) == data.image(row)).all()


@pytest.mark.parametrize(("render", "window", "expected"), [
    ("tissues", (-1000, 400), [0, 189, 27, 255, 189, 189]),
    ("tissues", (-500, 500), [0, 138, 0, 230, 138, 138]),   # what is outside the window is cut
    ("labels", (-1000, 400), [0, 51, 102, 153, 204, 255])])
def test_greys_are_those_of_the_tissues_in_the_window_or_evenly_spaced(render, window, expected):
    assert layout_seg.greys(list(LAYOUT), render, window).tolist() == expected


def test_it_competes_with_real_by_real_s_own_splits(real, made):
    data, parent = open_dataset(made), open_dataset(real)
    assert data.manifest["parents"] == [parent_of(parent, {split: [split] for split in SPLITS})]
    check_same_task(data, parent)
    assert (data.modality, data.channels, data.symmetries, data.um_per_px, data.warnings) == \
        ("ct", 1, 2, 1000.0, ["one scanner"])
    assert data.intensity == parent.intensity and data.targets == parent.targets


def test_labels_evenly_spaced_are_no_hu(real, tmp_path):
    assert run(real, tmp_path / "layout", "--render", "labels") == 0
    data = open_dataset(tmp_path / "layout")
    assert data.intensity is None and data.modality == "ct"
    assert {int(g) for row in data.rows for g in np.unique(data.image(row))} == \
        {0, 51, 102, 153, 204, 255}


def test_the_same_command_again_changes_nothing_and_another_is_refused(real, made, capsys):
    before = content(made)
    assert run(real, made) == 0 and "already complete" in capsys.readouterr().out
    assert run(real, made, "--render", "labels") == 2 and "render" in fault_of(capsys)
    assert content(made) == before


def test_a_dry_run_writes_nothing(real, tmp_path):
    assert run(real, tmp_path / "layout", "--dry-run") == 0 and not list(tmp_path.iterdir())


def test_killed_and_run_again_it_is_what_it_would_have_been(real, made, tmp_path):
    output, work = tmp_path / "layout", tmp_path / ".layout.partial"
    os.mkfifo(tmp_path / "pipe")
    copy = tmp_path / "real"
    shutil.copytree(real, copy)

    def stuck() -> int:
        """Three maps, then one that never comes."""
        draw, drawn = layout_seg.draw, []

        def slow(*arguments):
            drawn.append(1)
            if len(drawn) == 4:
                open(tmp_path / "pipe").read()
            return draw(*arguments)
        layout_seg.draw = slow
        return run(copy, output)

    pid = fork(stuck)
    code = signal_when(pid, lambda: len(list(work.glob("t*/*/*.png"))) == 3)
    assert code == -signal.SIGKILL and not output.exists()
    assert run(copy, output) == 0
    assert open_dataset(output).fingerprint == open_dataset(made).fingerprint


def spoil(**changes):
    """real with a manifest that says otherwise."""
    def change(path):
        file = path / MANIFEST
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return change


def other_label(path):
    file = next((path / "masks/layout/benign").iterdir())
    file.write_bytes(encode_png(np.full((SIZE, SIZE), 6, np.uint8)))


def altered(path):
    file = next((path / "train/benign").iterdir())
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize(("how", "said"), [
    (spoil(masks={}, mask_counts={}), "0 of its 10 images"),
    (spoil(masks={"layout": "binary"}), "masks/layout"),
    (spoil(mask_counts={"layout": 9}), "9 of its 10 images"),
    (spoil(layout=["outside", "tumour"]), "tumour"),
    (spoil(layout=None), "labels of masks/layout"),
    (spoil(intensity=None), "HU"),
    (spoil(channels=3), "grey"),
    (other_label, "holds label 6"),
    (altered, "fault"),
])
def test_a_real_dataset_that_has_no_such_maps_is_refused_in_one_line(
        real, tmp_path, how, said, capsys):
    copy = tmp_path / "real"
    shutil.copytree(real, copy)
    how(copy)
    assert run(copy, tmp_path / "layout") == 1
    assert said in fault_of(capsys) and not (tmp_path / "layout").exists()


@pytest.mark.parametrize("where", ["real", "real/layout", "."])
def test_output_and_real_in_one_another(real, tmp_path, where, capsys):
    copy = tmp_path / "real"
    shutil.copytree(real, copy)
    before = content(copy)
    assert run(copy, tmp_path / where) == 2 and "--output" in fault_of(capsys)
    assert content(copy) == before
