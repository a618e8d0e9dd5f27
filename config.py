"""The settings of every script: one class per script, with the checks and the help texts.

    settings = load(GRPOSettings)          # defaults < --config file < RLM_... < flags

Wrong input ends the script with one line on stderr and exit code 2, before torch is imported.
What the classes share is in settings/shared.py, the other classes are in settings/training.py
(data), settings/sft.py, settings/grpo.py, settings/evaluation.py, settings/orchestrator.py and
settings/serving.py; how the layers are read is in rlm/cli/layers.py, rlm/cli/flags.py and
rlm/cli/config_file.py. Recipes are in configs/.
"""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlm.cli.config_file import read_file
from rlm.cli.flags import read_flags
from rlm.cli.layers import build, option, read_environment
from rlm.errors import InputError
from settings.common import Common
from settings.evaluation import EvaluateSettings
from settings.grpo import GRPOSettings
from settings.orchestrator import Orchestrator
from settings.serving import ServeSettings
from settings.sft import SFTSettings
from settings.tools import TRAINED
from settings.training import Training


class InferenceSettings(Orchestrator, Common):
    """Asks the model: one prompt, a conversation, a batch of questions, or a short demo."""

    script = "inference"
    auto_adapter = "final_rlm_lora"
    adapter: str | None = option(
        "auto",
        "adapter: a folder, a name out of `models:`, auto (weights/final_rlm_lora if it is there "
        "and of the model), or none",
        flags=["--checkpoint"],
    )
    prompt: str | None = option(
        None,
        "the question; read from a pipe if there is one",
        flag="positional",
        section="Inference",
        shown="a short demo",
    )
    interactive: bool = option(False, "ask again and again")
    batch: bool = option(False, "answer questions of the task's test split")
    num_samples: int = option(10, "questions of --batch", ge=1)
    temperature: float = option(0.0, "of the sampling; 0: greedy", ge=0, le=10)
    json_output: bool = option(False, "print each answer as a line of JSON")
    unmerged: bool = option(
        False,
        "in bfloat16 and float16 leave the adapter beside the weights; else it is merged into them "
        "at load, where that is the same model but for rounding",
    )

    def check_values(self) -> None:
        super().check_values()
        ways = [w for w in ("interactive", "batch") if getattr(self, w)]
        ways = [f"--{w}" for w in ways] + (["a prompt"] if self.prompt is not None else [])
        if len(ways) > 1:
            raise InputError(f"{' and '.join(ways)}: two ways to ask; choose one")


class TrainSettings(Training):
    """Both stages and their evaluations in one go; each stage reads its own section of the file."""

    script = "train"
    mode: Literal["sft", "grpo", "full"] = option(
        "full", "which stages; grpo starts from --sft-checkpoint", section="Stages"
    )
    adapter: str | None = option(
        "auto",
        "adapter that --mode grpo starts from: a folder, a name, auto (weights/sft_lora), none",
        flags=["--sft-checkpoint"],
    )
    weights: str = option(
        "weights", "folder the adapters go to", flags=["--output-dir"], env=["OUTPUT_DIR"]
    )
    num_samples: int | None = option(
        None, "training examples of each stage", ge=0, env=["TRAIN_SAMPLES"], shown="the stage's"
    )
    sft_epochs: float | None = option(None, "passes of SFT", gt=0, shown="sft: epochs")
    sft_max_steps: int | None = option(None, "steps of SFT", ge=0, shown="sft: max_steps")
    sft_batch_size: int | None = option(
        None, "demonstrations a step", ge=1, shown="sft: batch_size"
    )
    sft_lr: float | None = option(None, "learning rate of SFT", gt=0, shown="sft: learning_rate")
    grpo_epochs: float | None = option(
        None, "passes of GRPO over its questions; sets its steps", gt=0, shown="grpo: max_steps"
    )
    grpo_max_steps: int | None = option(None, "steps of GRPO", ge=1, shown="grpo: max_steps")
    grpo_samples: int = option(
        0, "questions of GRPO; 0: as many as the stage has, by --num-samples or its section", ge=0
    )
    grpo_group_size: int | None = option(
        None,
        "samples of each question",
        ge=2,
        why="a group needs at least 2 samples to have a mean to beat",
        shown="grpo: group_size",
    )
    grpo_lr: float | None = option(None, "learning rate of GRPO", gt=0, shown="grpo: learning_rate")

    def sft(self) -> SFTSettings:
        """The settings of the SFT stage."""
        return self._stage(
            SFTSettings,
            epochs=self.sft_epochs,
            max_steps=self.sft_max_steps,
            batch_size=self.sft_batch_size,
            learning_rate=self.sft_lr,
        )

    def grpo(self) -> GRPOSettings:
        """The settings of the GRPO stage; it starts from the SFT stage's output in --mode full."""
        start = self.sft().output if self.mode == "full" else self.adapter or "none"
        stage = self._stage(
            GRPOSettings,
            adapter=start,
            max_steps=self.grpo_max_steps,
            num_samples=self.grpo_samples or None,
            group_size=self.grpo_group_size,
            learning_rate=self.grpo_lr,
        )
        if self.grpo_epochs is None or self.grpo_max_steps is not None:
            return stage
        if not stage.num_samples:
            raise InputError(f"{self.given('grpo_epochs')}: needs a number of questions; "
                             "give --num-samples, or --grpo-max-steps instead")  # fmt: skip
        steps = math.ceil(self.grpo_epochs * stage.num_samples / stage.questions_per_step)
        return stage.model_copy(update={"max_steps": max(1, steps)})

    def evaluate(self) -> EvaluateSettings:
        """The settings of the evaluations: of the base, of where GRPO starts, of the result."""
        stage = self.sft() if self.mode == "sft" else self.grpo()
        start = [stage.adapter] if stage.adapter else []
        models = ["base", *start, stage.output]
        plain = {"compare": [], "robustness": False}  # whatever the file has for evaluate.py
        return self._stage(EvaluateSettings, adapter="none", models=models, **plain)

    def _stage(self, cls, **own):
        """A stage's settings: its section of the file < environment < what train.py was given."""
        values, origins = _layers(cls, [], self.config)
        shared = {
            name: getattr(self, name)
            for name, origin in self._origins.items()
            if name in set(cls.model_fields) - {"run", "adapter"} and ": common: " not in origin
        }
        own = {name: value for name, value in own.items() if value is not None}
        given = {"run": f"{self.run}/{cls.script}", "model": self.model} | shared | own
        origins |= {name: self._origins[name] for name in shared if name not in own}
        # A folder may still hold an adapter of an earlier run: its format must not decide.
        asked = {"shots": self.shots, "instruction_role": self.instruction_role}
        asked |= {name: getattr(self, name) for name in TRAINED}
        values = {"format": self.format} | asked | values
        return build(cls, values | given | {"config": self.config}, origins)

    def doubt(self) -> str | None:
        """Return a line about --grpo-samples if samples of each question seem to be meant."""
        if not 0 < self.grpo_samples <= LARGEST_GROUP or self.grpo_group_size is not None:
            return None
        return (
            f"{self.given('grpo_samples')}: GRPO gets that many questions; for that many samples "
            f"of each question use --grpo-group-size {self.grpo_samples}"
        )

    def check(self) -> None:
        super().check()
        if self.mode != "grpo" and self.adapter:
            raise InputError(f"{self.given('adapter')}: only --mode grpo starts from an adapter; "
                             f"leave it out with --mode {self.mode}")  # fmt: skip
        for stage in (self.sft, self.grpo, self.evaluate):
            stage().check_values()
        shots = {stage().shots for stage in (self.sft, self.grpo, self.evaluate)}
        if shots != {self.shots}:
            counts = ", ".join(map(str, sorted(shots | {self.shots})))
            raise InputError(f"shots {counts}: all stages of a run have the same worked examples; "
                             "give one number, by --shots or in common:")  # fmt: skip
        if self.mode != "sft" and self.grpo().check_only:
            raise InputError(f"{self.grpo().given('check_only')}: only train_grpo.py tries its "
                             "settings out; leave it out here")  # fmt: skip
        if self.mode != "grpo":
            self.sft().check_places()


LARGEST_GROUP = 16  # of a usual group; more samples than that are questions
SEVERAL = ("sft", "grpo")  # scripts that run in several processes
SECTIONS = {
    cls.script: cls
    for cls in (
        SFTSettings,
        GRPOSettings,
        EvaluateSettings,
        InferenceSettings,
        TrainSettings,
        ServeSettings,
    )
}


def _layers(cls, argv: Sequence[str], config: str | None = None) -> tuple[dict, dict]:
    """(values, origins) of a script: its file's sections, then the environment, then the flags."""
    flags, flag_origins = read_flags(cls, list(argv), Path(sys.argv[0]).name)
    # Keys are read where they are used and are no settings, so that no dump holds them.
    known = {"api_key", "upstream_key"}
    known |= {name for section in SECTIONS.values() for name in section.model_fields}
    values, origins = read_environment(cls, known)
    path = flags.get("config") or values.get("config") or config
    if path:
        below, below_origins, names = read_file(path, SECTIONS, cls.script)
        values, origins = below | values | {"named_models": names}, below_origins | origins
    return values | flags, origins | flag_origins


def load(cls, argv: Sequence[str] | None = None):
    """The settings of a script: defaults < --config file < environment < flags.

    argv: the flags, without the program's name; None takes those of the command line. Wrong
    input prints one line and exits with 2, `--help` with 0.
    """
    try:
        values, origins = _layers(cls, sys.argv[1:] if argv is None else list(argv))
        settings = build(cls, values, origins)
        settings.check()
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and cls.script not in SEVERAL:
            raise InputError(f"{processes} processes were started, this script runs in one; "
                             "start train_sft.py and train_grpo.py in several")  # fmt: skip
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return settings
