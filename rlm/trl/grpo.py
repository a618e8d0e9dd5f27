"""TRL's GRPOTrainer in place of our own sampling and update, for comparison and for its options.

It is given prompts as token ids, a function that scores completions, and what to do after each
batch. TRL samples (transformers' generate), makes the advantages and takes the updates; questions,
rewards, optimiser, learning rates, stop tokens and what is kept are ours. What stays different:
other random numbers, a softmax over the rows that some models have past the tokenizer's
vocabulary (they are never sampled, as with us), and autocast where the base is half precision.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlm.errors import InputError
from rlm.models.text_stream import decode
from rlm.parallel import check_one_gpu
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import Batch
from rlm.run.stopping import StopSignal
from rlm.trl.formats import kept_formats

# TRL's name of a figure -> ours.
NAMES = {
    "loss": "loss", "kl": "kl", "entropy": "entropy", "learning_rate": "learning_rate",
    "clip_ratio/low_mean": "clip_low_fraction", "clip_ratio/high_mean": "clip_high_fraction",
    "cispo_clip_ratio": "clip_high_fraction", "policy_loss": "policy_loss",
    "entropy_coef": "entropy_coef",
}  # fmt: skip

Scorer = Callable[[list[Example], list[list[Rollout]], int], list[list[Score]]]
# (step, batch, advantages [B, G], metrics) -> True to end
AfterBatch = Callable[[int, Batch, torch.Tensor, dict[str, float]], bool]


@dataclass(frozen=True)
class Questions:
    """examples with their prompts, and which of them each batch asks, in order: [steps * B]."""

    examples: Sequence[Example]
    prompts: Sequence[Prompt]
    order: Sequence[int]


def train(
    policy,
    questions: Questions,
    fields: dict[str, Any],
    *,
    score: Scorer,
    rate: Callable[[int], float],
    stop_ids: frozenset[int],
    folder: str,
    after_batch: AfterBatch,
) -> int:
    """Train the policy's LoRA; return the exit code that a signal asked for, else 0.

    policy: `rlm.models.policy.Policy`. fields: of `rlm.trl.options.config_fields`. rate: the
    learning rate of a batch, counted from 1. stop_ids: tokens that end a completion. InputError for
    an option that TRL refuses. The model is left as it was given, but for the trained weights.
    """
    disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    model = policy.model
    arguments = _arguments(fields, policy, stop_ids, folder)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    updates, last = fields["num_iterations"], fields["max_steps"] - 1
    schedule = torch.optim.lr_scheduler.LambdaLR(  # also asked for the one after the last
        optimizer, lambda i: rate(min(i, last) // updates + 1)
    )
    asked = {"prompt": [str(i) for i in questions.order]}
    with StopSignal() as stopper:
        trainer: Trainer = Trainer(
            model=model,
            reward_funcs=lambda **given: trainer.rewards(**given),
            args=arguments,
            train_dataset=Dataset.from_dict(asked),
            processing_class=copy.deepcopy(policy.tokenizer),  # it sets some of its properties
            optimizers=(optimizer, schedule),
            questions=questions,
            score=score,
            stop_ids=stop_ids,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Each(trainer, after_batch, stopper))
        try:
            trainer.train()
        finally:
            _tidy(trainer, model)
    return stopper.requested


def _without_unjudged(batch: Batch) -> torch.Tensor:
    """Return the rewards [B, G], the mean of its group in place of one that was not judged.

    So its own advantage is 0 and the mean is that of the others. TRL's standard deviation still
    counts it, which ours does not.
    """
    rewards, judged = batch.rewards(), batch.judged()
    means = (rewards * judged).sum(1, keepdim=True) / judged.sum(1, keepdim=True).clamp(min=1)
    return torch.where(judged, rewards, means)


def _arguments(fields: dict, policy, stop_ids: frozenset[int], folder: str) -> GRPOConfig:
    """Return the GRPOConfig of the fields on the policy's device and in its number format."""
    weight = next(policy.model.parameters())
    rows = policy.model.get_output_embeddings().weight.shape[0]
    sampling: dict[str, Any] = {"eos_token_id": sorted(stop_ids)}
    if rows > len(policy.tokenizer):  # rows without a token, as Qwen2.5 has them
        sampling["suppress_tokens"] = list(range(len(policy.tokenizer), rows))
    place = {
        "use_cpu": weight.device.type == "cpu",
        "dataloader_pin_memory": weight.device.type == "cuda",
        "router_aux_loss_coef": 0.0,  # routers stay as they are
        "bf16": weight.dtype == torch.bfloat16,
        "fp16": weight.dtype == torch.float16,
        # As in train_sft.py: worth its time where memory is scarce.
        "gradient_checkpointing": weight.device.type == "cuda",
    }
    try:
        made = GRPOConfig(output_dir=folder, generation_kwargs=sampling, **(place | fields))
    except ValueError as error:
        raise InputError(f"--trl-options: TRL refuses them: {error}") from None
    check_one_gpu(weight.device.type, shared=False)
    return made


def _tidy(trainer: GRPOTrainer, model) -> None:
    """Take off the model what was put on it: reference, checkpointing, autocast, TRL's head."""
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.get_base_model().__dict__.pop("forward", None)
    model.eval()


class Trainer(GRPOTrainer):
    """GRPOTrainer with prompts that are ids already, our rewards, and no update of NaN.

    batch, advantages [B, G]: of what was sampled last.
    """

    def __init__(self, *arguments, questions: Questions, score: Scorer, stop_ids, **options):
        with kept_formats(options["model"]):
            super().__init__(*arguments, **options)
        self.questions, self.score = questions, score
        self.eos_token_ids = sorted(stop_ids)
        self.batch: Any = None
        self.advantages: Any = None
        self.generate_seconds = 0.0
        self.gradient_norms: list[float] = []

    def _tokenize_prompts(self, prompts: list) -> tuple:
        """Return our ids of the prompts, each of which is the number of a question."""
        return [self.questions.prompts[int(number)].ids for number in prompts], None, {}

    def _generate_and_score_completions(self, inputs):
        began = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self.advantages = output["advantages"].view(-1, self.num_generations).cpu()
        self.generate_seconds = time.perf_counter() - began
        return output

    def rewards(self, *, prompts, completion_ids, trainer_state, **_) -> list[float]:
        """Return the total rewards [B * G] of the completions, which become the batch."""
        numbers = [int(number) for number in prompts[:: self.num_generations]]
        examples = [self.questions.examples[i] for i in numbers]
        asked = [self.questions.prompts[i] for i in numbers]
        ids = iter(completion_ids)
        groups = [
            [self._rollout(prompt, next(ids)) for _ in range(self.num_generations)]
            for prompt in asked
        ]
        step = trainer_state.global_step // self.num_iterations + 1
        self.batch = Batch(examples, asked, groups, self.score(examples, groups, step))
        return _without_unjudged(self.batch).flatten().tolist()

    def _rollout(self, prompt: Prompt, ids: list[int]) -> Rollout:
        """Return the completion as our engine would; TRL keeps no log-probabilities of it."""
        ended = ids[-1] in self.eos_token_ids
        text = decode(self._tokenizer, ids[:-1] if ended else ids)
        return Rollout(ids, [], prompt.prefill + text, "stop" if ended else "length")

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        self.gradient_norms.append(float(norm))
        # In float16 a norm that is not finite is how the scale of the loss is found.
        if self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            for parameter in model.parameters():
                parameter.grad = None  # AdamW leaves out what has no gradient
        return norm


class _Each(TrainerCallback):
    """Makes the metrics of each batch out of TRL's and hands them on."""

    def __init__(self, trainer: Trainer, after_batch: AfterBatch, stopper: StopSignal):
        self.trainer, self.after_batch, self.stopper = trainer, after_batch, stopper
        self.seconds, self._began = 0.0, 0.0

    def on_step_begin(self, arguments, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, arguments, state, control, **kwargs):
        self.seconds += time.perf_counter() - self._began

    def on_log(self, arguments, state, control, logs=None, **kwargs):
        trainer = self.trainer
        if not logs or "loss" not in logs:  # the summary at the end
            return
        norms, batch = trainer.gradient_norms, trainer.batch
        row = {NAMES[n]: float(x) for n, x in logs.items() if n in NAMES and x is not None}
        row |= {
            "gradient_norm": sum(norms) / len(norms),
            "generate_seconds": trainer.generate_seconds,
            "learn_seconds": self.seconds - trainer.generate_seconds,
            "tokens_per_second": batch.tokens() / self.seconds,
        }
        self.seconds, trainer.gradient_norms = 0.0, []
        step = state.global_step // arguments.num_iterations
        ended = self.after_batch(step, batch, trainer.advantages, row)
        if ended or self.stopper.requested:
            control.should_training_stop = True
