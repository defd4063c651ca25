"""Warnings that differ in a few words, as one line. Pure text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

SHARED = 4          # words at both ends, from which two sentences say the same of other things
SHARED_SHARE = 0.2  # of the words of the shorter one
MARKS = ",;.:"
MOST_LETTERS = 240  # of what differs, which one line can hold


def clusters(texts: Sequence[str]) -> list[list[str]]:
    """The texts in their order, those together that begin and end alike."""
    found: list[list[str]] = []
    for text in texts:
        place = next((each for each in found if _are_alike(each[0], text)), None)
        if place is None:
            found.append([text])
        else:
            place.append(text)
    return found


def one_line(texts: Sequence[str]) -> str | None:
    """What the texts share, said once around what they do not; None where that is too much.

    "5 % of gan are copies", "9 % of vae are copies": "5 % of gan, 9 % of vae are copies". Figures
    alone are joined by "or", and the mark that all of them end in is said once:
    "told by colour 0.84, size 0.60", "told by colour 0.85, size 0.60": "colour 0.84 or 0.85, size".
    """
    words = [text.split() for text in texts]
    begin = min(_shared(words[0], other) for other in words)
    end = min(_shared(words[0][begin:][::-1], other[begin:][::-1]) for other in words)
    middles = list(dict.fromkeys(filter(None, (
        " ".join(each[begin:len(each) - end]) for each in words))))
    ends = {each[-1] for each in middles}
    mark = middles[0][-1] if len(middles) > 1 and len(ends) == 1 and ends <= set(MARKS) else ""
    told = any(letter.isalpha() for each in middles for letter in each)
    middle = (", " if told else " or ").join(each.removesuffix(mark) for each in middles) + mark
    if len(middle) > MOST_LETTERS:
        return None
    return " ".join([*words[0][:begin], *filter(None, [middle]), *words[0][len(words[0]) - end:]])


def _are_alike(one: str, other: str) -> bool:
    a, b = one.split(), other.split()
    begin = _shared(a, b)
    shared = begin + _shared(a[begin:][::-1], b[begin:][::-1])
    return shared >= max(SHARED, SHARED_SHARE * min(len(a), len(b)))


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two lists begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))
