"""Where originals lie: class folders, files in one order, edits that the fingerprint notices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lungkit.formats import sources
from lungkit.formats.groups import read_groups
from lungkit.generate.items import folder_fingerprint
from lungkit.run.faults import Fault


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


CLASSES = ("a/1.png", "b/1.png")


@pytest.mark.parametrize("names, root", [
    (CLASSES, "."), ([f"only/{name}" for name in CLASSES], "only"),
    ([*(f"x/images/{name}" for name in CLASSES), "x/truth/a/1.png"], "x/images"),
    ([*(f"images/{name}" for name in CLASSES), "truth/a/1.png"], "images"),
    (["images/1.png", "b/1.png"], "."), (["a/x/1.png", "a/y/1.png", "a/2.png"], "."),
    (["a/1.png"], ".")])
def test_the_root_is_the_folder_whose_folders_are_the_classes(tmp_path, names, root):
    assert sources.find_root(make(tmp_path, *names)) == tmp_path / root


def test_images_come_by_class_and_name_and_other_files_apart(tmp_path):
    make(tmp_path, "b/2.tif", "b/10.JPG", "a/z.png", "a/deep/y.svs", "a/notes.txt", ".x/1.png",
         "a/.hidden.png", "top.png")
    found, others, skipped = sources.find_sources(tmp_path)
    assert skipped == [".hidden.png", ".x"]
    assert [(s.label, s.name) for s in found] == [
        ("a", "a/deep/y.svs"), ("a", "a/z.png"), ("b", "b/10.JPG"), ("b", "b/2.tif")]
    assert others == ["a/notes.txt"] and found[0].path == tmp_path / "a/deep/y.svs"


def test_the_parts_of_a_mirax_slide_are_no_images_of_their_own(tmp_path):
    make(tmp_path, "a/s.mrxs", "a/s/Data0000.dat", "a/s/overview.png", "a/other/1.png", "b/1.png")
    found, others, _ = sources.find_sources(tmp_path)
    assert [s.name for s in found] == ["a/other/1.png", "a/s.mrxs", "b/1.png"] and others == []


@pytest.mark.parametrize("names, message", [
    (["top.png"], "holds no class folders"), (["a/1.png"], "one class only"),
    ([*CLASSES, "Val/1.png"], "'Val'"), ([*CLASSES, "c/notes.txt"], "class folder 'c' holds no"),
    ([*CLASSES, "b/x\ny.png"], "line break"), ([*CLASSES, "b/x\x07.png"], "unprintable")])
def test_a_tree_that_is_no_input_is_refused(tmp_path, names, message):
    with pytest.raises(Fault, match=message):
        sources.find_sources(make(tmp_path, *names))


# what is in the way is named, and what to give instead
@pytest.mark.parametrize("folders", [
    "Training Testing", "train test", "valid x", "eval x", "fold1 fold2", "fold_1 fold_2",
    "Train Validation", "train_set test_set", "trainset testset", "images_train images_test",
    "Test Data,x", "dev x", "holdout x", "split-0 split-1", "VALIDATION x", "evaluation x"])
def test_folders_of_splits_are_no_classes(tmp_path, folders):
    first, second = folders.split("," if "," in folders else " ")
    make(tmp_path, *(f"{folder}/{label}/1.png" for folder in (first, second) for label in "xy"))
    with pytest.raises(Fault, match="like a split.*give a folder of class folders, such as "
                       f"{tmp_path / min(first, second)}"):
        sources.find_sources(tmp_path)


@pytest.mark.parametrize("tree", [
    "site_x/adeno site_x/benign site_y/adeno site_y/benign",
    "scanner1/adeno scanner1/benign scanner2/adeno scanner2/benign",
    "siteA/adeno siteA/benign siteB/adeno siteB/benign siteB/squamous",
    "lung_n/train lung_n/test lung_aca/train lung_aca/test",
    "COVID/images COVID/masks normal/images normal/masks",
    "lung_image_sets/lung_aca lung_image_sets/lung_n colon_image_sets/colon_aca "
    "colon_image_sets/colon_n",
    "lung/lung_aca lung/lung_n lung/lung_scc colon/colon_aca colon/colon_n",
    "site_x/adeno site_x/benign site_y/adeno", "8863/0 8863/1 9001/0 9001/1 9002/0 9002/1"])
def test_folders_of_class_folders_are_no_classes(tmp_path, tree):
    names = [f"{folder}/{number}.png" for folder in tree.split() for number in range(2)]
    first = min(name.split("/")[0] for name in names)
    with pytest.raises(Fault, match=f"are no classes: give.*such as {tmp_path / first};"):
        sources.find_sources(make(tmp_path, *names))


@pytest.mark.parametrize("tree", [
    "lung_n/TCGA-05 lung_n/TCGA-17 lung_aca/TCGA-33 lung_aca/TCGA-44",
    "tumour/patient1 tumour/patient2 normal/patient1 normal/patient2",
    "grade1/p1 grade1/p2 grade1/p3 grade2/p1 grade2/p2 grade2/p3",
    "benign/40X benign/100X malignant/40X malignant/100X",
    "tumour/caseA tumour/caseB normal/caseA normal/caseB",
    "tumour/slide1 tumour/slide2 tumour/margin normal/slide3 normal/slide4",
    "COVID/images normal/images", "lung_n/smith lung_aca/jones lung_aca/miller",
    "lung_n/. lung_aca/smith lung_aca/jones", "tester/1 testis/1", "valve/x training_wheels/x"])
def test_layouts_of_classes_are_left_as_they_are(tmp_path, tree):
    names = [f"{folder}/{number}.png" for folder in tree.split() for number in range(2)]
    found = sources.find_sources(make(tmp_path, *names))[0]
    assert {s.label for s in found} == {name.split("/")[0] for name in names}


SYSTEM = ("@eaDir", "@eadir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trashes", ".Trash-1000",
          "__MACOSX", "System Volume Information", ".ipynb_checkpoints", "@Recycle", ".snapshot")
SYSTEM_FILES = ("Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", "1.png:Zone.Identifier",
                "1.png@SynoEAStream", ".nfs0001.png")


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("place", ["", "a", "a/deep"])
def test_folders_of_the_system_are_skipped_and_counted_at_any_depth(tmp_path, name, place):
    make(tmp_path, *CLASSES, "a/deep/2.png")
    make(tmp_path / place / name, "1.png/SYNOPHOTO_THUMB_M.jpg", "inner/9.png")
    found, others, skipped = sources.find_sources(sources.find_root(tmp_path))
    assert [s.name for s in found] == ["a/1.png", "a/deep/2.png", "b/1.png"]
    assert others == [] and skipped == [name]


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_files_of_the_system_are_skipped_and_counted(tmp_path, name):
    make(tmp_path, *CLASSES, name, f"a/{name}", f"b/deep/{name}")
    found, others, skipped = sources.find_sources(tmp_path)
    assert [s.name for s in found] == list(CLASSES)
    assert others == [] and skipped == [name] * 3


def test_a_folder_of_the_system_does_not_hide_the_only_folder(tmp_path):
    make(tmp_path, *(f"only/{name}" for name in CLASSES), "__MACOSX/only/a/1.png")
    assert sources.find_root(tmp_path) == tmp_path / "only"


# ------------------------------------------------------------------ spellings

COMPOSED, DECOMPOSED = "Dr\u00fcse", "Dru\u0308se"


@pytest.mark.parametrize("one, other", [(COMPOSED, DECOMPOSED), ("a", "a "), ("a", " a"),
                                        (COMPOSED, DECOMPOSED + "\u00a0")])
def test_two_spellings_of_a_folder_name_are_one_class(tmp_path, one, other):
    make(tmp_path / "in", f"{one}/1.png", f"{other}/1.png", f"{other}/2.png", "z/1.png")
    found = sources.find_sources(tmp_path / "in")[0]
    assert [s.label for s in found] == [one] * 3 + ["z"] and len({s.name for s in found}) == 4
    table = tmp_path / "groups.csv"
    for label in (one, other):
        table.write_text("file_name,label,group\n" + "".join(
            f"{label}/{number}.png,{label},{DECOMPOSED}\n" for number in (1, 2))
            + f"z/1.png,z,{COMPOSED} \n", "utf-8")
        assert read_groups(table, found) == {s.name: COMPOSED for s in found}


# ------------------------------------------------------------------ the fingerprint

def fingerprint(root: Path) -> str:
    return sources.fingerprint(sources.find_sources(root)[0])


@pytest.fixture
def tree(tmp_path) -> Path:
    make(tmp_path / "in", *CLASSES, "b/s.mrxs", "b/s/Data.dat")
    (tmp_path / "in/a/big.png").write_bytes(bytes(50_000))
    return tmp_path / "in"


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((7 * i * i + i) % 251 for i in range(size)))


def test_the_values_are_those_that_datasets_and_models_were_made_with(tmp_path):
    """As two functions of their own gave them before: begun datasets and models go on."""
    for name, size in (("a/small.png", 100), ("a/edge.png", 16384), ("a/large.png", 40001),
                       ("b/slide.mrxs", 30), ("b/slide/Data0.dat", 77), ("b/slide/Index.dat", 5)):
        fill(tmp_path / "in" / name, size)
    assert fingerprint(tmp_path / "in") == \
        "0a69a6b7ef188437a552b8477f373cba4adec7de131fd77c174f50fc6cf923f0"
    for name, size in (("unet/w.safetensors", 200001), ("config.json", 50), ("x.bin", 9)):
        fill(tmp_path / "model" / name, size)
    assert folder_fingerprint(tmp_path / "model") == \
        "8a1446280aca804a70c859aac1c0c4dc40f865cce0679ae44be5eca480aa4b32"


def test_a_copied_tree_is_the_same_input(tree):
    shutil.copytree(tree, tree.parent / "copy")
    for path in (tree.parent / "copy").rglob("*.*"):
        os.utime(path, (1, 1))
    assert fingerprint(tree) == fingerprint(tree.parent / "copy")


@pytest.mark.parametrize("place", [0, 25_000, 49_999])
def test_an_edit_at_the_start_middle_or_end_of_a_large_image_is_noticed(tree, place):
    before = fingerprint(tree)
    with open(tree / "a/big.png", "r+b") as file:
        file.seek(place)
        file.write(b"x")
    assert fingerprint(tree) != before


@pytest.mark.parametrize("name", [*(f"b/s/{name}" for name in SYSTEM_FILES), "@eaDir/a/1.png",
                                  "b/@eaDir/s.mrxs/x.jpg", "b/s/@eaDir/Data.dat/x.jpg"])
def test_a_look_at_the_folder_leaves_the_input_the_same(tree, name):
    before = fingerprint(tree)
    make(tree, name)
    assert fingerprint(tree) == before


@pytest.mark.parametrize("change", [
    lambda tree: (tree / "a/1.png").rename(tree / "a/2.png"),
    lambda tree: (tree / "a/1.png").rename(tree / "b/2.png"),
    lambda tree: (tree / "a/1.png").write_bytes(b"another"),
    lambda tree: (tree / "b/s/Data.dat").write_bytes(b"longer than before"),
    lambda tree: (tree / "b/1.png").unlink(),
    lambda tree: (tree / "a/big.png").write_bytes(bytes(50_001))])
def test_another_name_content_or_size_is_another_input(tree, change):
    before = fingerprint(tree)
    change(tree)
    assert fingerprint(tree) != before


# ------------------------------------------------------------------ groups

def test_a_csv_names_the_group_of_every_image_across_classes(tree):
    found = sources.find_sources(tree)[0]
    path = tree.parent / "groups.csv"
    path.write_text("group,file_name,note,label\n p1 ,a/1.png,x,a\np1,./b/1.png,,b\n"
                    "p2,a/big.png,,a\np2,b\\s.mrxs,,b\np2,b\\s.mrxs,,b\n")
    assert read_groups(path, found) == {"a/1.png": "p1", "b/1.png": "p1",
                                                "a/big.png": "p2", "b/s.mrxs": "p2"}
