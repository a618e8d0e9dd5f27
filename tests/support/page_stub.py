"""A small server for tests of the page: it serves the page under its strict policy, and a test
says how each question is answered, so that every fault comes when it is wanted.

    with PageStub() as stub:
        stub.reply = lambda exchange: exchange.stream(happy_events())
"""

import base64
import hashlib
import json
import re
import select
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[2] / "rlm" / "server" / "page.html"
PATIENCE = 20  # seconds after which a test that forgot to go on fails


def element(page: str, tag: str) -> str:
    """The text of the page's one element of that kind; AssertionError if there is not one."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert len(found) == 1 == len(re.findall(rf"<{tag}\b", page)), f"{len(found)} of {tag}"
    return found[0]


def policy(page: str) -> str:
    """The Content-Security-Policy that lets this page run, and nothing else."""

    def digest(tag: str) -> str:
        return base64.b64encode(hashlib.sha256(element(page, tag).encode()).digest()).decode()

    return (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src 'sha256-{digest('style')}'; script-src 'sha256-{digest('script')}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def event(name: str, /, **data) -> bytes:
    """One event of a stream, as bytes."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def done(answer: str | None = "46", votes: dict | None = None, **changes) -> bytes:
    """The last event: the reply without its long texts."""
    n = sum(votes.values()) if votes else 1
    best = max(votes.values()) if votes else 1
    reply = {
        "id": "r-1",
        "object": "phase1.reasoning",
        "created": 1,
        "model": "stub",
        "seed": 5,
        "answer": answer,
        "answer_parsed": answer is not None,
        "finish_reason": "stop",
        "vote": {"n": n, "winner": answer, "votes": votes or {}, "agreement": best / n},
        "usage": {"prompt_tokens": 9, "completion_tokens": 1230, "reasoning_tokens": 1204,
                  "total_tokens": 1239},
        "timing": {"queue_ms": 0, "first_token_ms": 40, "total_ms": 4200,
                   "tokens_per_second": 292.9},
    }  # fmt: skip
    return event("done", **reply | changes)


def happy_events(reasoning: str = "23 + 15 = 38\n38 + 8 = 46", answer: str = "46") -> list[bytes]:
    """The events of a question that is answered without trouble."""
    return [
        event("start", id="r-1", seed=5, model="stub"),
        b": keep-alive\n\n",
        event("reasoning", index=0, delta=reasoning[:5]),
        event("reasoning", index=0, delta=reasoning[5:]),
        event("answer", index=0, delta=answer),
        event("sample", index=0, answer=answer, finish_reason="stop"),
        done(answer),
    ]


class Exchange:
    """One question and the means to answer it, well or badly."""

    def __init__(self, handler: BaseHTTPRequestHandler, stub: "PageStub"):
        self.handler, self.stub = handler, stub
        length = int(handler.headers["Content-Length"])
        self.body = json.loads(handler.rfile.read(length))
        self.key = handler.headers["Authorization"]

    def begin(self, content_type: str = "text/event-stream; charset=utf-8") -> None:
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", content_type)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")

    def end(self) -> None:
        self.handler.wfile.write(b"0\r\n\r\n")

    def stream(self, events: list[bytes]) -> None:
        """A whole answer at once."""
        self.begin()
        self.send(*events)
        self.end()

    def break_off(self) -> None:
        """Close the connection in the middle, as a killed server does."""
        self.handler.close_connection = True

    def wait(self) -> None:
        """Wait until the test calls stub.go()."""
        assert self.stub.gate.acquire(timeout=PATIENCE), "the test never let this go on"

    def wait_until_gone(self) -> None:
        """Wait until the browser has closed its connection, then set stub.gone."""
        readable, _, _ = select.select([self.handler.connection], [], [], PATIENCE)
        if readable and self.handler.connection.recv(1) == b"":
            self.stub.gone.set()
        self.handler.close_connection = True

    def refuse(self, status: int, code: str, message: str = "", **more) -> None:
        """An error in the server's one shape; `retry_after` in seconds, `param` by name."""
        error = {"code": code, "type": "error", "message": message, "param": more.get("param")}
        text = json.dumps({"error": error | {"request_id": "req-77"}})
        headers = {"Retry-After": more["retry_after"]} if "retry_after" in more else {}
        self.plain(status, text, "application/json", headers)

    def plain(self, status: int, text: str, content_type: str, headers: dict | None = None) -> None:
        answer(self.handler, status, text, {"Content-Type": content_type} | (headers or {}))


def answer(handler: BaseHTTPRequestHandler, status: int, text: str, headers: dict) -> None:
    """Send a whole reply."""
    body = text.encode()
    handler.send_response(status)
    for name, value in (headers | {"Content-Length": len(body)}).items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)


class PageStub:
    """The server, on a free port of the loopback address.

    reply: what answers a question. health: what /health says. asked: the questions so far.
    """

    def __init__(self):
        self.reply = lambda exchange: exchange.stream(happy_events())
        self.health = {"status": "ok", "model": "stub", "format": "think", "max_tokens": 1024,
                       "key_required": False}  # fmt: skip
        self.asked: list[Exchange] = []
        self.gate = threading.Semaphore(0)
        self.gone = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def go(self) -> None:
        """Let a waiting answer go on to its next step."""
        self.gate.release()

    def __enter__(self) -> "PageStub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None: ...

            def do_GET(self) -> None:
                if self.path == "/health":
                    kind = {"Content-Type": "application/json"}
                    answer(self, 200, json.dumps(stub.health), kind)
                    return
                page = PAGE.read_text(encoding="utf-8")
                kind = {"Content-Type": "text/html; charset=utf-8"}
                answer(self, 200, page, kind | {"Content-Security-Policy": policy(page)})

            def do_POST(self) -> None:
                exchange = Exchange(self, stub)
                stub.asked.append(exchange)
                stub.reply(exchange)

        return Handler
