"""A vLLM server elsewhere as the engine: on another GPU or another machine, by --vllm-url.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank 16 \\
        --logprobs-mode processed_logprobs --dtype bfloat16 --generation-config vllm

On a CPU also --no-enable-chunked-prefill: it cannot wind random numbers back
(rlm/rollouts/vllm_local.py). Adapters are loaded while it runs, each under a name of its own. The
server reads their files, so the run's folder has to be on a disk that both machines see under the
same path. A key goes in by the environment: RLM_VLLM_KEY here, --api-key there.
"""

import asyncio
import uuid
from contextlib import suppress

import httpx

from rlm.addresses import VLLM_KEY, read_key, server_url
from rlm.errors import InputError, RunError
from rlm.parallel import world
from rlm.rollouts.vllm_engine import Completion, Request

LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256)
# A completion waits in the server's queue until others have ended.
TIMEOUT = httpx.Timeout(1800, connect=10)
LOST = (httpx.NetworkError, httpx.RemoteProtocolError)  # the connection, not an answer
SHORT_SECONDS = 10  # for what needs no model
BIAS = -100.0  # the lowest that a server takes
HOTTEST = 4.0  # temperature up to which BIAS still excludes a token: exp(-100 / 4) is 1e-11
START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora"


class ServedVllm:
    """The base model on a server. InputError if it cannot be used as an engine.

    context: tokens that a sequence needs; rank: of the adapters; both for the error messages.
    """

    def __init__(self, url: str, *, context: int, rank: int):
        given = f"--vllm-url {url}"
        self.name = server_url(url, flag="--vllm-url", given=given, variable=VLLM_KEY)
        key = read_key(VLLM_KEY)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._rank = rank
        self._prefix = f"rlm-{world().broadcast(uuid.uuid4().hex[:8], 'the name of the adapters')}"
        self._loaded: list[int] = []
        card = self._base()
        self._model, self.context_tokens = card["id"], card.get("max_model_len")
        if self.context_tokens and self.context_tokens < context:
            raise InputError(
                f"--vllm-url {self.name}: it takes {self.context_tokens} tokens, a prompt and its "
                f"completion may have {context}; start it with --max-model-len {context}"
            )
        self._check_logprobs()

    def complete(self, requests: list[Request], version: int | None) -> list[Completion]:
        """Return the completions of the requests, by the adapter of a version or the base."""
        hottest = max((request.temperature for request in requests), default=0.0)
        if hottest > HOTTEST and any(request.banned for request in requests):
            raise InputError(
                f"--temperature {hottest:g}: a server cannot exclude the rows of the head that "
                f"have no token above a temperature of {HOTTEST:g}; use less, or --engine own"
            )
        return asyncio.run(self._complete(requests, self._name(version)))

    def load(self, version: int, folder) -> None:
        """Load the adapter of a folder under a name of its own."""
        place = str(folder.resolve())
        body = {"lora_name": self._name(version), "lora_path": place}
        answer = self._ask("POST", "/v1/load_lora_adapter", body)
        if answer.status_code == 404 and "adapter" not in answer.text:
            raise InputError(f"--vllm-url {self.name}: it does not load adapters while it runs; "
                             f"start it by {START}")  # fmt: skip
        if answer.status_code == 404:
            raise InputError(
                f"--vllm-url {self.name}: the server does not see {place}; put the run's folder on "
                "a disk that both machines have under the same path"
            )
        if answer.is_error:
            raise InputError(
                f"--vllm-url {self.name}: it does not take the adapter ({_reason(answer)}); "
                f"start it by {START} --max-lora-rank {self._rank}"
            )
        self._loaded.append(version)

    def unload(self, version: int) -> None:
        """Have the server forget an adapter."""
        self._loaded.remove(version)
        answer = self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._name(version)})
        if answer.is_error:
            raise RunError(f"{self.name} does not unload an adapter ({_reason(answer)}); start it "
                           "anew and go on")  # fmt: skip

    def close(self) -> None:
        """Leave the server as it was found; it goes on running."""
        for version in list(self._loaded):
            with suppress(RunError, InputError):
                self.unload(version)

    def _name(self, version: int | None) -> str:
        return self._model if version is None else f"{self._prefix}-{version}"

    def _base(self) -> dict:
        """Return the server's card of its base model; InputError if there is no such server."""
        try:
            answer = self._ask("GET", "/v1/models")
        except RunError as error:
            raise InputError(
                f"--vllm-url {self.name}: not reachable ({error.__cause__}); start it by {START} "
                "--logprobs-mode processed_logprobs, or correct the address"
            ) from None
        if answer.status_code in (401, 403):
            raise InputError(f"--vllm-url {self.name}: it wants a key; put it into the environment "
                             f"as {VLLM_KEY}")  # fmt: skip
        try:
            cards = answer.raise_for_status().json()["data"]
            return next(card for card in cards if not card.get("parent"))
        except (httpx.HTTPError, ValueError, KeyError, TypeError, StopIteration):
            raise InputError(
                f"--vllm-url {self.name}: no vLLM server ({_reason(answer)}); give its address "
                "without a path, as in http://127.0.0.1:8000"
            ) from None

    def _check_logprobs(self) -> None:
        """InputError if log-probabilities come as they were before the temperature and the mask.

        A bias of 100 makes a token's own log-probability 0 where it is counted in.
        """
        body = {"prompt": [1], "max_tokens": 1, "temperature": 1.0, "logit_bias": {"0": 100}}
        answer = self._ask("POST", "/v1/completions", body | self._fixed([]))
        found = _completion(_checked(answer, self.name)) if answer.is_success else None
        if found is None or found.ids != [0] or abs(found.logprobs[0]) > 1e-3:
            raise InputError(
                f"--vllm-url {self.name}: it does not return log-probabilities of what was sampled "
                "(with temperature and mask); start it with --logprobs-mode processed_logprobs"
            )

    def _fixed(self, stops) -> dict:
        """Return what every request has; the model's own penalties would come in otherwise."""
        return {"model": self._model, "logprobs": 0, "return_token_ids": True, "top_p": 1.0,
                "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
                "frequency_penalty": 0.0, "stop_token_ids": list(stops)}  # fmt: skip

    async def _complete(self, requests: list[Request], model: str) -> list[Completion]:
        options: dict = {"base_url": self.name, "headers": self._headers, "timeout": TIMEOUT}
        async with httpx.AsyncClient(limits=LIMITS, **options) as client:

            async def one(request: Request) -> Completion:
                body = self._fixed(request.stops) | {
                    "model": model,
                    "prompt": request.ids,
                    "max_tokens": request.max_tokens,
                    "temperature": request.temperature,
                    "seed": request.seed,
                    "prompt_logprobs": 0 if request.scored else None,
                    "logit_bias": {str(id): BIAS for id in request.banned} or None,
                }
                answer = await _post(client, body, self.name)
                return _completion(_checked(answer, self.name))

            return await asyncio.gather(*map(one, requests))

    def _ask(self, method: str, path: str, body: dict | None = None) -> httpx.Response:
        """Return the answer to a short request, whatever its status; RunError if there is none."""
        try:
            options: dict = {"headers": self._headers, "timeout": SHORT_SECONDS if body is None
                             else TIMEOUT}  # fmt: skip
            return httpx.request(method, f"{self.name}{path}", json=body, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _gone(self.name, error) from error


async def _post(client: httpx.AsyncClient, body: dict, name: str) -> httpx.Response:
    """Return the answer to a completion; a lost connection is tried again."""
    for pause in (0.2, 1.0, None):
        try:
            return await client.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            if pause is None or not isinstance(error, LOST):
                raise _gone(name, error) from error
            await asyncio.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _gone(name: str, error: Exception) -> RunError:
    return RunError(
        f"{name} does not answer ({str(error) or type(error).__name__}); what was trained is in "
        "the run's checkpoints: start the server, then go on"
    )


def _checked(answer: httpx.Response, name: str) -> dict:
    """Return the answer's object; RunError if it is an error's."""
    if answer.is_error:
        raise RunError(f"{name} refuses a completion ({_reason(answer)}); start it anew and go on")
    return answer.json()


def _completion(found: dict) -> Completion:
    (choice,) = found["choices"]
    scored = (choice.get("prompt_logprobs") or [])[1:]
    prompt = zip(scored, (choice.get("prompt_token_ids") or [])[1:], strict=False)
    return Completion(
        choice["token_ids"],
        choice["logprobs"]["token_logprobs"],
        [places[str(id)]["logprob"] for places, id in prompt],
    )


def _reason(answer: httpx.Response) -> str:
    """Return one line of what a server said."""
    try:
        found = answer.json()
        text = found["error"]["message"] if "error" in found else str(found)
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return f"{answer.status_code}: {' '.join(text.split())[:300]}"
