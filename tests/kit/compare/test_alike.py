"""Warnings that differ in a few words, as one line that can be read."""

from __future__ import annotations

import pytest

from lungkit.compare.alike import one_line

COLOUR = ("without any shape the class is told by mean colour 0.84 ({}), brightness 0.87; "
          "guessing scores 0.33")


@pytest.mark.parametrize(("texts", "line"), [
    ([COLOUR.format("0.82-0.87"), COLOUR.format("0.81-0.87"), COLOUR.format("0.82-0.87")],
     "without any shape the class is told by mean colour 0.84 (0.82-0.87) or (0.81-0.87), "
     "brightness 0.87; guessing scores 0.33"),
    (["5 % of gan are copies", "9 % of vae are copies"], "5 % of gan, 9 % of vae are copies"),
    (["class a has 5 groups only", "class a has 6 groups only"],
     "class a has 5 or 6 groups only"),
    (["in a: few groups", "in b: few groups"], "in a, b: few groups"),
    (["the same words twice.", "the same words twice."], "the same words twice.")])
def test_what_differs_is_said_once_each_and_its_mark_once(texts, line):
    assert one_line(texts) == line
