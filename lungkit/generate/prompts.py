"""Prompts as data: the versioned prompt file, its captions, and the tokenizer's limit."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path

from lungkit.nuclei.layouts import NUM_LEVELS
from lungkit.run.faults import Fault
from lungkit.run.files import read_json, sha256

PROMPTS_PATH = Path(__file__).resolve().parents[2] / "assets" / "prompts" / "lung_he.json"
SCHEMA = "lungkit.prompts/1"
SLOTS = ("architecture", "nuclei", "cytology")  # filled per class; stain, magnification for all


class Prompts:
    """The captions and negative prompts of every class, from one checked file."""

    def __init__(self, path: Path = PROMPTS_PATH) -> None:
        self.path = Path(path)
        self.data = read_json(self.path)
        self.fingerprint = sha256(self.path.read_bytes())
        if self.data.get("schema") != SCHEMA:
            raise Fault(f"{self.path} is not a {SCHEMA} file: "
                        "see assets/prompts/lung_he.json for the format")
        self._check()

    def _check(self) -> None:
        """Raise Fault unless every entry is of the right kind and every template can be filled."""
        def need(right: bool, what: str) -> None:
            if not right:
                raise Fault(f"{self.path}: {what}: see assets/prompts/lung_he.json for the format")

        def is_texts(value: object, number: int | None = None) -> bool:
            return isinstance(value, list) and len(value) == (number or len(value)) > 0 \
                and all(isinstance(text, str) and text for text in value)

        data = self.data
        need(isinstance(data.get("classes"), dict), "'classes' is not an object")
        for slot in ("stain", "magnification"):
            need(is_texts(data.get(slot)), f"{slot!r} is not a list of texts")
        context = data.get("context")
        need(isinstance(context, dict) and isinstance(context.get("template"), str)
             and all(is_texts(context.get(slot), NUM_LEVELS)
                     for slot in ("count", "size", "spacing")),
             f"'context' needs a template, and {NUM_LEVELS} texts each for count, size and spacing")
        templates = [(context["template"], {"prompt", "count", "size", "spacing"}, "context")]
        for name, entry in {**data["classes"], "other_classes": data.get("other_classes")}.items():
            need(isinstance(entry, dict) and is_texts(entry.get("templates"))
                 and isinstance(entry.get("negative"), str),
                 f"class {name!r} needs a list of templates and a negative prompt")
            given = [slot for slot in ("stain", "magnification", *SLOTS) if slot in entry]
            for slot in given:
                need(is_texts(entry[slot]), f"class {name!r}: {slot!r} is not a list of texts")
            templates += [(template, {"name", "stain", "magnification", *given}, f"class {name!r}")
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
        known = self.data["classes"].get(label)
        return known or {"name": label.replace("_", " "), **self.data["other_classes"]}

    def caption(self, label: str, draw: random.Random) -> str:
        """One prompt of the class with every slot drawn by `draw`."""
        entry = self.entry(label)
        values = {slot: draw.choice(entry.get(slot) or self.data.get(slot) or [""])
                  for slot in ("stain", "magnification", *SLOTS)}
        return draw.choice(entry["templates"]).format(name=entry.get("name", label), **values)

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
        values = {slot: max(entry.get(slot) or self.data.get(slot) or [""], key=length)
                  for slot in ("stain", "magnification", *SLOTS)}
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
        for key in ("stain", "magnification", "classes", "other_classes", "context"):
            collect(self.data[key])
        return texts
