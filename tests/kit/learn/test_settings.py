"""The table of what may be chosen of a training, and the files that are checked by it."""

from __future__ import annotations

import json
import re

import pytest

from lungkit.learn import settings
from lungkit.run.faults import Fault


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_every_default_and_all_that_is_searched_is_allowed():
    for name, each in settings.SETTINGS.items():
        assert name == each.name
        assert [each.fault(value) for value in (each.default, *each.searched)] == [
            None] * (1 + len(each.searched))


def test_settings_are_read_as_they_stand(tmp_path):
    found = {"model": "small", "batch_size": 16, "dropout": 0, "weights": None}
    path = write(tmp_path / "best.json", {"settings": found, "score": 0.5})
    assert settings.read_settings(path) == found


@pytest.mark.parametrize(("content", "words"), [
    (None, "is not a file"),
    ("{", "is not JSON"),
    ({"batch_size": 8}, 'no "settings" object'),
    ({"settings": [1]}, 'no "settings" object'),
    ({"settings": {"batchsize": 8}}, "no setting 'batchsize'"),
    ({"settings": {"batch_size": 8.5}}, "batch_size 8.5 is not a whole number"),
    ({"settings": {"batch_size": True}}, "batch_size True is not a whole number"),
    ({"settings": {"batch_size": 1}}, "batch_size 1 is not in 2 to inf"),
    ({"settings": {"dropout": None}}, "dropout None is not a number"),
    ({"settings": {"optimizer": "lion"}}, "optimizer 'lion' is not one of adamw, adam, sgd"),
    ({"settings": {"model": "vgg", "dropout": 2}}, "model 'vgg' .*; dropout 2 is not in 0 to 0.9"),
])
def test_a_file_of_anything_else_is_refused_with_all_that_is_wrong(tmp_path, content, words):
    path = tmp_path / "best.json"
    if content is not None:
        write(path, content)
    with pytest.raises(Fault) as error:
        settings.read_settings(path)
    assert re.search(words, str(error.value)) and "best.json" in str(error.value)
