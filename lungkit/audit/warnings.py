"""The confounding report in words: what could make an accuracy mean less than it seems."""

from __future__ import annotations

FEW_GROUPS = 10      # ours: below it a test split holds one or two patients
FEW_EFFECTIVE = 5    # ours: as few, when groups are counted by how evenly they share the images
FEW_IN_TRAIN = 3     # ours: one or two specimens are no sample of a class
DOMINATED = 0.5      # ours: more than half of a class from one group or one source ...
SOURCE_EXCESS = 0.25 # ours: ... which gives so much less of the other classes
TOLD = 0.2           # ours: balanced accuracy so far above guessing asks for an answer
SIGNIFICANT = 0.05   # by convention
RULER = "nodule size"  # a family that is biology: it is not a fault, but the mark to beat


def confounding_warnings(report: dict) -> list[str]:
    """What could make an accuracy mean less than it seems: 'name: sentence', names are stable."""
    return [*_warn_of_groups(report), *_warn_of_sources(report), *_warn_of_statistics(report)]


def _warn_of_groups(report: dict):
    given = set(report["groups_given"].split("+"))
    if not given & {"csv", "regex", "auto"}:
        yield ("no groups given: No group ids were given, so each file is its own group: images of "
               "one patient, or augmented copies, may lie on both sides of a split and inflate "
               "every accuracy.")
    elif not given & {"csv", "regex"}:
        yield ("groups found only: No group ids were given; copies of one image were found and "
               "kept together, but different images of one patient may lie on both sides of a "
               "split: the accuracies are upper bounds.")
    elif report["groups"] == report["images"]:
        yield ("one image per group: The groups given hold one image each, so they group nothing: "
               "if a patient or slide gave several images, name it as the group.")
    for label, found in report["classes"].items():
        if found["largest_images"] > DOMINATED * found["images"]:
            yield (f"one group dominates: {found['largest_images']} of {found['images']} images of "
                   f"{label!r} come from one group ({found['largest_group']!r}): telling this "
                   "class may mean telling this specimen.")
        if found["groups"] < FEW_GROUPS:
            yield (f"few groups: {label!r} has {found['groups']} groups only: its test split says "
                   "little about the next patient.")
        elif found["effective_groups"] < FEW_EFFECTIVE:
            yield (f"few groups: {label!r} has {found['groups']} groups, but so uneven ones that "
                   f"they count for {found['effective_groups']:g}: its test split says little "
                   "about the next patient.")
        in_train = found["groups_by_split"]["train"]
        if in_train < min(FEW_IN_TRAIN, found["groups"] - 2):
            yield (f"few groups in train: {label!r} has {found['groups']} groups, {in_train} of "
                   "them in train: what is learnt of it may be one specimen.")
    twice = report["identical_with_other_label"]
    if twice:
        yield (f"identical images with different labels: {len(twice)} images lie, byte for byte, "
               f"in more than one class folder ({' = '.join(map(repr, twice[0]))}): one of their "
               "labels is wrong.")


def _warn_of_sources(report: dict):
    for kind, classes in report["sources"].items():
        for label, found in classes.items():
            if found["share"] > DOMINATED \
                    and found["share"] - found["share_of_others"] > SOURCE_EXCESS:
                yield (f"one source dominates: {found['share']:.0%} of {label!r} has the {kind} "
                       f"{found['commonest']!r}, but {found['share_of_others']:.0%} of the other "
                       "classes: telling this class may mean telling this source.")


def _warn_of_statistics(report: dict):
    trivial = report["trivial"]
    told = {name: found for name, found in trivial["families"].items()
            if not found["constant"] and found["p"] <= SIGNIFICANT
            and found["balanced_accuracy"] > trivial["guessing"] + TOLD}
    if (ruler := told.pop(RULER, None)) is not None:
        yield (f"size tells the class: Diameter and area alone tell the class of nodules of unseen "
               f"groups by {figure_words(ruler)}; guessing scores {trivial['guessing']:.2f}. A "
               "network, or a generator that was given the nodule's outline, shows more than size "
               "only where it scores more.")
    if not told:
        return
    figures = ", ".join(f"{name} {figure_words(found)}" for name, found in told.items())
    best = max(found["balanced_accuracy"] for found in told.values())
    acquired = ("Image size and file type are not biology: the classes were acquired differently. "
                if {"image size", "file type"} & set(told) else "")
    colour = ("Colour is biology in part (eosinophilia, nuclear density) and stain or scanner in "
              "part; it is measured before stain normalisation unless said. "
              if "mean colour" in trivial["families"] else "")
    yield ("trivial statistics predict the class: Without any shape, the class of images of unseen "
           f"groups is told by {figures}; guessing scores {trivial['guessing']:.2f}. {acquired}"
           f"{colour}A network that scores no better than {best:.2f} need not have learnt any "
           "morphology.")


def figure_words(found: dict) -> str:
    low, high = found["interval_95"]
    return f"{found['balanced_accuracy']:.2f} ({low:.2f}-{high:.2f})"


def describe_confounding(report: dict) -> str:
    """The report in words, a few lines."""
    lines = [f"{report['images']} images of {report['groups']} groups, {report['groups_given']}"]
    for label, found in report["classes"].items():
        by_split = ", ".join(f"{split} {n}" for split, n in found["groups_by_split"].items())
        lines.append(f"  {label}: {found['images']} images, {found['groups']} groups ({by_split}), "
                     f"as good as {found['effective_groups']:g} even ones; the largest, "
                     f"{found['largest_group']!r}, has {found['largest_images']}")
    trivial = report["trivial"]
    lines.append("the class told without any shape, balanced accuracy (95 % interval over groups), "
                 f"guessing {trivial['guessing']:.2f}:")
    for name, found in trivial["families"].items():
        lines.append(f"  {name}: " + ("the same in all images" if found["constant"] else
                                      f"{figure_words(found)}, p {found['p']:g}"))
    return "\n".join(lines + [f"warning: {text}" for text in confounding_warnings(report)])
