"""The settings of the server. config.py is the door that loads them."""

import re
from typing import Literal

from pydantic import field_validator, model_validator

from rlm.addresses import UPSTREAM_KEY, server_url
from rlm.cli.layers import flag_of, option
from rlm.cli.parsing import words_of
from rlm.errors import InputError
from rlm.models.lookup import adapter_kind, check_model
from settings.shared import Shared

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Of the model in this process; with --upstream there is none.
OF_THE_ENGINE = (
    "device", "dtype", "quantize", "cache_tokens", "cuda_graphs", "engine", "unmerged",
)  # fmt: skip


class ServeSettings(Shared):
    """Serves a model: /phase1/reasoning, the chat completions API, and a page to try it."""

    script = "serve"
    auto_adapter = "final_rlm_lora"
    adapter: str | None = option(
        "auto",
        "adapter: a folder, a name out of `models:`, auto (weights/final_rlm_lora if it is there "
        "and of the model), or none",
    )
    host: str = option("127.0.0.1", "address to listen on; any other needs a key", section="Server")
    port: int = option(8000, "port to listen on; 0: a free one", ge=0, le=65535)
    answers: Literal["number", "math", "choice", "text"] | None = option(
        None,
        "kind of the answers that are asked for and read",
        shown="what the adapter was trained for, else number",
    )
    unmerged: bool = option(
        False,
        "in bfloat16 and float16 leave the adapter beside the weights; else it is merged into them "
        "at load, where that is the same model but for rounding",
    )
    upstream: list[str] = option(
        [],
        "URLs of running `vllm serve` that do the generation, as http://127.0.0.1:8001; their key "
        "is in RLM_UPSTREAM_KEY, --model is theirs and gives the tokenizer",
        section="Upstream",
        shown="none: the model runs here",
    )
    upstream_model: str | None = option(
        None, "name that they serve the model or the adapter under", shown="the only one they have"
    )
    max_rows: int = option(
        32,
        "samples that run at once; with --upstream on each server",
        flags=["--rows"],
        ge=1,
        le=4096,
        section="Limits",
    )
    max_queue: int = option(64, "requests that may wait; more are refused", ge=1, le=100_000)
    max_tokens: int = option(1024, "longest completion, tokens", ge=1, le=131072)
    timeout: float | None = option(
        None,
        "seconds a request may take, its wait included",
        gt=0,
        le=3600,
        shown="120, or what its tokens take three times over at the measured speed",
    )
    drain_seconds: float = option(10.0, "seconds that requests get to end at a stop", ge=0, le=600)
    api_key_file: str | None = option(
        None, "file with the API key; RLM_API_KEY goes before it", section="Access", shown="none"
    )
    tunnel: bool = option(False, "open a public URL by ngrok; it needs NGROK_AUTHTOKEN and a key")
    require_tunnel: bool = option(False, "--tunnel, and end if it does not come up")
    tunnel_domain: str | None = option(None, "the domain of an ngrok account for the public URL")
    cors_origin: list[str] = option(
        [], "origins whose web pages may ask, such as https://example.org", shown="none"
    )
    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = option(
        "reasoning_content",
        "field of the chat completions API that has the reasoning; both: clients that know both "
        "show it twice",
    )
    log_content: bool = option(False, "log prompts and answers too")

    @model_validator(mode="before")
    @classmethod
    def _adapter_is_upstream(cls, given: dict) -> dict:
        auto = given.get("adapter") in (None, "auto")
        return given | {"adapter": "none"} if given.get("upstream") and auto else given

    @classmethod
    def of_adapter(cls, place: str) -> dict:
        return super().of_adapter(place) | {"answers": adapter_kind(place)}

    @field_validator("cors_origin", "upstream", mode="before")
    @classmethod
    def _split(cls, value):
        return words_of(value)

    @property
    def public(self) -> bool:
        """Whether others than this machine can reach it, so that it needs a key."""
        return self.with_tunnel or self.host not in LOOPBACK

    @property
    def with_tunnel(self) -> bool:
        return self.tunnel or self.require_tunnel

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """The fields of the chat completions API that have the reasoning."""
        both = ("reasoning_content", "reasoning")
        return both if self.reasoning_field == "both" else (self.reasoning_field,)

    @property
    def upstream_urls(self) -> list[str]:
        """The servers' URLs without what every server has behind its own, /v1."""
        words = {"flag": "--upstream", "given": self.given("upstream"), "variable": UPSTREAM_KEY}
        return [server_url(url, **words) for url in self.upstream]

    def check_places(self) -> None:
        if self.upstream:
            check_model(self.model, self.given("model"), weights=False)
        else:
            super().check_places()

    def check_values(self) -> None:
        super().check_values()
        self._check_upstream()
        for origin in self.cors_origin:
            if not re.fullmatch(r"https?://[\w.\-\[\]:]+|\*", origin):
                raise InputError(f"{self.given('cors_origin')}: an origin is a scheme and a host, "
                                 "as in https://example.org, or * for all")  # fmt: skip
        if self.with_tunnel and self.host not in ("127.0.0.1", "localhost", "0.0.0.0"):
            raise InputError(f"{self.given('host')}: the tunnel forwards to 127.0.0.1, where this "
                             "would not listen; leave --host out with --tunnel")  # fmt: skip
        if self.tunnel_domain and not self.with_tunnel:
            raise InputError(f"{self.given('tunnel_domain')}: needs --tunnel")

    def _check_upstream(self) -> None:
        if len(set(self.upstream_urls)) < len(self.upstream):
            raise InputError(f"{self.given('upstream')}: a server stands there twice; keep one")
        if not self.upstream:
            if self.upstream_model is not None:
                raise InputError(f"{self.given('upstream_model')}: needs --upstream")
            return
        if self.adapter:
            name = "adapter" if "adapter" in self._origins else "model"
            raise InputError(
                f"{self.given(name)}: with --upstream the adapter is loaded by the servers "
                "(--lora-modules NAME=FOLDER); give their base by --model, NAME by "
                "--upstream-model, and the format by --format"
            )
        for name in OF_THE_ENGINE:
            origin = self._origins.get(name)
            if origin and ": common: " not in origin:  # there it is meant for other scripts too
                raise InputError(f"{origin}: with --upstream no model runs here; give it to the "
                                 f"servers and leave {flag_of(name)} out")  # fmt: skip
