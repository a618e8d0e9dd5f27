"""How far a run is: a bar with the last metrics where a person watches, nothing elsewhere.

A bar is shown on a terminal, if lines of the level info are shown at all; `AboveBar` keeps lines
of the log apart from it. It does not know what is trained.
"""

import logging
import os
import sys

from tqdm import tqdm

logger = logging.getLogger("rlm")

# column of log.csv -> (what the bar calls it, how it writes it)
FIGURES = {
    "loss": ("loss", "{:.3g}"),
    "reward_mean": ("reward", "{:.3f}"),
    "validation_accuracy": ("accuracy", "{:.3f}"),
    "live_fraction": ("live", "{:.0%}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
}
# Where there are rewards, the loss of a step says nothing.
HIDDEN = {"reward_mean": "loss"}


class AboveBar(logging.StreamHandler):
    """Writes log lines to stderr; a bar that is shown there is drawn again below them."""

    def emit(self, record):
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class ProgressBar:
    """A bar of `total` steps, None if that is not known yet; `shown` says whether there is one.

    stream: where it is drawn, stderr by default; only on a terminal.
    """

    def __init__(self, total: int | None = None, stream=None):
        stream = stream or sys.stderr
        self.shown = stream.isatty() and logger.isEnabledFor(logging.INFO)
        self._metrics, self._started = dict[str, str](), False
        self._bar = tqdm(
            total=total,
            file=stream,
            disable=not self.shown,
            bar_format="{desc}step {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}",
            leave=False,
            mininterval=0,
            ncols=_columns(stream),
            nrows=100,  # or tqdm hides it where the terminal says that it has no lines
        )

    def expect(self, total: int) -> None:
        """Set how many steps there will be."""
        self._bar.total = total
        self._bar.refresh()

    def show(self, row: dict) -> None:
        """Draw the bar at `row["step"]` with its metrics; one that is missing stays as it was."""
        if not self.shown:
            return
        self._metrics |= {name: row[name] for name in FIGURES if name in row}
        hidden = {HIDDEN[name] for name in HIDDEN if name in self._metrics}
        shown = [(FIGURES[n], self._metrics[n]) for n in FIGURES if n in self._metrics]
        texts = [f"{n} {f.format(v)}" for (n, f), v in shown if n not in hidden]
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        if not self._started:
            # The time left is told by steps alone: what came before them is another thing.
            self._bar.initial = row["step"]
            self._bar.start_t = self._bar.last_print_t = self._bar._time()
            self._started = True
        self._bar.n, self._bar.ncols = row["step"], _columns(self._bar.fp)
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away; a second call does nothing."""
        self._bar.close()


def _columns(stream) -> int:
    """Return the terminal's width; 100 where it says that it has none, as some containers' do."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 100
    except (AttributeError, OSError, ValueError):
        return 100
