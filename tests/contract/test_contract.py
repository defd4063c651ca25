"""The contract every arm keeps: layout, loaders, parents, rerun, refusal, kill and resume."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arms import (
    CASES,
    GENERATORS,
    OTHER_OPTION,
    arguments,
    blind,
    content,
    ended_in_training,
    fork,
    killed_while_writing,
    main_of,
    signal_when,
)
from lungkit.data.dataset import SPLITS, inherited, open_dataset, parent_of
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output
from lungkit.run.seeds import stream

pytestmark = pytest.mark.usefixtures("found_once")

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["tumor_seg", "ct_seg", "voronoi_seg", "layout_seg", "diffusion_seg", "prompt_seg",
          "context_seg", "controls_seg", "mix_seg", "cnn_classify", "nuclei_classify",
          "cnn_search", "unet_segment", "wilcoxon_test", "outliers", "cnn_explain"]
SEED = 1  # of the arms, and not their default: who does not use it has another one's numbers
QUICK = ["--seed", str(SEED), "--train-steps", "2", "--batch-size", "2"]
# what is the script's own and asks nothing of the modality: once a script
SCRIPTS = list({arm: (modality, arm) for modality, arm in reversed(CASES)}.values())
once_a_script = pytest.mark.parametrize("case", SCRIPTS, indirect=True, ids="-".join)


def given(arm: str, real: Path, output: Path, *more: str) -> list[str]:
    return arguments(arm, real, output, *(QUICK if arm in GENERATORS else []), *more)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def arm(case) -> str:
    return case[1]


def few_of(path: Path, output: Path) -> Path:
    """The dataset of two classes of that in `path`, 2 + 1 + 1 images of each."""
    data = open_dataset(path)
    more = {key: data.manifest[key] for key in ("layout",) if key in data.manifest}
    with DatasetWriter(Output(output, "dataset.json", data.manifest["parameters"]),
                       stage=data.manifest["stage"], classes=data.classes[-2:],
                       image_size=data.image_size, channels=data.channels,
                       mask_forms=data.masks) as writer:
        for split, number in zip(SPLITS, (2, 1, 1), strict=True):
            for label in writer.classes:
                for row in data.select(split, label)[:number]:
                    masks = {kind: data.mask(kind, row) for kind in data.masks}
                    writer.add(split, label, int(row.stem), data.image(row), group=row.group,
                               masks=masks)
        writer.publish(parents=[], seed=0, warnings=data.warnings, **inherited(data), **more)
    return output


@pytest.fixture(scope="module")
def reals(few_real, ct_dataset, tmp_path_factory) -> dict[str, Path]:
    """A small "real" of each modality. Read only."""
    return {modality: few_of(path, tmp_path_factory.mktemp(modality) / "real")
            for modality, path in (("he", few_real), ("ct", ct_dataset))}


@pytest.fixture(scope="module")
def real_path(case, reals) -> Path:
    return reals[case[0]]


@pytest.fixture(scope="module")
def ran(arm, real_path, tmp_path_factory) -> tuple[int, Path]:
    """The arm run once without interruption: its exit status and its dataset.

    A generator has nothing but the training images of real, once it has checked it.
    """
    root = tmp_path_factory.mktemp(arm)
    output = root / "datasets" / arm
    if arm not in GENERATORS:
        return main_of(arm)(given(arm, real_path, output)), output
    shutil.copytree(real_path, root / "real")
    with pytest.MonkeyPatch.context() as patch:
        blind(patch, arm)
        code = main_of(arm)(given(arm, root / "real", output))
    assert {path.parent.parent.name for path in (root / "real").glob("*/*/*.png")} == {"train"}
    return code, output


@pytest.fixture
def made(ran) -> Path:
    """The arm's dataset, made once without interruption."""
    code, output = ran
    assert code == 0
    return output


def test_an_arm_succeeds_and_a_generator_without_real_s_val_and_test_images(ran):
    code, output = ran
    assert code == 0 and (output / "dataset.json").exists()


def test_counts_are_like_real_and_every_image_opens(made, real_path):
    real, dataset = open_dataset(real_path), open_dataset(made)
    assert dataset.counts == real.counts
    assert dataset.classes == real.classes and dataset.image_size == real.image_size
    images, labels = dataset.load("train")
    assert images.shape[1:] == (64, 64, real.channels) and len(images) == len(labels)
    assert dataset.modality == real.modality and dataset.symmetries == real.symmetries
    assert images.std() > 5, "images without contrast show nothing"


def test_nothing_trained_on_has_seen_a_test_image(made, real_path):
    real = open_dataset(real_path)
    seen = {entry["name"]: entry for entry in open_dataset(made).trained_on()}
    assert seen["real"]["fingerprint"] == real.fingerprint
    assert "train" in seen["real"]["splits"] and "test" not in seen["real"]["splits"]


def test_a_generated_image_is_of_the_train_split_and_another_of_its_own(arm, made, real_path):
    splits = {split: ["train"] if arm in GENERATORS else [split] for split in SPLITS}
    manifest = json.loads((made / "dataset.json").read_text())
    parent = parent_of(open_dataset(real_path), splits)
    assert manifest["parents"] == [parent]
    models = made.parent.parent / "models" / arm / "model.json"
    assert models.exists() == (arm in GENERATORS)
    if models.exists():
        assert json.loads(models.read_text())["parents"] == [parent]


def test_the_warnings_of_real_and_the_audit_for_copies_go_with_a_generated_dataset(
        arm, made, real_path):
    manifest, real = open_dataset(made).manifest, open_dataset(real_path)
    assert ("copy_audit" in manifest) == (arm in GENERATORS)
    if arm in GENERATORS:
        assert real.warnings and manifest["warnings"][:len(real.warnings)] == real.warnings
        assert manifest["copy_audit"]["images"] == len(real.rows)


def test_an_image_is_drawn_from_the_stream_of_its_arm_its_seed_and_its_index(arm, made):
    draws = stream(f"{arm}_seg", SEED)
    for row in open_dataset(made).rows:  # nothing is drawn for a diagram
        assert row.seed == (f"{draws}:{int(row.stem)}" if arm in GENERATORS else "")


def test_torchvision_reads_it_as_it_is(made):
    from torchvision.datasets import ImageFolder

    dataset = open_dataset(made)
    for split in SPLITS:
        folder = ImageFolder(made / split)
        assert folder.classes == dataset.classes
        names = [Path(path).relative_to(made).as_posix() for path, _ in folder.samples]
        expected = [(row.file_name, dataset.classes.index(row.label))
                    for row in dataset.select(split)]
        assert expected == list(zip(names, folder.targets, strict=True))


@once_a_script
def test_hugging_face_reads_it_as_it_is(made, tmp_path):
    datasets = pytest.importorskip("datasets", reason="tests/requirements.txt has it")
    dataset = open_dataset(made)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(made), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation", "test"}
    for split in SPLITS:
        table = loaded["validation" if split == "val" else split]
        assert table.features["label"].names == dataset.classes
        labels = [dataset.classes.index(row.label) for row in dataset.select(split)]
        assert sorted(table["label"]) == sorted(labels) and len(table) == len(labels)


@once_a_script
def test_the_same_command_again_is_already_complete_and_quick(arm, made, real_path):
    before = {name: os.stat(made / name).st_mtime_ns for name in content(made)}
    user_sec = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, ROOT / f"{arm}_seg.py", *given(arm, real_path, made)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 0 and "already complete" in answer.stdout + answer.stderr
    # processor time, which other work on the machine does not change much
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - user_sec < 0.8
    assert before == {name: os.stat(made / name).st_mtime_ns for name in content(made)}


def test_other_options_are_refused_by_name_and_change_nothing(arm, made, real_path, capfd):
    before = content(made)
    option = OTHER_OPTION[arm]
    assert main_of(arm)(given(arm, real_path, made, *option)) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert option[0].lstrip("-").replace("-", "_") in error and "--overwrite" in error
    assert content(made) == before


def test_dry_run_checks_and_writes_nothing(arm, real_path, tmp_path):
    output = tmp_path / "datasets" / arm
    assert main_of(arm)(arguments(arm, real_path, output, "--dry-run")) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", GENERATORS)
def test_a_dry_run_plans_for_a_device_that_is_not_here_and_refuses_what_is_none(
        name, few_real, tmp_path, monkeypatch, capfd):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = arguments(name, few_real, tmp_path / "datasets" / name, "--device", "cuda:9")
    assert main_of(name)([*plan, "--dry-run"]) == 0 and main_of(name)(plan) == 2
    assert "sees no CUDA device" in capfd.readouterr().err.splitlines()[-1]
    assert main_of(name)([*plan, "--device", "gpu", "--dry-run"]) == 2
    assert "'gpu' is not a device" in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_dataset_with_altered_images_is_refused_and_nothing_published(
        arm, real_path, tmp_path, capfd):
    broken = tmp_path / "real"
    shutil.copytree(real_path, broken)
    victims = []
    for split in SPLITS:
        victim, other = sorted((broken / split).glob("*/*.png"))[:2]
        shutil.copy(other, victim)
        victims.append(victim)
    assert main_of(arm)(arguments(arm, broken, tmp_path / "out" / arm)) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert all(f"{victim.name}: altered" in error for victim in victims)
    assert not (tmp_path / "out" / arm).exists()


STOPPED_BY = {"context": signal.SIGTERM}  # the others are killed


def as_if_of_other_options(directory: Path, manifest_name: str) -> None:
    """Let what lies in `directory` be of other options, and of a picture that they alone have."""
    path = directory / manifest_name
    manifest = json.loads(path.read_text())
    manifest["parameters"] |= {"seed": 0, "render": "borders"}
    path.write_text(json.dumps(manifest))
    (directory / "more.png").write_bytes(b"")


@pytest.fixture
def place(case, made, tmp_path) -> Path:
    """A run's directory, that of tissue with a dataset and a model of other options in it."""
    if case[0] == "he":
        shutil.copytree(made.parent.parent, tmp_path / "run",
                        ignore=shutil.ignore_patterns("real"))
        as_if_of_other_options(tmp_path / "run" / "datasets" / made.name, "dataset.json")
        if (tmp_path / "run" / "models").exists():
            as_if_of_other_options(tmp_path / "run" / "models" / made.name, "model.json")
    return tmp_path / "run"


def test_ended_in_training_and_while_writing_and_run_again_gives_the_same_bytes(
        case, arm, made, real_path, place, monkeypatch):
    """Of tissue over what other options left, which stays until it is replaced by a whole one."""
    output, models, before = place / "datasets" / arm, place / "models", content(place)
    call = given(arm, real_path, output, *(["--overwrite"] if case[0] == "he" else []))
    monkeypatch.setattr("lungkit.learn.loop.CHECKPOINT_INTERVAL_SEC", 0.0)
    if arm in GENERATORS:
        number = STOPPED_BY.get(arm, signal.SIGKILL)
        assert ended_in_training(lambda: main_of(arm)(call), number) == (
            75 if number == signal.SIGTERM else -signal.SIGKILL)
        assert list((models / f".{arm}.partial").glob("[!.]*.ckpt")), "nothing to resume from"
        assert content(models / arm) == {name.removeprefix(f"models/{arm}/"): those for name, those
                                         in before.items() if name.startswith("models/")}
    assert killed_while_writing(lambda: main_of(arm)(call), 3) == -signal.SIGKILL
    assert content(output) == {name.removeprefix(f"datasets/{arm}/"): those for name, those
                               in before.items() if name.startswith("datasets/")}
    assert output.exists() == (case[0] == "he"), "a killed stage must publish nothing"
    assert main_of(arm)(call) == 0
    assert content(output) == content(made)
    assert content(models) == content(made.parent.parent / "models")
    assert not [*output.parent.glob(".*"), *models.glob(".*")], "leftovers beside it"


@once_a_script
def test_a_second_writer_waits_names_the_first_and_stops_at_a_signal(arm, real_path, tmp_path):
    from lungkit.run.output import lock

    output, said = tmp_path / "datasets" / arm, tmp_path / "said"
    models = tmp_path / "models" / arm
    with lock(models if arm in GENERATORS else output):
        pid = fork(lambda: main_of(arm)(given(arm, real_path, output)), said)
        assert signal_when(pid, lambda: said.exists() and "being written by another process"
                           in said.read_text(), signal.SIGTERM) == 75
    assert f"pid {os.getpid()}" in said.read_text() and not output.exists()


@pytest.mark.parametrize("stage", STAGES)
def test_help_is_quick_and_imports_nothing_heavy(stage):
    program = ("import sys, runpy; sys.argv = [sys.argv[1], '--help']\n"
               "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
               "except SystemExit as end: assert not end.code\n"
               "heavy = {'torch', 'diffusers', 'scipy', 'pandas', 'cv2', 'skimage', 'matplotlib', "
               "'sklearn'}\n"
               "print('HEAVY', sorted(heavy & set(sys.modules)))")
    user_sec = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    answer = subprocess.run([sys.executable, "-c", program, ROOT / f"{stage}.py"],
                            capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.stdout.strip().endswith("HEAVY []"), answer.stdout[-200:] + answer.stderr
    assert "Reads" in answer.stdout and "Exit status" in answer.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - user_sec < 0.5


def test_a_dry_run_that_opens_no_model_imports_no_pytorch(few_real, tmp_path):
    """Every stage of a pipeline is asked for one before the first begins."""
    asked = {"voronoi_seg": arguments("voronoi", few_real, tmp_path / "voronoi"),
             "cnn_classify": ["--data", str(few_real), "--real", str(few_real), "--repeats", "2",
                              "--results", str(tmp_path / "results")],
             "lungkit.tools.fidelity": ["--data", str(few_real), "--real", str(few_real)],
             "outliers": ["--data", str(few_real), "--output", str(tmp_path / "outliers")]}
    program = ("import importlib, sys\n"
               f"for name, given in {asked!r}.items():\n"
               "    assert importlib.import_module(name).main([*given, '--dry-run']) == 0\n"
               "    assert 'torch' not in sys.modules, name")
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=False, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr


REQUIRED = {"tumor_seg": "--input x --output y", "ct_seg": "--input x --output y",
            "controls_seg": "--control copy --real x --output y",
            "cnn_classify": "--data x --real x --results y --repeats 2",
            "nuclei_classify": "--features x --real x --results y",
            "cnn_search": "screen --data x --output y",
            "unet_segment": "--data x --real x --results y",
            "outliers": "--data x --output y",
            "cnn_explain": "--data x --results y --output z",
            "wilcoxon_test": "x --output y"}


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_option_is_exit_2(stage, capfd):
    import importlib

    given = REQUIRED.get(stage, "--real x --output y").split()
    assert importlib.import_module(stage).main([*given, "--no-such-option"]) == 2
    assert "--no-such-option" in capfd.readouterr().err.splitlines()[-1]


def test_a_generated_manifest_names_its_model_and_options(real_path, made, arm):
    manifest = json.loads((made / "dataset.json").read_text())
    assert manifest["stage"] == f"{arm}_seg" and manifest["schema"] == "lungkit.dataset/2"
    assert manifest["parameters"]["real" if arm != "voronoi" else "render"]
    assert manifest["versions"]["torch"] if arm in GENERATORS else True
