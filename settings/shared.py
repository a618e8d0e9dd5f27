"""What the settings of all scripts share: the model, its adapter, where and how it runs."""

import datetime
import json
from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from rlm.answers.formats import get_format
from rlm.cli.layers import Settings, option
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
    is_whole,
    origin,
    resolve,
    same_model,
)
from rlm.models.templates import read_options
from settings import tools as tool_settings

TINY_BASE = "weights/tiny_base"
TEMPLATE = ("template_options", "template_date")


def of_tiny_base(given: dict) -> bool:
    """Whether the model is the tiny base, or a whole model that was made of it."""
    return same_model(origin(given["model"]), TINY_BASE)


def by_model(tiny, other, text, **more):
    """An option with one default for the tiny base and one for real models."""
    shown = f"{tiny} for {TINY_BASE}, else {other}"
    return option(
        lambda given: tiny if of_tiny_base(given) else other,
        text,
        shown=shown,
        **more,
    )


def peak_rate(tiny: float, at_896: float):
    """The option of a stage's learning rate; None is what training/rates.py has for the width.

    Where all weights learn it is a tenth of a LoRA's, as there.
    """
    shown = f"{tiny} for {TINY_BASE}, else by the model's width: {at_896} at 896, less above; "
    shown += "with --train full a tenth of it"

    def default(given: dict) -> float | None:
        return (
            (tiny / 10 if given.get("train") == "full" else tiny) if of_tiny_base(given) else None
        )

    return option(
        default,
        "peak learning rate",
        shown=shown,
        gt=0,
        le=1,
    )


class Shared(Settings):
    """What every script takes that loads a model."""

    script: ClassVar[str] = ""
    auto_adapter: ClassVar[str | None] = None  # what `--adapter auto` means, inside `weights`

    config: str | None = option(
        None, "YAML or JSON file with `common:`, a section per script, `models:`", section="Common"
    )
    named_models: dict[str, str] = option({}, "names for adapters and models", flag=False)
    model: str = option(
        TINY_BASE,
        "base model: a folder, a GGUF file or a name on the hub; an adapter here stands on its own "
        "base",
        flags=["--base-model"],
        shown=f"the adapter's base, else {TINY_BASE}",
    )
    adapter: str | None = option("auto", "")
    weights: str = option("weights", "folder that the adapters go to", env=["OUTPUT_DIR"])
    device: Literal["auto", "cuda", "mps", "cpu"] = option(
        "auto", "where it runs; auto: the first there is of cuda, mps, cpu"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "number format of the base model; auto: float32 but on CUDA"
    )
    quantize: Literal["none", "4bit"] = option(
        "none", "4bit: the base's weights in 4 bits (bitsandbytes, CUDA); saves memory, not time"
    )
    engine: Literal["own", "transformers", "vllm"] = option(
        "own",
        "what samples; own: over its own cache where that serves the model, else as transformers: "
        "by the model's generate, and the learner pads; vllm: in train_grpo.py alone",
    )
    threads: int = option(0, "CPU threads; 0: torch's choice", ge=0, le=1024)
    cache_tokens: int = option(
        0, "bound on the tokens in the cache while sampling; 0: half of the free memory", ge=0
    )
    max_rows: int = option(
        0,
        "sequences that are sampled at once; 0: by memory, up to 1024 on CUDA, else 256",
        flags=["--rows"],
        ge=0,
        le=4096,
    )
    cuda_graphs: bool | None = option(
        None,
        "sample by CUDA graphs, several times as fast for small models",
        shown="where the model is on CUDA",
    )
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "what is printed")
    quiet: bool = option(False, "print warnings, errors and the result, no lines and no bar")
    format: Literal["think", "xml", "solution"] = option(
        "think", "tags around reasoning and answer", shown="the adapter's, else think"
    )
    instruction_role: Literal["system", "user", "both"] | None = option(
        None,
        "where the format's instruction stands: in a system turn, behind each question, in both",
        shown="the adapter's, else the format's",
    )
    template_options: list[str] = option(
        [],
        "what the model's chat template is told, NAME=VALUE each, as in enable_thinking=true",
        shown="the adapter's, else none",
    )
    template_date: str = option(
        lambda _: datetime.date.today().isoformat(),
        "the date that a chat template writes for today, as ISO 8601 has it",
        shown="the adapter's or the run's, else today's",
    )
    shots: int = option(
        0,
        "worked examples before the question, drawn from the training split by the seed",
        ge=0,
        le=16,
        shown="the adapter's, else 0",
    )
    tools: list[str] = option(
        [],
        "built-in tools that the model may call while it reasons: calculator; or none",
        section="Tools",
        shown="the adapter's, else none",
    )
    tool_file: str | None = option(
        None, "Python file with tools of your own; it is run, so trust it", shown="none"
    )
    tool_form: Literal["tag", "json"] = option(
        "tag",
        "how a call is written; json: as the model's own chat template has it",
        shown="the adapter's, else tag",
    )
    max_tool_calls: int = option(
        8, "calls of a completion", ge=1, le=256, shown="the adapter's, else 8"
    )
    tool_tokens: int = by_model(
        32, 128, "longest result of a tool; a longer one is cut", ge=4, le=8192
    )
    tool_seconds: float = option(
        5.0, "deadline of a call of a tool from --tool-file", gt=0, le=3600
    )

    @model_validator(mode="before")
    @classmethod
    def _places(cls, given: dict) -> dict:
        places = {x: given[x] for x in ("model", "adapter") if given.get(x) is not None}
        if not {type(place) for place in places.values()} <= {str, int, float}:
            return given  # not even nearly a text: pydantic says so
        given = given | {name: str(place) for name, place in places.items()}
        names = given.get("named_models") or {}
        auto = cls.auto_adapter and f"{given.get('weights', 'weights')}/{cls.auto_adapter}"
        if auto and given.get("train") == "full":  # what is left of the stage before
            auto = f"{auto.removesuffix('_lora')}_full"
        compared = [names.get(name, name) for name in words_of(given.get("models"))]
        bases = [adapter_base(place) for place in compared if is_trained(place)]
        default = "none" if compared else cls.model_fields["adapter"].default
        given = ({"model": bases[0]} if bases and bases[0] else {}) | given
        found = resolve(given, names, default, auto)
        adapters = [place for place in [found["adapter"], *compared] if place]
        known = [name for name in map(adapter_format, adapters) if name]
        trained: dict = {"format": known[0]} if known else {}
        first = next(filter(is_trained, adapters), None)
        if first:
            trained |= cls.of_adapter(first)
        return trained | found

    @classmethod
    def of_adapter(cls, place: str) -> dict:
        """What an adapter was trained with, beside its format: the defaults of these settings."""
        kept = adapter_settings(place)
        found = {"shots": len(adapter_shots(place)), "instruction_role": adapter_role(place)}
        found |= {name: kept[name] for name in TEMPLATE if kept.get(name)}
        return found | tool_settings.trained(kept)

    @field_validator("tools", mode="before")
    @classmethod
    def _tools(cls, value):
        return [name for name in words_of(value) if name != "none"]

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value):
        return str(value).lower()

    @field_validator("template_options", mode="before")
    @classmethod
    def _pairs(cls, value):
        if isinstance(value, dict):
            value = [f"{name}={json.dumps(given)}" for name, given in value.items()]
        words = value.split() if isinstance(value, str) else value
        if words is not None and not isinstance(words, list | tuple):
            return value  # pydantic says what it should be
        read_options([str(word) for word in words or []])
        return words or []

    @field_validator("template_date", mode="after")
    @classmethod
    def _day(cls, value):
        try:
            return datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            raise InputError(f"{value!r} is no date; write YYYY-MM-DD, as in 2026-07-01") from None

    @property
    def role(self) -> str:
        """Where the instruction stands, one of `rlm.answers.formats.ROLES`."""
        return self.instruction_role or get_format(self.format).instruction_role

    def loading(self) -> dict:
        """How the base model is loaded, for `rlm.models.policy.open_policy`."""
        place = {"device": self.device, "dtype": self.dtype, "quantize": self.quantize}
        return place | {"template": self.template()}

    def template(self) -> dict:
        """What chat templates are rendered with, for `rlm.models.templates.set_template`."""
        return {"options": read_options(self.template_options), "date": self.template_date}

    def engine_options(self) -> dict:
        """How completions are sampled, for `rlm.engine.engine.Engine`."""
        return {
            "max_rows": self.max_rows or None,
            "cache_tokens": self.cache_tokens or None,
            "cuda_graphs": self.cuda_graphs is not False,
            "transformers": self.engine == "transformers",
        }

    def process(self) -> dict:
        """What is global to the process, for `rlm.run.folder.start`."""
        level = "warning" if self.quiet and self.log_level != "error" else self.log_level
        return {"log_level": level, "threads": self.threads}

    def check(self) -> None:
        # In a file's `common:` or in the environment it is meant for train_grpo.py.
        if self.engine == "vllm" and self._origins.get("engine", "").startswith("--"):
            self._check_vllm()
        self.check_values()
        self.check_places()

    def _check_vllm(self) -> None:
        """InputError for a script that never samples by vLLM."""
        if self.script not in ("grpo", "train"):
            raise InputError(f"{self.given('engine')}: only train_grpo.py samples by vllm; leave "
                             "it out, or use transformers")  # fmt: skip

    def toolbox(self):
        """What the model may call, None for nothing: `rlm.tools.toolbox.Toolbox`."""
        return tool_settings.toolbox(self)

    def check_values(self) -> None:
        """All checks but those of folders that an earlier stage makes."""
        tool_settings.check(self)

    def check_places(self) -> None:
        if not (self.adapter and is_whole(self.adapter)):  # that one stands on no base
            check_model(self.model, self.given("model"))
        if self.adapter:
            check_adapter(self.adapter, self.given("adapter"), self.model)
