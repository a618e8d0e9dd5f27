"""The best adapter of a run so far: by validation accuracy, not the last one."""

import torch


class Best:
    """Measures the model when asked and keeps its trainable tensors whenever it got better.

    measure: returns an `rlm.evaluation.Evaluation` of the model as it is now.
    """

    def __init__(self, model, measure):
        self.model, self.measure = model, measure
        self.evaluation, self.step, self._tensors = None, 0, []

    def offer(self, step: int) -> float:
        """Return the accuracy of the model now, after `step` steps; a tie keeps the earlier one."""
        evaluation = self.measure()
        accuracy = evaluation.summary["accuracy"]
        if self.evaluation is None or accuracy > self.evaluation.summary["accuracy"]:
            self.evaluation, self.step = evaluation, step
            self._tensors = [p.detach().clone() for p in self._trained()]
        return accuracy

    def restore(self) -> None:
        """Put the best tensors back into the model, bit for bit."""
        with torch.no_grad():
            for parameter, kept in zip(self._trained(), self._tensors, strict=True):
                parameter.copy_(kept)

    def _trained(self) -> list[torch.Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]
