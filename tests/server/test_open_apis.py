"""What clients of the open APIs really send: each field works, or is a 400 that names it."""

import json
import math

import httpx
import openai
import pytest

from rlm.answers.formats import get_format
from rlm.server import service as service_module
from rlm.server.splitter import Splitter
from tests.support.serving import SUM, ask, joined, read_events, served, slow_steps

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TURNS = [{"role": "user", "content": SUM}]
GREEDY = {"temperature": 0}
# A client for browsers says what it is (openai's, of version 6).
STAINLESS = [
    "authorization", "content-type", "x-stainless-arch", "x-stainless-lang", "x-stainless-os",
    "x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime",
    "x-stainless-runtime-version", "x-stainless-timeout",
]  # fmt: skip


@pytest.fixture(scope="module")
def place():
    with served(cors_origins=["https://a.example"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(place):
    with openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(place, **fields) -> httpx.Response:
    short = {"messages": TURNS, "max_tokens": 24} | GREEDY
    return place.client.post(CHAT, json=short | fields)


def message_of(response: httpx.Response) -> dict:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


# --- what cannot be kept ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong", "idle"),
    [
        ("frequency_penalty", 0.5, 0),
        ("presence_penalty", -1, 0.0),
        ("logit_bias", {"50256": -100}, {}),
        ("min_p", 0.1, 0),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("tools", [{"type": "function", "function": {"name": "add"}}], []),
        ("tool_choice", "required", "auto"),
        ("functions", [{"name": "add"}], None),
        ("modalities", ["text", "audio"], ["text"]),
        ("chat_template_kwargs", {"style": "short"}, {"enable_thinking": True}),
        ("verbosity", "low", "medium"),
        ("think", False, True),
        ("some_new_field", 1, None),
    ],
)
def test_what_cannot_be_kept_is_named(place, name, wrong, idle):
    error = chat(place, **{name: wrong}, max_tokens=1).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)
    assert name in error["message"] and error["type"] == "invalid_request_error"
    assert chat(place, **{name: idle}, max_tokens=1).status_code == 200


def test_bookkeeping_passes_and_a_name_is_never_the_clients_text(place):
    kept = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "seed": -1}
    assert chat(place, **kept, max_tokens=1, parallel_tool_calls=False).status_code == 200
    error = chat(place, **{"<b>Sesame</b>": 1}).json()["error"]
    assert error["param"] is None and "Sesame" not in str(error)
    assert "did you mean temperature" in chat(place, temprature=1).json()["error"]["message"]
    for route, body in ((TEXT, {"prompt": "x"}), (RESPONSES, {"input": "x"})):
        error = place.client.post(
            route, json=body | {"tool_choice": "required", "tools": [{}]}
        ).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "tools")


# --- what works ------------------------------------------------------------------------------


def test_a_browser_may_send_what_its_client_adds(place):
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(STAINLESS),
    }
    allowed = place.client.options(CHAT, headers=asked)
    assert allowed.status_code == 200
    listed = allowed.headers["access-control-allow-headers"].lower()
    assert all(name in listed for name in STAINLESS)
    strange = place.client.options(CHAT, headers=asked | {"Origin": "https://b.example"})
    assert strange.status_code == 400


@pytest.mark.parametrize("fields", [("reasoning",), ("reasoning_content", "reasoning")])
def test_the_reasoning_has_the_names_that_are_set(place, monkeypatch, fields):
    monkeypatch.setattr(place.service, "reasoning_fields", fields)
    message = message_of(chat(place))
    assert {name for name in message if "reasoning" in name} == set(fields)
    deltas = [d["choices"][0]["delta"] for _, d in read_events_of(chat(place, stream=True).text)]
    assert {name for delta in deltas for name in delta if "reasoning" in name} == set(fields)
    for name in fields:
        assert "".join(delta.get(name, "") for delta in deltas) == message[name] != ""


def read_events_of(text: str):
    return read_events(text.replace("data: [DONE]\n\n", ""))


def test_top_k_works_in_every_route(place):
    hot = {"temperature": 2, "seed": 1, "top_k": 1}
    assert message_of(chat(place, **hot)) == message_of(chat(place))
    assert message_of(chat(place, **hot | {"top_k": -1})) != message_of(chat(place))
    texts = [
        place.client.post(TEXT, json={"prompt": SUM, "max_tokens": 8} | more).json()
        for more in (hot, GREEDY)
    ]
    assert texts[0]["choices"] == texts[1]["choices"]


def test_an_effort_bounds_the_reasoning(place):
    free = chat(place, max_tokens=40).json()["usage"]["completion_tokens_details"]
    for effort, tokens in (("none", 0), ("low", 10), ("medium", 20)):
        reply = chat(place, max_tokens=40, reasoning_effort=effort).json()
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == tokens
        assert reply["choices"][0]["message"]["content"]
    high = chat(place, max_tokens=40, reasoning_effort="xhigh").json()["usage"]
    assert high["completion_tokens_details"] == free
    bound = chat(place, max_reasoning_tokens=9).json()["usage"]["completion_tokens_details"]
    assert bound["reasoning_tokens"] == 9
    assert chat(place, reasoning_effort="huge").json()["error"]["param"] == "reasoning_effort"


def test_no_limit_and_eight_stops(place):
    assert message_of(chat(place, max_tokens=-1, stop=["#"] * 8))["content"] == "46"
    unlimited = {"max_tokens": None, "max_completion_tokens": -1, "stop": ["38"]}
    assert message_of(chat(place, **unlimited))["reasoning_content"].endswith("=")
    assert ask(place, **GREEDY, max_tokens=-1, stop=["38", *"abcdefg"]).status_code == 200
    for stop in (["#"] * 9, [""]):
        assert chat(place, stop=stop).json()["error"]["param"].startswith("stop")
    assert chat(place, max_tokens=-2).status_code == 422


def test_the_model_by_its_name(place, client):
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="the one that is served is tiny"):
        client.models.retrieve("gpt-x/y")
    line = 'rlm_requests_total{path="/v1/models/{model:path}",status="404"} '
    assert f"{line}1.0" in place.client.get("/metrics").text


def test_calls_of_tools_are_read_as_text(place, monkeypatch):
    seen = []
    made = service_module.chat_prompt
    monkeypatch.setattr(
        service_module, "chat_prompt", lambda turns, *more, **options: (
            seen.append(turns), made(turns, *more, **options))[1]
    )  # fmt: skip
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]},
    ]
    assert chat(place, messages=talk, max_tokens=1).status_code == 200
    assert seen.pop() == (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": 'Call of add: {"a": 1}'},
        {"role": "user", "content": "Result of add: 2"},
    )
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    asked = {"input": items, "max_output_tokens": 1}
    assert place.client.post(RESPONSES, json=asked).status_code == 200
    assert [turn["content"] for turn in seen.pop()] == [
        "1 + 1?", 'Call of add: {"a": 1}', "Result of add: 2",
    ]  # fmt: skip
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    error = chat(place, messages=picture).json()["error"]
    assert error["param"].startswith("messages") and "image_url; only texts" in error["message"]


def test_a_system_turn_stands_beside_the_instruction_unless_it_replaces_it(place, monkeypatch):
    told = []
    made = service_module.chat_prompt
    monkeypatch.setattr(
        service_module, "chat_prompt", lambda *given, beside, **more: (
            told.append(beside), made(*given, beside=beside, **more))[1]
    )  # fmt: skip
    system = [{"role": "system", "content": "Be brief."}, *TURNS]
    chat(place, messages=system, max_tokens=1)
    chat(place, messages=system, max_tokens=1, replace_instruction=True)
    ask(place, system="Be brief.", max_tokens=1)
    ask(place, system="Be brief.", max_tokens=1, replace_instruction=True)
    assert told == [True, False, True, False]


def test_a_conversation_that_no_template_renders_is_told_as_one(place, monkeypatch):
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}x"
    monkeypatch.setattr(place.service.tokenizer, "chat_template", strict + "{{ messages }}")
    greeting = [{"role": "assistant", "content": "Hello."}, *TURNS]
    error = chat(place, messages=greeting).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "invalid_request")
    assert "begin with a user's turn" in error["message"]
    assert "chat_template" not in error["message"]


# --- reasoning and answer apart --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Sure, let me think.\n<think>\n6*7\n</think>\n42", "Sure, let me think.\n\n6*7", "42"),
        ("6*7 is 42\n</think>\n42", "6*7 is 42", "42"),
        ("<think>\n6*7\n</think>\n42", "6*7", "42"),
        ("<think>6*7", "6*7", ""),
        ("It is 42.", "", "It is 42."),
        ("<think>a</think>42<think>b</think>43", "a\nb", "42\n43"),
        ("<think>a<think>b</think>42</think>", "a b", "42"),
        ("</think>42", "", "42"),
    ],
)
def test_no_tag_is_in_either_however_the_text_is_cut(text, reasoning, answer):
    for size in (1, 2, 3, 5, 8, len(text)):
        splitter = Splitter(get_format("think"))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        deltas = [d for piece in pieces for d in splitter.feed(piece)] + splitter.finish()
        told = {c: "".join(t for ch, t in deltas if ch == c) for c in ("reasoning", "answer")}
        assert told == {"reasoning": reasoning, "answer": answer}, size
        assert text[: splitter.reasoned].endswith(reasoning[-1:])


def test_what_is_counted_as_reasoning_ends_where_it_ends():
    fmt = get_format("xml")
    splitter = Splitter(fmt)
    text = "So.\n<reasoning>\n6*7\n</reasoning>\n<answer>\n42\n</answer>"
    deltas = splitter.feed(text) + splitter.finish()
    assert [c for c, _ in deltas] == ["reasoning", "reasoning", "answer"]
    assert splitter.reasoned == text.index("6*7") + 3


# --- log-probabilities -----------------------------------------------------------------------


def test_logprobs_are_those_of_the_model(place, client):
    asked = {"model": "x", "messages": TURNS, "logprobs": True, "top_logprobs": 3, "seed": 3}
    asked |= {"temperature": 2, "max_tokens": 40}
    done = client.chat.completions.create(**asked)
    entries = done.choices[0].logprobs.content
    reply = ask(place, temperature=2, seed=3, max_tokens=40).json()
    assert "".join(entry.token for entry in entries) == reply["text"]
    ended = done.choices[0].finish_reason == "stop"
    assert len(entries) == done.usage.completion_tokens - ended, "the end token has no text"
    for entry in entries:
        tops = entry.top_logprobs
        assert [t.logprob for t in tops] == sorted((t.logprob for t in tops), reverse=True)
        assert sum(math.exp(t.logprob) for t in tops) <= 1 + 1e-4
        assert entry.logprob <= tops[0].logprob + 1e-5
        same = [t for t in tops if t.token == entry.token]
        assert not same or abs(same[0].logprob - entry.logprob) < 1e-5
    assert any(entry.token != entry.top_logprobs[0].token for entry in entries), "it is hot"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    told = [c.choices[0].logprobs for c in chunks if c.choices]
    assert [e for each in told if each for e in each.content] == entries
    assert chat(place, top_logprobs=2).json()["error"]["param"] == "top_logprobs"
    assert chat(place, logprobs=False).json()["choices"][0]["logprobs"] is None


def test_greedy_logprobs_are_of_the_likeliest(place):
    found = chat(place, logprobs=True, top_logprobs=1).json()["choices"][0]["logprobs"]["content"]
    assert all(entry["token"] == entry["top_logprobs"][0]["token"] for entry in found)
    bare = chat(place, logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert [e["logprob"] for e in bare] == [e["logprob"] for e in found]
    assert bare[0]["top_logprobs"] == [] and bytes(bare[0]["bytes"]).decode() == bare[0]["token"]


# --- completions -----------------------------------------------------------------------------


def test_a_text_is_gone_on_with_as_it_is(place, client):
    prompt = f"<|im_start|>user\n{SUM}<|im_end|>\n<|im_start|>assistant\n"
    asked = {"model": "x", "prompt": prompt, "temperature": 0, "max_tokens": 200}
    done = client.completions.create(**asked, logprobs=2)
    text = done.choices[0].text
    assert text == ask(place, **GREEDY).json()["text"] and done.choices[0].finish_reason == "stop"
    told = done.choices[0].logprobs
    assert "".join(told.tokens) == text and told.text_offset[:2] == [0, len(told.tokens[0])]
    assert all(len(top) == 2 for top in told.top_logprobs)
    assert told.token_logprobs[0] == max(told.top_logprobs[0].values())
    options = {"stream_options": {"include_usage": True}, "stream": True}
    chunks = list(client.completions.create(**asked, **options, logprobs=2))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == text
    assert chunks[-1].usage == done.usage
    parts = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    assert [o for part in parts for o in part.text_offset] == told.text_offset
    ids = place.service.tokenizer(prompt)["input_ids"]
    for other in (ids, [ids], [prompt]):
        told = client.completions.create(**asked | {"prompt": other, "max_tokens": 8}).choices[0]
        assert told.text and text.startswith(told.text)
    short = client.completions.create(model="x", prompt="The ", seed=1)
    assert short.usage.completion_tokens <= 16, "the API's own default"


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"prompt": ["a", "b"]}, 422, "prompt"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": [10**6]}, 422, "prompt"),
        ({"prompt": "\ud800"}, 422, "prompt"),
        ({"prompt": "a", "echo": True}, 400, "echo"),
        ({"prompt": "a", "best_of": 3}, 400, "best_of"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ],
)
def test_a_text_that_cannot_be_gone_on_with(place, given, status, param):
    response = place.client.post(TEXT, content=json.dumps(given))
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"].split(".")[0] == param


# --- responses -------------------------------------------------------------------------------


def test_a_response_has_the_reasoning_and_the_answer_as_items(place, client):
    asked = {"model": "x", "input": SUM, "temperature": 0}
    done = client.responses.create(**asked, instructions="Be brief.")
    ours = ask(place, **GREEDY).json()
    assert done.output_text == "46" and done.status == "completed"
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert done.output[0].content[0].text == ours["reasoning"]
    assert done.usage.output_tokens_details.reasoning_tokens == ours["usage"]["reasoning_tokens"]
    cut = client.responses.create(**asked, max_output_tokens=20, reasoning={"effort": "xhigh"})
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    bound = client.responses.create(**asked, max_output_tokens=48, reasoning={"effort": "low"})
    assert bound.usage.output_tokens_details.reasoning_tokens == 12


def test_a_response_in_a_stream_is_the_same(place, client):
    asked = {"model": "x", "input": SUM, "temperature": 0}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    for name, text in (("reasoning_text", ask(place, **GREEDY).json()["reasoning"]),
                       ("output_text", "46")):  # fmt: skip
        deltas = [e.delta for e in events if e.type == f"response.{name}.delta"]
        done = [e.text for e in events if e.type == f"response.{name}.done"]
        assert "".join(deltas) == text and done == [text]
    assert final.output_text == "46" and final.usage.output_tokens > 10


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"background": True}, 400, "background"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, 400, "text"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 422, "input"),
        ({"input": []}, 422, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, 422, "input"),
        ({"text": {"format": {"type": "text"}}, "store": False, "truncation": "disabled"}, 200, ""),
    ],
)
def test_a_response_that_cannot_be_made(place, more, status, param):
    response = place.client.post(RESPONSES, json={"input": SUM, "max_output_tokens": 1} | more)
    assert response.status_code == status, response.text
    assert status == 200 or response.json()["error"]["param"].split(".")[0] == param


# --- deadlines -------------------------------------------------------------------------------


@pytest.fixture
def hurried():
    with served(timeout_seconds=1.5) as running:
        slow_steps(running, 0.04)
        yield running


def test_a_deadline_while_tokens_flow_ends_the_turn_with_what_there_is(hurried):
    plain = chat(hurried).json()
    assert plain["choices"][0]["finish_reason"] == "length"
    assert plain["choices"][0]["message"]["reasoning_content"]
    assert 0 < plain["usage"]["completion_tokens"] < 60
    options = {"stream": True, "stream_options": {"include_usage": True}}
    text = chat(hurried, **options).text
    assert text.endswith("data: [DONE]\n\n") and "error" not in text
    events = [data for _, data in read_events_of(text)]
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] > 0
    told = read_events(ask(hurried, stream=True, temperature=0).text)
    assert told[-1][0] == "done" and told[-1][1]["finish_reason"] == "timeout"
    assert told[-1][1]["usage"]["completion_tokens"] > 0 and joined(told, "reasoning")
    response = hurried.client.post(RESPONSES, json={"input": SUM}).json()
    assert response["status"] == "incomplete"


def test_the_default_deadline_fits_the_measured_speed(place, monkeypatch):
    service = place.service
    assert 0 < service.worker.token_seconds < 5, "the warm-up has measured it"
    monkeypatch.setattr(service, "timeout_seconds", None)
    plain = service_module.Ask()

    def seconds(tokens: int, of_a_token: float, asked=plain) -> float:
        monkeypatch.setattr(service.worker, "token_seconds", of_a_token)
        return service._seconds(asked, tokens)

    assert seconds(1024, 0.01) == service_module.DEFAULT_SECONDS == 120
    assert seconds(1024, 0.125) == service_module.SLACK * 128
    assert seconds(100_000, 0.125) == 3600
    assert seconds(1024, 0.125, service_module.Ask(timeout_seconds=7)) == 7
    assert seconds(10, 0.01, service_module.Ask(timeout_seconds=700)) == 700
    monkeypatch.setattr(service, "timeout_seconds", 60.0)
    assert seconds(1024, 0.125) == 60 == seconds(9, 1, service_module.Ask(timeout_seconds=90))
