"""serve.py --upstream in front of two real vLLM servers, and one of them killed under load.

It runs where vllm is installed (`vllm` beside this Python, or RLM_VLLM_BIN names it): a server
takes some 30 s to start, so all tests share two.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.fake_vllm import BASE, CONTEXT, check_api
from tests.support.running import ROOT
from tests.support.serving import PATH, SUM, process, read_events, served, until

VLLM = Path(os.environ.get("RLM_VLLM_BIN") or Path(sys.executable).with_name("vllm"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not VLLM.is_file(),
        reason="vllm is not installed: none beside this Python, and RLM_VLLM_BIN names none",
    ),
]
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
QUESTIONS = [SUM, *(f"Calculate {a} + {9 * a % 50} + {7 * a % 30}" for a in range(11, 19))]


class RealVLLM:
    """A vLLM server of the tiny base with the shipped adapter, in processes of its own."""

    def __init__(self, log: Path):
        self.log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        # `vllm serve` is this module; the command itself does not start in vllm-cpu 0.31.0.
        words = [
            VLLM.with_name("python"), "-m", "vllm.entrypoints.openai.api_server",
            "--model", BASE, "--enable-lora", "--lora-modules", "rlm=weights/final_rlm_lora",
            "--max-lora-rank", "16", "--max-model-len", CONTEXT, "--max-num-seqs", "16",
            "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", self.port,
            "--enable-log-requests",  # it then says which it has dropped
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, words)),
                cwd=ROOT,
                env=os.environ | QUIET,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        until(self._answers, 240)

    def _answers(self) -> bool:
        time.sleep(0.2)
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """`kill -9` for the server and its engine."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    servers = [RealVLLM(tmp_path_factory.mktemp("vllm") / f"{i}.log") for i in range(2)]
    try:
        for server in servers:
            server.begin()
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="module")
def front(two):
    """serve.py in front of both."""
    urls = [server.url for server in two]
    with (
        process("--upstream", *urls, "--upstream-model", "rlm") as place,
        httpx.Client(base_url=place.url, timeout=60) as client,
    ):
        place.client = client
        yield place
    assert not [line for line in place.errors if "Traceback" in line], "".join(place.errors)


def up(front, server) -> bool:
    text = front.client.get("/metrics").text
    return f'rlm_upstream_up{{upstream="{server.url}"}} 1.0' in text


def test_the_api_is_as_the_fake_has_it(two):
    check_api(two[0].url, "rlm")


def test_greedy_answers_are_those_of_the_own_engine(front):
    cases = [{"prompt": question} for question in QUESTIONS]
    cases += [
        {"prompt": SUM, "max_reasoning_tokens": 20},
        {"prompt": SUM, "max_tokens": 30},
        {"prompt": SUM, "stop": ["38 + 8"]},
    ]
    with served() as own:
        for case in cases:
            body = case | {"temperature": 0}
            here, there = (c.post(PATH, json=body).json() for c in (own.client, front.client))
            for name in ("id", "created", "timing", "model", "seed"):
                del here[name], there[name]
            assert here == there, case
    chat = {"messages": [{"role": "user", "content": SUM}], "temperature": 0}
    reply = front.client.post("/v1/chat/completions", json=chat).json()
    assert reply["choices"][0]["message"]["content"] == "46"


def test_a_seed_gives_the_same_samples_and_they_vote(front):
    body = {"prompt": SUM, "seed": 3, "n": 4, "include_samples": True, "temperature": 1.5}
    first, second = (front.client.post(PATH, json=body).json() for _ in range(2))
    assert first["samples"] == second["samples"] and first["answer"] == "46"
    assert len({sample["text"] for sample in first["samples"]}) > 1
    assert sum(first["vote"]["votes"].values()) <= 4


def test_a_client_that_goes_frees_the_rows(front, two):
    def aborted() -> int:
        return sum(server.log.read_text(errors="replace").count(" aborted") for server in two)

    before = aborted()
    hot = {"prompt": SUM, "temperature": 2, "n": 16, "stream": True, "max_tokens": 1000}
    with front.client.stream("POST", PATH, json=hot) as response:
        pieces = response.iter_text()  # kept: without it the connection would be closed
        next(text for text in pieces if "delta" in text)
    until(lambda: aborted() > before, 60)
    until(lambda: not sum(server.metric("vllm:num_requests_running") for server in two), 60)


def load(front, requests: int, clients: int, under_way: threading.Event) -> tuple[list, list]:
    """Return the threads that ask, and where they put what came of each request.

    That is (streamed, how it ended, whether something of it had been seen). under_way: set when a
    third has been asked.
    """
    found: list[tuple] = []
    numbers, lock = iter(range(requests)), threading.Lock()

    def client() -> None:
        with httpx.Client(base_url=front.url, timeout=120) as own:
            while True:
                with lock:
                    number = next(numbers, None)
                    if number == requests // 3:
                        under_way.set()
                if number is None:
                    return
                body = {"prompt": QUESTIONS[number % len(QUESTIONS)], "seed": number}
                if number % 4 == 3:  # three streams for each plain request
                    end, seen = own.post(PATH, json=body).status_code, False
                else:
                    events = read_events(own.post(PATH, json=body | {"stream": True}).text)
                    seen = any(name in ("reasoning", "answer") for name, _ in events)
                    end = events[-1][0]
                found.append((number % 4 != 3, end, seen))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    return threads, found


def test_of_a_server_killed_under_load_nothing_is_lost_that_had_not_started(front, two):
    dead, other = two
    under_way = threading.Event()
    threads, found = load(front, 40, 8, under_way)
    assert under_way.wait(120)
    busy = f'rlm_upstream_in_flight{{upstream="{re.escape(dead.url)}"}} ([2-9])'
    until(lambda: re.search(busy, front.client.get("/metrics").text), 60)
    begun = time.monotonic()
    os.killpg(dead.process.pid, signal.SIGKILL)
    until(lambda: not up(front, dead), 60)
    out = time.monotonic() - begun
    for thread in threads:
        thread.join(120)
    assert len(found) == 40
    text = front.client.get("/metrics").text
    moved = float(re.search(r"^rlm_upstream_moved (.*)$", text, re.MULTILINE)[1])
    broken = [seen for streamed, end, seen in found if streamed and end == "error"]
    assert all(broken), "an error for a stream of which nothing had been seen"
    assert {end for streamed, end, _ in found if streamed} <= {"done", "error"}
    assert {end for streamed, end, _ in found if not streamed} == {200}
    assert moved + len(broken) >= 1 and up(front, other)
    dead.kill()
    begun = time.monotonic()
    dead.begin()
    until(lambda: up(front, dead), 240)
    print(
        f"\n40 requests, 8 clients: {moved:.0f} moved, {len(broken)} had started and ended with an "
        f"error; out after {out:.2f} s, back {time.monotonic() - begun:.1f} s after its restart"
    )
    with httpx.Client(base_url=front.url, timeout=60) as client:
        before = dead.metric("vllm:generation_tokens_total")
        for _ in range(2):
            assert (
                client.post(PATH, json={"prompt": SUM, "temperature": 0}).json()["answer"] == "46"
            )
        assert dead.metric("vllm:generation_tokens_total") > before
