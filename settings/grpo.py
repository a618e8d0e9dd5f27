"""The settings of train_grpo.py. config.py is the door: it loads them."""

import os
from importlib.util import find_spec
from typing import Any, Literal

from pydantic import field_validator, model_validator

from rlm.addresses import VLLM_KEY, server_url
from rlm.cli.layers import nearest, option
from rlm.cli.parsing import parse_rewards
from rlm.errors import InputError
from rlm.models.lookup import gguf_of
from rlm.parallel import sharding_asked
from rlm.trl.options import read_options
from settings.shared import peak_rate
from settings.training import Training

# What --backend trl cannot do: setting -> the values it may have nevertheless, and why.
TRL_CANNOT: dict[str, tuple[tuple, str]] = {
    "replace_dead_groups": ((0,), "it samples the questions of a step once"),
    "budget": ((None,), "its number of steps is fixed from the start"),
    "save_every": ((0,), "it keeps no checkpoints"),
    "resume": (("auto", "never"), "it keeps no checkpoints"),
    "probe": ((0,), "what is tried are our own sampling and learning"),
    "check_only": ((False,), "what is tried are our own sampling and learning"),
    "quantize": (("none",), "it would turn the LoRA to bfloat16"),
    "ahead": ((0,), "it samples and learns in turn"),
    "engine": (("own",), "it samples by transformers"),
    "vllm_url": ((None,), "it samples by transformers"),
    "importance_cap": ((0.0,), "it samples by transformers"),
    "curriculum": ((False,), "it draws its questions itself"),
    "reference_every": ((0,), "it has sync_ref_model for that"),
    "entropy_share": ((1.0,), "give top_entropy_quantile by --trl-options"),
    "entropy_bonus": ((0.0,), "give entropy_coef by --trl-options, of each micro-batch's mean"),
    "canary_tolerance": ((0.0,), "it samples by transformers"),
}


class GRPOSettings(Training):
    """Stage 2: GRPO, samples answers and reinforces those that earn more than their group."""

    script = "grpo"
    auto_adapter = "sft_lora"
    adapter: str | None = option(
        "auto",
        "adapter to start from: a folder, a name out of `models:`, auto (weights/sft_lora if it is "
        "there, with --train full sft_full), or none: straight from the base",
    )
    output: str = option(
        lambda v: f"{v['weights']}/final_rlm_{v['train']}",
        "folder of the adapter that is kept, or with --train full of the model",
        flags=["--output-dir"],
        shown="weights/final_rlm_lora, with --train full weights/final_rlm_full",
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
    learning_rate: float | None = peak_rate(1e-3, 5e-5)
    lr_schedule: Literal["constant", "linear"] = option("constant", "linear: falls to 0 at the end")
    warmup_steps: int = option(0, "first steps with rising learning rate", ge=0)
    max_grad_norm: float = option(1.0, "gradients are cut to this norm", gt=0)
    updates_per_batch: int = option(1, "optimiser steps on the same samples", ge=1, le=64)
    token_budget: int = option(
        0, "tokens of a micro-batch: memory, not the result; 0: by what is free", ge=0
    )

    vllm_url: str | None = option(
        None,
        "address of a `vllm serve --enable-lora` that samples; implies --engine vllm",
        section="Engine",
    )
    engine: Literal["own", "transformers", "vllm"] = option(
        "own",
        "what samples; own: over its own cache where that serves the model, else as transformers: "
        "by the model's generate, and the learner pads; vllm: see requirements-vllm.txt",
        shown="own; with --vllm-url vllm",
    )
    vllm_seeds: Literal["auto", "on", "off"] = option(
        "auto",
        "whether each of vllm's samples has a seed, so that the same run again is the same but for "
        "rounding; auto: on a CPU, since a GPU then draws row by row",
    )
    ahead: int = option(
        0,
        "with --vllm-url 1: the next step's answers are sampled while a step is learned, by the "
        "adapter from before it",
        ge=0,
        le=1,
    )
    importance_cap: float = option(
        lambda v: 2.0 if v.get("engine") == "vllm" else 0.0,
        "most that a token's weight between engine and learner may be; 0: no such weights",
        ge=0,
        shown="2.0 for vllm, else 0",
    )
    importance_level: Literal["token", "sequence"] = option(
        "token",
        "with --importance-cap: a weight for each token, or one for all of a completion",
    )
    importance_mode: Literal["truncate", "mask"] = option(
        "truncate", "with --importance-cap: a weight above it becomes the cap, or 0"
    )
    canary_tolerance: float = option(
        0.0,
        "nats by which vllm's log-probabilities of a fixed text may differ from the learner's; 0: "
        "by the number format",
        ge=0,
    )

    loss: Literal[
        "grpo", "dapo", "bnpo", "dr_grpo", "cispo", "gspo", "sapo", "luspo", "vespo"
    ] = option(
        "dapo", "which loss; dapo counts every token alike", section="Loss and reward"
    )  # fmt: skip
    clip_low: float = option(0.2, "ratio to the old policy is cut below 1 - this", gt=0, le=1)
    clip_high: float = option(0.28, "ratio to the old policy is cut above 1 + this", gt=0)
    kl_weight: float = option(0.0, "weight of the KL to the start; 0: none", ge=0)
    reference_every: int = option(
        0,
        "steps after which the policy becomes the reference of the KL; 0: the start stays it",
        ge=0,
    )
    entropy_share: float = option(
        1.0,
        "share of a micro-batch's tokens, those of highest entropy, that are learned from",
        gt=0,
        le=1,
    )
    entropy_bonus: float = option(
        0.0, "weight of the tokens' mean entropy, by which the loss is less; 0: none", ge=0
    )
    advantage_scale: Literal["group", "batch", "none"] = option(
        "group", "advantages are divided by this standard deviation"
    )
    rewards: dict[str, float] = option(
        {"correctness": 1.0},
        "NAME=WEIGHT,NAME=WEIGHT out of rewards.py, a file of your own, or package.module:function",
        shown="correctness=1",
    )
    reward_file: str | None = option(
        None, "Python file with rewards of your own; it is run, so trust it", shown="none"
    )
    overlong_tokens: int = option(
        0, "reward length: the last tokens of max-tokens that cost; 0: a fifth of them", ge=0
    )
    truncated: Literal["keep", "mask"] = option("keep", "cut-off completions in the loss")
    replace_dead_groups: int = option(
        0,
        "tries to replace a group of equal rewards by a new question: DAPO's dynamic sampling",
        flags=["--dynamic-sampling"],
        ge=0,
        le=100,
    )
    curriculum: bool = option(
        False, "draw questions that are solved sometimes more often than those always or never"
    )
    eval_every: int = option(
        8, "steps between validations; 0: only at the end", ge=0, section="Validation"
    )
    early_stop: bool = option(
        False, "end when a validation falls by more than two standard errors below the highest"
    )
    probe: int = option(8, "questions tried before training; 0: none", ge=0)
    check_only: bool = option(
        False, "try the settings out, forecast the run and end: exit code 0 for GO, 3 for NO-GO"
    )

    backend: Literal["own", "trl"] = option(
        "own",
        "which loop samples and learns; trl: TRL's GRPOTrainer, without checkpoints and trials",
        section="Backend",
    )
    trl_options: dict[str, Any] = option(
        {}, "with --backend trl: more fields of its GRPOConfig, as JSON", shown="none"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_url(cls, given: dict) -> dict:
        return {"engine": "vllm"} | given if given.get("vllm_url") else given

    @field_validator("trl_options", mode="before")
    @classmethod
    def _options(cls, value):
        return read_options(value)

    @field_validator("rewards", mode="before")
    @classmethod
    def _weights(cls, value):
        return parse_rewards(value)

    def reward_functions(self) -> dict:
        """The functions of `rewards`, by name; InputError if one is not there."""
        from rewards import functions, known

        names = known(self.reward_file)
        for name in self.rewards:
            if name not in names and ":" not in name:
                hint = nearest(name, names)
                raise InputError(f"{self.given('rewards')}: no reward {name}{hint}; use "
                                 f"{', '.join(names)}, or a --reward-file")  # fmt: skip
        return functions(self.rewards, self.reward_file)

    def may_be_longer(self) -> bool:
        # After a last step nothing was sampled ahead: one more would begin otherwise.
        return super().may_be_longer() or (self.lr_schedule == "constant" and not self.ahead)

    def check_values(self) -> None:
        super().check_values()
        if self.overlong_tokens >= self.max_tokens:
            raise InputError(f"{self.given('overlong_tokens')}: must be less than --max-tokens "
                             f"{self.max_tokens}, or every completion costs")  # fmt: skip
        for name in self.model_fields_set.intersection(("clip_low", "clip_high")):
            if self.loss in ("sapo", "vespo"):
                raise InputError(f"{self.given(name)}: --loss {self.loss} has a soft bound of its "
                                 "own; leave it out, or use another loss")  # fmt: skip
        for name in self.model_fields_set.intersection(("importance_level", "importance_mode")):
            if not self.importance_cap:
                raise InputError(f"{self.given(name)}: needs --importance-cap above 0")
        if self.reference_every and not self.kl_weight:
            raise InputError(f"{self.given('reference_every')}: without --kl-weight nothing is "
                             "compared with the reference; give one, or leave it out")  # fmt: skip
        self.reward_functions()
        self._check_backend()
        self._check_ahead()
        self._check_engine()

    def _check_train(self) -> None:
        super()._check_train()
        if self.train == "lora":
            return
        if self.engine == "vllm":
            name = "vllm_url" if self.vllm_url else "engine"
            raise InputError(f"{self.given(name)}: vllm is handed a LoRA after each step, not all "
                             "weights; use --engine own, or --train lora")  # fmt: skip
        if sharding_asked():
            raise InputError("--train full: the launcher asks for a sharded base, whose weights "
                             "stay as they are; use configs/accelerate/one_machine.yaml, or "
                             "--train lora")  # fmt: skip

    def _check_backend(self) -> None:
        """InputError for what the backend would leave undone."""
        if self.backend == "own":
            if self.trl_options:
                raise InputError(f"{self.given('trl_options')}: only with --backend trl")
            return
        for name, (fine, why) in TRL_CANNOT.items():
            implied = name == "engine" and self.vllm_url and name not in self._origins
            given = name in self.model_fields_set and not implied
            if given and getattr(self, name) not in fine:
                raise InputError(f"{self.given(name)}: not with --backend trl, {why}; leave it "
                                 "out, or use --backend own")  # fmt: skip
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("--backend trl: trains in one process; start it without torchrun, or "
                             "use --backend own")  # fmt: skip
        loss = self.trl_options.get("loss_type")
        unused = ["loss"] if loss else []
        unused += ["clip_low", "clip_high"] if loss in ("sapo", "vespo") else []
        for name in self.model_fields_set.intersection(unused):
            raise InputError(f"{self.given(name)}: does nothing with loss_type {loss} of "
                             "--trl-options; leave one of them out")  # fmt: skip
        if self.loss == "gspo" and "importance_sampling_level" in self.trl_options:
            raise InputError(f"{self.given('loss')}: has its importance_sampling_level; leave it "
                             "out of --trl-options")  # fmt: skip

    def _check_ahead(self) -> None:
        """InputError where nothing could be sampled while a step is learned."""
        if self.ahead and not self.vllm_url:
            raise InputError(f"{self.given('ahead')}: only a vLLM server samples while a step is "
                             "learned; give one by --vllm-url, or leave it out")  # fmt: skip
        if self.ahead and self.replace_dead_groups:
            raise InputError(f"{self.given('ahead')}: not with --dynamic-sampling, whose new "
                             "questions would be sampled while nothing is learned; leave one of "
                             "them out")  # fmt: skip

    def _check_engine(self) -> None:
        """InputError for settings that vLLM cannot do, or if it is not there."""
        if sharding_asked() and not self.vllm_url:
            raise InputError("the launcher asks for a sharded base, from which only vLLM can "
                             "sample; give its server by --vllm-url")  # fmt: skip
        if sharding_asked() and self.task == "orchestrator":
            raise InputError("--task orchestrator: its agents run on the base, which the launcher "
                             "asks to spread; use configs/accelerate/one_machine.yaml")  # fmt: skip
        if self.engine == "vllm" and not self.vllm_url and os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(f"{self.given('engine')}: each process would start one; run a server "
                             "and give its --vllm-url")  # fmt: skip
        if self.engine != "vllm":
            if self.vllm_url:
                raise InputError(f"{self.given('vllm_url')}: --engine {self.engine} does not use "
                                 "it; leave one of them out")  # fmt: skip
            if self.vllm_seeds != "auto":
                raise InputError(f"{self.given('vllm_seeds')}: --engine {self.engine} gives each "
                                 "sample a seed; leave it out, or use --engine vllm")  # fmt: skip
            return
        if self.vllm_url:
            words = {"flag": "--vllm-url", "given": self.given("vllm_url"), "variable": VLLM_KEY}
            server_url(self.vllm_url, **words)
        if not self.vllm_url and gguf_of(self.model):
            raise InputError(f"{self.given('model')}: a GGUF file, which vllm would not dequantise "
                             "as the learner does; use --engine own")  # fmt: skip
        if self.quantize != "none":
            raise InputError(f"{self.given('quantize')}: vllm would sample from other weights than "
                             "the learner's; leave it out, or use --engine own")  # fmt: skip
        if self.temperature < 0.01:
            raise InputError(f"{self.given('temperature')}: vllm takes 0.01 or more; use that, or "
                             "--engine own")  # fmt: skip
        if self.lora_r > 512:
            raise InputError(f"{self.given('lora_r')}: vllm takes adapters of rank 512 or less; "
                             "use that, or --engine own")  # fmt: skip
        if not self.vllm_url and find_spec("vllm") is None:
            raise InputError(f"{self.given('engine')}: vllm is not installed; see "
                             "requirements-vllm.txt, or use a server by --vllm-url")  # fmt: skip
