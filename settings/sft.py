"""The settings of train_sft.py. config.py is the door."""

from typing import Literal

from rlm.cli.layers import option
from rlm.errors import InputError
from settings.shared import peak_rate
from settings.training import Training


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
        lambda v: (
            f"{v['weights']}/{'sft_prep' if v.get('stage') == 'prep' else 'sft'}_{v['train']}"
        ),
        "folder of what is trained",
        flags=["--output-dir"],
        shown="weights/sft_lora, prep: weights/sft_prep_lora; with --train full sft_full",
    )
    num_samples: int = option(
        1000,
        "demonstrations, or with --demonstrations own questions that are asked; 0: all",
        ge=0,
        env=["TRAIN_SAMPLES"],
    )
    demonstrations: Literal["human", "own"] = option(
        "human",
        "human: the data's solutions; own: right answers of the base itself, which is asked the "
        "training questions first and needs no solutions",
    )
    own_samples: int = option(4, "with own: samples of each question", ge=1, le=4096)
    own_pick: Literal["shortest", "first"] = option(
        "shortest", "with own: which right answer of a question is kept"
    )
    own_temperature: float = option(0.7, "with own: of the sampling; 0: greedy", ge=0, le=10)
    call_fraction: float = option(
        1.0, "with --tools: share of the demonstrations that call, where they can", ge=0, le=1
    )
    graph_tries: int = option(
        0,
        "with task orchestrator: random graphs that are tried for each question; the first that "
        "answers it right is shown, and a random one where none does; 0: all are random, untried",
        ge=0, le=4096,
    )  # fmt: skip
    epochs: float = option(3.0, "passes over the demonstrations", gt=0, le=1000)
    max_steps: int = option(0, "optimiser steps; 0: the epochs decide", ge=0)
    batch_size: int = option(8, "demonstrations an optimiser step", ge=1)
    learning_rate: float | None = peak_rate(3e-3, 5e-4)
    warmup_fraction: float = option(0.05, "share of the steps with rising rate", ge=0, lt=1)
    max_length: int = option(1024, "longest demonstration, tokens", ge=16)
    packing: bool = option(False, "several demonstrations in a row of max-length tokens")

    backend: Literal["trl", "own"] = option(
        lambda v: "own" if v.get("train") == "full" else "trl",
        "what trains; trl: TRL's SFTTrainer; own: our packed learner, which pads nothing",
        section="Backend",
        shown="trl; with --train full own",
    )
    token_budget: int = option(
        0,
        "with --backend own: tokens of a micro-batch: memory, not the result; 0: by what is free",
        ge=0,
    )

    def check_values(self) -> None:
        super().check_values()
        if self.backend == "trl" and self.token_budget:
            raise InputError(f"{self.given('token_budget')}: TRL's batches are whole; leave it "
                             "out, or use --backend own")  # fmt: skip
        if self.backend == "own" and self.packing:
            raise InputError(f"{self.given('packing')}: not with --backend own, which packs "
                             "without it; leave it out, or use --backend trl")  # fmt: skip
        self._check_demonstrations()

    def _check_demonstrations(self) -> None:
        if self.graph_tries and self.task != "orchestrator":
            raise InputError(f"{self.given('graph_tries')}: only with --task orchestrator, which "
                             "shows graphs; leave it out")  # fmt: skip
        if self.demonstrations == "human":
            names = {"own_samples", "own_pick", "own_temperature"}
            for name in sorted(self.model_fields_set & names):
                raise InputError(f"{self.given(name)}: only with --demonstrations own; add that, "
                                 "or leave it out")  # fmt: skip
            return
        if self.task == "orchestrator":
            raise InputError(f"{self.given('demonstrations')}: task orchestrator is shown random "
                             "graphs; leave it out, or use --graph-tries")  # fmt: skip
        if self.own_samples > 1 and self.own_temperature == 0:
            raise InputError(f"{self.given('own_samples')}: greedy samples are all the same; use "
                             "--own-temperature above 0, or --own-samples 1")  # fmt: skip
