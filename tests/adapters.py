"""A small real dataset, and stand-ins for the models, which record what an arm asks of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei.detect import Nuclei
from lungkit.run.output import Output

COUNTS = {"lung_aca": (3, 1, 1), "lung_n": (4, 1, 2), "lung_scc": (5, 2, 1)}
SIZE = 64
LORA = "pytorch_lora_weights.safetensors"


def write_real(path: Path, *, channels: int = 3, symmetries: int = 8,
               modality: str = "he") -> Path:
    """A dataset "real" of unlike counts; the first pixel's red numbers the images from 1."""
    rng = np.random.default_rng(0)
    output = Output(path, "dataset.json", {"seed": 0})
    with DatasetWriter(output, stage="tumor_seg", classes=list(COUNTS), image_size=SIZE,
                       channels=channels) as writer:
        index = 0
        for place, split in enumerate(("train", "val", "test")):
            for label, numbers in COUNTS.items():
                for _ in range(numbers[place]):
                    image = rng.integers(0, 256, (SIZE, SIZE, channels), np.uint8)
                    image[0, 0, 0] = index + 1
                    writer.add(split, label, index, image, group=f"patient {index}")
                    index += 1
        writer.publish(parents=[], seed=0, um_per_px=200 / SIZE, modality=modality,
                       symmetries=symmetries)
    return path


def write_weights(path: Path, name: str) -> None:
    """A safetensors file without a tensor, by `name`."""
    header = json.dumps({"__metadata__": {"name": name}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def read_weights(path: Path) -> str:
    return json.loads(path.read_bytes()[8:])["__metadata__"]["name"]


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0])


def layout_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and areas that the stand-in detector finds in image `number`; none in image 4."""
    rng = np.random.default_rng(number)
    count = 0 if number == 4 else 2 * number
    return (rng.uniform(0, SIZE - 1, (count, 2)).astype(np.float32),
            np.full(count, number + 0.5, np.float32))


def tissue_of(number: int) -> np.ndarray:
    """Where the stand-in finds tissue in image `number`: left of a line, none in image 3."""
    return np.arange(SIZE)[None] < np.full((SIZE, 1), 0 if number == 3 else 20 + 2 * number)


@dataclass
class Record:
    """What a run asked for, in order."""

    root: Path
    status: int = -1
    detected: list = field(default_factory=list)
    detector_of: list = field(default_factory=list)
    losses: list = field(default_factory=list)  # arguments of training_loss
    trained: list = field(default_factory=list)  # of train_adapter and train, with its loss
    fitted: list = field(default_factory=list)   # of fit_decoder, with how many were trained before
    drawn_by: list = field(default_factory=list) # of draw_by_fitted
    pipelines: list = field(default_factory=list)
    drawn: list = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.root / "datasets" / "arm"

    @property
    def model(self) -> Path:
        return self.root / "models" / "arm"

    def images_drawn(self) -> list[SimpleNamespace]:
        """What each image was drawn from, by item index."""
        rows = {}
        for call in self.drawn:
            for place, index in enumerate(call.indices):
                assert index not in rows, "drawn twice"
                maps = call.options.get("maps")
                rows[index] = SimpleNamespace(
                    prompt=call.prompts[place], negative=call.negatives[place], pipe=call.pipe,
                    map=None if maps is None else maps[place], **call.options)
        return [rows[index] for index in sorted(rows)]


class Control:
    """Stands for a ControlNet; tells where it came from and in which state it is."""

    def __init__(self, source: str | None) -> None:
        self.source, self.frozen, self.training = source, False, False

    def parameters(self) -> list:
        return [self]

    def train(self, mode: bool = True) -> Control:
        self.training = mode
        return self

    def eval(self) -> Control:
        return self.train(False)

    def requires_grad_(self, needed: bool = True) -> Control:
        self.frozen = not needed
        return self

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        write_weights(folder / "diffusion_pytorch_model.safetensors", "control")


class FakeLatents:
    def __init__(self, autoencoder, images: np.ndarray, *, symmetries: int = 8) -> None:
        self.symmetries = symmetries
        self.numbers = [number_of(image) for image in images]

    def __len__(self) -> int:
        return len(self.numbers)

    def subset(self, indices: list[int]) -> FakeLatents:
        part = FakeLatents(None, [], symmetries=self.symmetries)
        part.numbers = [self.numbers[i] for i in indices]
        return part


# long: the stand-ins are closures over the record
def run_arm(arm: str, real: Path, root: Path, *more: str, blind: bool = False,
            lose: str | None = None, chosen: dict | None = None) -> Record:
    """Run `<arm>_seg.py` on stand-ins.

    blind: real's val and test images are deleted as soon as the dataset has been checked.
    lose: a file of the finished model, deleted when the base model is opened.
    chosen: what a stand-in of `choose` says to draw with, {steps, guidance_scale}.
    """
    record = Record(root)
    name = f"{arm}_seg"

    def detector(weights=None, device="auto"):
        record.detector_of.append((weights, device))

        def detect(image, **options):
            record.detected.append(SimpleNamespace(number=number_of(image), **options))
            centroids, areas = layout_of(number_of(image))
            return Nuclei(np.zeros((SIZE, SIZE), np.int32), centroids, areas)
        return detect

    def training_loss(base, latents, caption, *, batch_size, places=None, classes=None,
                      controlnet=None, maps=None):
        control = controlnet and SimpleNamespace(source=controlnet.source, frozen=controlnet.frozen,
                                                 training=controlnet.training)
        call = SimpleNamespace(numbers=[latents.numbers[place] for place in places],
                               caption=lambda number, draw: caption(places[number], draw),
                               batch_size=batch_size, control=control, controlnet=controlnet,
                               maps=None if maps is None else maps[places],
                               classes=classes and [classes[place] for place in places],
                               symmetries=latents.symmetries)
        record.losses.append(call)
        return call

    def train_adapter(base, loss_at, *, output_dir, **options):
        record.trained.append(SimpleNamespace(kind="adapter", loss=loss_at, label=output_dir.name,
                                              options=options))
        output_dir.mkdir(parents=True)
        write_weights(output_dir / LORA, output_dir.name)
        return 0.25

    def train(parameters, loss_at, **options):
        control = list(parameters)[0]
        record.trained.append(SimpleNamespace(
            kind="controlnet", loss=loss_at, options=options, control=control,
            training=control.training, frozen=control.frozen))
        return 0.5

    def fit_decoder(arm, autoencoder, **settings):
        record.fitted.append(SimpleNamespace(vae=autoencoder, before=len(record.trained),
                                             settings=settings))
        if not settings:
            return {}
        folder = arm.weights.work_dir / "vae"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        write_weights(folder / "diffusion_pytorch_model.safetensors", "vae")
        return {"decoder": 0.125}

    def draw_by_fitted(arm, base, settings):
        record.drawn_by.append(settings)

    def pipeline(base, sampler, *, adapter_dir=None, controlnet=None):
        pipe = SimpleNamespace(adapter=read_weights(adapter_dir / LORA), control=controlnet,
                               sampler=sampler)
        record.pipelines.append(pipe)
        return pipe

    def draw_images(pipe, prompts, negatives, indices, **options):
        record.drawn.append(SimpleNamespace(pipe=pipe, prompts=prompts, negatives=negatives,
                                            indices=indices, options=options))
        return np.stack([np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
                         for index in indices])

    def open_blind(path):
        data = open_dataset(path)
        for split in ("val", "test"):
            for file in path.glob(f"{split}/*/*.png"):
                file.unlink()
        return data

    def open_base(folder, place):
        if lose:
            (record.model / lose).unlink()
        return base

    base = SimpleNamespace(vae="vae", unet=None, folder=None, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lungkit.generate.latents.Latents", FakeLatents)
        patch.setattr("lungkit.learn.loop.train", train)
        patch.setattr("lungkit.nuclei.instanseg.load_detector", detector)
        patch.setattr("lungkit.generate.base_model.check_networks", lambda parts: None)
        patch.setattr("lungkit.learn.device.freeze",
                      lambda model, device: model.requires_grad_(False).eval())
        patch.setattr("lungkit.generate.adapters.train_adapter", train_adapter)
        stand_ins = {"BaseModel": open_base, "training_loss": training_loss, "pipeline": pipeline,
                     "draw_images": draw_images, "fit_decoder": fit_decoder,
                     "draw_by_fitted": draw_by_fitted}
        if arm == "context":
            stand_ins["tissue_mask"] = lambda image: tissue_of(number_of(image))
            stand_ins["get_controlnet"] = lambda base, source: Control(source)
        if blind:
            patch.setattr("lungkit.generate.items.open_dataset", open_blind)
        if chosen:
            stand_ins["choose"] = lambda arm, ways, draw_for: (chosen, {"choice": chosen})
        for attribute, stand_in in stand_ins.items():
            patch.setattr(f"{name}.{attribute}", stand_in)
        record.status = importlib.import_module(name).main(
            ["--real", str(real), "--output", str(record.output), "--device", "cpu", *more])
    return record


def write_prompts(path: Path) -> Path:
    """A prompt file of its own: no text of it is in the one shipped."""
    def entry(label: str) -> dict:
        return {"name": f"kind {label}", "negative": f"never {label}",
                "templates": ["{name} {nuclei} {stain}", "{stain} of {name} {architecture}"],
                **{slot: [f"{label} {slot} {i}" for i in range(4)]
                   for slot in ("architecture", "nuclei", "cytology")}}
    path.write_text(json.dumps({
        "schema": "lungkit.prompts/1", "stain": ["red", "blue", "green"], "magnification": ["near"],
        "classes": {label: entry(label) for label in COUNTS},
        "other_classes": {"templates": ["{name}"], "negative": "nothing"},
        "context": {"template": "{prompt} with {count} {size} {spacing}",
                    **{slot: [f"{slot}{i}" for i in range(4)]
                       for slot in ("count", "size", "spacing")}}}))
    return path
