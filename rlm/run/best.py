"""The weights of a run that are kept, a LoRA's or all of them: by validation accuracy.

The highest of several measurements is high by luck, too, and more so the fewer the questions: so
later weights, which have learned more, are given up only for a fall that is more than the noise of
a measurement: one standard error, as in the rule that takes the simplest model within one (Hastie
et al. 2009, The Elements of Statistical Learning, section 7.10). Without a validation the last are
kept.
"""

import logging
import time
from typing import Any

import torch

from rlm.evaluation.measure import Evaluation
from rlm.evaluation.statistics import standard_error

logger = logging.getLogger("rlm")


class BestAdapter:
    """Measures the model when asked; keeps its trainable tensors unless it got worse.

    evaluation, step: of what is kept. highest: the highest accuracy that was measured.

    measure: returns an `rlm.evaluation.measure.Evaluation` of the model as it is now, None where
        there are no questions to measure it by: then the latest is kept.
    """

    def __init__(self, model, measure):
        self.model, self.measure = model, measure
        self.evaluation: Any = None
        self.highest = 0.0
        self.step, self._tensors = 0, list[torch.Tensor]()
        self.seconds = 0.0  # what the latest measurement took

    def offer(self, step: int) -> float | None:
        """Return the accuracy of the model now, after `step` steps; None without a validation."""
        began = time.perf_counter()
        evaluation = self.measure()
        self.seconds = time.perf_counter() - began
        accuracy = evaluation.summary["accuracy"] if evaluation else None
        self.highest = max(self.highest, accuracy or 0.0)
        if accuracy is None or not self._below(accuracy, evaluation.summary["questions"], 1):
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
        state = {"step": self.step, "evaluation": known, "highest": self.highest}
        return state | {"tensors": self._tensors}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned."""
        known = state["evaluation"]
        self.step, self.evaluation = state["step"], known and Evaluation(**known)
        self.highest = state.get("highest", known["summary"]["accuracy"] if known else 0.0)
        self._tensors = state["tensors"]

    def fell(self, accuracy: float | None) -> bool:
        """Return whether an accuracy lies more than twice its standard error below the highest."""
        if accuracy is None or not self._below(accuracy, self.evaluation.summary["questions"], 2):
            return False
        text = "validation %.3f: fell from %.3f by over two errors"
        logger.warning(text, accuracy, self.highest)
        return True

    def _below(self, accuracy: float, questions: int, errors: int) -> bool:
        """Return whether an accuracy lies over so many standard errors of it below the highest."""
        return accuracy < self.highest - errors * standard_error(accuracy, questions)

    def _trained(self) -> list[torch.Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]
