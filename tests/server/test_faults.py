"""What goes wrong inside: bad requests, failing steps, a dead engine, a stop in the middle."""

import asyncio
import json
import threading
import time

import httpx
import pytest

from rlm.errors import InputError
from rlm.server import run as run_module
from rlm.server import service as service_module
from tests.support.serving import PATH, SUM, ask, read_events, served, slow_steps, until


@pytest.fixture
def place():
    with served() as running:
        yield running


def both(place, *bodies) -> list[httpx.Response]:
    async def post():
        async with httpx.AsyncClient(base_url=place.url, timeout=30) as client:
            return await asyncio.gather(*(client.post(PATH, json=body) for body in bodies))

    return asyncio.run(post())


def test_a_poisoned_request_fails_alone(place, caplog):
    submit = place.engine.submit

    def poisoned(prompt, sampling, seeds, **options):
        if sampling.top_k == 13:
            raise RuntimeError("poison")
        if sampling.top_k == 14:
            raise InputError("the prompt cannot be read")
        return submit(prompt, sampling, seeds, **options)

    place.engine.submit = poisoned
    good = {"prompt": SUM, "temperature": 0}
    bodies = [good, good | {"top_k": 13}, good, good | {"top_k": 14}, *[good] * 4]
    found = both(place, *bodies)
    assert [response.status_code for response in found] == [200, 500, 200, 400, 200, 200, 200, 200]
    assert {r.json()["answer"] for r in found if r.status_code == 200} == {"46"}
    assert "poison" not in found[1].text and "poison" in caplog.text
    assert place.client.get("/health").status_code == 200


def test_a_failing_step_fails_its_rows_and_goes_on(place):
    step, left = place.engine.step, [2]

    def failing():
        if len(place.engine.running) == 2 and left[0]:
            left[0] -= 1
            # As inside the engine: whatever a step was at is gone.
            place.engine.reset()
            raise RuntimeError("out of memory")
        time.sleep(0.005)
        return step()

    place.engine.step = failing
    plain, streamed = both(place, {"prompt": SUM}, {"prompt": SUM, "stream": True})
    assert plain.status_code == 500 and plain.json()["error"]["code"] == "internal_error"
    events = read_events(streamed.text)
    assert [events[0][0], events[-1][0]] == ["start", "error"]
    assert "done" not in [name for name, _ in events]
    assert events[-1][1]["error"]["code"] == "internal_error"
    assert ask(place, temperature=0).json()["answer"] == "46"
    assert place.client.get("/health").json()["worker_alive"] is True


def test_of_several_samples_the_failed_ones_do_not_count():
    """A step fails while one sample runs and the others wait: these are the reply."""
    with served(max_rows=1) as place:
        step, steps = place.engine.step, []

        def failing():
            steps.append(1)
            if len(steps) == 5:
                place.engine.reset()
                raise RuntimeError("once")
            return step()

        place.engine.step = failing
        reply = ask(place, n=3, seed=4, include_samples=True).json()
        assert [s["finish_reason"] for s in reply["samples"]] == ["error", "stop", "stop"]
        assert reply["vote"]["n"] == 3 and sum(reply["vote"]["votes"].values()) == 2
        assert reply["samples"][0]["answer"] is None and reply["answer"] is not None


def test_logits_that_are_not_finite_fail_their_requests_and_end_no_server(place, caplog):
    runner = place.engine._runner
    sample = runner.sample
    runner.sample = lambda *parts: sample(*parts) * float("nan")
    for _ in range(4):  # more than the failures that end a server
        refused = ask(place)
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal_error")
    told = [record for record in caplog.records if "are not finite in float32" in record.message]
    assert len(told) == 4 and not any(record.exc_info for record in told)
    runner.sample = sample
    assert ask(place, temperature=0).json()["answer"] == "46"


def test_three_failures_in_a_row_end_the_server(place, monkeypatch):
    monkeypatch.setattr(run_module, "DEAD_SECONDS", 0.5)
    calls = []

    def broken():
        calls.append(1)
        place.engine.reset()
        raise RuntimeError("broken")

    place.engine.step = broken
    # One at a time joins and fails with its step; two of four are never tried.
    place.engine.admissions = 1
    found = both(place, *[{"prompt": SUM}] * 5)
    codes = sorted(response.json()["error"]["code"] for response in found)
    assert len(calls) == 3 and place.service.worker.dead
    assert set(codes) <= {"internal_error", "engine_dead"} and "engine_dead" in codes
    health = place.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "engine_dead")
    refused = ask(place)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    until(lambda: place.server.should_exit)


def test_nothing_is_accepted_before_the_warm_up(monkeypatch):
    from rlm.server.worker import Worker

    warm, go = Worker._warm_up, threading.Event()
    monkeypatch.setattr(Worker, "_warm_up", lambda worker: (go.wait(10), warm(worker)))
    with served(wait=False) as place:
        until(lambda: place.server.started)
        health = place.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "not_ready")
        refused = ask(place)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        go.set()
        until(lambda: place.client.get("/health").status_code == 200)
        assert ask(place, temperature=0).json()["answer"] == "46"


def test_a_warm_up_that_fails_ends_the_server(monkeypatch):
    from rlm.server.worker import Worker

    monkeypatch.setattr(run_module, "DEAD_SECONDS", 0.01)
    monkeypatch.setattr(Worker, "_warm_up", lambda worker: 1 / 0)
    with served(wait=False) as place:
        until(lambda: place.server.should_exit)
        assert place.service.worker.dead


def test_a_step_that_hangs_does_not_hold_up_its_clients(place, monkeypatch):
    monkeypatch.setattr(service_module, "GRACE_SECONDS", 0.1)
    go = threading.Event()
    step = place.engine.step
    place.engine.step = lambda: (go.wait(20), step())[1]
    begun = time.monotonic()
    response = ask(place, timeout_s=0.2)
    assert response.status_code == 504 and time.monotonic() - begun < 3
    place.engine.step = step
    go.set()
    assert ask(place, temperature=0).json()["answer"] == "46"


def test_a_deadline_covers_the_time_in_the_queue():
    with served(max_rows=1) as place:
        slow_steps(place, 0.02)
        body = {"prompt": SUM, "temperature": 0}
        found: list[httpx.Response] = []
        first = threading.Thread(target=lambda: found.append(ask(place, **body)))
        first.start()
        until(lambda: place.engine.running)
        second = ask(place, **body, timeout_s=0.3, stream=True)
        first.join(30)
        assert found[0].status_code == 200
        assert [name for name, _ in read_events(second.text)] == ["start", "sample", "error"]
        assert read_events(second.text)[-1][1]["error"]["code"] == "timeout"


def test_a_stop_lets_end_what_runs_and_cancels_the_rest():
    with served(max_rows=1) as place:
        place.server.drain_seconds = 4
        step, first = place.engine.step, []

        def slowed():
            first.extend(place.engine.waiting[: not first])
            # Some 80 steps each: the first request can end in time, the others cannot.
            time.sleep(0.005 if first[0] in (*place.engine.running, *place.engine.waiting) else 0.3)
            return step()

        place.engine.step = slowed
        found: dict = {}

        def post(name, body):
            found[name] = httpx.post(f"{place.url}{PATH}", json=body, timeout=30)

        threads = []
        for name in ("first", "plain", "stream"):
            body = {"prompt": SUM, "temperature": 0, "stream": name == "stream"}
            threads.append(threading.Thread(target=post, args=[name, body]))
            threads[-1].start()
            until(lambda: len(place.service.worker.jobs) == len(threads))
        place.server.stop_soon()
        until(lambda: place.service.worker.closing)
        refused = ask(place)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert place.client.get("/health").json()["status"] == "shutting_down"
        for thread in threads:
            thread.join(10)
        assert found["first"].json()["answer"] == "46"
        last = read_events(found["stream"].text)[-1]
        assert (last[0], last[1]["error"]["code"]) == ("error", "shutting_down")
        until(lambda: place.server.should_exit)


def test_bodies_of_errors_never_hold_the_input(place):
    for body in (
        {"prompt": "Sesame " * 2000},
        {"prompt": "Sesame", "max_tokens": 9999},
        {"prompt": "Sesame", "system": 3},
        {"prompt": SUM, "stop": ["Sesame"] * 9},
    ):
        response = place.client.post(PATH, json=body)
        assert response.status_code in (400, 422) and "Sesame" not in response.text
    for path in ("/Sesame", "/v1/Sesame?Sesame=1"):
        response = place.client.get(path, headers={"Cookie": "Sesame"})
        assert response.status_code == 404 and "Sesame" not in json.dumps(dict(response.headers))
        assert "Sesame" not in response.text
