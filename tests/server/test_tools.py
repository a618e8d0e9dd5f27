"""Calls of the server's own tools: told in every route, the same streamed, alone and in company."""

import threading
from dataclasses import replace

import pytest

import config
import serve
from rlm.answers.formats import get_format
from rlm.errors import InputError
from rlm.records import Choice, Prompt, Rollout, ToolCall
from rlm.server.job import Job
from rlm.server.logprobs import chosen_of
from rlm.server.replies import read_sample, usage
from rlm.server.splitter import Splitter
from rlm.tools.toolbox import Toolbox, load_tools
from tests.support.serving import ask, policy, read_events, served
from tests.support.tool_models import Often, SlowBox, often

TURN = "<think>\n8 * 9 = <calc>8 * 9</calc><result>72</result>, so it is more\n</think>\n8"
AT, WRITTEN, END = TURN.index("<calc>"), TURN.index("<result>"), TURN.index(", so")
CALL = ToolCall("calculator", '{"expression": "8 * 9"}', "72", None, 0, 0, AT, WRITTEN, END)


def turn() -> Rollout:
    """The turn above in the tokens of the tiny base."""
    ids = [policy().tokenizer(part, add_special_tokens=False)["input_ids"]
           for part in (TURN[:WRITTEN], TURN[WRITTEN:END], TURN[END:])]  # fmt: skip
    call = replace(CALL, first=len(ids[0]), tokens=len(ids[1]))
    whole = [*ids[0], *ids[1], *ids[2]]
    return Rollout(whole, [0.0] * len(whole), TURN, "stop", calls=(call,))


def read(rollout: Rollout):
    job = Job("id", [1], 0.0, False, prompt=Prompt([1, 2]))
    job.end(0, rollout, rollout.finish)
    sample = read_sample(job, 0, get_format("think"), policy().tokenizer)
    return sample, usage(job, [sample])


def test_a_result_is_no_answer_and_counts_as_no_completion_token():
    rollout = turn()
    sample, used = read(rollout)
    assert sample.answer.canonical == "8" and "<result>72</result>" in sample.reasoning
    (placed,) = sample.calls
    assert sample.reasoning[placed.start : placed.end] == TURN[AT:END]
    assert (placed.channel, placed.call) == ("reasoning", rollout.calls[0])
    assert used["tool_tokens"] == rollout.calls[0].tokens > 2
    assert used["completion_tokens"] == len(rollout.ids) - used["tool_tokens"]
    assert used["total_tokens"] == 2 + used["completion_tokens"]
    plain = TURN[:WRITTEN] + TURN[END:]  # the same turn without a tool has as many
    tokens = policy().tokenizer(plain, add_special_tokens=False)["input_ids"]
    _, same = read(Rollout(tokens, [], plain, "stop"))
    assert abs(same["reasoning_tokens"] - used["reasoning_tokens"]) <= 1 < used["reasoning_tokens"]
    assert used["reasoning_tokens"] < used["completion_tokens"]


def test_an_answer_is_read_without_results():
    text = "<think>\na\n</think>\n8<result>72</result>"
    call = replace(CALL, tokens=1, start=len(text) - 20, written=len(text) - 19, end=len(text))
    assert text[call.start : call.written] == "8"
    for finish in ("stop", "length"):
        sample, _ = read(Rollout([1, 2], [0.0] * 2, text, finish, calls=(call,)))
        # Cut off, 8 may be the beginning of a number.
        assert sample.answer.canonical == ("8" if finish == "stop" else None)


def test_log_probabilities_are_told_of_what_was_sampled():
    choices = [Choice(-float(i), []) for i in range(5)]
    call = replace(CALL, first=1, tokens=2)
    rollout = Rollout([5, 6, 7, 8, 9], [0.0] * 5, "", "stop", calls=(call,), choices=choices)
    assert [id for id, _ in chosen_of(rollout, "stop")] == [5, 8]
    assert [id for id, _ in chosen_of(rollout, "length")] == [5, 8, 9]


@pytest.mark.parametrize(
    "text, channel, shown",
    [
        ("<think>\n  a <calc>1</calc><result>1</result> b</think>\n2", "reasoning", None),
        ("  a <calc>1</calc><result>1</result> b", "answer", None),  # held back up to the end
        ("a <calc>1</calc><result>1</result> b</think>\n2", "reasoning", None),
        ("<think>b</think> c\n<calc>1</calc><result>1</result>", "answer", None),
        ("<think>a</think>c <calc></think></calc><result>1</result>", "answer",
         "</calc><result>1</result>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_call_has_the_same_place_however_the_text_is_cut(text, channel, shown, size):
    start, end = text.index("<calc>"), text.index("</result>") + len("</result>")
    call = ToolCall("calculator", "1", "1", None, 0, 1, start, text.index("<result>"), end)
    splitter, parts = Splitter(get_format("think")), {"reasoning": "", "answer": ""}
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for number, piece in enumerate(pieces, 1):
        for name, delta in splitter.feed(piece, final=number == len(pieces)):
            parts[name] += delta
        placed = splitter.place(call)
        assert not placed or placed.end <= len(parts[placed.channel])
    placed = splitter.place(call)
    assert placed.channel == channel
    assert parts[channel][placed.start : placed.end] == (shown or text[start:end])


@pytest.fixture(scope="module")
def place():
    """A server whose model calls all the time, and waits for its tool."""
    tools = often(policy().tokenizer, box=SlowBox, every=16)
    with served(tools=tools) as running:
        yield running


def seen(place, **fields) -> list:
    """What is told of a call, streamed, of each sample."""
    response = ask(place, stream=True, **fields)
    events = read_events(response.text)
    samples = [index for name, told in events if name == "sample" for index in [told["index"]]]
    assert events[-1][0] == "done" and "tool_calls" not in events[-1][1]
    found = []
    for index in sorted(samples):
        texts, calls = {"reasoning": "", "answer": ""}, []
        for name, told in events:
            if told.get("index") == index and name in texts:
                texts[name] += told["delta"]
            if told.get("index") == index and name == "tool":
                call = {k: v for k, v in told.items() if k != "index"}
                assert call["end"] == len(texts[call["channel"]]), (
                    "behind the delta with its result"
                )
                calls.append(call)
        found.append((texts["reasoning"], calls, events[-1][1]["usage"]))
    return found


ASKED = {"max_tokens": 30, "seed": 4, "temperature": 0.8}


def test_calls_are_the_same_streamed_and_not_alone_and_among_others(place):
    fields = ASKED | {"n": 2, "include_samples": True}
    plain = ask(place, **fields).json()
    whole = [(s["reasoning"], s["tool_calls"], plain["usage"]) for s in plain["samples"]]
    assert sum(len(calls) for _, calls, _ in whole) > 2
    for reasoning, calls, _ in whole:
        for call in calls:
            assert call["name"] == "backwards" and call["channel"] == "reasoning"
            shown = reasoning[call["start"] : call["end"]]
            assert shown.endswith(f"<result>{call['result']}</result>")
    used = plain["usage"]
    assert used["tool_tokens"] == sum(c["tokens"] for _, calls, _ in whole for c in calls)
    assert used["completion_tokens"] <= 60 and plain["tool_calls"] in [c for _, c, _ in whole]
    assert seen(place, **fields) == whole
    others = [
        threading.Thread(target=ask, args=[place], kwargs=ASKED | {"seed": 9, "n": n})
        for n in (3, 1)
    ]
    for other in others:
        other.start()
    assert seen(place, **fields) == whole
    for other in others:
        other.join()


def test_calls_in_a_reasoning_that_is_left_out_are_left_out(place):
    fields = ASKED | {"include_reasoning": False}
    assert ask(place, **fields).json()["tool_calls"] == []
    names = [name for name, _ in read_events(ask(place, stream=True, **fields).text)]
    assert "tool" not in names and names[-1] == "done"


def test_the_open_apis_have_calls_inside_the_turn(place):
    asked = {"messages": [{"role": "user", "content": "Calculate 2 + 3"}]} | ASKED
    url = "/v1/chat/completions"
    reply = place.client.post(url, json=asked | {"logprobs": True}).json()
    (choice,) = reply["choices"]
    assert "<result>" in choice["message"]["reasoning_content"]
    assert "tool_calls" not in choice["message"]
    tokens = reply["usage"]["completion_tokens"]
    told = [each["token"] for each in choice["logprobs"]["content"]]
    assert len(told) in (tokens, tokens - 1) and "<result>" not in "".join(told)
    assert set(reply["usage"]["completion_tokens_details"]) == {"reasoning_tokens"}
    text = place.client.post(url, json=asked | {"stream": True}).text
    deltas = [
        told["choices"][0]["delta"] for _, told in read_events(text.replace("data: [DONE]", ""))
    ]
    streamed = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert streamed == choice["message"]["reasoning_content"]
    tool = {"type": "function", "function": {"name": "mine", "parameters": {}}}
    refused = place.client.post(url, json=asked | {"tools": [tool]})
    assert refused.status_code == 400 and "server's own tools" in refused.json()["error"]["message"]
    raw = place.client.post("/v1/completions", json=ASKED | {"prompt": "2 + 3 ="}).json()
    assert "<result>" not in raw["choices"][0]["text"]


def test_there_has_to_be_room_for_the_results(place):
    room = place.service.tools.bound(place.service.tokenizer).room
    reply = ask(place, max_tokens=1000)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert f"with {room} for the results of tools" in error["message"]
    assert error["param"] == "max_tokens", "known before it came to the engine"


FAULTY = '''
import time

def hang(text: str) -> str:
    """Never comes back."""
    time.sleep(3600)

def large(text: str) -> str:
    """Says a megabyte."""
    return "7" * 1_000_000

def broken(text: str) -> str:
    """Raises."""
    raise RuntimeError("no luck")
'''


class Turns(Often):
    """Calls one tool after the other, whichever sample calls."""

    def __init__(self, tools):
        super().__init__(every=4)
        self.tools, self.calls = tools, 0

    def read(self, call):
        self.calls += 1
        return self.tools[(self.calls - 1) % 3], {"text": call.inside}


def test_tools_that_hang_raise_or_say_a_megabyte_and_a_server_that_goes_on(tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    tools = Toolbox(load_tools(str(path)), max_calls=3, result_tokens=32, seconds=1.0)
    tools.bound(policy().tokenizer).form = Turns(tools.tools)
    with served(tools=tools) as place:
        reply = ask(place, **ASKED, n=6, include_samples=True).json()
        calls = {call["name"]: call for s in reply["samples"] for call in s["tool_calls"]}
        assert len(calls) == 3
        assert calls["hang"]["failure"] == "timeout" and calls["large"]["failure"] == "cut"
        assert calls["broken"]["failure"] == "error" and "no luck" in calls["broken"]["result"]
        assert all(call["tokens"] < 64 for call in calls.values())
        assert all(s["finish_reason"] in ("stop", "length") for s in reply["samples"])
        assert place.client.get("/health").json()["worker_alive"]
        raw = place.client.post("/v1/completions", json={"prompt": "2 + 3 =", "max_tokens": 4})
        assert raw.status_code == 200
    tools.close()


def test_serve_takes_the_tools_of_its_settings(tmp_path):
    def loaded(*words):
        return serve.load(config.load(config.ServeSettings, list(words)))

    given = ["--tools", "calculator", "--max-tool-calls", "3", "--tool-tokens", "12"]
    service = loaded(*given)
    room = service.tools.bound(service.tokenizer).room
    assert [tool.name for tool in service.tools.tools] == ["calculator"] and 4 * 12 < room < 200
    assert service.max_tokens == service.worker.context_tokens - room
    assert loaded().tools is None
    with pytest.raises(InputError, match=r"--tools calculator: .* use fewer calls"):
        loaded("--tools", "calculator", "--max-tool-calls", "200")
