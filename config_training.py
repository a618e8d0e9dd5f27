"""The settings of data and output, and those of the two training stages.

config.py is the door: it adds the other scripts' classes and loads all of them.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from config_shared import Shared, by_model
from rlm.budget import seconds_of
from rlm.errors import InputError
from rlm.parsing import parse_range, parse_rewards, words_of
from rlm.settings import nearest, option
from rlm.trackers import NAMES as TRACKERS
from rlm.trackers import check as check_tracker

GENERATED = ("addition", "word_problems")

# Settings that a stopped run may go on without: they change no step.
PASSING = {
    "config", "named_models", "weights", "output", "overwrite", "run", "log_level", "device",
    "threads", "cache_tokens", "cuda_graphs", "token_budget", "wandb_project", "wandb",
    "save_every", "resume", "budget", "probe", "check_only", "tracker", "quiet",
}  # fmt: skip


class Common(Shared):
    run: str = option("", "what is logged goes to runs/NAME", shown="the script's name")
    seed: int = option(0, "seed of data, sampling and new weights", ge=0, le=2**32 - 1)

    task: Literal["addition", "word_problems", "gsm8k", "openmath", "jsonl"] = option(
        "addition", "where the questions come from", section="Data"
    )
    data: str | None = option(
        None, "file or folder of the task's data; needed for jsonl, else the hub", shown="the hub"
    )
    digits: tuple[int, int] = option(
        (1, 3), "digits of the numbers in task addition, 1 to 9: 3 or 1-3", shown="1-3"
    )
    terse_fraction: float = option(
        0.0, "share of generated demonstrations that skip the working", ge=0, le=1
    )
    problem_steps: tuple[int, int] = option(
        (2, 4), "steps of a word problem, 2 to 4: 3 or 2-4", shown="2-4"
    )
    per_question: int = option(1, "solutions of a question in openmath", ge=1, le=1000)
    max_tokens: int = by_model(
        160, 512, "longest completion that is sampled, tokens", ge=1, le=131072, section="Sampling"
    )

    @model_validator(mode="before")
    @classmethod
    def _run(cls, given: dict) -> dict:
        return {"run": cls.script} | given

    @field_validator("digits", mode="before")
    @classmethod
    def _digits(cls, value):
        return parse_range(value, 1, 9)

    @field_validator("problem_steps", mode="before")
    @classmethod
    def _steps(cls, value):
        return parse_range(value, 2, 4)

    @property
    def run_dir(self) -> Path:
        """The folder of this run: settings.json, log.csv, ..."""
        return Path("runs") / self.run

    def task_options(self) -> dict:
        """What the task's generator takes, for `data.load_examples`."""
        terse = {"terse_fraction": self.terse_fraction}
        options: dict[str, dict] = {
            "addition": {"digits": self.digits} | terse,
            "word_problems": {"steps": self.problem_steps} | terse,
            "openmath": {"per_question": self.per_question},
        }
        return options.get(self.task, {})

    def process(self) -> dict:
        return super().process() | {"seed": self.seed}

    def check_values(self) -> None:
        if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", self.run) or ".." in self.run:
            raise InputError(f"{self.given('run')}: a name of letters, digits, - _ . is needed")
        if self.task in GENERATED and self.data:
            raise InputError(f"{self.given('data')}: task {self.task} makes its own questions; "
                                "leave --data out or choose --task jsonl")  # fmt: skip
        if self.task == "jsonl" and not self.data:
            raise InputError("--task jsonl: needs the file; give it with --data FILE.jsonl")
        if self.data and not os.path.exists(os.path.expanduser(self.data)):
            raise InputError(f"{self.given('data')}: no such file or folder; check the path")
        for name in ("num_samples", "eval_samples"):
            if self.task in GENERATED and getattr(self, name, 1) == 0:
                raise InputError(f"{self.given(name)}: task {self.task} has no end; use a number")


class Training(Common):
    lora_r: int = option(16, "rank of a new LoRA", ge=1, le=1024, section="LoRA")
    lora_alpha: float = option(32, "scale of a new LoRA: alpha / r times its output", gt=0)
    overwrite: bool = option(False, "replace an adapter that is there", section="Output")
    eval_samples: int = option(
        200, "validation questions of an evaluation; 0: all", ge=0, env=["EVAL_SAMPLES"]
    )
    save_every: int = option(
        10, "steps between checkpoints; 0: only when it is stopped", ge=0, section="Stop and go on"
    )
    resume: str = option(
        "auto", "auto: go on where runs/NAME was stopped; never: begin anew; or a checkpoint"
    )
    budget: str | None = option(
        None, "time for all of it, as 90m or 1h30m: the steps are chosen to fit", shown="no limit"
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _time(cls, value):
        if value is not None:
            seconds_of(value)
        return None if value is None else str(value)

    def seconds(self) -> float | None:
        """The budget in seconds, None for no limit."""
        return None if self.budget is None else seconds_of(self.budget)

    def lasting(self) -> dict:
        """What must be the same when a stopped run goes on; the rest may be given anew."""
        free = PASSING | ({"max_steps"} if self.may_be_longer() else set())
        return {name: value for name, value in self.dump().items() if name not in free}

    def may_be_longer(self) -> bool:
        """Whether the first steps are the same however many follow."""
        return self.budget is not None

    tracker: list[str] = option(
        [],
        "log to these too: wandb, trackio, tensorboard; offline, files in the run's folder",
        section="Logging",
        shown="log.csv alone",
    )
    wandb_project: str | None = option(
        None, "project of the trackers; short for --tracker wandb with it"
    )
    wandb: bool = option(True, "--no-wandb: not logged there, whatever else is given")

    @field_validator("tracker", mode="before")
    @classmethod
    def _trackers(cls, value):
        for name in words_of(value):
            if name not in TRACKERS:
                hint = nearest(name, TRACKERS)
                raise ValueError(f"no tracker {name}; use {' | '.join(TRACKERS)}{hint}")
        return list(dict.fromkeys(words_of(value)))

    def trackers(self) -> list[str]:
        """What is logged to beside log.csv."""
        names = ["wandb"] if self.wandb_project and "wandb" not in self.tracker else []
        return [name for name in self.tracker + names if name != "wandb" or self.wandb]

    def logging(self) -> dict:
        """Where figures go, for `rlm.runs.Run`."""
        return {"trackers": self.trackers(), "project": self.wandb_project}

    def check_values(self) -> None:
        super().check_values()
        for name in self.trackers():
            by_project = name not in self.tracker
            check_tracker([name], self.given("wandb_project" if by_project else "tracker"))


class SFTSettings(Training):
    """Stage 1: teaches the format of visible reasoning from demonstrations."""

    script = "sft"
    stage: Literal["prep", "full"] = option(
        "full", "prep: a short first stage of its own", section="Supervised fine-tuning"
    )
    adapter: str | None = option(
        "none",
        "adapter to go on training: a folder, a name out of `models:`, or none for a new one",
        flags=["--base-adapter"],
    )
    output: str = option(
        lambda v: f"{v['weights']}/{'sft_prep_lora' if v.get('stage') == 'prep' else 'sft_lora'}",
        "folder of the trained adapter",
        flags=["--output-dir"],
        shown="weights/sft_lora, prep: weights/sft_prep_lora",
    )
    num_samples: int = option(1000, "demonstrations; 0: all", ge=0, env=["TRAIN_SAMPLES"])
    epochs: float = option(3.0, "passes over the demonstrations", gt=0, le=1000)
    max_steps: int = option(0, "optimiser steps; 0: the epochs decide", ge=0)
    batch_size: int = option(8, "demonstrations an optimiser step", ge=1)
    learning_rate: float = by_model(3e-3, 2e-4, "peak learning rate", gt=0, le=1)
    warmup_fraction: float = option(0.05, "share of the steps with rising rate", ge=0, lt=1)
    max_length: int = option(1024, "longest demonstration, tokens", ge=16)
    packing: bool = option(False, "several demonstrations in a row of max-length tokens")


class GRPOSettings(Training):
    """Stage 2: GRPO, samples answers and reinforces those that earn more than their group."""

    script = "grpo"
    auto_adapter = "sft_lora"
    adapter: str | None = option(
        "auto",
        "adapter to start from: a folder, a name out of `models:`, auto (weights/sft_lora if it is "
        "there), or none: straight from the base",
    )
    output: str = option(
        lambda v: f"{v['weights']}/final_rlm_lora",
        "folder of the best adapter",
        flags=["--output-dir"],
        shown="weights/final_rlm_lora",
    )
    num_samples: int = option(
        2000, "training questions; 0: all", ge=0, env=["TRAIN_SAMPLES"], section="GRPO"
    )
    max_steps: int = option(
        lambda given: 32 if given.get("budget") is None else 10**6,
        "steps, each with new samples",
        shown="32; with --budget as many as fit",
        ge=1,
    )
    questions_per_step: int = option(16, "questions B of a step", ge=1, flags=["--batch-size"])
    group_size: int = option(
        8,
        "samples G of each question",
        ge=2,
        why="a group needs at least 2 samples to have a mean to beat",
    )
    temperature: float = option(1.0, "of the sampling; below 1 is sharper", gt=0, le=10)
    learning_rate: float = by_model(1e-3, 2e-5, "peak learning rate", gt=0, le=1)
    lr_schedule: Literal["constant", "linear"] = option("constant", "linear: falls to 0 at the end")
    warmup_steps: int = option(0, "first steps with rising learning rate", ge=0)
    max_grad_norm: float = option(1.0, "gradients are cut to this norm", gt=0)
    updates_per_batch: int = option(1, "optimiser steps on the same samples", ge=1, le=64)
    token_budget: int = option(
        0, "tokens of a micro-batch: memory, not the result; 0: by what is free", ge=0
    )

    loss: Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "gspo"] = option(
        "dapo", "which loss; dapo counts every token alike", section="Loss and reward"
    )
    clip_low: float = option(0.2, "ratio to the old policy is cut below 1 - this", gt=0, le=1)
    clip_high: float = option(0.28, "ratio to the old policy is cut above 1 + this", gt=0)
    kl_weight: float = option(0.0, "weight of the KL to the start; 0: none", ge=0)
    advantage_scale: Literal["group", "batch", "none"] = option(
        "group", "advantages are divided by this standard deviation"
    )
    rewards: dict[str, float] = option(
        {"correctness": 1.0}, "NAME=WEIGHT,NAME=WEIGHT out of rewards.py", shown="correctness=1"
    )
    truncated: Literal["keep", "mask"] = option("keep", "cut-off completions in the loss")
    replace_dead_groups: int = option(
        0, "tries to replace a group of equal rewards by a new question", ge=0, le=100
    )
    eval_every: int = option(
        8, "steps between validations; 0: only at the end", ge=0, section="Validation"
    )
    early_stop: bool = option(
        False, "end when a validation falls by more than two standard errors below the best"
    )
    probe: int = option(8, "questions tried before training; 0: none", ge=0)
    check_only: bool = option(
        False, "try the settings out, forecast the run and end: exit code 0 for GO, 3 for NO-GO"
    )

    @field_validator("rewards", mode="before")
    @classmethod
    def _weights(cls, value):
        return parse_rewards(value)

    def may_be_longer(self) -> bool:
        return super().may_be_longer() or self.lr_schedule == "constant"

    def check_values(self) -> None:
        super().check_values()
        if 0 < self.token_budget < 64:
            raise InputError(f"{self.given('token_budget')}: too few tokens; use 64 or more, or 0 "
                             "for what the free memory holds")  # fmt: skip
        from rewards import REWARDS

        for name in set(self.rewards) - set(REWARDS):
            hint = nearest(name, REWARDS)
            raise InputError(f"{self.given('rewards')}: no reward {name}{hint}; use "
                             f"{', '.join(REWARDS)}, or write it in rewards.py")  # fmt: skip
