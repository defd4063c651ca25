"""The card beside a model: read as a hub reads it, true to the manifest, silent about the machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import COUNTS, write_real
from lungkit.data.dataset import open_dataset
from lungkit.generate import model_card
from lungkit.generate.base_model import BASE_MODEL_DIR, CT_BASE_MODEL_DIR
from lungkit.generate.items import Arm, publish_model
from lungkit.generate.model_card import KINDS, card, hub_id
from lungkit.run.files import read_json, write_json, write_text
from lungkit.run.output import Output

HUB = Path("/cache/hub/models--some-lab--stable-diffusion-v1-5/snapshots/0a1b")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset(write_real(tmp_path_factory.mktemp("card") / "real"))


def publish(stage: str, data, tmp_path, base: Path | None) -> Path:
    """A model of `stage` published; its folder."""
    weights = Output(tmp_path / "model", "model.json", {"rank": 5, "prompts": "a: \"b\""})
    arm = Arm(stage, data, [], None, weights, False, None, 0)
    with weights.writing():
        publish_model(arm, {"unet": 0.25}, base)
    return weights.output_dir


@pytest.mark.parametrize("stage", KINDS)
def test_a_hub_reads_the_card_of_every_published_model(stage, data, tmp_path):
    from huggingface_hub import ModelCard

    folder = publish(stage, data, tmp_path, None if stage == "diffusion_seg" else HUB)
    read = ModelCard.load(folder / "README.md")
    assert read.data.library_name == "diffusers" and "medical" in read.data.tags
    assert read.data.pipeline_tag in ("text-to-image", "unconditional-image-generation")
    assert read.data.base_model == (None if stage == "diffusion_seg"
                                    else "some-lab/stable-diffusion-v1-5")
    for needed in (data.fingerprint, '- rank: `5`', "- unet: 0.25", "## Intended use",
                   "## Limits", "Not a medical device", "- `lung_scc`: 5 images"):
        assert needed in read.text, needed
    assert all(f"`{label}`" in read.text for label in COUNTS)
    for name, version in read_json(folder / "model.json")["versions"].items():
        assert f"{name} {version}" in read.text


@pytest.mark.parametrize("stage", ["prompt_seg", "context_seg"])
def test_a_card_says_nothing_of_where_things_lie(stage, data, tmp_path):
    for base, words in ((BASE_MODEL_DIR, "embedded base model"),
                        (Path("/home/someone/sd15"), "`sd15`")):
        text = card(stage, {"parameters": {}, "losses": {}, "versions": {}, "commit": None},
                    data, base)
        assert words in text and "/home" not in text and str(tmp_path) not in text
        assert str(base.parent) not in text


def test_a_model_says_by_what_its_weights_were_chosen(data, tmp_path):
    from lungkit.compare import curves
    from lungkit.learn.validation import Validation

    watch = Validation(None, steps=300, seed=0)
    watch.values = {150: 0.5, 300: 0.75}
    weights = Output(tmp_path / "model", "model.json", {})
    with weights.writing() as folder:
        write_json(folder / "unet/validation.json", watch.record(300))
        write_text(folder / "unet/loss.csv", "step,train_loss,val_loss\n" + "".join(
            f"{step},1,{watch.values.get(step, '')}\n" for step in range(30, 301, 30)))
        publish_model(Arm("diffusion_seg", data, [], None, weights, False, None, 0,
                          held=frozenset({0, 3})), {"unet": 0.25})
    assert read_json(weights.output_dir / "model.json")["validation"] == {
        "images": {"lung_aca": 1, "lung_n": 1}, "trained": {"unet": {
            "best_step": 150, "best_loss": 0.5, "last_loss": 0.75, "steps": 300}}}
    text = (weights.output_dir / "README.md").read_text()
    assert "1 of `lung_aca`, 1 of `lung_n` were held out" in text
    assert "- unet: 0.5 at step 150 of 300, at the end 0.75" in text
    assert (weights.output_dir / curves.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_base_model_is_called_by_its_name_on_the_hub():
    assert hub_id(HUB) == "some-lab/stable-diffusion-v1-5"
    assert hub_id(Path("/models/sd15")) is None


def test_only_the_embedded_bases_are_called_ours(tmp_path):
    ours = model_card.folder_name(BASE_MODEL_DIR)
    assert ours == model_card.folder_name(CT_BASE_MODEL_DIR) == model_card.TISSUE_BASE
    assert model_card.folder_name(tmp_path / "base_model") == "`base_model`"
