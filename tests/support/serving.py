"""A running server for tests: in a thread of this process, or serve.py in a process of its own."""

import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx

from rlm.answers import formats
from rlm.engine.engine import Engine
from rlm.models.policy import open_policy
from rlm.server.app import make_app
from rlm.server.run import Server, bind
from rlm.server.service import Service
from rlm.server.worker import Worker
from tests.support import forking
from tests.support.running import ROOT

SUM = "Calculate 23 + 15 + 8"
PATH = "/phase1/reasoning"


LOADING = threading.Lock()  # transformers does not load two models at once in two threads


def policy():
    with LOADING:
        return _policy()


@functools.cache
def _policy():
    return open_policy(f"{ROOT}/weights/tiny_base", f"{ROOT}/weights/final_rlm_lora", device="cpu")


@contextmanager
def served(*, max_rows=16, max_queue=64, **more):
    """Serve the shipped adapter from a thread. Yields url, client, service, server and engine."""
    opened = policy()
    engine = Engine(opened.model, opened.tokenizer, max_rows=max_rows, admissions=2)
    worker = Worker(engine, max_queue=max_queue)
    with running(worker, **more) as place:
        place.engine = engine
        yield place


@contextmanager
def running(worker, *, is_key=None, cors_origins=(), wait=True, send_buffer=None, **options):
    """Serve what a worker makes, with the shipped adapter's tokenizer and format, from a thread.

    send_buffer: bytes that the system takes for a client that does not read.
    """
    told = {"max_tokens": 1024, "timeout_seconds": 60.0, "model": "tiny"} | options
    service = Service(
        worker=worker, tokenizer=policy().tokenizer, format=formats.get_format("think"), **told
    )
    app = make_app(service, is_key=is_key, cors_origins=cors_origins)
    ready = threading.Event()
    with bind("127.0.0.1", 0) as sock:
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = Server(app, service.worker, drain_seconds=0.2, on_ready=ready.set)
        thread = threading.Thread(target=server.serve_on, args=[sock], daemon=True)
        thread.start()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        try:
            assert not wait or ready.wait(30)
            with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
                yield SimpleNamespace(url=url, client=client, service=service, server=server)
        finally:
            server.should_exit = True
            thread.join(10)
        assert not thread.is_alive()


def slow_steps(place, seconds: float) -> None:
    """Make every step of the engine take longer."""
    step = place.engine.step

    def slowed():
        time.sleep(seconds)
        return step()

    place.engine.step = slowed


def ask(place, **fields) -> httpx.Response:
    return place.client.post(PATH, json={"prompt": SUM} | fields)


def read_events(text: str) -> list[tuple[str, dict]]:
    """Return (name, data) of each event; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line[1:])
        if "data" in lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


def joined(events, channel: str, index: int = 0) -> str:
    return "".join(d["delta"] for name, d in events if name == channel and d["index"] == index)


def until(condition, seconds: float = 20.0) -> float:
    """Wait until the condition holds; return how long that took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it never came true"
        time.sleep(0.002)
    return time.monotonic() - begun


@contextmanager
def process(*arguments, cwd=ROOT, forked=True, **environment):
    """Run serve.py --port 0 until its `local:` line. Yields the process, its url and its lines.

    forked: it takes torch over from a process that has it, see tests/support/forking.py.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RLM_")}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    words = [str(ROOT / "serve.py"), "--port", "0", *map(str, arguments)]
    if forked and forking.POSSIBLE:
        running = forking.popen(words, cwd=cwd, env=variables)
    else:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = subprocess.Popen([sys.executable, *words], cwd=cwd, env=variables, **pipes)
    lines, errors = [], []
    reader = threading.Thread(target=lambda: errors.extend(running.stderr), daemon=True)
    reader.start()
    try:
        for line in running.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("curl"):
                break
        assert lines, "".join(errors)
        url = next(line for line in lines if line.startswith("local: ")).removeprefix("local: ")
        yield SimpleNamespace(process=running, url=url, lines=lines, errors=errors)
    finally:
        running.kill()
        running.wait(10)
        reader.join(5)
