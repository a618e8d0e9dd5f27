"""Chat templates of four kinds -> prompts and demonstrations, checked by id or by decoding."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlm.answers import formats
from rlm.errors import InputError
from rlm.models import prompts
from rlm.records import Example, Prompt

SHAPE = Path(__file__).parents[3] / "shared" / "data" / "qwen2_0.5b_shape"
TRAINABLE = formats.TRAINABLE

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma has it: a system turn is refused, the assistant is called model.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# As DeepSeek-R1 and Qwen3-Thinking have it: the generation prompt opens the reasoning.
OPENS_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
OPENS_THINK_BARE = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
SPECIAL = ["<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>",
           "<end_of_turn>"]  # fmt: skip


def make_tokenizer(template=None, eos="<|im_end|>", processor=None):
    """A byte tokenizer: ids 0 to 6 are SPECIAL, then one id a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    if processor:
        inner.post_processor = processors.TemplateProcessing(
            single=processor, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=eos)
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def qwen():
    if not SHAPE.is_dir():
        pytest.skip("the real Qwen2 tokenizer is not on this machine")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHAPE)


ADDITION = Example("a-1", "Calculate 23 + 15 + 8", "46", "23 + 15 = 38\n38 + 8 = 46")


def test_chatml_prompt():
    prompt = prompts.make_prompt("1 + 1?", made := make_tokenizer(CHATML), "xml")
    assert made.decode(prompt.ids) == (
        f"<|im_start|>system\n{formats.XML.instruction}<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.ids[0] == 3 and prompt.prefill == ""


def test_refused_system_turn_goes_in_front_of_the_question():
    made = make_tokenizer(NO_SYSTEM, processor="<s> $0")
    prompt = prompts.make_prompt("1 + 1?", made, "think")
    assert made.decode(prompt.ids) == (
        f"<s><start_of_turn>user\n{formats.THINK.instruction}\n\n1 + 1?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert prompt.ids.count(0) == 1  # the template's own <s>, no second one


@pytest.mark.parametrize("processor", [None, "<s> $0", "<s> $0 </s>"])
def test_without_a_template_the_text_is_plain_and_ends_open(processor):
    made = make_tokenizer(None, eos="</s>", processor=processor)
    prompt = prompts.make_prompt("Is {x} 1?", made, "solution")
    text = f"{formats.SOLUTION.instruction}\n\nQuestion: Is {{x}} 1?\nAnswer:\n"
    assert made.decode(prompt.ids) == ("<s>" if processor else "") + text
    assert prompt.prefill == ""


@pytest.mark.parametrize(
    "template, prefill", [(OPENS_THINK, "<think>\n"), (OPENS_THINK_BARE, "<think>")]
)
def test_an_opened_reasoning_is_not_doubled(template, prefill):
    made = make_tokenizer(template)
    prompt = prompts.make_prompt("1 + 1?", made, "think")
    assert prompt.prefill == prefill
    assert made.decode(prompt.ids).endswith("<|im_start|>assistant\n" + prefill)
    tokens = prompts.sft_tokens(ADDITION, made, "think")
    turn = prefill + made.decode(tokens["completion_ids"]).removesuffix("<|im_end|>")
    assert turn == formats.render(formats.THINK, ADDITION.solution, ADDITION.gold)


@pytest.mark.parametrize("format_name", ["xml", "solution", "plain"])
def test_an_opened_reasoning_of_another_format_is_cut_off(format_name):
    made = make_tokenizer(OPENS_THINK)
    prompt = prompts.make_prompt("1 + 1?", made, format_name)
    assert prompt.prefill == ""
    assert made.decode(prompt.ids).endswith("<|im_start|>assistant\n")


def test_a_question_that_ends_with_the_opener_is_no_prefill():
    for template in (CHATML, NO_SYSTEM, None):
        made = make_tokenizer(template)
        assert prompts.make_prompt("What is <think>", made, "think").prefill == ""


def test_a_template_that_renders_nothing_is_told():
    made = make_tokenizer("{{ raise_exception('no\\nchats') }}")
    with pytest.raises(InputError, match="cannot render a question") as caught:
        prompts.make_prompt("1 + 1?", made, "think")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, OPENS_THINK, None])
@pytest.mark.parametrize("format_name", TRAINABLE)
def test_demonstration_is_the_turn_and_its_end_token(template, format_name):
    eos = "<end_of_turn>" if template == NO_SYSTEM else "<|im_end|>"
    made = make_tokenizer(template, eos=eos)
    tokens = prompts.sft_tokens(ADDITION, made, format_name)
    prompt = prompts.make_prompt(ADDITION.question, made, format_name)
    assert tokens["prompt_ids"] == prompt.ids
    end = made.convert_tokens_to_ids(eos)
    assert tokens["completion_ids"][-1] == end and tokens["completion_ids"].count(end) == 1
    turn = prompt.prefill + made.decode(tokens["completion_ids"][:-1])
    assert turn == formats.render(formats.get_format(format_name), ADDITION.solution, "46")


@pytest.mark.parametrize(
    "template, eos, config_eos, expected",
    [
        (CHATML, "<|im_end|>", None, ["<|im_end|>"]),
        # A base model: the template writes <|im_end|>, but generation stops at <|endoftext|>.
        (CHATML, "<|endoftext|>", None, ["<|endoftext|>"]),
        (CHATML, "<|endoftext|>", 2, ["<|endoftext|>"]),
        # An instruct model of that tokenizer: its generation config stops at both.
        (CHATML, "<|endoftext|>", [4, 2], ["<|im_end|>", "<|endoftext|>"]),
        (NO_SYSTEM, "</s>", [1, 6], ["<end_of_turn>", "</s>"]),
        (None, "</s>", None, ["</s>"]),
        ("{{ raise_exception('no') }}", "</s>", None, ["</s>"]),
    ],
)
def test_the_end_token_is_one_that_the_model_stops_at(template, eos, config_eos, expected):
    made = make_tokenizer(template, eos=eos)
    config = SimpleNamespace(eos_token_id=config_eos) if config_eos else None
    ends = prompts.end_ids(made, config)
    assert made.convert_ids_to_tokens(ends) == expected


def test_the_end_token_of_the_generation_config_is_trained():
    made = make_tokenizer(CHATML, eos="<|endoftext|>")
    config = SimpleNamespace(eos_token_id=[4, 2])
    tokens = prompts.sft_tokens(ADDITION, made, "xml", generation_config=config)
    assert tokens["completion_ids"][-1] == 4 and tokens["end_ids"] == [4, 2]


def test_without_any_end_token_it_is_told():
    with pytest.raises(InputError, match="no eos token"):
        prompts.end_ids(make_tokenizer(CHATML, eos=None))


@pytest.mark.parametrize(
    "solution, message",
    [
        (None, "a-1: has no solution"),
        ("23 + 15 = 38</think>\n38 + 8 = 46", "a-1: written in format think"),
        ("<think>23 + 15 = 38", "a-1: written in format think"),
        ("  \n ", "a-1: written in format think"),
    ],
)
def test_a_demonstration_that_would_be_misread_is_refused(solution, message):
    example = Example("a-1", "Calculate 23 + 15 + 8", "46", solution)
    with pytest.raises(InputError, match=message):
        prompts.sft_tokens(example, make_tokenizer(CHATML), "think")


def test_room():
    prompt = Prompt(list(range(100)))
    prompts.check_room(prompt, 28, 128)
    with pytest.raises(InputError, match=r"100 tokens .* 29 .* 128 tokens; use --max-tokens 28"):
        prompts.check_room(prompt, 29, 128)
    with pytest.raises(InputError, match="shorten the question"):
        prompts.check_room(prompt, 1, 100)


def test_real_qwen_ids(qwen):
    prompt = prompts.make_prompt("Calculate 23 + 15 + 8", qwen, "think")
    messages = [
        {"role": "system", "content": formats.THINK.instruction},
        {"role": "user", "content": "Calculate 23 + 15 + 8"},
    ]
    whole = qwen.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt.ids == whole and prompt.prefill == ""
    # <|im_start|> system \n; ... <|im_end|> \n <|im_start|> assistant \n
    assert prompt.ids[:3] == [151644, 8948, 198]
    assert prompt.ids[-5:] == [151645, 198, 151644, 77091, 198]
    pieces = [qwen.decode([i]) for i in prompt.ids[-14:-5]]
    assert pieces == ["2", "3", " +", " ", "1", "5", " +", " ", "8"]  # each digit by itself
    tokens = prompts.sft_tokens(ADDITION, qwen, "think")
    assert tokens["completion_ids"][-1] == 151645 and tokens["end_ids"] == [151645]
    # <think> is ordinary text here: pieces, no token of its own.
    assert tokens["completion_ids"][:3] == qwen("<think>\n", add_special_tokens=False)["input_ids"]


def test_real_gsm8k_demonstrations_end_and_read_back(qwen):
    folder = SHAPE.parent / "gsm8k"
    if not folder.is_dir():
        pytest.skip("the real GSM8K files are not on this machine")
    import data

    for format_name in TRAINABLE:
        for example in data.load_examples("gsm8k", "train", n=150, data=str(folder)):
            tokens = prompts.sft_tokens(example, qwen, format_name)
            assert tokens["completion_ids"][-1] == 151645
            assert tokens["completion_ids"].count(151645) == 1
            turn = qwen.decode(tokens["completion_ids"][:-1])
            parsed = formats.parse(turn, formats.get_format(format_name))
            assert parsed.strict and parsed.answer == example.gold
            assert parsed.reasoning == example.solution


# --- worked examples

SHOTS = [Example("s-1", "1 + 1?", "2", "1 + 1 = 2"), Example("s-2", "2 + 3?", "5", "2 + 3 = 5")]
# As Qwen3 has it: of an earlier turn only what follows the reasoning is shown.
DROPS_REASONING = CHATML.replace(
    "m.content", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content)"
)


def turns_of(format_name: str) -> str:
    fmt = formats.get_format(format_name)
    return "".join(
        f"<|im_start|>user\n{e.question}<|im_end|>\n<|im_start|>assistant\n"
        f"{formats.render(fmt, e.solution, e.gold)}<|im_end|>\n"
        for e in SHOTS
    )


@pytest.mark.parametrize("format_name", TRAINABLE)
def test_worked_examples_are_earlier_turns_in_the_format(format_name):
    made = make_tokenizer(CHATML)
    prompt = prompts.make_prompt("4 + 4?", made, format_name, SHOTS)
    assert made.decode(prompt.ids) == (
        f"<|im_start|>system\n{formats.get_format(format_name).instruction}<|im_end|>\n"
        f"{turns_of(format_name)}<|im_start|>user\n4 + 4?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = prompts.sft_tokens(ADDITION, made, format_name, shots=SHOTS)
    whole = prompts.make_prompt(ADDITION.question, made, format_name, SHOTS)
    assert tokens["prompt_ids"] == whole.ids
    alone = prompts.sft_tokens(ADDITION, made, format_name)
    assert tokens["completion_ids"] == alone["completion_ids"]


def test_a_refused_instruction_goes_in_front_of_the_first_worked_example():
    made = make_tokenizer(NO_SYSTEM)
    text = made.decode(prompts.make_prompt("4 + 4?", made, "think", SHOTS).ids)
    assert text.startswith(f"<s><start_of_turn>user\n{formats.THINK.instruction}\n\n1 + 1?<end")
    assert text.count(formats.THINK.instruction) == 1 and "model\n<think>\n2 + 3 = 5\n" in text


def test_without_a_template_worked_examples_are_plain():
    made = make_tokenizer(None, eos="</s>")
    text = made.decode(prompts.make_prompt("4 + 4?", made, "xml", SHOTS[:1]).ids)
    shown = formats.render(formats.XML, "1 + 1 = 2", "2")
    assert text == (
        f"{formats.XML.instruction}\n\nQuestion: 1 + 1?\nAnswer:\n{shown}\n\n"
        "Question: 4 + 4?\nAnswer:\n"
    )


def test_a_template_that_hides_the_reasoning_of_earlier_turns_is_told():
    made = make_tokenizer(DROPS_REASONING)
    with pytest.raises(InputError, match=r"does not show earlier turns .*--shots 0"):
        prompts.make_prompt("4 + 4?", made, "think", SHOTS)
    assert "2 + 3 = 5" in made.decode(prompts.make_prompt("4 + 4?", made, "xml", SHOTS).ids)
    history = [{"role": "assistant", "content": "<think>x</think>2"}]
    asked = [{"role": "user", "content": "1 + 1?"}, *history, {"role": "user", "content": "?"}]
    assert prompts.chat_prompt(asked, made, "think").ids, "a client's own turns are its own"


# --- where the instruction stands


@pytest.mark.parametrize("shots", [(), SHOTS[:1]])
def test_the_instruction_stands_where_it_is_told_to(shots):
    made, told = make_tokenizer(CHATML), formats.XML.instruction
    system = f"<|im_start|>system\n{told}<|im_end|>\n"
    for role, before, behind in (
        ("system", system, ""),
        ("user", "", f"\n\n{told}"),
        ("both", system, f"\n\n{told}"),
    ):
        expected = before
        for e in shots:
            expected += f"<|im_start|>user\n{e.question}{behind}<|im_end|>\n<|im_start|>assistant\n"
            expected += f"{formats.render(formats.XML, e.solution, e.gold)}<|im_end|>\n"
        expected += f"<|im_start|>user\n4 + 4?{behind}<|im_end|>\n<|im_start|>assistant\n"
        ids = prompts.make_prompt("4 + 4?", made, "xml", shots, role).ids
        assert made.decode(ids) == expected
        example = Example("a", "4 + 4?", "8", "4 + 4 = 8")
        tokens = prompts.sft_tokens(example, made, "xml", shots=shots, role=role)
        assert tokens["prompt_ids"] == ids


def test_a_refused_system_turn_leaves_the_instruction_behind_the_question():
    made = make_tokenizer(NO_SYSTEM)
    user, both, system = (
        made.decode(prompts.make_prompt("4 + 4?", made, "xml", role=role).ids)
        for role in ("user", "both", None)
    )
    assert user == both and f"4 + 4?\n\n{formats.XML.instruction}<end" in user
    assert f"user\n{formats.XML.instruction}\n\n4 + 4?<end" in system


def test_the_place_is_the_formats_own_unless_it_is_given(monkeypatch):
    made = make_tokenizer(CHATML)
    other = replace(formats.XML, instruction_role="user")
    monkeypatch.setitem(formats.FORMATS, "xml", other)
    asked = prompts.make_prompt("4 + 4?", made, "xml")
    assert asked == prompts.make_prompt("4 + 4?", made, "xml", role="user")
    assert asked != prompts.make_prompt("4 + 4?", made, "xml", role="system")
    # A client's own system turn stays one.
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "4 + 4?"}]
    assert "system\nBe brief.<|im_end|>\n<|im_start|>user\n4 + 4?<|im_end|>" in made.decode(
        prompts.chat_prompt(told, made, "xml").ids
    )
