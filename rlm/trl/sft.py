"""trl's SFTTrainer with checkpoints of ours, signals, a time budget, and no step of NaN.

The Trainer's own checkpoints are pickles and written in place. This one keeps the same state,
adapter, AdamW, schedule, generators, position in the data, by `rlm.run.checkpoint`.

Demonstrations that are packed into a row go through our own attention: each sees itself alone and
no mask is made, where transformers' sdpa has one of the whole row, squared, and keeps it for the
backward. Families whose attention cannot be replaced keep that.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from transformers import TrainerCallback
from trl import SFTTrainer

from rlm.learner.logprobs import packs
from rlm.learner.packed_groups import PackedGroups
from rlm.models import attention
from rlm.models.adapters import network_of
from rlm.models.memory import wait
from rlm.parallel import world
from rlm.run.checkpoint import open_checkpoint
from rlm.run.nonfinite import NonFiniteGuard
from rlm.run.steps import RandomState, RunState
from rlm.run.stopping import StopSignal
from rlm.run.time_budget import MARGIN, TimeBudget, fitting_steps
from rlm.trl.formats import kept_formats

STATE = "trainer_state.json"  # what the Trainer itself goes on from


class Trainer(SFTTrainer):
    """progress: where its checkpoints go. guard: of the batches. The rest is SFTTrainer's."""

    def __init__(self, *arguments, run_state: RunState, guard: NonFiniteGuard, **options):
        with kept_formats(options["model"]):
            super().__init__(*arguments, **options)
        self._unmasked = self.args.packing and packs(self.model)
        self.run_state, self.guard, self.stopper = run_state, guard, StopSignal()
        self.stopped = 0  # the exit code that a signal to any of the processes asks for
        self.budget: TimeBudget | None = None
        self.reserve = 0.0  # seconds to keep for the end
        self.add_callback(_Ends(self))

    def run(self) -> None:
        """Train from the start, or from a checkpoint; Stopped after a signal, all of it saved."""
        found = self.run_state.found
        if found and found.step >= self._last_step():
            self.run_state.restore()  # all steps are done: transformers would take one more
            return
        with self.stopper, self._attention():
            self.train(resume_from_checkpoint=str(found.path) if found else None)
        if self.stopped:
            world().barrier("the checkpoint of a stopped run")
            raise self.run_state.stopped(self.stopped)

    def _last_step(self) -> int:
        passes = self.args.num_train_epochs * len(self.get_train_dataloader())
        return self.args.max_steps if self.args.max_steps > 0 else math.ceil(passes)

    def fit_into(self, budget: TimeBudget, reserve: Callable[[float], float]) -> int:
        """Measure a step; return how many fit into the budget, which from now on is kept.

        reserve: the seconds to keep for the end, from those of a step.
        """
        with self._attention():
            self._measured_step()  # warms up
            taken = self._measured_step()
        self.budget, self.reserve = budget, MARGIN * reserve(taken)
        return fitting_steps(budget.left(), self.reserve, [taken])

    # What is saved, and put back.

    def _save_checkpoint(self, model, trial) -> None:
        self.state.log_history = []  # log.csv has it
        self.run_state.step, self.run_state.last = self.state.global_step, self.state.max_steps
        self.run_state.parts["trainer"] = _State({
            "adamw": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "tokens": self._total_train_tokens,
        })  # fmt: skip
        text = json.dumps(dataclasses.asdict(self.state))
        self.run_state.save(**{STATE: text})

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        self._saved = open_checkpoint(Path(resume_from_checkpoint)).load()
        for name, part in self.run_state.parts.items():
            part.restore(self._saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        saved = self._saved["trainer"]
        # JSON has turned numbers that are keys into text.
        moments = {int(index): each for index, each in saved["adamw"]["state"].items()}
        self.optimizer.load_state_dict(saved["adamw"] | {"state": moments})
        self.lr_scheduler.load_state_dict(saved["schedule"])
        self._total_train_tokens = saved["tokens"]

    def _load_scaler(self, checkpoint) -> None:
        """Nothing is kept of it: it is there in float16 only, and finds its factor again."""

    def _load_rng_state(self, checkpoint) -> None:
        RandomState().restore(self._saved["random"])

    # Batches that are not finite.

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._inputs = inputs
        loss = super().training_step(model, self._laid_out(inputs), num_items_in_batch)
        self._loss = loss
        return loss

    def _attention(self):
        """Return the context in which the model's attention knows the rows' demonstrations."""
        return attention.use(network_of(self.model)) if self._unmasked else nullcontext()

    def _laid_out(self, inputs: dict) -> dict:
        """Return the inputs with the layout of a packed row, which `_attention` asks for."""
        if not self._unmasked:
            return inputs
        lengths = inputs["cu_seq_lens_q"].diff().tolist()
        layout = PackedGroups(lengths, [], device=inputs["input_ids"].device)
        return inputs | {"layout": layout}

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        metrics = {"loss": sum(world().all_gather(float(self._loss), "the loss"))}
        # In float16 a norm that is not finite is how the scale of the loss is found.
        if self.accelerator.scaler is None:
            metrics["gradient_norm"] = float(norm)
        if not self.guard.passed(self.state.global_step + 1, metrics, self._looked_at):
            for parameter in model.parameters():
                parameter.grad = None  # AdamW leaves out what has no gradient
        return norm

    def _looked_at(self) -> dict:
        return {name: x.tolist() for name, x in self._inputs.items() if hasattr(x, "tolist")}

    def _measured_step(self) -> float:
        """Return the seconds of a forward and backward of the first batch; nothing is changed."""
        kept, inputs = RandomState().state(), next(iter(self.get_train_dataloader()))
        inputs = self._laid_out(inputs)
        self.model.train()
        self.current_gradient_accumulation_steps = 1
        device = inputs["input_ids"].device
        wait(device)
        began = time.monotonic()
        super().training_step(self.model, inputs)
        wait(device)  # a GPU's kernels are only queued until then
        taken = time.monotonic() - began
        self.model.zero_grad()
        self._metrics["train"].clear()
        self._total_train_tokens = 0
        RandomState().restore(kept)
        return taken


class _State:
    """A part that is only saved here: the Trainer puts it back piece by piece."""

    def __init__(self, value: dict):
        self.value = value

    def state(self) -> dict:
        return self.value


class _Ends(TrainerCallback):
    """Ends the training on a signal, when the time is over, or when nothing is finite."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_step_end(self, arguments, state, control, **kwargs):
        trainer = self.trainer
        late = trainer.budget is not None and trainer.budget.left() < trainer.reserve
        late = world().broadcast(late, "the time that is left")
        trainer.stopped = trainer.stopper.anywhere()
        if trainer.stopped or trainer.guard.gave_up or late:
            control.should_training_stop = True
        if trainer.stopped:
            control.should_save = True
