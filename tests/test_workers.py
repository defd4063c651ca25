"""The map over processes: the order of map, a bounded look-ahead, errors passed on."""

from __future__ import annotations

import pytest

from lungkit.workers import AHEAD, mapper


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    with mapper(workers) as mapped:
        assert list(mapped(abs, range(-50, 0), chunk=3)) == list(range(50, 0, -1))
        assert list(mapped(str, iter(range(100)))) == [str(number) for number in range(100)]
        assert list(mapped(abs, [-1])) == [1] and list(mapped(abs, [])) == []


def test_no_more_is_begun_than_can_wait():
    begun = []

    def items():
        for number in range(100):
            begun.append(number)
            yield number

    with mapper(2) as mapped:
        results = mapped(abs, items(), chunk=2)
        next(results)
        assert len(begun) <= AHEAD * 2 * 2 + 2 < 100
        assert len(list(results)) == 99


def test_an_error_of_a_worker_reaches_the_caller():
    with mapper(2) as mapped, pytest.raises(ValueError, match="invalid literal"):
        list(mapped(int, ["1"] * 12 + ["x"] * 8))
