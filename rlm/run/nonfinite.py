"""Batches whose loss or gradient is not finite: left out, counted, kept to be looked at.

It does not know what a batch is: only what is to be written of it.
"""

import json
import logging
import math
from pathlib import Path

from rlm import files
from rlm.errors import RunError
from rlm.parallel import world

logger = logging.getLogger("rlm")

IN_A_ROW = 5  # so many end the run
KEPT = 20  # files; a run that goes on skipping must not fill the disk


class NonFiniteGuard:
    """folder: of the run; what is skipped is kept in its `skipped/`. limit: so many in a row."""

    def __init__(self, folder: Path, limit: int = IN_A_ROW):
        self.folder, self.limit = Path(folder) / "skipped", limit
        self.skipped, self.in_a_row = 0, 0

    def passed(self, step: int, metrics: dict[str, float], batch) -> bool:
        """Return whether all metrics are finite; if not, keep the batch and count it.

        No metrics: there was nothing to learn, which says nothing about the others in the row.
        batch: called for what JSON can hold of it, when it is needed; the first process writes.
        """
        wrong = {name: str(x) for name, x in metrics.items() if not math.isfinite(x)}
        if not wrong:
            self.in_a_row = 0 if metrics else self.in_a_row
            return True
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        told = ", ".join(f"{name} {value}" for name, value in wrong.items())
        place = self.folder / f"step-{step:06d}.json"
        if self.skipped <= KEPT and world().first:
            content = {"step": step, "not_finite": wrong, "batch": batch()}
            files.write_text(place, json.dumps(content, indent=1))
        logger.warning(
            "step %d: %s; its update was left out, the batch is in %s", step, told, place
        )
        return False

    @property
    def gave_up(self) -> bool:
        """True once so many steps in a row were left out that there is no use in going on."""
        return self.in_a_row >= self.limit

    def check(self) -> None:
        """RunError if the run was given up; call it when what is good of it has been saved."""
        if self.gave_up:
            raise RunError(
                f"{self.in_a_row} steps in a row had no finite gradient, so training ended; the "
                "best adapter from before is saved. Use a smaller --learning-rate, or --dtype "
                f"float32, and see {self.folder}"
            )

    def state(self) -> dict:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict) -> None:
        """Go on counting where `state` was taken."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
