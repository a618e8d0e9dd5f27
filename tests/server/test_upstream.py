"""serve.py in front of servers that speak vLLM's API: what a client gets, and what goes up."""

import asyncio
import logging

import httpx
import pytest

from rlm.addresses import UPSTREAM_KEY, read_key
from rlm.errors import InputError
from rlm.models.prompts import make_prompt, token_ids
from rlm.seeds import derive
from rlm.server import pool as pool_module
from rlm.server.pool import look_at
from rlm.server.upstream import Client
from tests.support.fake_vllm import BASE, TURN, FakeVLLM, by_engine, canned, check_api, probe_ids
from tests.support.serving import PATH, SUM, ask, joined, policy, read_events, served, until
from tests.support.upstreams import Asking, fronted

CHAT = "/v1/chat/completions"
OWN = ("id", "created", "timing", "model")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pool_module, "PROBE_SECONDS", 0.05)


@pytest.fixture
def fake():
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def two():
    with FakeVLLM() as one, FakeVLLM() as other:
        yield one, other


def ids_of(text: str) -> list[int]:
    return token_ids(policy().tokenizer, text)


def metric(place, name: str, server=None) -> float:
    label = f'{{upstream="{server.url}"}}' if server else ""
    lines = dict(line.rsplit(" ", 1) for line in place.client.get("/metrics").text.splitlines())
    return float(lines[f"{name}{label}"])


def test_the_fake_speaks_what_is_used(fake):
    check_api(fake.url, "rlm")


# --- the same as without -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """The server with its own engine, and one in front of two with the same engine."""
    with (
        FakeVLLM(answer=by_engine()) as one,
        FakeVLLM(answer=by_engine()) as other,
        served() as own,
        fronted(one, other) as front,
    ):
        yield own, front


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "seed": 6},
        {"n": 4, "seed": 7, "temperature": 1.3, "include_samples": True, "max_tokens": 200},
        {"temperature": 0, "max_tokens": 20},
        {"temperature": 0, "stop": ["38 + 8"]},
        {"temperature": 0, "stop": ["</think>\n4"]},
        {"temperature": 0, "max_reasoning_tokens": 10},  # is reached
        {"temperature": 0, "max_reasoning_tokens": 10, "max_tokens": 12},  # inside the closer
        {"temperature": 0, "max_reasoning_tokens": 10, "stop": ["</th"]},
        {"temperature": 0.8, "seed": 8, "max_reasoning_tokens": 300},  # is not
        {"temperature": 0, "include_reasoning": False},
    ],
    ids=str,
)
def test_replies_are_those_of_the_own_engine(pair, fields):
    fields = {"seed": 1} | fields
    own, front = (ask(place, **fields).json() for place in pair)
    assert {k: v for k, v in own.items() if k not in OWN} == {
        k: v for k, v in front.items() if k not in OWN
    }
    own, front = (read_events(ask(place, **fields, stream=True).text) for place in pair)
    for index in range(fields.get("n", 1)):
        for channel in ("reasoning", "answer"):
            assert joined(own, channel, index) == joined(front, channel, index)
    assert own[-1][0] == front[-1][0] == "done"
    assert own[-1][1]["usage"] == front[-1][1]["usage"]


def test_the_chat_route_gives_the_same_too(pair):
    body = {"messages": [{"role": "user", "content": SUM}], "temperature": 0}
    own, front = (place.client.post(CHAT, json=body).json() for place in pair)
    assert own["choices"] == front["choices"] and own["usage"] == front["usage"]


# --- what goes up ------------------------------------------------------------------------------


def test_token_ids_and_every_sampling_value_go_up(fake):
    with fronted(fake) as place:
        ask(place, temperature=0.5, top_p=0.9, top_k=7, seed=3, max_tokens=50)
    (asked,) = fake.asked
    assert asked.body == {
        "model": "rlm",
        "prompt": make_prompt(SUM, policy().tokenizer, "think").ids,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": derive(3, 0, 0),
        "stop_token_ids": [policy().tokenizer.eos_token_id],
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream_interval": 16,
        "n": 1,
        "stream": True,
        "return_token_ids": True,
    }


def test_each_sample_is_a_request_with_its_seed_and_they_spread(two):
    for server in two:
        server.allowed = 0
    with fronted(*two) as place:
        asking = Asking(place, n=6, seed=11)
        until(lambda: len(two[0].open) == len(two[1].open) == 3)
        assert [metric(place, "rlm_upstream_in_flight", server) for server in two] == [3, 3]
        for server in two:
            server.allowed = 999
        reply = asking.wait().json()
    assert reply["vote"] == {"n": 6, "winner": "46", "votes": {"46": 6}, "agreement": 1.0}
    seeds = [asked.body["seed"] for server in two for asked in server.asked]
    assert sorted(seeds) == sorted(derive(11, 0, index) for index in range(6))
    assert reply["usage"]["completion_tokens"] == 6 * len(ids_of(TURN))


def test_the_bound_on_the_reasoning_is_two_requests(fake):
    """The first is closed by us at the sixth token, the second goes on behind the closer."""
    long = ids_of("<think>\n" + "1 + 1 = 2\n" * 40)
    answer = ids_of("46<|im_end|>")
    closer = ids_of("\n</think>\n")
    fake.answer = lambda body: answer if body["prompt"][-len(closer) :] == closer else long
    with fronted(fake) as place:
        reply = ask(place, max_reasoning_tokens=6, max_tokens=60, seed=1).json()
    first, second = (asked.body for asked in fake.asked)
    assert second["prompt"] == first["prompt"] + long[:6] + closer
    assert (first["max_tokens"], second["max_tokens"]) == (60, 60 - 6 - len(closer))
    assert second["seed"] not in (first["seed"], derive(1, 0, 1))
    assert reply["answer"] == "46" and reply["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 6 + len(closer) + len(answer)
    assert reply["text"].endswith("\n</think>\n46")


def test_the_key_goes_up_and_nowhere_else(caplog):
    key = "secret-of-the-servers"
    caplog.set_level(logging.DEBUG)
    with FakeVLLM(key=key) as fake, fronted(fake, key=key) as place:
        assert ask(place).json()["answer"] == "46"
        assert fake.asked[0].headers["authorization"] == f"Bearer {key}"
        assert key not in place.client.get("/metrics").text + caplog.text
        with pytest.raises(InputError, match=r"refuses the key.*RLM_UPSTREAM_KEY"):
            asyncio.run(look_at([fake.url], "another", "rlm", probe_ids()))


def test_a_key_that_no_header_can_carry_is_refused(monkeypatch):
    assert read_key(UPSTREAM_KEY) is None
    for wrong in ("two words", "schlüssel"):
        monkeypatch.setenv("RLM_UPSTREAM_KEY", wrong)
        with pytest.raises(InputError, match="RLM_UPSTREAM_KEY"):
            read_key(UPSTREAM_KEY)


# --- how it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": True, "n": 3}], ids=str)
def test_a_client_that_goes_closes_the_connections(fake, fields):
    fake.allowed = 4
    body = {"prompt": SUM} | fields
    with fronted(fake) as place:
        with place.client.stream("POST", PATH, json=body) as response:
            pieces = response.iter_raw()  # kept: without it the connection would be closed
            next(pieces)
            until(lambda: len(fake.open) == fields.get("n", 1))
        until(lambda: all(asked.gone for asked in fake.asked))
        until(lambda: place.service.worker.rows == 0 and not place.service.worker.jobs)


def test_a_plain_client_that_goes_closes_the_connection(fake):
    fake.allowed = 4
    with fronted(fake) as place:
        with pytest.raises(httpx.ReadTimeout):
            place.client.post(PATH, json={"prompt": SUM}, timeout=2)
        until(lambda: [asked.gone for asked in fake.asked] == [True])


def test_a_stop_text_and_the_deadline_close_the_connection(fake):
    fake.allowed = len(ids_of("<think>\n23 + 15 = 38\n38"))
    with fronted(fake) as place:
        stopped = ask(place, stop=["= 38"]).json()
        assert stopped["finish_reason"] == "stop_sequence" and stopped["text"].endswith("15 ")
        late = ask(place, timeout_s=2).json()
        assert (late["finish_reason"], late["reasoning"]) == ("timeout", "23 + 15 = 38\n38")
        streamed = read_events(ask(place, timeout_s=2, stream=True).text)
        assert streamed[-1][0] == "done" and streamed[-1][1]["finish_reason"] == "timeout"
        assert joined(streamed, "reasoning").startswith("23 + 15 = 38")
        assert streamed[-1][1]["usage"]["completion_tokens"] == fake.allowed
        until(lambda: [asked.gone for asked in fake.asked] == [True] * 3)


def test_a_task_that_is_cancelled_while_it_closes_has_closed(fake):
    # As a request's are: its end is told before its connection is closed, and then all is let go.
    fake.allowed = 4

    body = {"model": "rlm", "prompt": ids_of("1 + 2"), "max_tokens": 9}

    async def cancel_at_the_first_token():
        def take(ids, finish):
            asyncio.get_running_loop().call_soon(task.cancel)
            return True

        task = asyncio.create_task(Client(fake.url, None).complete(body, take))
        await asyncio.wait([task])
        assert task.cancelled()
        async with asyncio.timeout(20):
            while not fake.asked[0].gone:
                await asyncio.sleep(0.01)

    asyncio.run(cancel_at_the_first_token())


def test_a_stop_of_the_server_ends_what_still_runs(fake):
    fake.allowed = 4
    with fronted(fake) as place:
        asking = Asking(place, stream=True)
        until(lambda: fake.open)
        place.server.stop_soon()
        last = read_events(asking.wait().text)[-1]
        assert (last[0], last[1]["error"]["code"]) == ("error", "shutting_down")
        until(lambda: fake.asked[0].gone)


def test_all_places_taken_the_next_waits_and_then_they_are_refused(fake):
    fake.allowed = 0
    with fronted(fake, room=1, max_queue=1) as place:
        first = Asking(place, temperature=0)
        until(lambda: fake.open and not place.service.worker.queued)
        second = Asking(place, temperature=0)
        until(lambda: place.service.worker.queued == 1)
        refused = ask(place)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1 and len(fake.asked) == 1
        fake.allowed = 999
        assert [a.wait().json()["answer"] for a in (first, second)] == ["46", "46"]


def test_the_context_is_that_of_the_servers():
    with FakeVLLM(context=64) as fake, fronted(fake) as place:
        error = ask(place, max_tokens=60).json()["error"]
        assert error["code"] == "context_length_exceeded" and "64 tokens" in error["message"]
        assert not fake.asked


# --- a look at the start -----------------------------------------------------------------------


def refused(*servers, model="rlm", probe=None) -> str:
    urls = [getattr(server, "url", server) for server in servers]
    with pytest.raises(InputError) as error:
        asyncio.run(look_at(urls, None, model, probe or probe_ids()))
    assert str(error.value).startswith(f"--upstream {urls[-1]}")
    return str(error.value)


def test_a_server_that_is_none_to_be_used_is_refused(fake):
    assert f"serves {BASE}, rlm, no other" in refused(fake, model="other")
    assert f"serves {BASE}, rlm; choose one by --upstream-model" in refused(fake, model=None)
    assert "another tokenizer" in refused(fake, probe=[5, 6, 7])
    with FakeVLLM(context=512) as short:
        said = refused(fake, short)
        assert "512 tokens" in said and "1024" in said and "--max-model-len" in said
    fake.tokens_shown = False
    assert "return_token_ids" in refused(fake)


def test_another_kind_of_server_is_refused(fake):
    with fronted(fake) as place:
        place.service.model = "rlm"
        assert "max_model_len" in refused(place)  # ours: /v1/models without a length
    assert "nothing to be used there" in refused(place)
    assert "nothing to be used there" in refused("http://name.invalid:1")


def test_the_only_model_needs_no_name():
    with FakeVLLM(models=()) as fake, fronted(fake, model=None) as place:
        assert ask(place).json()["answer"] == "46"
        assert fake.asked[0].body["model"] == BASE and canned is fake.answer
