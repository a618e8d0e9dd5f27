"""The bar on a terminal: its figures by hand; nothing where the output is no terminal."""

import contextlib
import io
import logging
import os
import pty
import subprocess
import sys

import pytest

from rlm.run.progress import AboveBar, ProgressBar
from tests.support.running import ROOT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def told():
    logger = logging.getLogger("rlm")
    before = logger.level
    logger.setLevel("INFO")
    yield logger
    logger.setLevel(before)


def test_a_bar_has_step_time_left_reward_accuracy_live_groups_and_speed(monkeypatch):
    stream = Terminal()
    bar = ProgressBar(10, stream)
    now = [100.0]
    monkeypatch.setattr(bar._bar, "_time", lambda: now[0])
    bar.show({"step": 1, "reward_mean": 0.25, "live_fraction": 0.5, "loss": -0.1})
    now[0] = 102.0
    bar.show({"step": 2, "reward_mean": 0.5, "live_fraction": 0.75, "validation_accuracy": 0.6})
    now[0] = 106.0
    bar.show({"step": 3, "reward_mean": 0.75, "live_fraction": 1.0, "tokens_per_second": 1234.4})
    text = stream.getvalue().rpartition("\r")[2]
    # Two steps in six seconds, counted from the first one: seven more take 21.
    assert "step 3/10" in text and "00:06<00:21" in text
    # The accuracy is that of the last validation; a loss says nothing beside a reward.
    assert "reward 0.750, accuracy 0.600, live 100%, tokens/s 1234" in text
    assert "loss" not in text
    bar.close()
    bar.close()


def test_without_rewards_the_bar_has_the_loss_and_learns_its_length_late():
    stream = Terminal()
    bar = ProgressBar(None, stream)
    bar.expect(20)
    bar.show({"step": 5, "loss": 0.123456})
    assert "step 5/20" in stream.getvalue() and "loss 0.123" in stream.getvalue()


def test_there_is_no_bar_in_a_file_and_none_with_quiet(told):
    stream = io.StringIO()
    bar = ProgressBar(10, stream)
    bar.show({"step": 1, "loss": 1.0})
    assert not bar.shown and stream.getvalue() == ""
    told.setLevel("WARNING")
    terminal = Terminal()
    bar = ProgressBar(10, terminal)
    bar.show({"step": 1, "loss": 1.0})
    assert not bar.shown and terminal.getvalue() == ""


def test_a_line_of_the_log_stands_on_its_own_above_the_bar():
    stream = Terminal()
    bar = ProgressBar(10, stream)
    bar.show({"step": 1, "loss": 1.0})
    AboveBar(stream).emit(logging.makeLogRecord({"msg": "adapter saved"}))
    before, _, after = stream.getvalue().partition("adapter saved\n")
    assert before.endswith("\r"), "the bar's line is empty when the line is written"
    assert "step 1/10" in after, "and drawn again below it"
    bar.close()


def test_a_terminal_that_says_it_has_no_size_has_a_bar_too():
    mine, its = pty.openpty()  # of 0 lines and 0 columns, as in some containers
    code = (
        "import logging; logging.getLogger('rlm').setLevel('INFO')\n"
        "from rlm.run.progress import ProgressBar; ProgressBar(10).show({'step': 1, 'loss': 0.5})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=its, check=True)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal that nobody has open any more
        while more := os.read(mine, 4096):
            shown += more
    os.close(mine)
    assert b"step 1/10" in shown and b"loss 0.5" in shown
