"""outliers.py: planted images are found, and nothing is left out but by lungkit.tools.exclude."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import outliers
from arms import content
from lungkit.data import overlay
from lungkit.data.dataset import open_dataset, parent_of
from lungkit.data.exclude import read_exclusions
from lungkit.data.png import decode_png
from lungkit.data.writer import DatasetWriter
from lungkit.learn.features import Extractor
from lungkit.run.faults import Fault, Stopped
from lungkit.run.output import Output
from lungkit.tools import exclude

SIZE, ORDINARY = 56, 48
PLANTED = [f"train/tumour/{ORDINARY + i:06d}.png" for i in range(2)]


def write_dataset(path, images, *, channels=3, parents=()):
    """images: {(split, label): [(uint8 [S, S, C], group)]}."""
    labels, size = sorted({label for _, label in images}), len(next(iter(images.values()))[0][0])
    with DatasetWriter(Output(path, "dataset.json", {"seed": 0}), stage="test", channels=channels,
                       classes=labels, image_size=size) as writer:
        for (split, label), of_class in images.items():
            first = {"train": 0, "val": 500, "test": 700}[split]
            for index, (image, group) in enumerate(of_class, first):
                writer.add(split, label, index, image, group=group,
                           masks={"tissue": image.max(-1)})
        writer.publish(parents=list(parents), seed=0, warnings=["one scanner"],
                       modality="he", confounding={"groups_given": "csv"})
    return open_dataset(path)


@pytest.fixture(scope="module")
def data(sample_dir, tmp_path_factory):
    """Quarters of simulated tiles, two strange images among those of tumour. Read only."""
    with (sample_dir / "groups.csv").open(encoding="utf-8") as file:
        group_of = {row["file_name"]: row["group"] for row in csv.DictReader(file)}
    images = {"tumour": [], "lung_n": []}
    for path in sorted((sample_dir / "images").glob("*/*")):
        tile = decode_png(path.read_bytes())
        label = "lung_n" if path.parent.name == "lung_n" else "tumour"
        images[label] += [(tile[top:top + SIZE, left:left + SIZE],
                           group_of[f"{path.parent.name}/{path.name}"])
                          for top, left in ((0, 0), (SIZE, SIZE))]
    assert len(images["tumour"]) == ORDINARY
    noise = np.random.default_rng(0).integers(60, 256, (SIZE, SIZE, 3), np.uint8)
    strange = [(noise, "a"), (255 - images["tumour"][9][0], "b")]
    path = tmp_path_factory.mktemp("run") / "real"
    data = write_dataset(path, {
        **{("train", label): each for label, each in images.items()},
        **{(split, label): [each[i]] for label, each in images.items()
           for i, split in enumerate(("val", "test"))},
        ("train", "tumour"): images["tumour"] + strange})
    (path / "qc.csv").write_text("a,b\n1,2\n")
    return data


def texture(extractor, dataset, split):
    """In the network's place: of an image a few statistics, float32 [N, 8]."""
    assert extractor.device != "auto", "where the network runs is not known yet"
    found = []
    for row in dataset.select(split):
        grey = dataset.image(row).mean(-1)
        edges = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
        found.append([np.log1p(each.std()) for each in (*edges, grey, grey[::4, ::4])]
                     + [np.log1p(each.mean()) for each in (*edges, grey.max(0), grey.max(1))])
    return np.array(found, np.float32)


@pytest.fixture(scope="module")
def made(data):
    output = data.path.parent / "outliers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "of_split", texture)
        patch.setattr(outliers, "MOST_DRAWN", 40)
        assert outliers.main(["--data", str(data.path), "--output", str(output)]) == 0
    return output


def lines_of(folder):
    with open(folder / "outliers.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_planted_images_are_the_strangest_and_flagged_and_ordinary_ones_are_not(data, made):
    lines = lines_of(made)
    assert {line["file_name"] for line in lines} == {row.file_name for row in data.select("train")}
    flagged = [line["file_name"] for line in lines if line["flagged"] == "yes"]
    assert set(flagged) >= set(PLANTED) and len(flagged) <= len(PLANTED) + 2
    assert set(PLANTED) <= {line["file_name"] for line in lines[:4]}
    group_of = {line["file_name"]: line["group"] for line in lines}
    assert all(line["group"] != group_of[line["nearest"]] for line in lines)
    by_label = [line for line in lines if line["measure"] == "label"]
    assert by_label and all(line["label"] not in line["nearest"] for line in by_label)


def test_the_manifest_says_what_is_usual_and_how_many_are_expected(data, made):
    found = json.loads((made / "outliers.json").read_text())
    assert found["dataset_fingerprint"] == data.fingerprint
    about = found["classes"]["tumour"]
    assert (about["images"], about["groups"]) == (50, 14) and about["flagged"] >= 2
    assert about["expected"] == pytest.approx(0.5)
    assert about["measures"] == ["features", "pixels", "label"]
    assert found["parameters"]["features"]["network"] == "tf_efficientnet_lite0"


def test_the_pictures_show_the_strangest_framed_above_their_nearest(data, made):
    sheet = decode_png((made / "outliers.png").read_bytes())
    strangest = lines_of(made)[0]
    image = data.image(next(row for row in data.rows if row.file_name == strangest["file_name"]))
    first = (1 + outliers.SHOWN // overlay.COLUMNS * 2 - 1) * (overlay.SIDE_PX + 20)  # tumour's
    assert np.array_equal(sheet[first + 96, 96], image[SIZE // 2, SIZE // 2])
    framed = (sheet[first, 5 + np.arange(4) * (overlay.SIDE_PX + 4)] == overlay.FOUND).all(1)
    assert framed.tolist() == [line["flagged"] == "yes" for line in lines_of(made)
                               if line["label"] == "tumour"][:4]
    maps = decode_png((made / "embedding.png").read_bytes())
    assert maps.shape[1] > 2000 and maps.std() > 10


def test_again_it_is_complete_and_other_options_are_refused(data, made, capsys, monkeypatch):
    monkeypatch.setattr(Extractor, "of_split", None)
    before = content(made)
    call = ["--data", str(data.path), "--output", str(made)]
    assert outliers.main(call) == 0 and "already complete" in capsys.readouterr().out
    assert outliers.main([*call, "--neighbours", "4"]) == outliers.main([*call, "--seed", "9"]) == 2
    assert outliers.main([*call, "--share", "0.02"]) == 2
    assert "share: 0.01 there, 0.02 now" in capsys.readouterr().err and content(made) == before


@pytest.mark.parametrize(("more", "code", "said"), [
    (["--share", "0.5"], 2, "--share 0.5 is not between 0 and 0.5"),
    (["--output", "REAL/x"], 2, "and --data")])
def test_bad_options_are_one_line_and_write_nothing(data, tmp_path, capsys, monkeypatch, more,
                                                    code, said):
    monkeypatch.setattr(Extractor, "of_split", texture)
    call = ["--data", str(data.path), "--output", str(tmp_path / "out"),
            *(each.replace("REAL", str(data.path)) for each in more)]
    assert outliers.main(call) == code
    assert said in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_grey_images_are_judged_and_a_class_of_too_few_is_not(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    number = {("train", "a"): 22, ("train", "b"): 4}
    grey = {(split, label): [(image, f"{split} {label} {i}") for i, image in enumerate(
                rng.integers(0, 256, (number.get((split, label), 1), 16, 16, 1), np.uint8))]
            for split in ("train", "val", "test") for label in "ab"}
    data = write_dataset(tmp_path / "real", grey, channels=1)
    monkeypatch.setattr(Extractor, "of_split", lambda *_: rng.normal(size=(26, 8)))
    monkeypatch.setattr(outliers, "embeddings", lambda *_: b"")
    assert outliers.main(["--data", str(data.path), "--output", str(tmp_path / "out")]) == 0
    assert "b: 4 images of 4 groups: too few to say" in capsys.readouterr().out
    lines = lines_of(tmp_path / "out")
    assert [line["label"] for line in lines if not line["p"]] == ["b"] * 4
    assert all(line["nearest"].startswith("train/a/") and not line["p_label"]
               for line in lines[:22]), "nothing says how near a class of four is"


def test_where_no_class_has_enough_images_it_is_said_and_nothing_is_flagged(
        data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Extractor, "of_split", texture)
    call = ["--data", str(data.path), "--output", str(tmp_path / "out"), "--neighbours", "14"]
    assert outliers.main(call) == 0
    said = capsys.readouterr()
    assert "no class of" in said.err and "20 training images of more than 14 groups" in said.err
    assert said.out.count(": too few to say") == len(data.classes)
    lines = lines_of(tmp_path / "out")
    assert len(lines) == len(data.select("train"))
    assert not any(line["p"] or line["flagged"] for line in lines)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "outliers.json", "outliers.csv", "embedding.png"}
    assert outliers.main(call) == 0 and "already complete" in capsys.readouterr().out


def test_two_images_are_too_few_for_anything(tmp_path, capsys):
    image = np.zeros((16, 16, 3), np.uint8)
    data = write_dataset(tmp_path / "real", {(split, label): [(image, f"{split} {label}")]
                                             for split in ("train", "val", "test")
                                             for label in "ab"})
    assert outliers.main(["--data", str(data.path), "--output", str(tmp_path / "out")]) == 1
    assert "2 training images are too few" in capsys.readouterr().err.splitlines()[-1]


def test_flagged_images_are_in_the_embeddings_and_no_more_than_asked():
    lines = [{"flagged": "yes" if i in (3, 70) else ""} for i in range(100)]
    drawn = outliers.drawn(lines, 10, np.random.default_rng(0))
    assert len(drawn) == 10 == len(set(drawn)) and {3, 70} <= set(drawn.tolist())


# ------------------------------------------------------------------ what a table leaves out

def leave_out(data, table, output, *more):
    return exclude.main(["--data", str(data.path), "--exclude", str(table), "--output",
                         str(output), *more])


def by_hand(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text(text)
    return folder / "table.csv"


TRAIN, VAL = "train/tumour/000000.png", "val/tumour/000500.png"
TABLES = {  # text: what is left out, or what is said of it
    f"file_name\n{TRAIN}\n": [TRAIN],
    f"file_name,flagged\n{TRAIN},\ntrain/tumour/000002.png,yes\n": ["train/tumour/000002.png"],
    f"file_name,flagged\n{TRAIN},True\n{TRAIN},1\n": [TRAIN],
    f"file_name,flagged\n{TRAIN},perhaps\n": "line 2: flagged is 'perhaps': write yes, or nothing",
    f"file_name,flagged\n{TRAIN},\n": "leaves out nothing",
    "file_name\ntrain/tumour/000999.png\n": "names 1 images that .* does not have",
    f"file_name\n{TRAIN}\n{VAL}\n": "names 1 images that are not of train",
    "file_name\n" + "".join(f"train/lung_n/{i:06d}.png\n" for i in range(24)):
        "all training images of lung_n",
    "name\nx\n": "lacks the column file_name"}


@pytest.mark.parametrize("text", TABLES)
def test_a_table_leaves_out_training_images_and_nothing_else(data, tmp_path, text):
    expected, path = TABLES[text], by_hand(tmp_path, text)
    if isinstance(expected, list):
        assert read_exclusions(path, data) == expected
    else:
        with pytest.raises(Fault, match=expected):
            read_exclusions(path, data)


def test_without_them_all_else_is_as_it_was_and_the_fingerprint_is_another(data, made, tmp_path,
                                                                          capsys):
    output = tmp_path / "datasets" / "real"
    left_out = [line["file_name"] for line in lines_of(made) if line["flagged"]]
    assert leave_out(data, made / "outliers.csv", output) == 0
    kept = open_dataset(output)
    before, after = content(data.path), content(output)
    gone = before.keys() - after.keys()
    assert gone == {*left_out, *(f"masks/tissue/{name.partition('/')[2]}" for name in left_out)}
    assert [row for row in data.rows if row.file_name not in left_out] == kept.rows
    same = after.keys() - {"dataset.json", "metadata.csv"}
    assert all(after[name] == before[name] for name in same)
    manifest = kept.manifest
    assert manifest["excluded"] == {"from": data.fingerprint, "file_names": sorted(left_out)}
    assert manifest["confounding"] == data.manifest["confounding"]
    assert manifest["parameters"] == data.manifest["parameters"] and manifest["modality"] == "he"
    assert kept.fingerprint != data.fingerprint and manifest["parents"] == []
    assert kept.warnings[0] == "one scanner" and kept.warnings[1].startswith(
        f"excluded: {len(left_out)} of {len(data.select('train'))} training images")
    assert leave_out(data, made / "outliers.csv", output) == 0
    assert "already complete" in capsys.readouterr().out
    other = by_hand(tmp_path, f"file_name\n{TRAIN}\n")
    assert leave_out(data, other, output) == 2
    assert "made without other images" in capsys.readouterr().err
    assert leave_out(kept, other, tmp_path / "again" / "real") == 0
    assert open_dataset(tmp_path / "again/real").manifest["excluded"]["before"] == \
        manifest["excluded"]


def test_what_another_table_left_in_a_stopped_copy_is_not_taken_over(data, tmp_path, monkeypatch):
    output, other = tmp_path / "datasets/real", "train/tumour/000002.png"

    def stopped(*_, **more):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "publish", stopped)
        assert leave_out(data, by_hand(tmp_path, f"file_name\n{TRAIN}\n"), output) == 75
    assert leave_out(data, by_hand(tmp_path, f"file_name\n{other}\n"), output) == 0
    names = {row.file_name for row in open_dataset(output).rows}
    assert TRAIN in names and other not in names


def test_label_masks_and_further_targets_are_kept(tmp_path):
    targets = {"grade": {"kind": "ordinal", "values": ["1", "2"]}}
    with DatasetWriter(Output(tmp_path / "real", "dataset.json", {}), stage="test", classes=["a"],
                       image_size=8, channels=1, mask_forms={"layout": "labels"},
                       targets=targets) as writer:
        for index, split in enumerate(("train", "train", "val", "test")):
            writer.add(split, "a", index, np.full((8, 8, 1), index, np.uint8), grade=1 + index % 2,
                       masks={"layout": np.full((8, 8), 3, np.uint8)})
        writer.publish(parents=[], seed=0)
    data = open_dataset(tmp_path / "real")
    table = by_hand(tmp_path, "file_name\ntrain/a/000000.png\n")
    assert leave_out(data, table, tmp_path / "clean/real") == 0
    kept = open_dataset(tmp_path / "clean/real")
    assert (kept.masks, kept.targets) == ({"layout": "labels"}, targets)
    assert [row.extra["grade"] for row in kept.rows] == [
        row.extra["grade"] for row in data.rows if row.file_name != "train/a/000000.png"]


def test_only_a_real_dataset_of_the_same_name_is_made_anew(data, tmp_path, capsys):
    rows = by_hand(tmp_path / "tables", f"file_name\n{TRAIN}\n")
    assert leave_out(data, rows, tmp_path / "clean") == 2
    assert "end it in real" in capsys.readouterr().err
    arm = write_dataset(tmp_path / "arm", {(split, "tumour"): [(data.image(data.rows[0]), "g")]
                                           for split in ("train", "val", "test")},
                        parents=[parent_of(data, {})])
    assert leave_out(arm, rows, tmp_path / "new" / "arm") == 2
    assert "was made from real" in capsys.readouterr().err
    assert leave_out(data, tmp_path / "no.csv", tmp_path / "new" / "real") == 2
    assert leave_out(data, rows, tmp_path / "new" / "real", "--dry-run") == 0
    assert not (tmp_path / "new").exists()
