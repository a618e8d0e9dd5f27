"""The settings of evaluate.py. config.py is the door."""

import os
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from rlm.cli.layers import option
from rlm.cli.parsing import words_of
from rlm.errors import InputError
from rlm.models.lookup import (
    adapter_base,
    adapter_format,
    adapter_role,
    adapter_settings,
    adapter_shots,
    check_adapter,
    check_model,
    is_trained,
)
from settings.common import Common
from settings.orchestrator import Orchestrator

# What --robustness takes from the adapter's training, where it is not given.
TRAINED = (
    "task", "data", "question_field", "answer_field", "solution_field", "answers", "skip_bad_rows",
    "digits", "problem_steps", "per_question", "max_tokens",
)  # fmt: skip


class EvaluateSettings(Orchestrator, Common):
    """Measures models: accuracy with its interval, format, thinking and answer proportions."""

    script = "evaluate"
    auto_adapter = "final_rlm_lora"
    adapter: str | None = option(
        "auto", "adapter that is measured beside the base when --models is not given"
    )
    models: list[str] = option(
        lambda v: ["base"] + ([v["adapter"]] if v.get("adapter") else []),
        "what is measured: base, adapters in `weights`, folders, names out of `models:`",
        section="Evaluation",
        flags=["--model-path"],
        shown="base and the adapter",
    )
    compare: list[str] = option(
        [], "models measured on the same questions, with what changed; named as in --models"
    )
    robustness: bool = option(
        False, "questions that were trained on, the same with other names and numbers, harder ones"
    )
    symbolic: str | None = option(
        None, "JSONL file or folder with several questions of each template; accuracy by template"
    )
    split: Literal["train", "validation", "test"] = option("test", "part of the data")
    eval_samples: int = option(500, "questions; 0: all", ge=0, env=["EVAL_SAMPLES"])
    samples: int = option(
        lambda v: 8 if v.get("task") == "aime" else 1,
        "samples of each question; more give pass@k, majority",
        ge=1,
        le=4096,
        shown="8 for aime, which has 30 questions, else 1",
    )
    temperature: float = option(
        lambda v: 0.0 if v.get("samples", 1) == 1 else 1.0,
        "of the sampling; 0: greedy",
        ge=0,
        le=10,
        shown="0 for one sample, else 1",
    )
    output_file: str | None = option(
        None,
        "CSV file with a row per question",
        shown="runs/NAME/evaluation.csv, comparison.csv, robustness.csv or symbolic.csv",
    )
    json_output: bool = option(False, "print the summaries as JSON")

    @field_validator("models", "compare", mode="before")
    @classmethod
    def _split(cls, value):
        return words_of(value)

    @model_validator(mode="before")
    @classmethod
    def _asked(cls, given: dict) -> dict:
        compared, models = words_of(given.get("compare")), words_of(given.get("models"))
        if compared and models and compared != models:
            raise ValueError("--compare and --models: two lists of models; give one of them")
        asked, weights = compared or models, given.get("weights", "weights")
        names = dict(given.get("named_models") or {})
        for name in asked:
            if (
                name != "base"
                and name not in names
                and not os.path.exists(os.path.expanduser(name))
            ):
                place = f"{weights}/{name}"
                names |= {name: place} if is_trained(place) else {}
        given = given | {"named_models": names} | ({"models": asked} if asked else {})
        if str(given.get("robustness", False)).lower() in ("true", "1", "yes", "on"):
            alone = given.get("adapter", "auto") or "none"
            alone = f"{weights}/{cls.auto_adapter}" if alone == "auto" else alone
            places = [names.get(name, name) for name in asked or [alone]]
            given = trained_data(places, given) | given
        return given

    def candidates(self) -> list[tuple[str, str, str | None]]:
        """(name, model, adapter or None) of everything in `models`, in order."""
        found = []
        for name in self.models:
            place = self.model if name == "base" else self.named_models.get(name, name)
            adapter = place if is_trained(place) else None
            found.append((name, (adapter_base(place) or self.model) if adapter else place, adapter))
        return found

    def check_values(self) -> None:
        super().check_values()
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"{self.given('samples')}: greedy samples are all the same; "
                             "use --temperature above 0")  # fmt: skip
        if not self.models:
            raise InputError("--models: empty; name at least one, such as base")
        if self.compare and len(self.compare) < 2:
            raise InputError(f"{self.given('compare')}: one model; name two or more, "
                             "as in --compare base final_rlm_lora")  # fmt: skip
        ways = [way for way in ("compare", "robustness", "symbolic") if getattr(self, way)]
        if len(ways) > 1:
            raise InputError(f"{' and '.join('--' + way for way in ways)}: each is a measurement "
                             "of its own; choose one")  # fmt: skip
        if self.symbolic and not os.path.exists(os.path.expanduser(self.symbolic)):
            raise InputError(f"{self.given('symbolic')}: no such file or folder; check the path")
        adapters = [adapter for _, _, adapter in self.candidates() if adapter]
        formats = sorted({form for form in map(adapter_format, adapters) if form})
        if self.compare and len(formats) > 1 and "format" not in self._origins:
            raise InputError(f"--compare: adapters of the formats {' and '.join(formats)}; "
                             "all get the same prompt, so choose one by --format")  # fmt: skip
        roles = sorted({adapter_role(adapter) or self.role for adapter in adapters})
        if self.compare and len(roles) > 1 and "instruction_role" not in self._origins:
            raise InputError(
                f"--compare: adapters of the instruction roles {' and '.join(roles)}; "
                "all get the same prompt, so choose by --instruction-role"
            )
        shots = sorted({len(adapter_shots(adapter)) for adapter in adapters})
        if self.compare and len(shots) > 1 and "shots" not in self._origins:
            raise InputError(f"--compare: adapters of {' and '.join(map(str, shots))} worked "
                             "examples; all get the same prompt, so choose by --shots")  # fmt: skip

    def check_places(self) -> None:
        last = [Path(name).name for name in self.models]
        for name in self.models:
            if last.count(Path(name).name) > 1:
                raise InputError(f"--models {' '.join(self.models)}: {Path(name).name} twice; "
                                 "files are named by it, so name them in `models:`")  # fmt: skip
        for name, model, adapter in self.candidates():
            given = self.given("model") if name == "base" else f"--models {name}"
            check_adapter(adapter, given) if adapter else check_model(model, given)


def trained_data(places: list[str], given: dict) -> dict:
    """Return the data settings of the first of these adapters that knows its own.

    Nothing if there is none, or if all were trained on other tasks than the one given.
    """
    for place in places:
        settings = adapter_settings(place) if is_trained(place) else {}
        if settings and settings.get("task") == given.get("task", settings.get("task")):
            return {name: settings[name] for name in TRAINED if settings.get(name) is not None}
    return {}
