"""log.csv holds every row at once."""

import csv

import pytest

from rlm.run.log import CsvLog


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_on_disk_when_log_returns(tmp_path):
    tracker = CsvLog(tmp_path / "runs" / "log.csv")
    tracker.log({"step": 1, "reward": 0.5})
    tracker.log({"step": 2, "reward": 0.25})
    # Not closed: another process, or a crash, must see both.
    text = (tmp_path / "runs" / "log.csv").read_text()
    assert text == "step,reward\n1,0.5\n2,0.25\n"


def test_a_new_column_is_added_to_earlier_rows_and_later_ones_go_on(tmp_path):
    path = tmp_path / "log.csv"
    with CsvLog(path) as tracker:
        tracker.log({"step": 1, "reward": 0.5})
        tracker.log({"step": 2, "accuracy": 0.75})
        tracker.log({"reward": 1.0, "step": 3})
    assert path.read_text() == "step,reward,accuracy\n1,0.5,\n2,,0.75\n3,1.0,\n"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]  # no temporary file is left


def test_a_crash_while_columns_are_added_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    tracker = CsvLog(path)
    tracker.log({"step": 1})

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        tracker.log({"step": 2, "accuracy": 0.5})
    assert path.read_text() == "step\n1\n"


def test_rows_that_are_there_are_gone_on_from(tmp_path):
    path = tmp_path / "log.csv"
    for step in (1, 2):
        with CsvLog(path) as tracker:
            tracker.log({"step": step, "text": 'a "b",\nc'})
    assert rows_of(path) == [{"step": str(s), "text": 'a "b",\nc'} for s in (1, 2)]


def test_close_twice_is_fine(tmp_path):
    tracker = CsvLog(tmp_path / "log.csv")
    tracker.log({"step": 1})
    tracker.close()
    tracker.close()
