"""What a client may send: JSON -> a checked request. It knows nothing of models and tokens.

The body is parsed here, whatever type its header names: `curl -d` sends a form's type.
"""

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from rlm.cli.layers import nearest
from rlm.server.errors import ApiError, invalid

MAX_SEED = 2**63 - 1
MAX_TOKENS = 131_072  # what a field may say; the server's and the model's limits come on top
MAX_PROMPT = 32_768  # characters
MAX_TIMEOUT = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Ask:
    """What either endpoint asks of the model.

    messages: the conversation, {"role", "content"} each; the format's instruction comes to it,
        or gives way to its system turns (replace_instruction). prompt: a text or token ids that
        the model goes on with instead, as they are.
    max_tokens, timeout_seconds: None takes the server's. effort: of EFFORTS, bounds the reasoning
        where max_reasoning_tokens does not. logprobs: so many of the likeliest tokens are told
        beside each one. template: what the chat template is told.
    """

    messages: tuple[dict, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    replace_instruction: bool = False
    effort: str | None = None
    logprobs: int | None = None
    template: dict = field(default_factory=dict)
    max_tokens: int | None = None
    max_reasoning_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    timeout_seconds: float | None = None


def drawn(asked: Any) -> dict[str, Any]:
    """Return how an open API's request wants its samples, as fields of an `Ask`."""
    return {
        "temperature": 0.7 if asked.temperature is None else asked.temperature,
        "top_p": asked.top_p or 1.0,
        "top_k": asked.top_k or 0,
        "stream": bool(asked.stream),
    }


# The share of a completion's tokens that its reasoning may take.
EFFORTS = {
    "none": 0.0,
    "minimal": 1 / 16,
    "low": 1 / 4,
    "medium": 1 / 2,
    "high": 3 / 4,
    "xhigh": 1.0,
}


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is blank; give it some text")
    return text


def _listed(value):
    return [value] if isinstance(value, str) else value


def _unlimited(value):
    return None if type(value) is int and value == -1 else value


def _or_unlimited(low: int, high: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": low, "maximum": high}
    return WithJsonSchema({"anyOf": [{"const": -1}, number, {"type": "null"}]})


Text = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT, json_schema_extra={"pattern": r"\S"}),
    AfterValidator(_not_blank),
]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(max_length=8),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 256},
                {
                    "type": "array",
                    "maxItems": 8,
                    "items": {"type": "string", "minLength": 1, "maxLength": 256},
                },
            ]
        }
    ),
]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
MaxTokens = Annotated[  # -1: as None
    Tokens | None, BeforeValidator(_unlimited), _or_unlimited(1, MAX_TOKENS)
]
TopK = Annotated[  # -1: as 0
    Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None,
    BeforeValidator(_unlimited),
    _or_unlimited(0, MAX_TOKENS),
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 is greedy")]
TopP = Annotated[float, Field(gt=0, le=1, description="the likeliest tokens up to this share")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Samples = Annotated[int, Field(ge=1, le=16)]


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    if TYPE_CHECKING:  # every request has it, in a place of its own
        temperature: float | None

    @classmethod
    def kept(cls, given: dict) -> dict:
        """Return what is to be checked of an object that came; ApiError for what cannot be kept."""
        return given

    @model_validator(mode="after")
    def _samples_differ(self):
        if (getattr(self, "n", None) or 1) > 1 and self.temperature == 0:
            raise ValueError("n: greedy samples are all the same; use n 1 or a temperature above 0")
        return self


class ReasoningRequest(Request):
    """A question for the model."""

    prompt: Text = Field(description="the question")
    system: Text | None = Field(None, description="it stands beside the format's instruction")
    replace_instruction: bool = Field(False, description="system stands in its place")
    max_tokens: MaxTokens = Field(
        None,
        description="reasoning and answer; default, and -1: what the server and the context allow",
    )
    max_reasoning_tokens: Tokens | None = Field(
        None, description="after so many the reasoning is closed and the answer follows"
    )
    temperature: Temperature = 0.7
    top_p: TopP = 1.0
    top_k: TopK = Field(0, description="the k likeliest tokens; 0, and -1: all")
    seed: Seed | None = Field(None, description="the same seed gives the same reply")
    n: Samples = Field(1, description="samples")
    vote: Literal["auto", "majority", "none"] = Field(
        "auto", description="auto: the samples vote on the answer when n is above 1"
    )
    stop: Stops | None = Field(None, description="texts that end a sample; they are left out")
    format: Literal["json", "text"] = Field("json", description="text: the bare text")
    include_reasoning: bool = True
    include_samples: bool = Field(False, description="every sample in the reply")
    stream: bool = Field(False, description="server-sent events")
    timeout_s: float | None = Field(
        None, gt=0, le=MAX_TIMEOUT, description="seconds, the time in the queue included"
    )

    @model_validator(mode="after")
    def _together(self):
        if self.max_tokens and (self.max_reasoning_tokens or 0) > self.max_tokens:
            raise ValueError(
                "max_reasoning_tokens: more than max_tokens, which counts reasoning and answer; "
                "use a smaller number"
            )
        if self.stream and self.format == "text":
            raise ValueError("format: a stream has events, not plain text; leave out one of both")
        if self.replace_instruction and not self.system:
            raise ValueError("replace_instruction: by nothing; give the text as system")
        return self

    def ask(self) -> Ask:
        """Return what is asked of the model."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return Ask(
            messages=(*system, {"role": "user", "content": self.prompt}),
            replace_instruction=self.replace_instruction,
            max_tokens=self.max_tokens,
            max_reasoning_tokens=self.max_reasoning_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
            n=self.n,
            stop=tuple(self.stop or ()),
            stream=self.stream,
            timeout_seconds=self.timeout_s,
        )


def read_json(body: bytes) -> dict:
    """Return the object that the body holds; ApiError 400 for everything else."""

    def refuse(constant):
        raise ValueError(constant)

    try:
        found = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError):
        message = "the body is not JSON in UTF-8; NaN and Infinity are no JSON either"
        raise ApiError(400, "invalid_json", message) from None
    if not isinstance(found, dict):
        raise ApiError(400, "invalid_json", 'the body must be an object, as in {"prompt": "..."}')
    return found


def check(model: type[Request], body: bytes):
    """Return the request; ApiError 400 or 422 with the first field that is wrong."""
    try:
        return model.model_validate(model.kept(read_json(body)))
    except ValidationError as error:
        raise _refusal(model, error) from None


def _refusal(model: type[Request], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    places = [str(part) for part in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        # The name is the client's own text: it comes back only if it looks like a name.
        name = places[0] if re.fullmatch(r"[A-Za-z_]\w{0,63}", places[0], re.ASCII) else None
        hint = nearest(name or "", model.model_fields)
        known = ", ".join(model.model_fields)
        return invalid(f"there is no such field{hint or f'; known are {known}'}", name)
    if not places:
        name, _, message = message.partition(": ")
        return invalid(message, name)
    return invalid(message, ".".join(places))
