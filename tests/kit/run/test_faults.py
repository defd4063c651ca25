"""Faults in words."""

from __future__ import annotations

import pytest

from lungkit.run.faults import several


@pytest.mark.parametrize(("count", "most", "text"), [
    (1, 5, "a"), (5, 5, "a; b; c; d; e"), (6, 5, "a; b; c; d; e; and 1 more"),
    (8, 5, "a; b; c; d; e; and 3 more"), (3, 1, "a; and 2 more")])
def test_several_faults_are_the_first_ones_and_how_many_more(count, most, text):
    assert several(list("abcdefgh")[:count], most) == text
    assert most != 5 or several(list("abcdefgh")[:count]) == text
