"""The best weights of a run so far, a LoRA's or all of them: by validation accuracy.

Without a validation they are the last ones.
"""

import logging
import time
from typing import Any

import torch

from rlm.evaluation.measure import Evaluation
from rlm.evaluation.statistics import standard_error

logger = logging.getLogger("rlm")


class BestAdapter:
    """Measures the model when asked and keeps its trainable tensors whenever it got better.

    measure: returns an `rlm.evaluation.measure.Evaluation` of the model as it is now, None where
        there are no questions to measure it by: then the latest is kept.
    """

    def __init__(self, model, measure):
        self.model, self.measure = model, measure
        self.evaluation: Any = None
        self.step, self._tensors = 0, list[torch.Tensor]()
        self.seconds = 0.0  # what the latest measurement took

    def offer(self, step: int) -> float | None:
        """Return the accuracy of the model now, after `step` steps; a tie keeps the earlier one.

        None without a validation.
        """
        began = time.perf_counter()
        evaluation = self.measure()
        self.seconds = time.perf_counter() - began
        accuracy = evaluation.summary["accuracy"] if evaluation else None
        best = self.evaluation.summary["accuracy"] if self.evaluation else None
        if accuracy is None or best is None or accuracy > best:
            self.evaluation, self.step = evaluation, step
            # In the CPU's memory: of a whole model it is a copy of all weights.
            self._tensors = [p.detach().to("cpu", copy=True) for p in self._trained()]
        return accuracy

    def row(self, step: int) -> dict:
        """Return what `offer` found, for the log; empty without a validation."""
        accuracy = self.offer(step)
        return {} if accuracy is None else {"validation_accuracy": accuracy}

    def put_back(self) -> None:
        """Put the best tensors back into the model, bit for bit."""
        with torch.no_grad():
            for parameter, kept in zip(self._trained(), self._tensors, strict=True):
                parameter.copy_(kept)

    def state(self) -> dict:
        """Return what is known of the best, for a checkpoint."""
        found = self.evaluation
        known = found and {"name": found.name, "rows": found.rows, "summary": found.summary}
        return {"step": self.step, "evaluation": known, "tensors": self._tensors}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned."""
        known = state["evaluation"]
        self.step, self.evaluation = state["step"], known and Evaluation(**known)
        self._tensors = state["tensors"]

    def fell(self, accuracy: float | None) -> bool:
        """Return whether an accuracy lies more than twice its standard error below the best."""
        if accuracy is None:
            return False
        best = self.evaluation.summary["accuracy"]
        bound = best - 2 * standard_error(accuracy, self.evaluation.summary["questions"])
        if accuracy < bound:
            logger.warning("validation %.3f: fell from %.3f by over two errors", accuracy, best)
        return accuracy < bound

    def _trained(self) -> list[torch.Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]
