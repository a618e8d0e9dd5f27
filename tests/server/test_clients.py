"""Foreign clients against a served port: the openai package, and schemathesis on the document."""

import asyncio
import json

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.serving import SUM, ask, joined, read_events, served, slow_steps, until

KEY = "k" * 20
ASKED = {"model": "any", "messages": [{"role": "user", "content": SUM}]}


@pytest.fixture(scope="module")
def place():
    with served(is_key=lambda given: given == KEY) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture(scope="module")
def client(place):
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


# --- openai ----------------------------------------------------------------------------------


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_completion(client, place):
    done = client.chat.completions.create(**ASKED, temperature=0, max_tokens=200)
    choice, ours = done.choices[0], ask(place, temperature=0, max_tokens=200).json()
    assert (choice.message.content, choice.message.role) == ("46", "assistant")
    assert choice.message.reasoning_content == ours["reasoning"]
    assert not hasattr(choice.message, "reasoning"), "clients that know both would show it twice"
    assert choice.finish_reason == "stop" and done.object == "chat.completion"
    details = done.usage.completion_tokens_details
    assert details.reasoning_tokens == ours["usage"]["reasoning_tokens"]
    assert done.usage.total_tokens == ours["usage"]["total_tokens"]


def test_every_field_of_a_completion(client):
    hot = {"temperature": 2, "top_p": 0.99, "seed": 4, "n": 3}
    done = client.chat.completions.create(**ASKED, **hot, max_completion_tokens=30)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in done.choices} <= {"length", "stop"}
    assert done.usage.completion_tokens <= 3 * 30
    again = client.chat.completions.create(**ASKED, **hot, max_tokens=30, logit_bias={})
    assert again.choices == done.choices
    assert len({choice.message.reasoning_content for choice in done.choices}) > 1
    stopped = client.chat.completions.create(**ASKED, temperature=0, stop="2. ")
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.reasoning_content.endswith("= 38")
    talk = [*ASKED["messages"], {"role": "assistant", "content": "<think>x</think>46"},
            {"role": "user", "content": "Calculate 1 + 2"}]  # fmt: skip
    longer = client.chat.completions.create(model="any", messages=talk, temperature=0)
    assert longer.usage.prompt_tokens > done.usage.prompt_tokens


def test_a_stream_joins_to_the_completion(client):
    asked = ASKED | {"temperature": 1.2, "seed": 9, "n": 2}
    whole = client.chat.completions.create(**asked)
    options = {"stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked, stream=True, **options))
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert chunks[0].choices[0].delta.role == "assistant"
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        texts = {"content": "", "reasoning_content": ""}
        for chunk in mine:
            for name in texts:
                texts[name] += getattr(chunk.delta, name, None) or ""
        assert texts["content"] == choice.message.content
        assert texts["reasoning_content"] == choice.message.reasoning_content
        assert not any(hasattr(chunk.delta, "reasoning") for chunk in mine)
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
    bare = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None for chunk in bare)


def test_a_stream_ends_with_done(place):
    response = place.client.post("/v1/chat/completions", json=ASKED | {"stream": True})
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


def test_the_clients_own_errors(client, place):
    with pytest.raises(openai.BadRequestError, match="1024 tokens") as found:
        client.chat.completions.create(**ASKED, max_tokens=5000)
    assert found.value.code == "context_length_exceeded" and found.value.param == "max_tokens"
    with pytest.raises(openai.UnprocessableEntityError, match="assistant's"):
        client.chat.completions.create(model="x", messages=[*ASKED["messages"],
                                       {"role": "assistant", "content": "x"}])  # fmt: skip
    stranger = openai.OpenAI(base_url=f"{place.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_failure_in_the_middle_of_a_stream(client, place):
    step, steps = place.engine.step, []

    def failing():
        steps.append(1)
        if len(steps) == 30:
            place.engine.reset()
            raise RuntimeError("in the middle")
        return step()

    place.engine.step = failing
    with pytest.raises(openai.APIError, match="server failed"):
        list(client.chat.completions.create(**ASKED, stream=True))
    place.engine.step = step


def test_the_asynchronous_client_closes_a_stream(place):
    step = place.engine.step
    slow_steps(place, 0.01)

    async def few():
        async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key=KEY) as made:
            stream = await made.chat.completions.create(**ASKED, stream=True)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(few())
    place.engine.step = step
    response = place.client.post(
        "/phase1/reasoning", content=json.dumps({"prompt": SUM, "stream": True})
    )
    assert joined(read_events(response.text), "reasoning")
    until(lambda: not place.service.worker.jobs)


# --- schemathesis ----------------------------------------------------------------------------


def try_out(place, examples: int) -> int:
    """Send so many generated requests, half of them wrong, and check every reply; return how many.

    The checks: no 5xx, a status, type and schema that the document names, wrong data and unknown
    methods refused, no way in without the key.
    """
    headers = {"Authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"{place.url}/openapi.json", headers=headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = [operation for operation in operations if operation.method == "post"]
    assert (len(posts), len(operations)) == (4, 7)
    sent = []
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            share = 1 if operation not in posts else examples // (2 * len(posts))
            if operation in posts or mode.value == "positive":
                _try(operation.as_strategy(generation_mode=mode), share, headers, sent)
    return len(sent)


def _try(cases, examples: int, headers: dict, sent: list) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case):
        # A deadline of no time at all is allowed, and rightly answered by 504.
        if isinstance(case.body, dict) and isinstance(case.body.get("timeout_s"), float):
            case.body["timeout_s"] = max(case.body["timeout_s"], 5.0)
        # No schema says what fits the context, or which fields go together.
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])
        sent.append(case)

    check()


@pytest.fixture(scope="module")
def terse():
    """A server for requests whose answers nobody reads."""
    with served(is_key=lambda given: given == KEY, max_tokens=8, timeout_seconds=5) as running:
        yield running


def test_generated_requests(terse):
    assert try_out(terse, 40) >= 40


@pytest.mark.slow
def test_many_generated_requests(terse):
    assert try_out(terse, 300) >= 300
