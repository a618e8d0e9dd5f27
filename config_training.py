"""The settings of data and output, and those of the two training stages.

config.py is the door: it adds the other scripts' classes and loads all of them.
"""

import importlib.util
import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from config_orchestrator import Orchestrator
from config_shared import Shared, by_model
from rlm.errors import InputError
from rlm.parsing import parse_range, parse_rewards
from rlm.settings import nearest, option

GENERATED = ("addition", "word_problems", "mixed")


class Common(Shared):
    run: str = option("", "what is logged goes to runs/NAME", shown="the script's name")
    seed: int = option(0, "seed of data, sampling and new weights", ge=0, le=2**32 - 1)

    task: Literal[
        "addition", "word_problems", "mixed", "gsm8k", "openmath", "jsonl", "orchestrator"
    ] = option(
        "addition",
        "where the questions come from; mixed: both of the first; orchestrator: those of "
        "--questions, and the model writes graphs of agents that answer them",
        section="Data",
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

    @property
    def source(self) -> str:
        """The task whose questions are asked."""
        return self.task

    def task_options(self) -> dict:
        """What the generator of the questions takes, for `data.load_examples`."""
        terse = {"terse_fraction": self.terse_fraction}
        options = {
            "addition": {"digits": self.digits} | terse,
            "word_problems": {"steps": self.problem_steps} | terse,
            "mixed": {"digits": self.digits, "steps": self.problem_steps} | terse,
            "openmath": {"per_question": self.per_question},
        }
        return options.get(self.source, {})

    def process(self) -> dict:
        return super().process() | {"seed": self.seed}

    def check_values(self) -> None:
        if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", self.run) or ".." in self.run:
            raise InputError(f"{self.given('run')}: a name of letters, digits, - _ . is needed")
        if self.source in GENERATED and self.data:
            raise InputError(f"{self.given('data')}: task {self.source} makes its own questions; "
                                "leave --data out or choose --task jsonl")  # fmt: skip
        if self.source == "jsonl" and not self.data:
            raise InputError("--task jsonl: needs the file; give it with --data FILE.jsonl")
        if self.data and not Path(self.data).exists():
            raise InputError(f"{self.given('data')}: no such file or folder; check the path")
        for name in ("num_samples", "eval_samples"):
            if self.source in GENERATED and getattr(self, name, 1) == 0:
                raise InputError(f"{self.given(name)}: task {self.source} has no end; use a number")


class Training(Orchestrator, Common):
    lora_r: int = option(16, "rank of a new LoRA", ge=1, le=1024, section="LoRA")
    lora_alpha: float = option(32, "scale of a new LoRA: alpha / r times its output", gt=0)
    overwrite: bool = option(False, "replace an adapter that is there", section="Output")
    eval_samples: int = option(
        200, "validation questions of an evaluation; 0: all", ge=0, env=["EVAL_SAMPLES"]
    )
    wandb_project: str | None = option(None, "project of Weights & Biases that is logged to too")
    wandb: bool = option(True, "--no-wandb: not logged there, whatever the project")

    def check_values(self) -> None:
        super().check_values()
        if self.wandb_project and self.wandb and importlib.util.find_spec("wandb") is None:
            raise InputError(f"{self.given('wandb_project')}: wandb is not installed; "
                                "`pip install wandb`, or leave it out with --no-wandb")  # fmt: skip


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
    max_steps: int = option(32, "steps, each with new samples", ge=1)
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
    probe: int = option(8, "questions tried before training; 0: none", ge=0)

    @field_validator("rewards", mode="before")
    @classmethod
    def _weights(cls, value):
        return parse_rewards(value)

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
