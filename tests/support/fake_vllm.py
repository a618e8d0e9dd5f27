"""A server that speaks what rlm/server/upstream.py uses of vLLM's API, and can fail on purpose.

`check_api` says what that part is; it holds for the real one too (test_upstream_vllm.py).
"""

import asyncio
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import uvicorn

from rlm.engine.engine import Engine
from rlm.engine.sampling import Sampling
from rlm.models.prompts import make_prompt, token_ids
from rlm.records import Prompt
from rlm.server.run import bind
from rlm.server.upstream import PROBE
from tests.support.serving import SUM, policy, until

CONTEXT = 1024
BASE = "weights/tiny_base"
TURN = "<think>\n23 + 15 = 38\n38 + 8 = 46\n</think>\n46<|im_end|>"


def probe_ids() -> list[int]:
    return token_ids(policy().tokenizer, PROBE)


def canned(body: dict) -> list[int]:
    """Return the same turn for every prompt."""
    return token_ids(policy().tokenizer, TURN)


def by_engine() -> Callable[[dict], list[int]]:
    """Return what samples by our own engine, with the adapter: as vLLM, and with our numbers."""
    opened, lock = policy(), threading.Lock()
    engine = Engine(opened.model, opened.tokenizer)

    def answer(body: dict) -> list[int]:
        sampling = Sampling(
            body["max_tokens"], body["temperature"], body.get("top_k", 0), body.get("top_p", 1.0)
        )
        with lock:
            engine.submit(Prompt(body["prompt"]), sampling, [body.get("seed", 0)])
            while True:
                for event in engine.step():
                    if event.rollout:
                        return event.rollout.ids

    return answer


@dataclass(eq=False)
class Asked:
    """A completion that was asked for. sent: tokens so far. gone: the client closed it early."""

    body: dict
    headers: dict
    sent: int = 0
    gone: bool = False
    ended: bool = False

    @property
    def is_probe(self) -> bool:
        return self.body["prompt"] == probe_ids()


class FakeVLLM:
    """answer: body -> the token ids that come back, before max_tokens.

    allowed: tokens of each completion that may be sent by now; status: of a completion, in place
    of tokens; error: a code that goes into the stream instead of the token after the allowed ones;
    cut: tokens after which the stream ends in good order, without the end of the completion.
    """

    def __init__(self, *, answer=canned, models=("rlm",), context=CONTEXT, key=None, port=0):
        self.answer, self.models, self.context, self.key = answer, models, context, key
        self.allowed, self.status, self.error, self.finish = math.inf, 200, None, None
        self.cut = None
        self.health, self.tokens_shown, self.port = 200, True, port
        self.silent = False  # takes connections and says nothing
        self.everything: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[Asked]:
        """The completions but for the probes."""
        return [asked for asked in self.everything if not asked.is_probe]

    @property
    def open(self) -> list[Asked]:
        return [asked for asked in self.asked if not asked.ended and not asked.gone]

    def __enter__(self) -> "FakeVLLM":
        self.begin()
        return self

    def __exit__(self, *why) -> None:
        self.kill()

    def begin(self) -> None:
        """Listen, on the port of last time if there was one."""
        self._socket = bind("127.0.0.1", self.port)
        self.port = self._socket.getsockname()[1]
        options = {"lifespan": "off", "log_config": None, "loop": "asyncio", "interface": "asgi3"}
        config = uvicorn.Config(self._app, **options)
        self._server = uvicorn.Server(config)
        run = self._server.run
        self._thread = threading.Thread(target=run, args=[[self._socket]], daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    def kill(self) -> None:
        """End as by `kill -9`: all connections are reset, nobody is told."""

        async def end() -> None:
            self._server.should_exit = self._server.force_exit = True
            for server in self._server.servers:
                server.close()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()

        if self._thread.is_alive():
            loop = next(iter(self._server.servers)).get_loop()
            asyncio.run_coroutine_threadsafe(end(), loop).result(5)
            self._thread.join(10)
        self._socket.close()

    # --- the API -----------------------------------------------------------------------------

    async def _app(self, scope, receive, send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        while self.silent:
            await asyncio.sleep(0.01)
        path = scope["path"]
        right = f"Bearer {self.key}"
        if self.key and path.startswith("/v1") and headers.get("authorization") != right:
            await _reply(send, 401, {"error": "Unauthorized"})
        elif path == "/health":
            await _reply(send, self.health, None)
        elif path == "/v1/models":
            await _reply(send, 200, {"object": "list", "data": self._cards()})
        elif path == "/tokenize":
            ids = token_ids(policy().tokenizer, (await _body(receive))["prompt"])
            await _reply(send, 200, {"tokens": ids, "count": len(ids)})
        else:
            await self._complete(Asked(await _body(receive), headers), receive, send)

    def _cards(self) -> list[dict]:
        base = {"id": BASE, "object": "model", "max_model_len": self.context, "parent": None}
        own = {"object": "model", "max_model_len": None, "parent": BASE}
        return [base, *({"id": name} | own for name in self.models)]

    async def _complete(self, asked: Asked, receive, send) -> None:
        self.everything.append(asked)
        body = asked.body
        room = self.context - len(body["prompt"])
        status = 400 if body["max_tokens"] > room else self.status
        if body["model"] not in (BASE, *self.models):
            status = 404
        if status != 200 and not asked.is_probe:
            error = {"message": f"{body['prompt']}", "type": "Error", "code": status}
            await _reply(send, status, {"error": error})
            return
        watcher = asyncio.create_task(_gone(asked, receive))
        try:
            await _start(send, 200, b"text/event-stream; charset=utf-8")
            await self._stream(asked, send)
            asked.ended = not asked.gone
        finally:
            watcher.cancel()

    async def _stream(self, asked: Asked, send) -> None:
        ids = self.answer(asked.body)[: asked.body["max_tokens"]]
        for index, id in enumerate(ids):
            if index == self.cut and not asked.is_probe:
                break
            allowed = math.inf if asked.is_probe else self.allowed
            while index >= allowed and not asked.gone:
                if self.error and not asked.is_probe:
                    error = {"message": "EngineCore", "type": "E", "code": self.error}
                    await _send(send, _data({"error": error}) + b"data: [DONE]\n\n", True)
                    return
                await asyncio.sleep(0.005)
                allowed = self.allowed
            if asked.gone:
                return
            last = index == len(ids) - 1
            finish = "stop" if id == policy().tokenizer.eos_token_id else "length"
            choice = {
                "index": 0,
                "text": "\u2028",  # what it says must not matter, nor end a line
                "finish_reason": (self.finish or finish) if last else None,
                "prompt_token_ids": asked.body["prompt"] if index == 0 else None,
                "token_ids": [id] if self.tokens_shown else None,
            }
            asked.sent += 1
            await _send(send, _data({"id": "cmpl-1", "choices": [choice]}))
        await _send(send, b"data: [DONE]\n\n", True)


async def _body(receive) -> dict:
    content, more = b"", True
    while more:
        message = await receive()
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return json.loads(content)


async def _gone(asked: Asked, receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    asked.gone = not asked.ended


async def _start(send, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send, content: bytes, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": not last})


async def _reply(send, status: int, content) -> None:
    await _start(send, status, b"application/json")
    await _send(send, b"" if content is None else json.dumps(content).encode(), True)


def _data(value: dict) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def check_api(url: str, model: str) -> None:
    """Assert what rlm/server/upstream.py relies on."""
    prompt = make_prompt(SUM, policy().tokenizer, "think").ids
    asked = {
        "model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0.0, "n": 1,
        "stream": True, "return_token_ids": True, "seed": 2**63 - 1, "top_k": 0, "top_p": 1.0,
        "stop_token_ids": [2], "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "stream_interval": 1,
    }  # fmt: skip
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert cards[cards[model]["parent"]]["max_model_len"] == CONTEXT
        same = {"model": model, "prompt": PROBE, "add_special_tokens": False}
        assert client.post("/tokenize", json=same).json()["tokens"] == probe_ids()
        response = client.post("/v1/completions", json=asked)
        assert response.status_code == 200
        lines = [line for line in response.text.split("\n") if line]
        assert lines.pop() == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
        ids = [id for chunk in chunks for id in chunk["token_ids"]]
        assert len(ids) == 4 and all(isinstance(id, int) for id in ids)
        assert [chunk["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
        end = policy().tokenizer.eos_token_id
        ended = client.post("/v1/completions", json=asked | {"max_tokens": 300})
        last = json.loads(ended.text.split("\n\n")[-3].removeprefix("data: "))["choices"][0]
        assert last["finish_reason"] == "stop" and last["token_ids"][-1] == end
        for wrong, status in (({"model": "none"}, 404), ({"max_tokens": CONTEXT}, 400)):
            assert client.post("/v1/completions", json=asked | wrong).status_code == status
