"""GRPO's settings in TRL's words: the fields of a `trl.GRPOConfig`, and which of them are free.

Pure and light: it imports neither torch nor trl, so wrong options are refused before both are.
rlm/trl/grpo.py trains with what is made here.
"""

import json
import math
from typing import Any

from rlm.errors import InputError

# Fields that --trl-options may set, with the type of their values. Not here: what our settings
# set (OURS), what leaves the machine or writes pickles, and what would sample elsewhere.
FREE: dict[str, type] = {
    # sampling
    "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float,
    # loss
    "loss_type": str, "importance_sampling_level": str, "delta": float,
    "sapo_temperature_neg": float, "sapo_temperature_pos": float,
    "vespo_k_pos": float, "vespo_lambda_pos": float,
    "vespo_k_neg": float, "vespo_lambda_neg": float,
    "off_policy_mask_threshold": float, "top_entropy_quantile": float,
    "use_bias_correction_kl": bool,
    "entropy_coef": float, "use_adaptive_entropy": bool, "entropy_coef_min": float,
    "entropy_coef_max": float, "entropy_coef_delta": float, "entropy_target": float,
    # memory and speed
    "per_device_train_batch_size": int, "gradient_checkpointing": bool,
    "pad_to_multiple_of": int, "torch_empty_cache_steps": int,
}  # fmt: skip
NOT_NULL = {  # numbers that have to be above 0; all have to be at least that
    "top_p", "repetition_penalty", "delta", "sapo_temperature_neg", "sapo_temperature_pos",
    "per_device_train_batch_size", "pad_to_multiple_of", "torch_empty_cache_steps",
}  # fmt: skip
SHARES = {"top_p", "min_p", "top_entropy_quantile"}  # at most 1
LEVELS = ("token", "sequence")

# Fields that a setting of ours sets.
OURS = {
    "num_generations": "--group-size", "max_completion_length": "--max-tokens",
    "temperature": "--temperature", "learning_rate": "--learning-rate",
    "lr_scheduler_type": "--lr-schedule", "warmup_steps": "--warmup-steps",
    "max_grad_norm": "--max-grad-norm", "num_iterations": "--updates-per-batch",
    "max_steps": "--max-steps", "generation_batch_size": "--questions-per-step",
    "gradient_accumulation_steps": "--questions-per-step", "epsilon": "--clip-low",
    "epsilon_high": "--clip-high", "beta": "--kl-weight", "scale_rewards": "--advantage-scale",
    "reward_weights": "--rewards", "mask_truncated_completions": "--truncated", "seed": "--seed",
    "bf16": "--dtype", "fp16": "--dtype", "use_cpu": "--device", "output_dir": "--run",
    "report_to": "--tracker", "save_steps": "--save-every", "eval_steps": "--eval-every",
}  # fmt: skip

THEIR_LOSSES = ("sapo", "luspo", "vespo")  # those that TRL has and --loss has not
# What does nothing without another option is refused without it.
NEEDS: dict[str, dict[str, Any]] = {
    "sapo_": {"loss_type": "sapo"}, "vespo_": {"loss_type": "vespo"},
    "entropy_coef_": {"use_adaptive_entropy": True},
    "entropy_target": {"use_adaptive_entropy": True},
}  # fmt: skip
DEFAULT_ROWS = 8  # completions of a micro-batch, as TRL has it by default


def read_options(value) -> dict[str, Any]:
    """Return the options as a mapping of plain values, from a mapping or from JSON.

    InputError for anything else, an unknown field, one that a setting of ours sets, a value of
    another type, and an option that would do nothing. `null` stands for a field left out.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError):
            raise InputError(
                'no JSON; give a mapping as in {"top_p": 0.95, "delta": 2.0}'
            ) from None
    if not isinstance(value, dict):
        raise InputError('no mapping; give one as in {"top_p": 0.95, "delta": 2.0}')
    options = {str(name): _value(str(name), given) for name, given in value.items()}
    options = {name: given for name, given in options.items() if given is not None}
    loss = options.get("loss_type", THEIR_LOSSES[0])
    if loss not in THEIR_LOSSES:
        raise InputError(f"loss_type {loss}: use --loss, or {', '.join(THEIR_LOSSES)} here")
    level = options.get("importance_sampling_level", LEVELS[0])
    if level not in LEVELS:
        raise InputError(f"importance_sampling_level {level}: use {' or '.join(LEVELS)}")
    for start, needed in NEEDS.items():
        for name in options:
            (other, wanted), *_ = needed.items()
            if name.startswith(start) and options.get(other) != wanted:
                raise InputError(f"{name}: does nothing without {other} {json.dumps(wanted)}")
    return options


def _value(name: str, given):
    """Return a field's value, InputError if the field or the value's type is not allowed."""
    if name in OURS:
        raise InputError(f"{name}: set by {OURS[name]}; free are {', '.join(FREE)}")
    if name not in FREE:
        raise InputError(f"{name}: no field that is free; use {', '.join(FREE)}")
    kind = FREE[name]
    number = isinstance(given, int | float) and not isinstance(given, bool)
    fits = number if kind is float else isinstance(given, kind) and (number or kind is not int)
    if given is not None and not fits:
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
        raise InputError(f"{name}: not {words[kind]}")
    if number:
        _check_range(name, given)
    return given


def _check_range(name: str, number: float) -> None:
    if not math.isfinite(_as_float(number)):
        raise InputError(f"{name}: not finite")
    if number < 0 or (number == 0 and name in NOT_NULL) or (number > 1 and name in SHARES):
        least = "above 0" if name in NOT_NULL else "0 or more"
        raise InputError(f"{name} {number}: use {least}" + ", 1 at most" * (name in SHARES))


def _as_float(number) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def micro_batch_rows(completions: int, longest_tokens: int, token_budget: int) -> int:
    """Return the completions of a micro-batch: the most that fit and divide a step's evenly.

    longest_tokens: of a prompt with its completion, since TRL pads. token_budget: tokens of a
    micro-batch with its padding; 0 for at most DEFAULT_ROWS rows. One fits always.

    >>> micro_batch_rows(48, 100, 1700), micro_batch_rows(48, 100, 0), micro_batch_rows(9, 1, 0)
    (16, 8, 3)
    """
    most = token_budget // longest_tokens if token_budget else DEFAULT_ROWS
    return max(rows for rows in range(1, max(1, most) + 1) if completions % rows == 0)


def loss_fields(loss: str, clip_low: float, clip_high: float) -> dict[str, Any]:
    """Return the fields of one of our losses (`rlm.learner.losses.LOSSES`).

    gspo is TRL's grpo with weights of whole completions; TRL's bound of cispo is our 1 + clip_high.
    """
    return {
        "loss_type": "grpo" if loss == "gspo" else loss,
        "importance_sampling_level": "sequence" if loss in ("gspo", "luspo") else "token",
        "epsilon": clip_low,
        "epsilon_high": 1 + clip_high if loss == "cispo" else clip_high,
    }


def config_fields(
    *,
    steps: int,
    questions: int,
    group_size: int,
    updates: int,
    rows: int,
    temperature: float,
    max_tokens: int,
    learning_rate: float,
    max_grad_norm: float,
    loss: str,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
    advantage_scale: str,
    keep_truncated: bool,
    seed: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return the fields of the `trl.GRPOConfig` that takes the same steps as our own loop.

    steps: batches of `questions` times `group_size` completions, each learned from `updates`
    times; TRL counts every update as a step. rows: completions of a micro-batch, which the
    options may set (InputError if they do not divide a batch evenly). options: of `read_options`.
    """
    completions = questions * group_size
    rows = options.get("per_device_train_batch_size", rows)
    if rows < 1 or completions % rows:
        raise InputError(
            f"--trl-options per_device_train_batch_size {rows}: a step's {completions} completions "
            "are no multiple of it; use one of "
            + ", ".join(str(n) for n in range(1, completions + 1) if completions % n == 0)
        )
    return {
        "max_steps": steps * updates,
        "num_iterations": updates,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": completions // rows,
        "num_generations": group_size,
        "max_completion_length": max_tokens,
        "temperature": temperature,
        "learning_rate": learning_rate,
        "max_grad_norm": max_grad_norm,
        "beta": kl_weight,
        "scale_rewards": advantage_scale,
        "mask_truncated_completions": not keep_truncated,
        "shuffle_dataset": False,  # the questions come in the order of our batches
        "seed": seed,
        "logging_steps": updates,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # its checkpoints are pickles
        "report_to": "none",
        "disable_tqdm": True,
        **loss_fields(loss, clip_low, clip_high),
        **options,
    }
