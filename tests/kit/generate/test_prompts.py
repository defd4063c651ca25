"""The prompt file: what it may hold, the captions drawn from it, and the tokenizer's limit."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from lungkit.generate.prompts import CT_PROMPTS_PATH, PROMPTS_PATH, Prompts, prompts_for
from lungkit.run.faults import Fault

SLOTS = ("stain", "magnification", "architecture", "nuclei", "cytology")
CLASSES = ("lung_aca", "lung_n", "lung_scc")


def small() -> dict:
    """A prompt file in which every text tells where it stands."""
    def entry(name: str) -> dict:
        return {"name": name, "negative": f"no {name}",
                "templates": [f"first {{name}} {{stain}} {{{slot}}}" for slot in SLOTS[1:]],
                **{slot: [f"{name} {slot} {i}" for i in range(3)] for slot in SLOTS[2:]}}
    return {"schema": "lungkit.prompts/1", "stain": ["stain 0", "stain 1"],
            "magnification": ["zoom 0", "zoom 1"],
            "classes": {"a": entry("ash"), "b": entry("birch")},
            "other_classes": {"templates": ["{name}, {stain}"], "negative": "no other"},
            "context": {"template": "{prompt}: {count}, {size}, {spacing}",
                        "count": ["c0", "c1", "c2", "c3"], "size": ["s0", "s1", "s2", "s3"],
                        "spacing": ["d0", "d1", "d2", "d3"]}}


def written(data: dict, path: Path) -> Prompts:
    path.write_text(json.dumps(data))
    return Prompts(path)


@pytest.fixture
def words(tmp_path) -> Prompts:
    return written(small(), tmp_path / "prompts.json")


def captions_of(prompts: Prompts, label: str, number: int = 300) -> set[str]:
    return {prompts.caption(label, random.Random(i)) for i in range(number)}


# ------------------------------------------------------------------ captions

def test_every_template_and_every_text_of_the_class_is_drawn_and_none_of_another(words):
    entry = words.data["classes"]["a"]
    expected = {template.format(name="ash", **dict(zip(SLOTS, values, strict=True)))
                for template in entry["templates"]
                for values in itertools.product(
                    words.data["stain"], words.data["magnification"],
                    *(entry[slot] for slot in SLOTS[2:]))}
    assert captions_of(words, "a", 600) == expected


def test_a_caption_depends_on_its_draw_alone(words):
    random.seed(1)
    first = [words.caption("a", random.Random(i)) for i in range(20)]
    random.seed(2)
    assert [words.caption("a", random.Random(i)) for i in reversed(range(20))] == first[::-1]
    draw = random.Random(0)
    assert len({words.caption("a", draw) for _ in range(20)}) > 5, "a draw goes on"


def test_the_negative_prompt_is_that_of_the_class(words):
    assert [words.negative(label) for label in ("a", "b", "c")] == [
        "no ash", "no birch", "no other"]


def test_a_class_the_file_does_not_know_is_called_by_its_own_name(words):
    assert captions_of(words, "benign_nodule") == {"benign nodule, stain 0",
                                                   "benign nodule, stain 1"}


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("slot", ["count", "size", "spacing"])
def test_each_measurement_has_its_own_word_at_each_level(words, slot, level):
    levels = {"count": 0, "size": 0, "spacing": 0, slot: level}
    caption = words.context_caption("b", random.Random(5), levels)
    expected = ", ".join(f"{'d' if key == 'spacing' else key[0]}{levels[key]}"
                         for key in ("count", "size", "spacing"))
    assert caption == f"{words.caption('b', random.Random(5))}: {expected}"


def test_a_file_with_another_text_has_another_fingerprint(words, tmp_path):
    other = small()
    other["classes"]["b"]["negative"] += "!"
    assert written(other, tmp_path / "other.json").fingerprint != words.fingerprint
    assert written(small(), tmp_path / "same.json").fingerprint == words.fingerprint


def test_the_corpus_holds_every_text_of_the_file(words):
    corpus = words.corpus()
    for text in ("stain 1", "zoom 0", "ash nuclei 2", "birch cytology 0", "no birch", "no other",
                 "{name}, {stain}", "c3", "s0", "d2", "birch"):
        assert text in corpus


# ------------------------------------------------------------------ the limit

class Words:
    """A tokenizer whose tokens are words, between a begin and an end."""

    def __init__(self, limit: int) -> None:
        self.model_max_length = limit

    def __call__(self, text: str):
        return type("Tokens", (), {"input_ids": ["<"] + text.split() + [">"]})


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("label", ["a", "c"])
def test_the_longest_prompts_are_as_long_as_any_the_file_can_give(words, label, context):
    data = small()
    data["classes"]["a"]["nuclei"][1] += " and very much more"
    data["classes"]["a"]["cytology"][0] += " and more"
    data["stain"][1] += " of some length"
    data["context"]["size"][2] += " or so"
    words.data = data
    length = len
    drawn = {words.context_caption(label, random.Random(i), {key: level for key in
                                                             ("count", "size", "spacing")})
             if context else words.caption(label, random.Random(i))
             for i in range(400) for level in ((0, 2) if context else (0,))}
    longest = words.longest(label, length, context=context)
    assert max(map(length, longest)) == max(map(length, drawn))
    assert words.negative(label) in longest


PLACES = {
    "stain": lambda data, text: data["stain"].append(text),
    "magnification": lambda data, text: data["magnification"].insert(0, text),
    "architecture": lambda data, text: data["classes"]["b"]["architecture"].append(text),
    "nuclei": lambda data, text: data["classes"]["b"]["nuclei"].append(text),
    "cytology": lambda data, text: data["classes"]["b"]["cytology"].insert(1, text),
    "template": lambda data, text: data["classes"]["b"]["templates"].append(text),
    "negative": lambda data, text: data["classes"]["b"].update(negative=text),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_a_text_that_would_be_cut_is_refused_wherever_it_stands(place, tmp_path):
    data = small()
    PLACES[place](data, " ".join(["long"] * 39))
    prompts = written(data, tmp_path / "prompts.json")
    with pytest.raises(Fault, match=r"'b'.* reads 40 "):
        prompts.check_token_limit(Words(40), ["b"])
    prompts.check_token_limit(Words(60), ["b"])


def test_a_prompt_exactly_at_the_limit_passes_and_one_token_more_does_not(tmp_path):
    data = small()
    data["classes"]["b"]["templates"] = [" ".join(["long"] * 38)]
    prompts = written(data, tmp_path / "prompts.json")
    prompts.check_token_limit(Words(40), ["b"])
    with pytest.raises(Fault, match="40 tokens.* 39 "):
        prompts.check_token_limit(Words(39), ["b"])


def test_the_words_of_the_context_count_towards_the_limit_where_they_are_used(tmp_path):
    data = small()
    data["context"]["spacing"][1] = " ".join(["long"] * 39)
    prompts = written(data, tmp_path / "prompts.json")
    prompts.check_token_limit(Words(40), ["a", "b"])
    with pytest.raises(Fault, match="'a'"):
        prompts.check_token_limit(Words(40), ["a", "b"], context=True)


def test_every_class_is_checked_the_unknown_ones_too(tmp_path):
    data = small()
    data["other_classes"]["negative"] = " ".join(["long"] * 39)
    prompts = written(data, tmp_path / "prompts.json")
    prompts.check_token_limit(Words(40), ["a", "b"])
    with pytest.raises(Fault, match="'c'"):
        prompts.check_token_limit(Words(40), ["a", "b", "c"])


# ------------------------------------------------------------------ the file's form

@pytest.mark.parametrize(("change", "what"), [
    (lambda data: data.update(schema="lungkit.prompts/2"), "lungkit.prompts/1"),
    (lambda data: data.update(stain=[]), "'stain'"),
    (lambda data: data.update(magnification="20x"), "'magnification'"),
    (lambda data: data["classes"]["b"].pop("negative"), "'b' needs"),
    (lambda data: data["classes"]["b"].update(negative=["no"]), "'b' needs"),
    (lambda data: data["classes"]["b"].update(templates=[]), "'b' needs"),
    (lambda data: data["classes"]["b"].update(cytology=[]), "'cytology'"),
    (lambda data: data["classes"]["b"].update(architecture=["glands", 7]), "'architecture'"),
    (lambda data: data["classes"]["b"].update(stain="H&E"), "'stain'"),
    (lambda data: data["classes"]["b"].pop("nuclei"), "nuclei, which nothing fills"),
    (lambda data: data["other_classes"]["templates"].append("{nuclei}"), "other_classes.*nuclei"),
    (lambda data: data["other_classes"].pop("negative"), "'other_classes' needs"),
    (lambda data: data["context"].update(template="{prompt}, {number}"), "context.*number"),
    (lambda data: data["context"].pop("template"), "'context' needs a template"),
    (lambda data: data["context"].update(size=["small", "large"]), "4 texts"),
    (lambda data: data["context"]["size"].append("huge"), "4 texts"),
    (lambda data: data["context"].pop("spacing"), "4 texts"),
])
def test_a_file_of_another_form_is_refused_by_name(change, what, tmp_path):
    data = small()
    change(data)
    with pytest.raises(Fault, match=what):
        written(data, tmp_path / "prompts.json")


# ------------------------------------------------------------------ the file shipped

def test_every_caption_shipped_names_its_class_and_no_other():
    prompts = Prompts()
    names = {label: prompts.data["classes"][label]["name"] for label in CLASSES}
    assert len(set(names.values())) == len(CLASSES) == len(prompts.data["classes"])
    for label in CLASSES:
        for caption in captions_of(prompts, label, 60):
            assert [other for other in CLASSES if names[other] in caption] == [label]


def test_no_class_is_steered_away_from_what_its_own_captions_ask_for():
    for label, entry in Prompts(PROMPTS_PATH).data["classes"].items():
        asked = " | ".join(text for slot in SLOTS[2:] for text in entry[slot])
        assert not [part for part in entry["negative"].split(", ") if part in asked], label


def test_the_classes_share_no_words_of_architecture_nuclei_or_cytology():
    classes = Prompts().data["classes"]
    for slot in SLOTS[2:]:
        texts = [text for entry in classes.values() for text in entry[slot]]
        assert len(texts) == len(set(texts))


def test_the_context_words_shipped_rise_with_what_they_measure():
    context = Prompts().data["context"]
    assert context["count"] == ["very few", "few", "many", "very many"]
    assert context["size"] == ["tiny", "small", "medium sized", "large"]
    assert context["spacing"] == ["packed", "closely spaced", "loosely spaced", "far apart"]


# ------------------------------------------------------------------ CT

CT = {"modality": "ct"}


def test_captions_of_ct_name_their_class_alone_and_are_steered_from_nothing_they_ask_for():
    words = Prompts(CT_PROMPTS_PATH)
    classes = words.data["classes"]
    names = {label: entry["name"] for label, entry in classes.items()}
    assert len(set(names.values())) == len(names) == 13
    for label, entry in classes.items():
        for caption in captions_of(words, label, 40):
            assert [other for other in names if names[other] in caption] == [label]
        asked = " | ".join(text for slot in ("size", "density", "margin", "surroundings")
                           for text in entry.get(slot, []))
        assert not [part for part in entry["negative"].split(", ") if part in asked], label


@pytest.mark.parametrize(("parameters", "view"), [
    ({"view": "slice"}, "slice"), ({"view": "crop"}, "crop"), ({}, "crop"), (None, "crop")])
def test_captions_of_ct_say_what_view_the_images_show(parameters, view):
    words = prompts_for(None, {**CT, "parameters": parameters})
    texts, other = (words.data["view"][each] for each in
                    (view, "slice" if view == "crop" else "crop"))
    for caption in captions_of(words, "benign", 60):
        assert any(text in caption for text in texts)
        assert not any(text in caption for text in other)


def test_a_letter_of_lung_pet_ct_dx_is_its_histology():
    words = Prompts(CT_PROMPTS_PATH)
    for letter, label in (("A", "adenocarcinoma"), ("G", "squamous_cell_carcinoma")):
        assert captions_of(words, letter) == captions_of(words, label)
    assert any("nodule of a kind" in text for text in captions_of(words, "nodule_of_a_kind"))


@pytest.mark.parametrize(("change", "what"), [
    (lambda data: data.update(modality="mri"), "'modality' is 'mri' and not one of he, ct"),
    (lambda data: data.update(modality=["ct"]), "'modality'"),
    (lambda data: data.update(modality="he"), "'stain'"),
    (lambda data: data.update(view=["crop"]), "'view' needs lists of texts for crop and slice"),
    (lambda data: data["view"].pop("slice"), "'view'"),
    (lambda data: data["view"].update(crop=[]), "'view'"),
    (lambda data: data.pop("window"), "'window'"),
    (lambda data: data.update(aliases={"A": "glioma"}), "'aliases'"),
    (lambda data: data["classes"]["benign"].pop("margin"), "margin, which nothing fills"),
    (lambda data: data["classes"]["benign"].update(size="small"), "'size'")])
def test_a_ct_file_of_another_form_is_refused_by_name(change, what, tmp_path):
    data = json.loads(CT_PROMPTS_PATH.read_text())
    change(data)
    with pytest.raises(Fault, match=what):
        written(data, tmp_path / "prompts.json")
