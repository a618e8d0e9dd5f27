"""A write that fails leaves the old file; seeds are spread."""

import os
import random

import pytest

from rlm import files
from rlm.seeds import derive


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_csv_takes_columns_that_appear_late(tmp_path):
    path = files.write_csv(tmp_path / "a.csv", [{"a": 1}, {"a": 'x,"y"\n', "b": 2}])
    assert path.read_text() == 'a,b\n1,\n"x,""y""\n",2\n'


def test_neighbouring_seeds_share_nothing():
    first = [random.Random(derive("task", i)).random() for i in range(1000)]
    assert len(set(first)) == 1000
    # mean of 1,000 uniforms: standard error 0.009; six of them is below one in 5e8
    assert abs(sum(first) / 1000 - 0.5) < 0.055
