"""One running `vllm serve`, as a client sees it: is it well, what does it serve, tokens for tokens.

    client = Client("http://gpu-1:8000", key=None)
    served = await client.look("rlm", text, ids)       # the model is there, the tokenizer is ours
    await client.complete(body, take)                   # take(ids, finish) for each chunk

Token ids go up and token ids come down (`return_token_ids`), so that chat template, stop texts and
reading stay with the caller. Of vLLM's API it needs GET /health, GET /v1/models and POST
/v1/completions; POST /tokenize is asked if it is there. It does not know what the tokens mean, nor
that there are other servers.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from rlm.addresses import UPSTREAM_KEY
from rlm.errors import InputError

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0  # for an answer in one piece; tokens have the time of their request
FIRST_SECONDS = 60.0  # for the first token of a server, which may compile something for it
# Shorter than the 5 s after which vLLM closes an idle connection: at the same moment a request
# would go into a connection that is being closed, and a server that is well would look lost.
KEEP_ALIVE_SECONDS = 2.0
OWN_FAULT = (400, 413, 422)  # the request is wrong: another server would say the same
NOT_FOR_US = (401, 403, 404)  # the server is wrong: no key for it, or the model is not there
PROBE = "How much is 23 + 15?\n<think>\n1. 23 + 15 = 38\n</think>\n38"


class Lost(Exception):
    """The server did not do what it was asked. out: it can do nothing else either, for now."""

    def __init__(self, message: str, *, out: bool):
        super().__init__(message)
        self.out = out


class Refused(Exception):
    """The server is well and says that the request is wrong."""


class Unfit(InputError):
    """The server answers, and is not the one that is wanted: what it says, what to do."""


@dataclass(frozen=True, slots=True)
class Served:
    """model: the name to ask for. context_tokens: of prompt and completion together."""

    model: str
    context_tokens: int


class Client:
    """url: without a path behind the server's own, as in http://127.0.0.1:8001."""

    def __init__(self, url: str, key: str | None):
        self.url = url
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        try:
            self._http = httpx.AsyncClient(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                limits=limits,
            )
        except httpx.InvalidURL as error:
            raise InputError(f"--upstream {url}: no URL ({error}); use one such as "
                             "http://127.0.0.1:8001") from None  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def healthy(self) -> None:
        """Lost unless the server says that it is well."""
        response = await self._ask("GET", "/health")
        if response.status_code != 200:
            raise Lost(f"GET /health answers {response.status_code}", out=True)

    async def look(self, model: str | None, probe_ids: list[int]) -> Served:
        """Return what is served under the name, None for the only one there is.

        probe_ids: the tokens of PROBE. A token is sampled after them, so the server is warm.
        Unfit, in one line, if the server is not one that can be used; Lost if it is not there.
        """
        await self.healthy()
        served = await self._find(model)
        await self._compare(served.model, probe_ids)
        await self._try(served.model, probe_ids)
        return served

    async def complete(self, body: dict, take: Callable[[list[int], str | None], bool]) -> None:
        """Ask for one completion; `take` gets the token ids as they come and why it ended.

        body: as POST /v1/completions has it. finish: None until the last chunk. If `take` returns
        True before that the connection is closed, and the server stops to sample.
        Lost if the stream breaks or ends without its end, Refused if the request is wrong.
        """
        asked = body | {"n": 1, "stream": True, "return_token_ids": True}
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        finish = None
        try:
            async with self._stream("/v1/completions", asked, timeout) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code)
                async for event in _events(response.aiter_bytes()):
                    if finish:
                        continue  # read to its end, a connection can be used again
                    ids, finish = _read(event)
                    if take(ids, finish) and not finish:
                        return
        except (httpx.TransportError, httpx.DecodingError) as error:
            if not finish:
                raise Lost(_named(error), out=True) from None
        if not finish:
            raise Lost("the stream ended without its end", out=False)

    @asynccontextmanager
    async def _stream(self, path: str, body: dict, timeout: httpx.Timeout):
        """As httpx's own `stream`; but a task that is cancelled while it closes has closed."""
        request = self._http.build_request("POST", path, json=body, timeout=timeout)
        response = await self._http.send(request, stream=True)
        try:
            yield response
        finally:
            await asyncio.shield(response.aclose())

    async def _ask(self, method: str, path: str, **more) -> httpx.Response:
        try:
            return await self._http.request(method, path, **more)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Lost(_named(error), out=True) from None

    async def _find(self, model: str | None) -> Served:
        response = await self._ask("GET", "/v1/models")
        if response.status_code in (401, 403):
            raise Unfit(f"refuses the key; give the --api-key of the server as {UPSTREAM_KEY}")
        try:
            cards = {card["id"]: card for card in _object(response)["data"]}
        except (TypeError, KeyError):
            raise Unfit(f"GET /v1/models answers {response.status_code} and no list of models; "
                        "give the URL of a `vllm serve`") from None  # fmt: skip
        names = ", ".join(map(str, cards))
        if model is None and len(cards) != 1:
            raise Unfit(f"serves {names or 'nothing'}; choose one by --upstream-model")
        name = next(iter(cards)) if model is None else model
        if name not in cards:
            raise Unfit(f"serves {names or 'nothing'}, no {name}; start it with --lora-modules "
                        f"{name}=FOLDER, or give another --upstream-model")  # fmt: skip
        # The card of an adapter has no length of its own: that of its base holds.
        card, base = cards[name], cards.get(cards[name].get("parent"), {})
        context = card.get("max_model_len") or base.get("max_model_len")
        if not isinstance(context, int):
            raise Unfit("GET /v1/models has no max_model_len; give the URL of a `vllm serve`")
        return Served(name, context)

    async def _compare(self, model: str, probe_ids: list[int]) -> None:
        """Unfit if the server's tokenizer is another: its ids would mean something else."""
        asked = {"model": model, "prompt": PROBE, "add_special_tokens": False}
        response = await self._ask("POST", "/tokenize", json=asked)
        if response.status_code == 200 and _object(response).get("tokens") != probe_ids:
            raise Unfit("has another tokenizer; give the --model that the server was started with")

    async def _try(self, model: str, probe_ids: list[int]) -> None:
        found: list[int] = []
        body = {"model": model, "prompt": probe_ids, "max_tokens": 1, "temperature": 0}

        def take(ids: list[int], finish: str | None) -> bool:
            found.extend(ids)
            return False

        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await self.complete(body, take)
        except Refused as error:
            raise Unfit(f"refuses token ids as a prompt ({error})") from None
        except TimeoutError:
            raise Lost("the first token does not come", out=True) from None
        if len(found) != 1:
            raise Unfit("its answers have no token_ids; use a vLLM that knows return_token_ids")


async def _events(chunks):
    """Yield the JSON of each `data:` line, whatever the pieces are that the network makes.

    Split at line feeds alone: httpx's own lines also end at U+2028 and others, which JSON may hold.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                try:
                    yield json.loads(line[6:])
                except ValueError:
                    raise Lost("a line of the stream is not JSON", out=False) from None


def _read(event: dict) -> tuple[list[int], str | None]:
    """Return the ids of a chunk and why the completion has ended, if it has."""
    if "error" in event:
        code = event["error"].get("code") if isinstance(event["error"], dict) else None
        raise _refusal(code if isinstance(code, int) else 500)
    try:
        choices: Iterable[dict] = event["choices"][:1]
        ids = [int(id) for choice in choices for id in choice.get("token_ids") or ()]
        finish = next((choice.get("finish_reason") for choice in choices), None)
    except (TypeError, KeyError, AttributeError, ValueError):
        raise Lost("a chunk of the stream cannot be read", out=False) from None
    if finish not in (None, "stop", "length"):
        raise Lost(f"the completion was ended: {str(finish)[:20]!r}", out=False)
    return ids, finish


def _refusal(status: int) -> Exception:
    """Return what an HTTP status means; the text that comes with it may hold the prompt."""
    if status in OWN_FAULT:
        return Refused(f"POST /v1/completions answers {status}")
    return Lost(f"POST /v1/completions answers {status}", out=status in NOT_FOR_US)


def _object(response: httpx.Response) -> dict:
    """Return the JSON object of an answer, {} if it is none."""
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
