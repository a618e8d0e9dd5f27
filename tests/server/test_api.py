"""The endpoint of a running server: its fields one by one, its statuses, its door."""

import asyncio
import json
import logging
import re
import socket
import time

import httpx
import pytest

from rlm.server import guard
from tests.support.serving import PATH, SUM, ask, served, slow_steps, until

GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def place():
    with served() as running:
        yield running


def error_of(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert response.json().keys() == {"error"}
    assert error.keys() == {"code", "type", "message", "param", "request_id"}
    assert error["code"] == code and error["request_id"] == response.headers["x-request-id"]
    return error


# --- the fields ------------------------------------------------------------------------------


def test_a_reply_has_every_part(place):
    response = ask(place, **GREEDY, seed=5)
    reply = response.json()
    assert list(reply) == [
        "id", "object", "created", "model", "seed", "reasoning", "answer", "answer_parsed", "text",
        "tool_calls", "finish_reason", "vote", "samples", "usage", "timing",
    ]  # fmt: skip
    assert (reply["object"], reply["model"], reply["seed"]) == ("phase1.reasoning", "tiny", 5)
    assert (reply["answer"], reply["answer_parsed"], reply["finish_reason"]) == ("46", True, "stop")
    assert "23 + 15 = 38" in reply["reasoning"] and "<think>" not in reply["reasoning"]
    assert reply["text"] == f"<think>\n{reply['reasoning']}\n</think>\n46"
    assert reply["vote"] is None and reply["samples"] is None and reply["tool_calls"] == []
    usage, timing = reply["usage"], reply["timing"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # Behind the reasoning stand: newline, closer, newline, 4, 6, end; some are one token.
    assert 3 <= usage["completion_tokens"] - usage["reasoning_tokens"] <= 8
    assert 0 <= timing["queue_ms"] <= timing["first_token_ms"] < timing["total_ms"]
    assert timing["tokens_per_second"] > 1
    assert re.fullmatch("reasoning-[0-9a-f]{32}", reply["id"])
    assert abs(reply["created"] - time.time()) < 60


def test_the_content_type_does_not_matter(place):
    body = json.dumps({"prompt": SUM, **GREEDY})
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        response = place.client.post(PATH, content=body, headers={"Content-Type": kind})
        assert response.json()["answer"] == "46"


def test_text_and_what_is_left_out(place):
    whole = ask(place, **GREEDY).json()
    plain = ask(place, **GREEDY, format="text")
    assert plain.headers["content-type"].startswith("text/plain") and plain.text == whole["text"]
    short = ask(place, **GREEDY, include_reasoning=False, include_samples=True).json()
    assert (short["reasoning"], short["text"], short["answer"]) == (None, "46", "46")
    assert short["usage"] == whole["usage"] and short["samples"][0]["reasoning"] is None
    assert ask(place, **GREEDY, format="text", include_reasoning=False).text == "46"


def test_max_tokens_cut_a_sample_off(place):
    whole = ask(place, **GREEDY).json()
    for tokens in (1, whole["usage"]["completion_tokens"] - 2):
        cut = ask(place, **GREEDY, max_tokens=tokens).json()
        assert cut["usage"]["completion_tokens"] == tokens and cut["finish_reason"] == "length"
        # 4 of 46 would be an answer that the model never gave.
        assert (cut["answer"], cut["answer_parsed"]) == (None, False)
        assert whole["text"].startswith(cut["text"]) and cut["text"]
    assert cut["text"].endswith("4")


def test_stop_ends_a_sample_before_the_text(place):
    reply = ask(place, **GREEDY, stop=["2. ", "never"]).json()
    assert reply["finish_reason"] == "stop_sequence" and reply["answer"] is None
    assert reply["text"].endswith("= 38\n") and "23 + 15" in reply["reasoning"]
    assert ask(place, **GREEDY, stop="2. ").json()["text"] == reply["text"]


def test_the_budget_of_the_reasoning(place):
    free = ask(place, **GREEDY).json()
    for tokens in (1, 8, 20):
        bound = ask(place, **GREEDY, max_reasoning_tokens=tokens).json()
        # The opener takes some tokens: with one, it is written to its end and closed.
        assert bound["usage"]["reasoning_tokens"] == (tokens if tokens > 1 else 0)
        assert bound["finish_reason"] == "stop" and bound["text"].count("</think>") == 1
        assert free["reasoning"].startswith(bound["reasoning"])
        assert bound["text"].split("</think>")[1].strip()
    roomy = ask(place, **GREEDY, max_reasoning_tokens=500).json()
    assert roomy["text"] == free["text"]
    cut = ask(place, **GREEDY, max_reasoning_tokens=5, max_tokens=6).json()
    assert (cut["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 6)


def test_system_top_k_and_top_p_reach_the_model(place):
    greedy = ask(place, **GREEDY).json()["text"]
    assert ask(place, temperature=2, seed=1, top_k=1).json()["text"] == greedy
    assert ask(place, temperature=2, seed=1, top_p=1e-6).json()["text"] == greedy
    assert ask(place, temperature=2, seed=1).json()["text"] != greedy
    # The tiny base's template has no system turn, so the tokens of the prompt tell nothing here.
    assert ask(place, **GREEDY, system="Be brief.").status_code == 200


def test_a_seed_gives_the_same_reply_alone_and_in_company(place):
    hot = {"temperature": 1.5, "max_tokens": 60}
    alone = ask(place, **hot, seed=7, n=2, include_samples=True).json()
    assert ask(place, **hot, seed=8).json()["text"] != alone["samples"][0]["text"]
    assert ask(place, **hot, seed=7).json()["text"] == alone["samples"][0]["text"]

    async def company():
        async with httpx.AsyncClient(base_url=place.url, timeout=30) as client:
            bodies = [{"prompt": SUM, **hot, "seed": 7, "n": 2, "include_samples": True}]
            bodies += [
                {"prompt": f"Calculate {i} + {i * i}", "seed": i, "temperature": 0.1 * i}
                for i in range(15)
            ]
            return await asyncio.gather(*(client.post(PATH, json=body) for body in bodies))

    together = asyncio.run(company())[0].json()
    assert [s["text"] for s in together["samples"]] == [s["text"] for s in alone["samples"]]
    told = ask(place, **hot).json()
    assert ask(place, **hot, seed=told["seed"]).json()["text"] == told["text"]


def test_samples_vote(place):
    hard = {"prompt": "Calculate 958 + 887 + 764", "temperature": 1.5}
    fields = {"n": 9, "seed": 3, "include_samples": True} | hard
    reply = ask(place, **fields).json()
    vote, answers = reply["vote"], [sample["answer"] for sample in reply["samples"]]
    read = [answer for answer in answers if answer is not None]
    assert len(set(read)) > 1, "this seed is to give samples that differ"
    best = max(map(read.count, read))
    assert vote["winner"] == next(answer for answer in read if read.count(answer) == best)
    assert vote["votes"] == {answer: read.count(answer) for answer in read}
    assert (vote["n"], vote["agreement"]) == (9, best / 9)
    winner = reply["samples"][answers.index(vote["winner"])]
    assert (reply["answer"], reply["text"]) == (vote["winner"], winner["text"])
    total = sum(sample["completion_tokens"] for sample in reply["samples"])
    assert reply["usage"]["completion_tokens"] == total
    none = ask(place, **fields, vote="none").json()
    assert none["vote"] is None and none["text"] == reply["samples"][0]["text"]
    assert ask(place, n=1, vote="majority", seed=3).json()["vote"]["n"] == 1


# --- the statuses ----------------------------------------------------------------------------


def test_400_and_422(place):
    assert error_of(place.client.post(PATH, content=b"{"), 400, "invalid_json")["param"] is None
    error = error_of(ask(place, max_tokens=1020), 400, "context_length_exceeded")
    assert error["param"] == "max_tokens"
    assert re.search(
        r"17 tokens and max_tokens 1020 .* 1024 tokens; use max_tokens 1007", error["message"]
    )
    error = error_of(ask(place, prompt="a " * 2000), 400, "context_length_exceeded")
    assert error["param"] == "prompt" and "shorten" in error["message"]
    error = error_of(ask(place, n=2, temperature=0), 422, "invalid_request")
    assert error["param"] == "n"


def test_404_and_405(place):
    error_of(place.client.get("/phase1"), 404, "not_found")
    error_of(place.client.get("/phase1/reasoning/"), 404, "not_found")
    response = place.client.get(PATH)
    error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def raw(place, head: str, body: bytes = b"") -> bytes:
    """Send bytes as they are and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", int(place.url.rsplit(":", 1)[1])), 20) as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        found = b""
        while piece := sock.recv(65536):
            found += piece
        return found


def test_413_by_length_and_while_reading(place):
    body = b" " * (guard.MAX_BODY + 1)
    error_of(place.client.post(PATH, content=body), 413, "body_too_large")
    error_of(place.client.post(PATH, content=iter([body])), 413, "body_too_large")
    head = f"POST {PATH} HTTP/1.1\nHost: localhost\nContent-Length: 999999\nExpect: 100-continue"
    assert raw(place, head).startswith(b"HTTP/1.1 413 ")
    exactly = json.dumps({"prompt": SUM}).encode().ljust(guard.MAX_BODY)
    assert place.client.post(PATH, content=exactly).status_code == 200


def test_408_for_a_slow_body(place, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.1)
    head = f"POST {PATH} HTTP/1.1\nHost: localhost\nContent-Length: 10"
    found = raw(place, head, b"{")
    assert found.startswith(b"HTTP/1.1 408 ") and b'"body_too_slow"' in found


def test_504_is_the_requests_own_deadline(place, monkeypatch):
    """It has passed before there is a token: with one, the answer so far is told."""
    submit = place.engine.submit
    monkeypatch.setattr(
        place.engine, "submit", lambda *a, **options: (time.sleep(0.01), submit(*a, **options))[1]
    )
    error_of(ask(place, timeout_s=0.001), 504, "timeout")
    until(lambda: place.engine.idle)


def test_500_tells_nothing(place, monkeypatch, caplog):
    monkeypatch.setattr(place.service, "note", lambda *given: 1 / 0)
    error = error_of(ask(place, prompt="Sesame"), 500, "internal_error")
    assert "Zero" not in json.dumps(error) and "Sesame" not in json.dumps(error)
    assert "ZeroDivisionError" in caplog.text


# --- the door --------------------------------------------------------------------------------


def test_with_a_key_all_but_the_page_and_health_is_closed():
    with served(is_key=lambda given: given == "k" * 20) as place:
        for path in ("/docs", "/openapi.json", "/metrics", "/v1/models", "/nowhere", PATH):
            response = place.client.get(path)
            error = error_of(response, 401, "authentication_error")
            assert error["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer", "Bearer no", "Basic " + "k" * 20, "k" * 20, "Bearer k k"):
            response = place.client.post(
                PATH, json={"prompt": SUM}, headers={"Authorization": wrong}
            )
            assert response.status_code == 401
        health = place.client.get("/health")
        assert health.status_code == 200 and health.json()["key_required"] is True
        assert place.client.get("/").status_code == 200
        assert place.client.post("/health").status_code == 401
        good = {"Authorization": "bearer " + "k" * 20}
        assert place.client.post(PATH, json={"prompt": SUM}, headers=good).status_code == 200
        assert place.client.get("/docs", headers=good).status_code == 200
        assert "security" in place.client.get("/openapi.json", headers=good).text


def test_without_a_key_only_names_of_this_machine_are_answered(place):
    for name in ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil", ""):
        response = place.client.post(PATH, json={"prompt": SUM}, headers={"Host": name})
        error_of(response, 401, "authentication_error")
    for name in ("localhost", "127.0.0.1:1234", "[::1]:8000"):
        assert place.client.get("/v1/models", headers={"Host": name}).status_code == 200


def test_cors_is_off_unless_asked_for(place):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    closed = place.client.options(PATH, headers=asked)
    assert closed.status_code == 405
    assert not [name for name in closed.headers if name.startswith("access-control")]
    with served(cors_origins=["https://a.example"], is_key=lambda given: False) as other:
        allowed = other.client.options(PATH, headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = other.client.post(PATH, headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        strange = other.client.post(PATH, headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in strange.headers


# --- what it tells of itself -----------------------------------------------------------------


def test_health_and_metrics(place):
    ask(place, **GREEDY)
    state = place.client.get("/health").json()
    assert (state["status"], state["model"], state["format"]) == ("ok", "tiny", "think")
    assert (state["max_tokens"], state["key_required"]) == (1024, False)
    assert state["worker_alive"] and state["rows"] == state["queued"] == 0
    assert 0 <= state["last_step_seconds"] < 60
    before = place.client.get("/metrics").text
    assert place.client.post(PATH, content=b"{").status_code == 400
    after = place.client.get("/metrics").text
    line = r'rlm_requests_total\{path="/phase1/reasoning",status="400"\} (\S+)'
    counts = [float(m[1]) if (m := re.search(line, text)) else 0.0 for text in (before, after)]
    assert counts[1] == counts[0] + 1
    for name in ("queue_depth", "rows", "tunnel_up", "first_token_seconds_sum", "worker_up",
                 "tokens_per_second_bucket", "completion_tokens"):  # fmt: skip
        assert re.search(rf"^rlm_{name}[ {{]", after, re.MULTILINE), name


def test_rows_and_queue_are_shown_while_they_fill():
    with served(max_rows=2) as place:
        slow_steps(place, 0.02)
        with place.client.stream("POST", PATH, json={"prompt": SUM, "n": 4, "stream": True}):
            until(lambda: place.client.get("/health").json()["rows"] == 2)
            with place.client.stream("POST", PATH, json={"prompt": SUM, "stream": True}):
                until(lambda: place.client.get("/health").json()["queued"] == 1)
                assert "rlm_queue_depth 1.0" in place.client.get("/metrics").text


def test_logs_hold_counts_and_no_content(place, caplog):
    caplog.set_level(logging.INFO, "rlm")
    reply = ask(place, prompt="Calculate 461 + 2", **GREEDY).json()
    place.client.get("/Sesame", headers={"Authorization": "Bearer Sesame"})
    ask(place, stop=["Sesame"], temperature=-1)
    assert f"completion {reply['usage']['completion_tokens']}" in caplog.text
    assert "POST /phase1/reasoning 200" in caplog.text
    said = re.sub(r"\b[0-9a-f]{16}\b", "", caplog.text)  # a request's own number may hold 461
    assert said != caplog.text
    for content in ("461", "Sesame", reply["text"][-12:]):
        assert content not in said
    place.service.log_content = True
    ask(place, prompt="Calculate 461 + 2", **GREEDY)
    place.service.log_content = False
    assert "Calculate 461 + 2" in caplog.text and repr(reply["text"])[1:-1] in caplog.text


def test_the_page_may_run_only_its_own_script(place):
    response = place.client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("'sha256-[A-Za-z0-9+/]{43}='", policy)) == 2
    assert response.headers["x-content-type-options"] == "nosniff"
