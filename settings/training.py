"""The settings of output, and those of both training stages.

config.py is the door: it adds the other scripts' classes and loads all of them.
"""

from typing import Literal

from pydantic import field_validator

from rlm.cli.layers import nearest, option
from rlm.cli.parsing import words_of
from rlm.data.hub_sets import HELD_OUT
from rlm.errors import InputError
from rlm.run.log import TRACKERS, check_trackers
from rlm.run.time_budget import seconds_of
from settings import all_weights
from settings.common import Common
from settings.orchestrator import Orchestrator

# Settings that a stopped run may go on without: they change no step.
PASSING = {
    "config", "named_models", "weights", "output", "overwrite", "run", "log_level", "device",
    "threads", "max_rows", "cache_tokens", "cuda_graphs", "token_budget", "checkpointing",
    "wandb_project", "wandb", "save_every", "resume", "budget", "probe", "check_only",
    "tracker", "report_every", "quiet", "collective_timeout",
    "vllm_url", "canary_tolerance",
}  # fmt: skip


class Training(Orchestrator, Common):
    train: Literal["lora", "full"] = option(
        "lora",
        "what learns; lora: an adapter beside the frozen base; full: all weights, which takes 16 "
        "bytes a weight or more, and a whole model comes out",
        section="What learns",
    )
    optimizer: Literal["adamw", "muon", "adamw8bit"] = option(
        "adamw",
        "muon: as large a step in rare directions of a LoRA's matrices as in frequent ones "
        "(arXiv:2502.16982); adamw8bit: --train full with its state in 8 bits (bitsandbytes, CUDA)",
    )
    lora_r: int = option(16, "rank of a new LoRA", ge=1, le=1024, section="LoRA")
    lora_alpha: float = option(32, "scale of a new LoRA: alpha / r times its output", gt=0)
    lora_targets: list[str] = option(
        ["all-linear"],
        "layers of a new LoRA: all-linear, attention, experts, router, or last parts of names, as "
        "in q_proj,v_proj",
        shown="all-linear",
    )
    lora_dropout: float = option(
        0.0, "share of a LoRA's input that is left out while it learns", ge=0, lt=1
    )
    rslora: bool = option(False, "scale a new LoRA's output by alpha / sqrt(r)")
    checkpointing: Literal["auto", "on", "off"] = option(
        "auto",
        "run the layers again in the backward and keep their inputs alone: less memory, a third "
        "more work; auto: where the longest completion needs it, with TRL on any GPU",
    )
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
    collective_timeout: float = option(
        1800.0,
        "seconds that a process waits for the others, where torchrun started several",
        gt=0,
        le=86400,
        section="Several processes",
    )

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _targets(cls, value):
        targets = list(dict.fromkeys(words_of(value)))
        if not targets:
            raise InputError(
                "no layers; use all-linear, attention, experts, router, or names of layers"
            )
        return targets

    def learning(self) -> dict:
        """What learns, for `rlm.models.policy.open_policy`."""
        return {"full": True} if self.train == "full" else {"lora": self.lora()}

    def lora(self) -> dict:
        """What a fresh LoRA is, for `rlm.models.loading.add_lora`."""
        return {
            "r": self.lora_r,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "rank_stabilized": self.rslora,
            "targets": tuple(self.lora_targets),
            "seed": self.seed,
        }

    @field_validator("budget", mode="before")
    @classmethod
    def _time(cls, value):
        if value is not None:
            seconds_of(value)
        return None if value is None else str(value)

    def seconds(self) -> float | None:
        """The budget in seconds, None for no limit."""
        return None if self.budget is None else seconds_of(self.budget)

    def process(self) -> dict:
        return super().process() | {"timeout": self.collective_timeout}

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
    report_every: int = option(0, "steps between reports while it runs; 0: at the end alone", ge=0)

    @field_validator("tracker", mode="before")
    @classmethod
    def _trackers(cls, value):
        for name in words_of(value):
            if name not in TRACKERS:
                hint = nearest(name, TRACKERS)
                raise InputError(f"no tracker {name}; use {' | '.join(TRACKERS)}{hint}")
        return list(dict.fromkeys(words_of(value)))

    def trackers(self) -> list[str]:
        """What is logged to beside log.csv."""
        names = ["wandb"] if self.wandb_project and "wandb" not in self.tracker else []
        return [name for name in self.tracker + names if name != "wandb" or self.wandb]

    def logging(self) -> dict:
        """Where figures go, for `rlm.run.folder.Run`."""
        tracked = {"trackers": self.trackers(), "project": self.wandb_project}
        return tracked | {"report_every": self.report_every}

    def check_values(self) -> None:
        super().check_values()
        self._check_train()
        if 0 < getattr(self, "token_budget", 0) < 64:
            raise InputError(f"{self.given('token_budget')}: too few tokens; use 64 or more, or 0 "
                             "for what the free memory holds")  # fmt: skip
        if self.source in HELD_OUT:
            raise InputError(f"--task {self.source}: for evaluation alone, evaluate.py; train on "
                             "another, such as math")  # fmt: skip
        for name in self.trackers():
            by_project = name not in self.tracker
            check_trackers([name], self.given("wandb_project" if by_project else "tracker"))

    def _check_train(self) -> None:
        """InputError for what does not go with the weights that learn."""
        all_weights.check(self)

    def check_places(self) -> None:
        super().check_places()
        all_weights.check_start(self)
