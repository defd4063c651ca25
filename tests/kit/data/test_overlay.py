"""The sheet of outlines."""

from __future__ import annotations

import numpy as np

from lungkit.data import overlay


def test_true_is_green_and_found_red_each_in_its_place():
    true, found = np.zeros((2, 48, 48), bool)
    true[4:12, 4:12] = found[30:40, 30:40] = True
    picture = overlay.sheet([overlay.Shown(np.full((48, 48, 1), 90, np.uint8), true, found, "x")])
    for mask, colour in ((true, overlay.TRUE), (found, overlay.FOUND)):
        rows, columns = np.nonzero((picture == colour).all(-1))
        at = np.stack([rows, columns]) / overlay.SIDE_PX * 48
        inside = np.argwhere(mask)
        assert len(rows) and (at.min(1) >= inside.min(0) - 0.5).all()
        assert (at.max(1) <= inside.max(0) + 1).all()
    assert (picture[overlay.SIDE_PX // 2, 2] == 90).all()


def test_no_picture_is_left_out_and_few_are_spread_over_many():
    blank = overlay.Shown(np.zeros((8, 8, 3), np.uint8), *np.zeros((2, 8, 8), bool), "")
    picture = overlay.sheet([blank] * 5)
    step = overlay.SIDE_PX + 20
    assert (picture[10::step, 10] == 0).all() and len(picture[10::step]) == 2
    assert overlay.spread(list(range(100)), 3) == [0, 50, 99]
    assert overlay.spread([7, 9], 12) == [7, 9]
