"""Prompts as data: the versioned prompt file, its captions, and the tokenizer's limit."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path

from lungkit.nuclei.layouts import NUM_LEVELS
from lungkit.run.faults import Fault
from lungkit.run.files import read_json, sha256

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "prompts"
PROMPTS_PATH, CT_PROMPTS_PATH = FOLDER / "lung_he.json", FOLDER / "lung_ct.json"
SCHEMA = "lungkit.prompts/1"
# what fills templates, by the file's modality: slots of all classes, and slots of each class
SLOTS = {"he": (("stain", "magnification"), ("architecture", "nuclei", "cytology")),
         "ct": (("technique", "view", "window"), ("size", "density", "margin", "surroundings"))}
VIEWS = ("crop", "slice")  # of CT: the texts of its slot "view" are of one or the other


def prompts_for(path: Path | None, manifest: dict) -> Prompts:
    """The file at `path`, or the one shipped for the modality of a real dataset's manifest.

    Raises Fault where the file is broken, or of another modality than the dataset.
    """
    is_ct = manifest["modality"] == "ct"
    words = Prompts(path or (CT_PROMPTS_PATH if is_ct else PROMPTS_PATH),
                    view=(manifest.get("parameters") or {}).get("view", "crop"))
    if (words.modality == "ct") != is_ct:
        raise Fault(f"--prompts {words.path} is of {'CT' if words.modality == 'ct' else 'tissue'}, "
                    f"and --real holds {'CT' if is_ct else 'tissue'}: leave it out for the file "
                    "that is shipped, or give one whose \"modality\" is "
                    f"{'ct' if is_ct else 'he'}")
    return words


class Prompts:
    """The captions and negative prompts of every class, from one checked file.

    A file says its modality, "he" where it does not. view: what the images of CT show.
    """

    def __init__(self, path: Path = PROMPTS_PATH, *, view: str = "crop") -> None:
        self.path, self.view = Path(path), view
        self.data = read_json(self.path)
        self.fingerprint = sha256(self.path.read_bytes())
        if self.data.get("schema") != SCHEMA:
            raise Fault(f"{self.path} is not a {SCHEMA} file: "
                        "see assets/prompts/lung_he.json for the format")
        self.modality = self.data.get("modality", "he")
        self._check()

    @property
    def slots(self) -> tuple[str, ...]:
        """All that fills a template but the class's name, in the order of drawing."""
        shared, own = SLOTS[self.modality]
        return (*shared, *own)

    def _check(self) -> None:
        """Raise Fault unless every entry is of the right kind and every template can be filled."""
        example = "lung_ct.json" if self.modality == "ct" else "lung_he.json"

        def need(right: bool, what: str) -> None:
            if not right:
                raise Fault(f"{self.path}: {what}: see assets/prompts/{example} for the format")

        data = self.data
        need(isinstance(self.modality, str) and self.modality in SLOTS,
             f"'modality' is {self.modality!r} and not one of {', '.join(SLOTS)}")
        shared, own = SLOTS[self.modality]
        need(isinstance(data.get("classes"), dict), "'classes' is not an object")
        for slot in shared:
            texts = data.get(slot)
            if slot == "view":
                need(isinstance(texts, dict) and set(texts) == set(VIEWS)
                     and all(map(is_texts, texts.values())),
                     f"'view' needs lists of texts for {' and '.join(VIEWS)}")
            else:
                need(is_texts(texts), f"{slot!r} is not a list of texts")
        aliases = data.get("aliases", {})
        need(isinstance(aliases, dict) and all(isinstance(name, str) and name in data["classes"]
                                               for name in aliases.values()),
             "'aliases' does not name classes of this file")
        templates = []
        if self.modality == "he":
            context = data.get("context")
            need(isinstance(context, dict) and isinstance(context.get("template"), str)
                 and all(is_texts(context.get(slot), NUM_LEVELS)
                         for slot in ("count", "size", "spacing")),
                 f"'context' needs a template, and {NUM_LEVELS} texts each for count, size and "
                 "spacing")
            templates = [(context["template"], {"prompt", "count", "size", "spacing"}, "context")]
        for name, entry in {**data["classes"], "other_classes": data.get("other_classes")}.items():
            need(isinstance(entry, dict) and is_texts(entry.get("templates"))
                 and isinstance(entry.get("negative"), str),
                 f"class {name!r} needs a list of templates and a negative prompt")
            given = [slot for slot in (*shared, *own) if slot in entry]
            for slot in given:
                need(is_texts(entry[slot]), f"class {name!r}: {slot!r} is not a list of texts")
            templates += [(template, {"name", *shared, *given}, f"class {name!r}")
                          for template in entry["templates"]]
        for template, known, where in templates:
            try:
                used = {slot for _, slot, _, _ in string.Formatter().parse(template)} - {None}
            except ValueError as error:
                used = {str(error)}
            need(used <= known, f"{where}: template {template!r} uses "
                 f"{', '.join(sorted(used - known))}, which nothing fills")

    def entry(self, label: str) -> dict:
        """The file's entry for a class, or that for other classes under the class's own name."""
        classes = self.data["classes"]
        known = classes.get(label) or classes.get(self.data.get("aliases", {}).get(label))
        return known or {"name": label.replace("_", " "), **self.data["other_classes"]}

    def texts(self, entry: dict, slot: str) -> list[str]:
        """What may fill a slot of a class's templates: its own texts, else those of all classes."""
        found = entry.get(slot) or self.data.get(slot) or [""]
        return found[self.view] if isinstance(found, dict) else found

    def caption(self, label: str, draw: random.Random) -> str:
        """One prompt of the class with every slot drawn by `draw`."""
        entry = self.entry(label)
        values = {slot: draw.choice(self.texts(entry, slot)) for slot in self.slots}
        return draw.choice(entry["templates"]).format(name=self.name(label), **values)

    def name(self, label: str) -> str:
        """What a class is called in a prompt, and nothing else of it."""
        return self.entry(label).get("name", label)

    def negative(self, label: str) -> str:
        return self.entry(label)["negative"]

    def context_caption(self, label: str, draw: random.Random, levels: dict[str, int]) -> str:
        """A prompt completed from measurements: levels {count, size, spacing: 0..3}."""
        context = self.data["context"]
        words = {slot: context[slot][level] for slot, level in levels.items()}
        return context["template"].format(prompt=self.caption(label, draw), **words)

    def longest(self, label: str, length: Callable[[str], int], *,
                context: bool = False) -> list[str]:
        """Every template filled with the longest value of each slot, and the negative prompt."""
        entry = self.entry(label)
        values = {slot: max(self.texts(entry, slot), key=length) for slot in self.slots}
        prompts = [template.format(name=entry.get("name", label), **values)
                   for template in entry["templates"]]
        if context:
            words = {slot: max(self.data["context"][slot], key=length)
                     for slot in ("count", "size", "spacing")}
            prompts = [self.data["context"]["template"].format(prompt=p, **words) for p in prompts]
        return [*prompts, entry["negative"]]

    def check_token_limit(self, tokenizer, labels: list[str], *, context: bool = False) -> None:
        """Raise Fault if a prompt the file can give would be cut by the text encoder."""
        def length(text: str) -> int:
            return len(tokenizer(text).input_ids)

        for label in labels:
            for prompt in self.longest(label, length, context=context):
                if length(prompt) > tokenizer.model_max_length:
                    raise Fault(f"{self.path}: a prompt of class {label!r} has "
                                f"{length(prompt)} tokens, "
                                f"the text encoder reads {tokenizer.model_max_length} and would "
                                f"cut the rest: shorten {prompt[:60]!r}...")

    def corpus(self) -> list[str]:
        """Every text the file holds, for training a tokenizer on it."""
        texts: list[str] = []

        def collect(value: object) -> None:
            if isinstance(value, str):
                texts.append(value)
            elif isinstance(value, list):
                for item in value:
                    collect(item)
            elif isinstance(value, dict):
                for item in value.values():
                    collect(item)
        for key in (*SLOTS[self.modality][0], "classes", "other_classes", "context"):
            collect(self.data.get(key))
        return texts


def is_texts(value: object, number: int | None = None) -> bool:
    """Whether it is a list of texts, none empty, as many as `number` where that is given."""
    return isinstance(value, list) and len(value) == (number or len(value)) > 0 \
        and all(isinstance(text, str) and text for text in value)
