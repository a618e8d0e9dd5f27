"""Chat templates that drop, hide or refuse what they are given -> prompts with all of it in."""

import datetime

import pytest

from rlm.answers import formats
from rlm.errors import InputError
from rlm.models import prompts, templates
from rlm.models.templates import UNINSTRUCTED, chat_text, read_options, set_template
from tests.models.test_prompts import CHATML, NO_SYSTEM, make_tokenizer

TOLD = formats.THINK.instruction
# Turns of the user and the assistant are written, whatever else there is is not.
TWO_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content | trim }}"
    "<|im_end|>\n{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As those of models that read pictures: a content is a list of parts.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS_TWO_ROLES = PARTS.replace(
    "{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"
)
SHUT = "<think>\n\n</think>\n\n"
OFF = CHATML.replace("assistant\n{% endif %}", f"assistant\n{SHUT}{{% endif %}}")
# As Qwen3 has it, but off by default.
SWITCH = CHATML.replace(
    "assistant\n{% endif %}",
    f"assistant\n{{% if not enable_thinking %}}{SHUT}{{% endif %}}{{% endif %}}",
)
# As Mistral has it, and Gemma: user and assistant follow each other.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_of(template, turns="1 + 1?", format_name="think", **more):
    made = make_tokenizer(template)
    asked = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    return made.decode(prompts.chat_prompt(asked, made, format_name, **more).ids)


def turns(*said):
    """Turns of (role, content) pairs."""
    return [{"role": role, "content": content} for role, content in said]


@pytest.mark.parametrize("template", [TWO_ROLES, STRICT, NO_SYSTEM, PARTS_TWO_ROLES])
def test_an_instruction_that_a_template_drops_goes_into_the_first_user_turn(template):
    text = text_of(template, turns(("user", " 1 + 1? "), ("assistant", "2"), ("user", "+ 1?")))
    assert text.count(TOLD) == 1 and text.index(TOLD) < text.index("1 + 1?") < text.index("+ 1?")
    assert f"user\n{TOLD}\n\n 1 + 1?" in text


def test_a_dropped_greeting_is_not_where_the_instruction_goes():
    told = turns(("assistant", "Hello."), ("user", "1 + 1?"))
    assert text_of(TWO_ROLES, told) == (
        f"<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n{TOLD}\n\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_clients_system_turn_stands_beside_the_instruction_wherever_that_is():
    told = turns(("system", "Be brief."), ("user", "1 + 1?"))
    for template in (CHATML, TWO_ROLES, NO_SYSTEM, PARTS, None):
        text = text_of(template, told, beside=True)
        assert text.count(f"{TOLD}\n\nBe brief.") == 1
        alone = text_of(template, told)
        assert "Be brief." in alone and TOLD not in alone
    for template in (CHATML, TWO_ROLES):
        behind = text_of(template, told, beside=True, role="user")
        assert f"1 + 1?\n\n{TOLD}<|im_end|>" in behind and behind.count("Be brief.") == 1
        both = text_of(template, told, beside=True, role="both")
        assert both.endswith(f"1 + 1?\n\n{TOLD}<|im_end|>\n<|im_start|>assistant\n")
    assert text_of(CHATML, told, beside=True, role="both").count(TOLD) == 2


def test_the_tiny_bases_read_no_instruction():
    assert text_of(UNINSTRUCTED, turns(("system", "Be brief."), ("user", "1 + 1?"))) == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("format_name", formats.TRAINABLE)
def test_a_template_that_loops_over_parts_gets_parts(format_name):
    assert text_of(PARTS, format_name=format_name) == text_of(CHATML, format_name=format_name)
    made = make_tokenizer(PARTS, eos="<|endoftext|>")
    config = type("Config", (), {"eos_token_id": [2, 4]})
    assert prompts.end_ids(made, config)[0] == 4, "what stands behind a turn is found, too"


def test_a_prompt_without_the_question_is_never_made():
    for template in ("{{ messages[0].role }}", TWO_ROLES.replace("m.content | trim", "'...'")):
        with pytest.raises(InputError, match="the question is not in what it renders"):
            text_of(template)


@pytest.mark.parametrize("format_name", formats.TRAINABLE)
@pytest.mark.parametrize("template", [OFF, SWITCH])
def test_a_reasoning_that_is_closed_before_it_began_is_taken_out(template, format_name):
    assert text_of(template, format_name=format_name) == text_of(CHATML, format_name=format_name)
    made = make_tokenizer(template)
    assert prompts.make_prompt("1 + 1?", made, format_name).prefill == ""


def test_thinking_that_is_turned_on_opens_the_reasoning():
    opens = SWITCH.replace("{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}")
    made = make_tokenizer(opens)
    prompt = prompts.make_prompt("1 + 1?", made, "think")
    assert prompt.prefill == "<think>\n" and made.decode(prompt.ids).endswith("nt\n<think>\n")
    assert text_of(opens, format_name="xml") == text_of(CHATML, format_name="xml")


def test_what_a_question_ends_with_stays():
    assert (
        text_of(CHATML, f"What is {SHUT.strip()}").count("</think>") == TOLD.count("</think>") + 1
    )
    bare = CHATML.partition("{% if add")[0].replace("<|im_end|>\n", "")
    assert text_of(bare, "What is <think></think>").endswith("What is <think></think>")


def test_options_reach_the_template_and_have_to_be_known_to_it():
    made = make_tokenizer(SWITCH)
    set_template(made, options={"enable_thinking": False})
    text = made.decode(prompts.make_prompt("1 + 1?", made, "think").ids)
    assert text.endswith(SHUT), "who turns it off has it off"
    asked = turns(("user", "1 + 1?"))
    prompt = prompts.chat_prompt(asked, made, "think", options={"enable_thinking": True})
    assert not made.decode(prompt.ids).endswith(SHUT)
    for options in ({"enable_thought": 1}, {"messages": []}, {"strftime_now": 1}):
        with pytest.raises(InputError, match=rf"no option {next(iter(options))}; it knows enable"):
            set_template(made, options=options)
    with pytest.raises(InputError, match="no option enable_thinking; use a name"):
        set_template(make_tokenizer(CHATML), options={"enable_thinking": True})
    with pytest.raises(InputError, match="'x' is no option; write NAME=VALUE"):
        read_options(["x"])


def test_neighbours_of_one_role_are_joined_where_they_have_to_be():
    told = turns(("user", "1 + 1?"), ("user", "Quick!"), ("assistant", "2"), ("user", "+ 1?"))
    text = text_of(STRICT, told)
    assert text.startswith(f"<|im_start|>user\n{TOLD}\n\n1 + 1?\n\nQuick!<|im_end|>\n")
    assert text_of(CHATML, told).count("<|im_start|>user") == 3, "elsewhere they are as they came"


def test_a_conversation_that_does_not_fit_is_told_as_one():
    told = turns(("assistant", "Hello."), ("user", "1 + 1?"))
    with pytest.raises(InputError, match=r"cannot render the conversation .*alternate") as caught:
        text_of(STRICT, told)
    assert "begin with a user's turn" in str(caught.value)
    assert "chat_template" not in str(caught.value)


def test_the_date_of_a_prompt_is_that_of_its_beginning(monkeypatch):
    class Day(datetime.date):
        now = datetime.date(2026, 2, 3)

        @classmethod
        def today(cls):
            return cls.now

    dated = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
    monkeypatch.setattr(templates.datetime, "date", Day)
    made = make_tokenizer(dated)
    first = prompts.make_prompt("1 + 1?", made, "think")
    assert made.decode(first.ids).startswith("Today is 03 Feb 2026.")
    Day.now = datetime.date(2026, 2, 4)
    assert prompts.make_prompt("1 + 1?", made, "think") == first
    set_template(made, date="2025-12-31")
    assert "Today is 31 Dec 2025." in chat_text(made, TOLD, turns(("user", "1 + 1?")))
