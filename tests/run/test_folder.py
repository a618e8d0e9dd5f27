"""A run's folder: its rows, its console, its bar, and what it leaves behind."""

import csv
import io
import json
import logging
import sys

import pytest

from rlm.evaluation.measure import Evaluation
from rlm.run.folder import Run

SUMMARY = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "format_rate": 0.9,
           "accuracy_lenient": 0.7, "accuracy_lenient_low": 0.6,
           "accuracy_lenient_high": 0.8}  # fmt: skip


@pytest.fixture(autouse=True)
def told():
    logger = logging.getLogger("rlm")
    before = logger.level
    logger.setLevel("INFO")
    yield
    logger.setLevel(before)


class Recorder:
    """Stands for the trackers of a run."""

    def __init__(self):
        self.rows, self.tables = [], []

    def log(self, row):
        self.rows.append(row)

    def table(self, name, rows, step):
        self.tables.append((name, step, rows))

    def close(self):
        pass


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "x", {"run": "x", "max_steps": 3})
    made._trackers = Recorder()
    yield made
    made.close()


def rows(run):
    with open(run.path / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_validation_is_in_the_row_that_has_its_accuracy(run):
    run.measured(SUMMARY)
    run.log({"step": 1, "loss": 0.5})
    run.log({"step": 2, "loss": 0.25, "validation_accuracy": 0.5})
    first, second = rows(run)
    assert first["validation_format_rate"] == "" and second["validation_format_rate"] == "0.9"
    assert (second["validation_accuracy_low"], second["validation_accuracy_high"]) == ("0.4", "0.6")
    assert first["validation_accuracy_lenient"] == ""
    lenient = [second[f"validation_accuracy_lenient{end}"] for end in ("", "_low", "_high")]
    assert lenient == ["0.7", "0.6", "0.8"]
    assert run._trackers.rows[1]["validation_format_rate"] == 0.9, "the trackers have the same"


def test_samples_go_to_the_trackers_with_a_validation_and_with_an_evaluation(run):
    record = {"question": "1 + 2?", "gold": "3", "text": "3", "reward": 1.0, "advantage": 0.5,
              "reason": None, "finish": "stop", "logprobs": [0]}  # fmt: skip
    run.measured(SUMMARY)
    run.log({"step": 1})
    run.write_rollouts([record] * 99)
    run.log({"step": 2, "validation_accuracy": 0.5})
    run.write_rollouts([record] * 99)
    ((name, step, table),) = run._trackers.tables
    assert (name, step, len(table)) == ("rollouts", 2, 16) and "logprobs" not in table[0]
    assert len((run.path / "rollouts.jsonl").read_text().splitlines()) == 198
    row = {"id": 1, "prompt": "1 + 2?", "reasoning": "", "answer": "3", "gold": "3",
           "verdict": "right", "reason": "", "last_number": True}  # fmt: skip
    run.write_evaluation("validation", Evaluation("x", [row] * 99, SUMMARY))
    name, step, table = run._trackers.tables[1]
    assert (name, step, len(table)) == ("validation", 2, 16) and "id" not in table[0]


def test_lines_are_plain_where_there_is_no_terminal(tmp_path, caplog):
    run = Run(tmp_path / "x", {"max_steps": 3})
    run.log({"step": 1, "loss": 0.5, "kl": 1.0})
    run.close()
    assert caplog.messages == ["step 1: loss 0.5"]
    assert (run.path / "console.log").read_text() == "step 1: loss 0.5\n"


def test_a_terminal_has_the_bar_and_console_log_the_lines(tmp_path, caplog, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    run = Run(tmp_path / "x", {"max_steps": 3})
    run.log({"step": 2, "loss": 0.5})
    run.info("adapter saved")
    run.close()
    assert "step 2/3" in terminal.getvalue() and caplog.messages == ["adapter saved"]
    assert (run.path / "console.log").read_text() == "step 2: loss 0.5\nadapter saved\n"


def test_close_writes_the_report_and_a_full_disk_is_a_warning(run, caplog, monkeypatch):
    run.log({"step": 1, "reward_mean": 0.5})
    run.close()
    assert "it ended at step 1 of 3" in (run.path / "report.html").read_text()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("rlm.report.report.write", full)
    run.close()
    assert caplog.messages[-1] == "warning: no report.html: no space left"


def test_an_earlier_run_of_the_name_is_kept(tmp_path):
    for seed in (0, 1):
        Run(tmp_path / "x", {"seed": seed}).close()
    assert json.loads((tmp_path / "x" / "settings.json").read_text()) == {"seed": 1}
    assert json.loads((tmp_path / "x.1" / "settings.json").read_text()) == {"seed": 0}
