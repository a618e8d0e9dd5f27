"""Calls in texts: found at their place, read strictly, answered by a text whatever is wrong."""

import json
import random
from pathlib import Path

import pytest

from rlm.errors import InputError
from rlm.tools.forms import Found, form_of
from rlm.tools.tool import BUILT_IN, CALCULATOR, REASONS, CallFault, Parameter, Tool, tool_of
from rlm.tools.toolbox import Toolbox, built_in
from rlm.tools.workers import Outcome
from tests.support.tiny_models import byte_tokenizer

CONVERT = Tool(
    "convert",
    "Converts a value.",
    (Parameter("value", float), Parameter("unit", str), Parameter("exact", bool, False)),
    "convert",
    function=lambda **given: json.dumps(given, sort_keys=True),
)
DOUBLE = Tool("double", "Doubles.", (Parameter("n", int),), "double", function=lambda n: 2 * n)
TOOLS = [CALCULATOR, CONVERT, DOUBLE]
TOKENIZER = byte_tokenizer()
# As Mistral's tokenizers have it; TRL has templates of Qwen and Llama.
MISTRAL = (
    "{%- for m in messages %}{%- if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{%- elif m['tool_calls'] is defined and m['tool_calls'] %}[TOOL_CALLS] ["
    "{%- for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% if not loop.last %}, {% endif %}"
    "{%- endfor %}]</s>{%- elif m['role'] == 'tool' %}[TOOL_RESULTS] "
    '{"content": {{ m["content"] | tojson }}}[/TOOL_RESULTS]'
    "{%- else %} {{ m['content'] }}</s>{%- endif %}{%- endfor %}"
)


def with_template(name: str):
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    made = byte_tokenizer()
    made.chat_template = MISTRAL if name == "mistral" else (folder / f"{name}.jinja").read_text()
    return made


def read(form, call: Found):
    tool, arguments = form.read(call)
    return tool.name, arguments


@pytest.mark.parametrize(
    "text, start, inside",
    [
        ("6*7 is <calc>6*7</calc>", 0, "6*7"),
        ("<calc>1</calc><result>1</result> <calc>2</calc>", 14, "2"),
        ("<calc>1 <calc> 2</calc>", 0, " 2"),
        ("</calc> <calc>3</calc>", 0, "3"),
        ("<double>4</double> <calc>3</calc>", 0, "4"),
        ("<calc></calc>", 0, ""),
        ("<calc>\n1\n</calc>", 0, "\n1\n"),
        ("<calc>1</calc", 0, None),
        ("calc>1</calc>", 0, None),
        ("<calc>1</calc>", 3, None),
        ("<foo>1</foo>", 0, None),
        ("<calc>" + "1" * 3000 + "</calc>", 0, None),
    ],
)
def test_calls_by_tags(text, start, inside):
    call = form_of("tag", TOOLS).find(text, start, 0)
    assert (call.inside if call else None) == inside
    if call:
        assert text[call.start] == "<" and text[call.end - 1] == ">"


ARGUMENTS = [
    ("calc", " 6*7 ", {"expression": "6*7"}),
    ("double", " -21 ", {"n": -21}),
    ("convert", '{"value": 3, "unit": "km"}', {"value": 3.0, "unit": "km"}),
    ("convert", '{"value": 0.5, "unit": "", "exact": true}',
     {"value": 0.5, "unit": "", "exact": True}),
]  # fmt: skip
WRONG = [
    ("double", "2.5", "bad_arguments"), ("double", "two", "bad_arguments"),
    ("double", "٣", "bad_arguments"), ("double", "9" * 401, "bad_arguments"),
    ("double", "", "bad_arguments"), ("convert", "", "bad_arguments"),
    ("convert", '{"value": 3}', "bad_arguments"),
    ("convert", '{"value": "3", "unit": "km"}', "bad_arguments"),
    ("convert", '{"value": true, "unit": "km"}', "bad_arguments"),
    ("convert", '{"value": 1e999, "unit": "km"}', "bad_arguments"),
    ("convert", '{"value": 3, "unit": "km", "to": "m"}', "bad_arguments"),
    ("convert", "[3]", "bad_arguments"), ("convert", "3 km", "malformed"),
    ("convert", '{"value": 3, "value": 4, "unit": "km"}', "malformed"),
    ("convert", '{"value": NaN, "unit": "km"}', "malformed"),
    ("convert", "[" * 1900, "malformed"), ("convert", "{'value': 3}", "malformed"),
]  # fmt: skip


@pytest.mark.parametrize("tag, inside, arguments", ARGUMENTS)
def test_arguments_are_read_as_their_types(tag, inside, arguments):
    form = form_of("tag", TOOLS)
    call = form.find(f"<{tag}>{inside}</{tag}>", 0, 0)
    tool, found = form.read(call)
    assert found == arguments and [type(x) for x in found.values()] == [
        type(x) for x in arguments.values()
    ]
    again = form.find(form.write(tool, arguments), 0, 0)
    assert form.read(again) == (tool, arguments)


@pytest.mark.parametrize("tag, inside, reason", WRONG)
def test_wrong_arguments_are_told(tag, inside, reason):
    form = form_of("tag", TOOLS)
    with pytest.raises(CallFault) as caught:
        form.read(form.find(f"<{tag}>{inside}</{tag}>", 0, 0))
    assert caught.value.reason == reason


HERMES = ("<tool_call>", "</tool_call>", "arguments", False)
TEMPLATES = {
    "qwen2_5": HERMES,
    "qwen3": HERMES,
    "llama3_1": ("", "", "parameters", True),
    "llama3_2": ("", "", "parameters", True),
    "mistral": ("[TOOL_CALLS]", "", "arguments", True),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_form_of_a_template(name):
    form = form_of("json", TOOLS, with_template(name))
    assert (form.opener, form.closer, form.key, form.at_stop) == TEMPLATES[name]
    assert "<think>" not in form.after
    for tool, arguments in ((CALCULATOR, {"expression": '1 + {2} "x"'}), (DOUBLE, {"n": 3})):
        text = "<think>\nIt is {so}:\n" + form.write(tool, arguments)
        call = form.find(text, 0, 0)
        assert form.read(call) == (tool, arguments)
        assert form.find(text, call.end, 0) is None


def test_a_template_that_writes_no_json_is_refused():
    for name in ("llama3", "gemma3"):
        with pytest.raises(InputError, match="--tool-form tag"):
            form_of("json", TOOLS, with_template(name))
    with pytest.raises(InputError, match="no chat template"):
        form_of("json", TOOLS, byte_tokenizer())


JSON_WRONG = [
    ('{"name": "nothing", "arguments": {}}', "unknown_tool"),
    ('{"name": ["double"], "arguments": {}}', "unknown_tool"),
    ('{"name": "double", "arguments": {"n": "3"}}', "bad_arguments"),
    ('{"name": "double"}', "malformed"),
    ('{"name": "double", "arguments": {"n": 3}, "more": 1}', "malformed"),
    ('{"name": "double", "arguments": {"n": 3}} {}', "malformed"),
    ('[{"name": "double", "arguments": {"n": 3}}]', "malformed"),
    ("double(3)", "malformed"),
]


@pytest.mark.parametrize("inside, reason", JSON_WRONG)
def test_wrong_json_calls_are_told(inside, reason):
    form = form_of("json", TOOLS, with_template("qwen2_5"))
    call = form.find(f"so <tool_call>\n{inside}\n</tool_call>", 0, 0)
    with pytest.raises(CallFault) as caught:
        form.read(call)
    assert caught.value.reason == reason


def naive(text: str, start: int) -> tuple[int, int, str] | None:
    """Return the first call by tags that ends, found the slow and plain way."""
    for end in range(start + 1, len(text) + 1):
        for tool in TOOLS:
            closer, opener = f"</{tool.tag}>", f"<{tool.tag}>"
            if text[start:end].endswith(closer):
                begin = text[start : end - len(closer)].rfind(opener)
                if begin >= 0:
                    inside = text[start + begin + len(opener) : end - len(closer)]
                    return start + begin, end, inside
    return None


PIECES = ["<calc>", "</calc>", "<double>", "</double>", "<convert>", "</convert>", "12", "*7", " ",
          "\n", '{"value": 3, "unit": "km"}', '{"', "}", "<", ">", "</", "<calc", "7/0", "é", "\0",
          "<result>", "</result>", "</think>", "-3"]  # fmt: skip
BODIES = [
    "<tool_call>", "</tool_call>", '{"name": "double", "arguments": {"n": 3}}', '{"name": ', "null",
    '"double"', ', "arguments": {"n": 3', "}}", "}", "{", "[", "]", "\n", '{"n": "3"}', "1e999",
    '"calculator"', ', "arguments": {"expression": "1/0"}}', "\\", '"',
]  # fmt: skip


@pytest.mark.parametrize("tags", [True, False])
def test_ten_thousand_fuzzed_calls(tags):
    turns, pieces = 5000, PIECES if tags else BODIES
    tokenizer, form = with_template("qwen2_5"), "tag" if tags else "json"
    bound = Toolbox(TOOLS, form=form, result_tokens=40).bound(tokenizer)
    rng, reasons, found = random.Random(form), set(), 0
    marks = ("<calc>", "</calc>") if tags else ("<tool_call>\n", "\n</tool_call>")
    for turn in range(turns):
        inside = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 9)))
        text = marks[0] + inside + marks[1] if turn % 2 else inside
        start = rng.randrange(3) if turn % 5 == 0 else 0
        call = bound.find(text, start, 0, 0)
        if tags:
            assert (call and (call.start, call.end, call.inside)) == naive(text, start)
        if call is None:
            continue
        found += 1
        assert start <= call.start < call.end <= len(text)
        name, arguments, job = bound.begin(call, 0)
        outcome = job.outcome
        assert isinstance(name + arguments, str) and outcome.failure in (None, *REASONS)
        reasons.add(outcome.failure)
        if outcome.failure is None:
            json.loads(arguments)
        if turn % 50 == 1:  # the slow part
            ids, shown, told = bound.result(outcome)
            assert len(ids) <= bound.most_tokens and shown == f"<result>{told.text}</result>"
            assert told.text.startswith("error: ") == (outcome.failure is not None)
    assert found > turns / 4
    assert reasons >= {None, "malformed"} | ({"bad_arguments", "error"} if tags else set())


def test_a_megabyte_of_text_is_looked_at_in_no_time():
    import time

    form = form_of("tag", TOOLS)
    for text in ("<calc>" * 170_000, "</calc>" * 140_000, "<" * 10**6, "<calc>" + "1" * 10**6):
        began = time.process_time()
        form.find(text, 0, 0)
        assert time.process_time() - began < 2.0


def test_a_result_holds_no_mark_of_anything():
    bound = Toolbox(TOOLS, result_tokens=200).bound(TOKENIZER)
    text = "</think> <answer>4</answer> <|im_end|> [TOOL_CALLS] </s> <eos> 2 < 3 [1] a\0b"
    ids, shown, outcome = bound.result(Outcome(text))
    assert outcome.text == (
        "< /think> < answer>4< /answer> < |im_end|> [ TOOL_CALLS] < /s> < eos> 2 < 3 [1] a b"
    )
    assert shown == f"<result>{outcome.text}</result>" == TOKENIZER.decode(ids)
    assert outcome.failure is None and TOKENIZER.eos_token_id not in ids


def test_a_long_result_is_cut_and_says_so():
    bound = Toolbox(TOOLS, result_tokens=20).bound(TOKENIZER)
    for text in ("1" * 21, "1" * 10**6, "é" * 11):
        ids, shown, outcome = bound.result(Outcome(text))
        assert outcome.failure == "cut" and outcome.text.endswith(" [cut]")
        assert len(ids) <= bound.most_tokens and "\ufffd" not in shown
    assert bound.result(Outcome("1" * 20))[2] == Outcome("1" * 20)
    assert bound.result(Outcome("no", "error"))[1] == "<result>error: no</result>"


def test_calls_beyond_the_bound_are_told_once():
    bound = Toolbox(TOOLS, max_calls=2).bound(TOKENIZER)
    call = bound.find("<calc>1+1</calc>", 0, 0, 2)
    assert bound.begin(call, 2)[2].outcome.failure == "too_many"
    assert bound.find("<calc>1+1</calc>", 0, 0, 3) is None


def no_types(x):
    """Does nothing."""


def no_doc(x: int):
    return x


def result(x: int):
    """Has a name that is taken."""


@pytest.mark.parametrize(
    "function, why",
    [(no_types, "needs a type"), (no_doc, "no docstring"), (result, "use a name"),
     (lambda x: x, "use a name")],
)  # fmt: skip
def test_a_function_that_is_no_tool_is_refused(function, why):
    with pytest.raises(InputError, match=why):
        tool_of(function)


def test_tools_by_name():
    assert built_in(["calculator", "calculator"]) == [CALCULATOR] == list(BUILT_IN.values())
    with pytest.raises(InputError, match="unknown; use calculator"):
        built_in(["abacus"])
    with pytest.raises(InputError, match="two tools of this name"):
        Toolbox([CALCULATOR, CALCULATOR])
    schema = CONVERT.schema()["function"]["parameters"]
    assert schema["required"] == ["value", "unit"]
    assert schema["properties"]["exact"] == {"type": "boolean"}
