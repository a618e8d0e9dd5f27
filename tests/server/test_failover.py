"""Servers that fail under the one in front of them: what moves, what ends, who comes back."""

import asyncio
import logging
import threading

import pytest

from rlm.server import pool as pool_module
from rlm.server import upstream as upstream_module
from rlm.server.pool import Pool
from rlm.server.upstream import Lost, Served
from tests.server.test_upstream import CHAT, ids_of, metric
from tests.support.fake_vllm import TURN, FakeVLLM
from tests.support.serving import ask, read_events, until
from tests.support.upstreams import Asking, arrived, fronted


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool_module, "PROBE_SECONDS", 0.05)


@pytest.fixture
def two():
    with FakeVLLM() as one, FakeVLLM() as other:
        yield one, other


def held(servers, place, tokens=0, **fields):
    """Return (asking, where it runs, the other server), stopped after so many tokens."""
    for server in servers:
        server.allowed = tokens
    asking = Asking(place, **fields)
    until(lambda: any(server.open for server in servers))
    here, there = sorted(servers, key=lambda server: not server.open)
    until(lambda: here.open[0].sent == tokens and arrived(place) == [tokens])
    there.allowed = 999
    return asking, here, there


def is_up(place, server) -> bool:
    return next(u.up for u in place.pool.upstreams if u.url == server.url)


# --- who is chosen (no network) ----------------------------------------------------------------


def pool_of(count: int, room: int) -> Pool:
    urls = [f"http://127.0.0.1:{port}" for port in range(1, count + 1)]
    return Pool(urls, None, served=Served("m", 9), absent={}, room=room, probe_ids=[])


def test_the_least_busy_is_next_and_a_full_house_waits():
    async def play():
        pool = pool_of(3, room=2)
        a, b, c = pool.upstreams
        assert [await pool.acquire() for _ in range(4)] == [a, b, c, a]
        pool.release(c)
        # In flight 2, 1, 0.
        assert [await pool.acquire() for _ in range(3)] == [c, b, c]
        early, late = (asyncio.ensure_future(pool.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        urgent = asyncio.ensure_future(pool.acquire(first=True))
        await asyncio.sleep(0)
        assert not (early.done() or late.done() or urgent.done())
        for server in (b, a, c):
            pool.release(server)
        found = await asyncio.gather(urgent, early, late)
        assert found == [b, a, c] and [u.in_flight for u in (a, b, c)] == [2, 2, 2]

    asyncio.run(play())


def test_among_equals_the_one_that_rested_longest():
    async def play():
        pool, chosen = pool_of(3, room=5), []
        for _ in range(6):
            chosen.append(await pool.acquire())
            pool.release(chosen[-1])
        assert chosen == pool.upstreams * 2

    asyncio.run(play())


def test_one_that_is_out_or_to_be_avoided_is_not_chosen():
    async def play():
        pool = pool_of(2, room=1)
        a, b = pool.upstreams
        assert await pool.acquire(avoid=a) is b
        pool.release(b)
        b.up = False
        assert await pool.acquire(avoid=a) is a, "better than none"

    asyncio.run(play())


def test_who_gives_up_waiting_takes_no_place():
    async def play():
        pool = pool_of(1, room=1)
        (a,) = pool.upstreams
        await pool.acquire()
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # before its place came
        pool.release(a)
        waiting[1].cancel()  # in the same moment
        assert await waiting[2] is a and a.in_flight == 1
        pool.release(a)
        assert a.in_flight == 0

    asyncio.run(play())


# --- a server is lost --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "fields"), [(0, {"stream": True}), (0, {}), (7, {})], ids=["stream", "plain", "late"]
)
def test_what_nobody_has_seen_begins_anew_elsewhere(two, tokens, fields):
    """A plain reply too, however far it was: nothing of it had gone out."""
    with fronted(*two) as place:
        asking, here, there = held(two, place, tokens, **fields, seed=4)
        here.kill()
        reply = asking.wait()
        done = read_events(reply.text)[-1][1] if fields else reply.json()
        assert done["answer"] == "46" and done["finish_reason"] == "stop"
        assert done["usage"]["completion_tokens"] == len(ids_of(TURN)), "from its beginning"
        bodies = [server.asked[0].body for server in two]
        assert bodies[0] == bodies[1], "with the same seed"
        assert metric(place, "rlm_upstream_moved") == 1
        assert metric(place, "rlm_upstream_failures", here) == 1
        assert metric(place, "rlm_upstream_up", here) == 0
        assert metric(place, "rlm_upstream_up", there) == 1
        assert place.client.get("/health").status_code == 200


def test_a_stream_that_had_begun_ends_with_an_error(two):
    with fronted(*two) as place:
        asking, here, there = held(two, place, 7, stream=True)
        here.kill()
        events = read_events(asking.wait().text)
        names = [name for name, _ in events]
        assert names[0] == "start" and "reasoning" in names and "done" not in names
        assert names[-2:] == ["sample", "error"]
        assert events[-2][1] == {"index": 0, "answer": None, "finish_reason": "error"}
        error = events[-1][1]["error"]
        assert (error["code"], error["type"]) == ("engine_dead", "server_error")
        assert not there.asked


def test_a_chat_stream_that_had_begun_ends_with_an_error(two):
    with fronted(*two) as place:
        asking, here, _ = held(two, place, 7, path=CHAT, stream=True)
        here.kill()
        text = asking.wait().text
        assert '"code":"engine_dead"' in text and "[DONE]" not in text


def test_of_several_samples_those_elsewhere_count(two):
    for server in two:
        server.allowed = 3
    with fronted(*two) as place:
        asking = Asking(place, n=4, stream=True)
        until(lambda: arrived(place) == [3] * 4 and [len(s.open) for s in two] == [2, 2])
        two[0].kill()
        until(lambda: not is_up(place, two[0]))
        two[1].allowed = 999
        events = read_events(asking.wait().text)
        finishes = sorted(d["finish_reason"] for name, d in events if name == "sample")
        assert finishes == ["error", "error", "stop", "stop"]
        assert events[-1][0] == "done" and events[-1][1]["vote"]["votes"] == {"46": 2}


def test_a_bounded_reasoning_moves_between_its_two_requests(two):
    """Seven tokens have been seen, but of the second request none: it can be asked for again."""
    closer, long = ids_of("\n</think>\n"), ids_of("<think>\n" + "1 + 1 = 2\n" * 40)
    answer = ids_of("46<|im_end|>")
    gate = threading.Event()
    for server in two:
        server.allowed = 7

        def reply(body, server=server):
            if body["prompt"][-len(closer) :] != closer:
                return long
            server.allowed = 999 if gate.is_set() else 0
            return answer

        server.answer = reply
    with fronted(*two) as place:
        asking = Asking(place, stream=True, max_reasoning_tokens=7)
        until(lambda: any(len(server.asked) == 2 for server in two))
        here, there = sorted(two, key=lambda server: len(server.asked), reverse=True)
        gate.set()
        here.kill()
        events = read_events(asking.wait().text)
        assert events[-1][0] == "done" and events[-1][1]["answer"] == "46"
        assert there.asked[0].body == here.asked[1].body


def test_one_that_fails_is_taken_out_and_comes_back(two):
    one, other = two
    with fronted(*two) as place:
        one.kill()
        until(lambda: not is_up(place, one))
        assert [ask(place).json()["answer"] for _ in range(3)] == ["46"] * 3
        assert len(other.asked) == 3 and not one.asked
        one.begin()
        until(lambda: is_up(place, one))
        ask(place)
        assert len(one.asked) == 1, "it has rested longest"


def test_one_that_comes_back_without_the_adapter_stays_out(two, caplog):
    one, _ = two
    with fronted(*two) as place:
        one.kill()
        until(lambda: not is_up(place, one))
        one.models = ()
        one.begin()
        until(lambda: "no rlm" in caplog.text)
        assert not is_up(place, one)
        one.models = ("rlm",)
        until(lambda: is_up(place, one))


def test_one_that_loses_the_adapter_or_the_health_is_taken_out(two):
    one, other = two
    with fronted(*two) as place:
        one.models = ()
        assert {ask(place).json()["answer"] for _ in range(2)} == {"46"}
        assert not is_up(place, one) and is_up(place, other)
        other.health = 503
        until(lambda: not is_up(place, other))


def test_one_that_hangs_is_taken_out_with_what_runs_there(two, monkeypatch):
    monkeypatch.setattr(upstream_module, "ANSWER_SECONDS", 1.0)
    with fronted(*two) as place:
        asking, here, _ = held(two, place, stream=True)
        here.silent = True
        assert read_events(asking.wait().text)[-1][1]["answer"] == "46"
        assert not is_up(place, here)
        here.silent = False
        until(lambda: is_up(place, here))


def test_all_down_is_not_ready_until_one_is_back(two):
    with fronted(*two) as place:
        for server in two:
            server.kill()
        until(lambda: not place.pool.up)
        refused = ask(place)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        health = place.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "not_ready")
        two[1].begin()
        until(lambda: place.client.get("/health").status_code == 200)
        assert ask(place).json()["answer"] == "46"


def test_what_was_accepted_waits_for_a_server_until_its_deadline(two):
    with fronted(*two) as place:
        for server in two:
            server.allowed = 0
        patient = Asking(place, stream=True)
        hurried = Asking(place, timeout_s=3)
        until(lambda: sum(len(server.open) for server in two) == 2)
        for server in two:
            server.kill()
        refused = hurried.wait()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        two[0].allowed = 999
        two[0].begin()
        assert read_events(patient.wait().text)[-1][1]["answer"] == "46"


def test_one_that_is_not_there_at_the_start_joins_later(two):
    one, _ = two
    one.kill()
    with fronted(*two) as place:
        assert not is_up(place, one) and ask(place).json()["answer"] == "46"
        one.begin()
        until(lambda: is_up(place, one))


# --- a request is lost -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 500},
        {"status": 429},
        {"error": 500, "allowed": 0},
        {"finish": "abort"},
        {"cut": 3},
    ],
    ids=str,
)
def test_a_failed_request_moves_and_its_server_stays(two, failure, caplog):
    with fronted(*two) as place:
        for name, value in failure.items():
            setattr(two[0], name, value)
        replies = [ask(place).json() for _ in range(3)]
        assert [reply["answer"] for reply in replies] == ["46"] * 3
        assert metric(place, "rlm_upstream_moved") >= 1
        assert metric(place, "rlm_upstream_failures", two[0]) >= 1
        assert is_up(place, two[0]) and "taken out" not in caplog.text


def test_a_request_that_fails_everywhere_is_given_up(two):
    with fronted(*two) as place:
        for server in two:
            server.status = 500
        reply = ask(place)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
        assert [len(server.asked) for server in two] == [2, 2], "three moves"
        assert place.pool.up


@pytest.mark.parametrize("failure", [{"status": 400}, {"error": 400, "allowed": 0}])
def test_a_request_that_is_wrong_fails_alone_and_at_once(two, failure, caplog):
    caplog.set_level(logging.DEBUG)
    with fronted(*two) as place:
        for server in two:
            for name, value in failure.items():
                setattr(server, name, value)
        reply = ask(place)
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert sum(len(server.asked) for server in two) == 1
        prompt = next(server.asked[0].body["prompt"] for server in two if server.asked)
        assert "answers 400" in caplog.text and str(prompt) not in caplog.text
        assert metric(place, "rlm_upstream_moved") == 0 and place.pool.up


def test_a_stream_that_cannot_be_read_counts_as_lost():
    async def play(lines):
        async def chunks():
            yield lines

        async for event in upstream_module._events(chunks()):
            upstream_module._read(event)

    for broken in (
        b"data: {\n",
        b'data: {"choices": 5}\n',
        b'data: {"choices": [{"token_ids": 5}]}\n',
    ):
        with pytest.raises(Lost):
            asyncio.run(play(broken))
    # Comments and what is not ours pass.
    asyncio.run(play(b': keep-alive\n\ndata: [DONE]\n\ndata: {"choices": []}\n'))
