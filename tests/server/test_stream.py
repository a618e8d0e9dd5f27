"""Streams: their events, and what happens to everybody when clients are slow, gone or many."""

import asyncio
import json
import socket
import time

import httpx
import pytest

from rlm.server import service as service_module
from tests.support.serving import PATH, SUM, ask, joined, read_events, served, slow_steps, until


@pytest.fixture(scope="module")
def place():
    with served() as running:
        yield running


@pytest.fixture
def slow():
    """A server with 10 ms a step, so that a sample takes about a second."""
    with served(max_queue=100) as running:
        slow_steps(running, 0.01)
        yield running


def stream(place, **fields) -> list[tuple[str, dict]]:
    response = ask(place, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return read_events(response.text)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"n": 4, "temperature": 1.4, "include_samples": True},
        {"n": 2, "max_reasoning_tokens": 9, "vote": "none"},
        {"max_tokens": 30},
        {"stop": ["2. ", "38\n"], "temperature": 0},
        {"include_reasoning": False},
    ],
)
def test_joined_deltas_are_the_plain_reply(place, fields):
    fields = {"seed": 11} | fields
    plain = ask(place, **fields).json()
    every = ask(place, **fields | {"include_samples": True}).json()["samples"]
    events = stream(place, **fields)
    names = [name for name, _ in events]
    assert names[0] == "start" and names[-1] == "done" and names.count("done") == 1
    assert events[0][1] == {"id": events[0][1]["id"], "seed": 11, "model": "tiny"}
    for sample in every:
        index = sample["index"]
        assert joined(events, "reasoning", index) == (sample["reasoning"] or "")
        # The tiny model's temperature is high in one case: then it may forget the tags.
        thought = sample["text"].startswith("<think>")
        said = sample["text"].partition("</think>")[2] if thought else sample["text"]
        assert joined(events, "answer", index) == said.strip()
        told = [data for name, data in events if name == "sample" and data["index"] == index]
        assert told == [{k: sample[k] for k in ("index", "answer", "finish_reason")}]
    done = events[-1][1]
    assert done["id"] == events[0][1]["id"]
    for name in ("id", "created", "timing", "reasoning", "text", "tool_calls", "samples"):
        plain.pop(name)
    assert {k: v for k, v in done.items() if k in plain} == plain
    assert "text" not in json.dumps(done) and "reasoning" not in done
    assert ("reasoning" in names) == (fields.get("include_reasoning", True))


def test_deltas_are_joined(place):
    slow_steps_before = place.engine.step
    slow_steps(place, 0.005)
    events = stream(place, temperature=0)
    place.engine.step = slow_steps_before
    deltas = [data for name, data in events if name in ("reasoning", "answer")]
    tokens, seconds = (
        events[-1][1]["usage"]["completion_tokens"],
        events[-1][1]["timing"]["total_ms"] / 1e3,
    )
    assert 3 < len(deltas) <= seconds / service_module.JOIN_SECONDS + 2 < tokens


def test_an_error_before_the_stream_is_plain(place):
    response = ask(place, stream=True, max_tokens=5000)
    assert response.status_code == 400 and "error" in response.json()


def test_a_deadline_ends_a_stream_with_what_there_is(slow):
    # Time for 80 tokens at most, on a machine that is busy with other tests for some.
    events = stream(slow, temperature=0, timeout_s=0.8)
    assert [name for name, _ in events[-2:]] == ["sample", "done"]
    done = events[-1][1]
    assert (done["finish_reason"], done["answer"]) == ("timeout", None)
    assert 5 < done["usage"]["completion_tokens"] < 80
    assert joined(events, "reasoning").startswith("I need")
    plain = ask(slow, temperature=0, timeout_s=0.8).json()
    assert (plain["finish_reason"], plain["answer"]) == ("timeout", None)
    assert plain["reasoning"].startswith("I need") and plain["usage"]["completion_tokens"] > 5
    # One of them ends in time, and is the reply.
    events = stream(slow, timeout_s=5, n=2, seed=1)
    assert events[-1][1]["finish_reason"] == "stop"


def test_comments_keep_a_silent_stream_alive(monkeypatch):
    monkeypatch.setattr(service_module, "KEEP_ALIVE_SECONDS", 0.05)
    with served(max_rows=1) as place:
        slow_steps(place, 0.01)
        first = connect(place)
        until(lambda: place.engine.running)
        text = ask(place, stream=True, temperature=0).text
        first.close()
    head, _, _ = text.partition("event: reasoning")
    assert head.startswith("event: start") and head.count(": keep-alive\n\n") > 3
    assert read_events(text)[-1][0] == "done"


# --- clients -----------------------------------------------------------------------------------


def connect(place, buffer: int | None = None, **fields) -> socket.socket:
    """Send a request by hand and leave its answer unread. buffer: bytes taken in unread."""
    body = json.dumps({"prompt": SUM} | fields).encode()
    sock = socket.socket()
    sock.settimeout(20)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect(("127.0.0.1", int(place.url.rsplit(":", 1)[1])))
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"stream": True, "n": 8}, {"n": 8}])
def test_dropped_clients_free_their_rows(slow, fields):
    clients = [connect(slow, **fields) for _ in range(100 // fields.get("n", 1))]
    until(lambda: len(slow.engine.running) == 16)
    for client in clients:
        client.close()
    took = until(lambda: slow.engine.idle and not slow.service.worker.jobs)
    assert took < 0.2
    assert "rlm_cancelled_total 0.0" not in slow.client.get("/metrics").text
    assert ask(slow, temperature=0).json()["answer"] == "46"


def test_a_slow_reader_holds_up_nobody():
    """Its samples end at full speed; what it has not read waits for it."""
    with served(send_buffer=4096) as place:
        place.engine.stop_ids = frozenset()  # so that there is much to send
        reader = connect(place, 4096, stream=True, n=15, temperature=2, max_tokens=600)
        until(lambda: place.engine.running)
        assert ask(place, max_tokens=50, timeout_s=20).status_code == 200
        until(lambda: place.engine.idle, 30)
        time.sleep(0.2)
        (job,) = place.service.worker.jobs  # still there: its events do not get out
        assert job.done
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        found = b""
        while not found.endswith(b"0\r\n\r\n"):
            piece = reader.recv(65536)
            assert piece
            found += piece
        assert found.count(b"event: sample") == 15 and found.count(b"event: done") == 1
        reader.close()


async def flood(place, bodies, clients: int, timeout: float = 120.0) -> list:
    """Send all bodies from so many clients; return the responses or what was raised."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=place.url, timeout=timeout, limits=limits) as client:
        posts = (client.post(PATH, json=body) for body in bodies)
        return await asyncio.gather(*posts, return_exceptions=True)


async def knock(place, body: dict) -> tuple[int, dict[str, str], dict]:
    """Post by hand, which costs less than a client: (status, headers, body)."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", place.url.rsplit(":", 1)[1])
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    top, _, content = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    first, *lines = top.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(content)


def test_a_flood_gets_answers_or_429():
    with served(max_rows=16, max_queue=64) as place:

        async def flooded():
            body = {"prompt": SUM, "temperature": 0}
            return await asyncio.gather(*(knock(place, body) for _ in range(500)))

        found = asyncio.run(flooded())
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 429} and len(found) == 500
        assert statuses.count(200) >= 64
        for status, headers, body in found:
            if status == 200:
                assert body["answer"] == "46"
            else:
                assert body["error"]["code"] == "overloaded"
                assert 1 <= int(headers["retry-after"]) <= 30
        until(lambda: place.engine.idle and not place.service.worker.jobs)


def test_a_full_queue_refuses_before_it_reads_the_prompt(monkeypatch):
    with served(max_rows=1, max_queue=1) as place:
        slow_steps(place, 0.02)
        first = connect(place, stream=True)
        until(lambda: place.engine.running and not place.service.worker.queued)
        second = connect(place, stream=True)
        until(lambda: place.engine.waiting)
        monkeypatch.setattr(service_module, "chat_prompt", lambda *given: 1 / 0)
        assert ask(place).status_code == 429
        first.close()
        until(lambda: place.service.worker.queued == 0)
        assert ask(place).status_code == 500, "with room, the prompt is read"
        second.close()


@pytest.mark.slow
def test_a_thousand_requests_lose_nothing():
    with served(max_rows=32) as place:
        bodies = [{"prompt": f"Calculate {i % 90 + 10} + {i % 7}", "seed": i} for i in range(1000)]
        found = asyncio.run(flood(place, bodies, 32, timeout=600))
        statuses = [getattr(response, "status_code", response) for response in found]
        assert statuses == [200] * 1000
        assert all(response.json()["seed"] == i for i, response in enumerate(found))
        assert len({response.json()["id"] for response in found}) == 1000
