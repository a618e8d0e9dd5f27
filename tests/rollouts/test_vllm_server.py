"""The client of a vLLM server: what it sends, what it makes of answers, what it says of failures.

The server here is a small one that answers as vLLM 0.31.0 does; test_vllm.py has the real one.
"""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlm.errors import InputError, RunError
from rlm.rollouts.vllm_engine import Completion, Request
from rlm.rollouts.vllm_server import ServedVllm

CARD = {"id": "base", "parent": None, "max_model_len": 512}
SIZES = {"context": 300, "rank": 16}
REQUEST = Request([5, 6, 7], 4, 0.5, 2**62 + 1, (2,), range(700, 702))


def answer(body: dict) -> dict:
    """Return a completion whose tokens are those of the request's seed, or of its bias."""
    forced = [int(id) for id, bias in (body.get("logit_bias") or {}).items() if bias > 0]
    ids = forced or [body["seed"] % 600, 2]
    scored = [None, *({str(id): {"logprob": -id / 10}} for id in body["prompt"][1:])]
    choice = {
        "token_ids": ids,
        "prompt_token_ids": body["prompt"],
        "logprobs": {"token_logprobs": [0.0 if forced else -0.25] * len(ids)},
        "prompt_logprobs": scored if body.get("prompt_logprobs") == 0 else None,
    }
    return {"choices": [choice]}


@contextmanager
def serving(**own):
    """Serve; own: path's last part -> a function of the body that returns (status, object).

    Yields (address, what was asked: a list of (path, body, key)).
    """
    asked: list = []
    known = {
        "models": lambda body: (200, {"data": [CARD, {"id": "x", "parent": "base"}]}),
        "completions": lambda body: (200, answer(body)),
        "load_lora_adapter": lambda body: (200, "Success"),
        "unload_lora_adapter": lambda body: (200, "Success"),
    } | own

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply({})

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            name = self.path.rpartition("/")[2]
            asked.append((name, body, self.headers.get("Authorization")))
            status, found = known[name](body)
            raw = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait

        def handle_error(self, request, client_address):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def error(status: int, message: str):
    return lambda body: (status, {"error": {"message": message, "type": "x", "code": status}})


def test_completions_by_version_and_of_the_base(tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_VLLM_KEY", "secret")
    with serving() as (url, asked):
        backend = ServedVllm(url + "/", **SIZES)
        backend.load(1, tmp_path)
        scored = Request([5, 6, 7], 4, 0.0, 41, (2,), range(0), scored=True)
        found = backend.complete([REQUEST, scored], 1)
        assert found[0] == Completion([(2**62 + 1) % 600, 2], [-0.25, -0.25], [])
        assert found[1] == Completion([41, 2], [-0.25, -0.25], [-0.6, -0.7])
        backend.complete([REQUEST], None)
        backend.unload(1)
    assert {key for _, _, key in asked} == {"Bearer secret"}
    bodies = [body for name, body, _ in asked if name == "completions"][1:]
    first = next(body for body in bodies if body["seed"] == 2**62 + 1)
    (loaded,) = [body for name, body, _ in asked if name == "load_lora_adapter"]
    assert loaded["lora_path"] == str(tmp_path) and first["model"] == loaded["lora_name"]
    assert first["prompt"] == [5, 6, 7] and first["max_tokens"] == 4
    assert first["temperature"] == 0.5 and first["stop_token_ids"] == [2]
    assert first["logit_bias"] == {"700": -100.0, "701": -100.0}, "rows without a token"
    assert first["repetition_penalty"] == 1.0 and first["top_p"] == 1.0 and first["top_k"] == 0
    assert bodies[-1]["model"] == "base"
    assert asked[-1][:2] == ("unload_lora_adapter", {"lora_name": loaded["lora_name"]})


def test_many_at_once_come_back_in_order():
    requests = [Request([1], 4, 1.0, seed, (2,), range(0)) for seed in range(100)]
    with serving() as (url, _):
        found = ServedVllm(url, **SIZES).complete(requests, None)
    assert [each.ids[0] for each in found] == list(range(100))


def test_a_lost_connection_is_tried_again():
    lost = ["once"]

    def completions(body):
        if body.get("seed") == 7 and lost:
            lost.pop()
            raise ConnectionResetError  # the handler ends, the connection with it
        return 200, answer(body)

    with serving(completions=completions) as (url, _):
        (found,) = ServedVllm(url, **SIZES).complete([Request([1], 4, 1.0, 7, (), range(0))], None)
    assert found.ids[0] == 7 and not lost


def test_two_trainings_on_one_server_have_adapters_of_their_own(tmp_path):
    with serving() as (url, asked):
        for _ in range(2):
            ServedVllm(url, **SIZES).load(1, tmp_path)
    names = [body["lora_name"] for name, body, _ in asked if name == "load_lora_adapter"]
    assert len(set(names)) == 2


def test_closing_leaves_the_server_as_it_was(tmp_path):
    with serving() as (url, asked):
        backend = ServedVllm(url, **SIZES)
        backend.load(3, tmp_path)
        backend.close()
        assert asked[-1][0] == "unload_lora_adapter"
        backend.close()
        assert len(asked) == 4, "once"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_nobody_there():
    with pytest.raises(InputError, match=r"--vllm-url http://127.*not reachable.*vllm serve"):
        ServedVllm(f"http://127.0.0.1:{free_port()}", **SIZES)


RAW = {"choices": [{"token_ids": [0], "logprobs": {"token_logprobs": [-7.5]}}]}


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"models": error(401, "Unauthorized")}, "it wants a key.*RLM_VLLM_KEY"),
        ({"models": lambda body: (404, "nothing here")}, "no vLLM server.*404: nothing here"),
        ({"models": lambda body: (200, {"data": []})}, "no vLLM server"),
        ({"models": lambda body: (200, {"data": [CARD | {"max_model_len": 256}]})},
         "takes 256 tokens, .* may have 300; start it with --max-model-len 300"),
        ({"completions": lambda body: (200, RAW)}, "--logprobs-mode processed_logprobs"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_used(own, says):
    with serving(**own) as (url, _), pytest.raises(InputError, match=says):
        ServedVllm(url, **SIZES)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (lambda body: (404, {"detail": "Not Found"}), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (error(404, "Loading lora x failed: No adapter found for /x"), "does not see .*same path"),
        (error(500, "LoRA rank 64 is greater than max_lora_rank 16."), "rank 64.*-rank 16"),
        (error(500, "LoRA is not enabled"), "not enabled.*--enable-lora"),
    ],
)
def test_an_adapter_that_cannot_be_loaded(tmp_path, found, says):
    with serving(load_lora_adapter=found) as (url, _):
        backend = ServedVllm(url, **SIZES)
        with pytest.raises(InputError, match=says):
            backend.load(1, tmp_path)


def test_a_server_that_fails_later_ends_the_run_in_one_line(tmp_path):
    told = [(200, answer({"logit_bias": {"0": 100}, "prompt": [1]}))]
    later = error(500, "EngineCore encountered\nan issue.")

    def completions(body):
        return told.pop() if told else later(body)

    with serving(completions=completions, unload_lora_adapter=later) as (url, _):
        backend = ServedVllm(url, **SIZES)
        with pytest.raises(
            RunError, match=r"refuses a completion \(500: EngineCore encountered an"
        ):
            backend.complete([REQUEST], None)
        backend.load(1, tmp_path)
        with pytest.raises(RunError, match="does not unload"):
            backend.unload(1)
    with pytest.raises(RunError, match="does not answer"):
        backend.complete([REQUEST], None)


def test_too_hot_for_a_mask_that_is_a_bias():
    hot = Request([5], 4, 4.5, 1, (2,), range(700, 702))
    with serving() as (url, _):
        backend = ServedVllm(url, **SIZES)
        with pytest.raises(InputError, match=r"--temperature 4\.5: a server cannot exclude"):
            backend.complete([hot], None)
        assert backend.complete([Request([5], 4, 4.5, 1, (2,), range(0))], None)
