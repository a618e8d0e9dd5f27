"""What a client may send, read without a server; and how samples vote."""

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest

from rlm.answers.formats import get_format
from rlm.answers.reading import Answer, read_answer
from rlm.records import Prompt, Rollout
from rlm.server.chat_requests import ChatRequest
from rlm.server.errors import ApiError
from rlm.server.messages import without_reasoning
from rlm.server.replies import Read, count_votes, read_samples
from rlm.server.requests import ReasoningRequest, check
from rlm.server.service import Service
from tests.support.tiny_models import byte_tokenizer


def refusal(model, given) -> ApiError:
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    with pytest.raises(ApiError) as refused:
        check(model, body)
    return refused.value


GOOD = {
    "prompt": "p",
    "system": "s",
    "replace_instruction": True,
    "max_tokens": 9,
    "max_reasoning_tokens": 9,
    "temperature": 2,
    "top_p": 1,
    "top_k": 3,
    "seed": 2**63 - 1,
    "n": 16,
    "vote": "none",
    "stop": ["a", "b", "c", "d"],
    "format": "json",
    "include_reasoning": False,
    "include_samples": True,
    "stream": True,
    "timeout_s": 0.5,
}


def test_every_field_is_read():
    asked = check(ReasoningRequest, json.dumps(GOOD).encode())
    assert asked.model_dump() == GOOD | {"temperature": 2.0, "top_p": 1.0}
    assert asked.ask().messages == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "p"},
    )
    assert asked.ask().replace_instruction
    assert GOOD.keys() == ReasoningRequest.model_fields.keys()
    alone = check(ReasoningRequest, b'\xef\xbb\xbf{"prompt": "p", "stop": "x"}')
    assert alone.ask().stop == ("x",) and alone.temperature == 0.7 and alone.n == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n\t"),
        ("prompt", "x" * 32_769),
        ("prompt", "\ud800"),
        ("prompt", None),
        ("prompt", ["x"]),
        ("system", " "),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", "9"),
        ("max_tokens", True),
        ("max_tokens", -1.0),
        ("max_tokens", -2),
        ("max_reasoning_tokens", 0),
        ("max_reasoning_tokens", 10),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "0.5"),
        ("temperature", False),
        ("temperature", 10**400),
        ("temperature", None),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("seed", -1),
        ("seed", 2**63),
        ("n", 0),
        ("n", 17),
        ("vote", "all"),
        ("stop", [""]),
        ("stop", ["a"] * 9),
        ("stop", "\ud800"),
        ("stop", 1),
        ("format", "xml"),
        ("include_reasoning", 1),
        ("include_samples", "yes"),
        ("stream", None),
        ("timeout_s", 0),
        ("timeout_s", 3601),
        ("prompts", "x"),
    ],
)
def test_a_wrong_field_is_named(field, value):
    error = refusal(ReasoningRequest, GOOD | {field: value})
    assert (error.status, error.code) == (422, "invalid_request")
    assert error.param.split(".")[0] == field
    assert len(error.message) > 10


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 0}, "n"),
        ({"max_reasoning_tokens": 10, "max_tokens": 9}, "max_reasoning_tokens"),
        ({"format": "text"}, "format"),
        ({"system": None}, "replace_instruction"),
    ],
)
def test_fields_are_checked_together(change, param):
    error = refusal(ReasoningRequest, GOOD | change)
    assert (error.status, error.param) == (422, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"prompt=x",
        b"[]",
        b'"x"',
        b"null",
        b'{"prompt": "x"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object(body):
    assert (refusal(ReasoningRequest, body).status, refusal(ReasoningRequest, body).code) == (
        400,
        "invalid_json",
    )


def test_nothing_of_the_input_comes_back():
    secret = "Sesame-2871"
    for given in (
        GOOD | {"prompt": [secret]},
        GOOD | {"vote": secret},
        GOOD | {f"{secret} {secret}": 1},
        GOOD | {"stop": {secret: secret}},
        {"prompt": secret, "temperature": secret},
        secret.encode(),
    ):
        assert secret not in json.dumps(refusal(ReasoningRequest, given).body("id"))
    assert "max_tokens?" in refusal(ReasoningRequest, GOOD | {"max_token": 1}).message


def test_a_conversation_loses_its_earlier_reasoning():
    given = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1"}],
            },
            {"role": "assistant", "content": "<think>\n1 + 1\n</think>\n2", "reasoning": "1 + 1"},
            {"role": "user", "content": "+ 2", "name": "me"},
        ],
        "max_completion_tokens": 7,
        "logit_bias": {},
        "temperature": None,
        "n": None,
    }
    asked = check(ChatRequest, json.dumps(given).encode()).ask()
    assert [(turn["role"], turn["content"]) for turn in asked.messages] == [
        ("system", "be brief"),
        ("user", "1 + 1"),
        ("assistant", "2"),
        ("user", "+ 2"),
    ]
    assert (asked.max_tokens, asked.n, asked.temperature) == (7, 1, 0.7)
    for text in ("<reasoning>a</reasoning>\n2", "<start_working_out>a<end_working_out>2", "2"):
        assert without_reasoning(text) == "2"
    assert without_reasoning("<think>never closed") == ""


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "x",
        [{"role": "user", "content": " "}],
        [{"role": "robot", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": "\udfff"}],
    ],
)
def test_a_conversation_that_cannot_be_answered(messages):
    error = refusal(ChatRequest, {"messages": messages})
    assert (error.status, error.param.split(".")[0]) == (422, "messages")


def read(index: int, answer: str | None, finish: str = "stop") -> Read:
    value = Answer(reason="empty") if answer is None else read_answer(answer, "plain")
    return Read(index, "", answer or "", "", value, finish, 1, 0)


def test_an_answer_is_asked_for_and_read_as_its_kind():
    tokenizer, fmt = byte_tokenizer(), get_format("think")
    service = Service(None, tokenizer, fmt, "m", 64, None, kind="choice")
    asked = check(ReasoningRequest, json.dumps({"prompt": "Which?"}).encode()).ask()
    assert "the letter of one choice" in tokenizer.decode(service._prompt(asked).ids)

    def answer(text: str, finish: str, kind: str) -> str | None:
        sample = SimpleNamespace(rollout=Rollout([1], [0.0], text, finish), finish=finish)
        job = SimpleNamespace(samples=[sample], prompt=Prompt([1]))
        return read_samples(job, fmt, tokenizer, kind)[0].answer.canonical

    text = "<think>\nIt is red.\n</think>\n**(B)**"
    assert answer(text, "stop", "choice") == "B" and answer(text, "stop", "number") is None
    assert answer(text, "length", "choice") is None and answer(text, "timeout", "choice") is None
    assert answer("<think>\nx\n</think>\nThe Nile.", "stop", "text") == "The Nile."


def test_votes_go_by_exact_value_and_ties_to_the_first():
    group = [read(0, None), read(1, "7"), read(2, "3.50"), read(3, "7/2"), read(4, "7.0")]
    chosen, vote = count_votes(group)
    assert chosen.index == 1, "7 and 3.5 have two each, and 7 came first"
    assert (vote.n, vote.winner, vote.agreement) == (5, "7", 0.4)
    assert vote.votes == {"7": 2, "3.5": 2}
    chosen, vote = count_votes([*group, read(5, "3.5")])
    assert (chosen.index, chosen.answer.value, vote.winner) == (2, Fraction(7, 2), "3.5")
    chosen, vote = count_votes([read(0, None, "timeout"), read(1, None)])
    assert (chosen.index, vote.winner, vote.votes, vote.agreement) == (1, None, {}, 0.0)
    # 50 and 50% are two answers: which was meant, nobody knows.
    assert count_votes([read(0, "50%"), read(1, "50"), read(2, "50")])[1].votes == {
        "50%": 1,
        "50": 2,
    }
