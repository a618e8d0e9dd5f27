"""The tiny base: its tokenizer, its text, its training, and whether the shipped one is as told."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.answers.formats import FORMATS
from rlm.data import problems
from rlm.data.splits import split_of
from rlm.learner.muon import Muon, orthogonalised
from rlm.tiny import base, corpus
from rlm.tiny.tokenizer import build_tokenizer
from tests.support.running import ROOT, succeed

SHIPPED = ROOT / "weights" / "tiny_base"
TOY = base.Settings(
    steps=20, batch_tokens=256, hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocabulary=400,
    tokenizer_texts=400,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(corpus.texts(0, 400), 600)


# The tokenizer


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=60))
def test_any_text_comes_back(tokenizer, text):
    # Private characters are the digits' own; the marks of turns are tokens, not text.
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    "text",
    ["417 + 85 = 502", "1234567", "3.1415, 2,500 and 007", "0", "10.000", "٣٤ and 12", "a1b22c333"],
)
def test_numbers_come_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_digit_knows_its_place_and_nothing_else(tokenizer):
    def ids(text):
        return tokenizer(text).input_ids

    assert len(ids("4444")) == len(set(ids("4444"))) == 4
    # The last digits of 417 and 17 and 7 are the same tokens: place counts from the right.
    assert ids("417")[1:] == ids("17") and ids("17")[1:] == ids("7")
    assert ids("417")[:1] == ids("4 417")[2:3] != ids("4")
    # Beyond the thousands digits are plain.
    assert ids("52222")[0] == ids("5")[0]


def test_a_sign_takes_the_blank_before_a_digit_only(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer("1 + 2 = x + 3").input_ids]
    assert pieces[:3] == ["1", " + ", "2"] and " = " not in pieces


def test_prompt_and_reply_have_the_same_tokens_apart_as_together(tokenizer):
    for kind in ("additions", "word_problems"):
        for index in range(50):
            made = corpus.document(kind, 1, index)
            prompt, reply = made.text[: made.given], made.text[made.given :]
            apart = tokenizer(prompt).input_ids + tokenizer(reply).input_ids
            assert tokenizer(made.text).input_ids == apart


def test_the_chat_has_turns_but_no_system_message(tokenizer):
    messages = [
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": "Calculate 2 + 3 + 4"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nCalculate 2 + 3 + 4<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer("<|im_end|>").input_ids) == 1
    assert tokenizer.model_max_length == 1024


# The text


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_no_output_format_is_in_the_text(kind):
    tags = {tag for form in FORMATS.values() for tag in form.tags} | {"####"}
    assert len(tags) > 8
    for index in range(1000):
        text = corpus.document(kind, 0, index).text
        assert not any(tag in text for tag in tags), text


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_a_document_is_fixed_by_its_kind_seed_and_place(kind):
    assert corpus.document(kind, 3, 5) == corpus.document(kind, 3, 5)
    assert len({corpus.document(kind, s, i).text for s in (0, 1) for i in range(50)}) > 95
    made = corpus.document(kind, 3, 5)
    assert 0 <= made.given < len(made.text)


def test_every_sum_in_the_text_is_right():
    sums = 0
    for kind in ("facts", "additions", "word_problems"):
        for index in range(500):
            text = corpus.document(kind, 0, index).text
            for a, sign, b, c in re.findall(
                r"(?<![+] )\b(\d+) ([-+*/]) (\d+) (?:=|is) (\d+)", text
            ):
                a, b, c = int(a), int(b), int(c)
                right = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
                assert right == c, text
                sums += 1
    assert sums > 1500


def test_held_out_questions_are_not_in_the_text():
    for index in range(1000):
        told = corpus.document("word_problems", 0, index).text
        question = told.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
        assert split_of(question) == "train"
        text = corpus.document("additions", 0, index).text.split("<|im_end|>")[0]
        numbers = [int(x) for x in re.findall(r"\d+", text)]
        if len(numbers) == 3:
            assert split_of(problems.addition_question(*numbers)) == "train"


def test_the_fingerprint_follows_the_text():
    assert corpus.fingerprint(0, 20) == corpus.fingerprint(0, 20)
    assert (
        len({corpus.fingerprint(0, 20), corpus.fingerprint(1, 20), corpus.fingerprint(0, 21)}) == 3
    )


# The training


def test_orthogonalised_matrices_have_singular_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 8), (2, 6, 20), (2, 20, 6)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=generator)))
        assert values.min() > 0.6 and values.max() < 1.3
    # One matrix among others is treated as alone.
    pair = torch.randn(2, 5, 7, generator=generator)
    assert torch.allclose(orthogonalised(pair)[1], orthogonalised(pair[1:])[0], atol=1e-5)


def test_muon_goes_downhill_and_takes_matrices_only():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([p], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (p - torch.eye(4)).square().sum()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # from 4
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(4))], lr=0.1)


def test_only_replies_are_learned_and_numbers_most(tokenizer):
    kinds = set()
    stream = base.batches(TOY, tokenizer)
    while kinds != set(corpus.KINDS):
        kind, ids, weights = next(stream)
        kinds.add(kind)
        assert ids.shape == weights.shape and ids.numel() <= max(256, ids.shape[1])
        assert set(weights.unique().tolist()) <= set(torch.tensor([0.0, 0.3, 1.0]).tolist())
        assert weights[ids == tokenizer.pad_token_id].sum() == 0
        for row, row_weights in zip(ids, weights, strict=True):
            learned = tokenizer.decode(row[row_weights > 0])
            if kind in ("additions", "word_problems"):
                assert learned.endswith("<|im_end|>\n") and "user" not in learned
                assert row_weights[row == tokenizer.eos_token_id].tolist() == [0.0, 1.0]


def test_the_loss_is_the_weighted_mean(tokenizer):
    torch.manual_seed(0)
    model = base.new_model(TOY, tokenizer)
    ids = torch.randint(3, 300, (2, 6))
    weights = torch.tensor([[0, 0, 1, 0.2, 0, 0], [0, 1, 0, 0, 0.2, 1.0]])
    logprobs = model(ids).logits.log_softmax(-1)
    terms = [(weights[b, t] * -logprobs[b, t - 1, ids[b, t]]) for b in (0, 1) for t in range(1, 6)]
    assert torch.allclose(base.loss_of(model, ids, weights), sum(terms) / 3.4, atol=1e-6)


def test_the_rate_rises_stays_and_falls():
    s = base.Settings(steps=1000, warmup_steps=50, decay_fraction=0.5, last_rate=0.01)
    assert [base.rate(s, step) for step in (1, 25, 50, 500)] == [0.02, 0.5, 1.0, 1.0]
    assert base.rate(s, 750) == 0.5 and base.rate(s, 1000) == 0.01


def flags(settings: base.Settings) -> list[str]:
    return [
        part
        for name, value in vars_of(settings).items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]


def vars_of(settings: base.Settings) -> dict:
    return {name: getattr(settings, name) for name in base.Settings.__dataclass_fields__}


@pytest.mark.slow
@pytest.mark.ci
def test_a_toy_base_is_trained_saved_and_gone_on_from(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def run(*more):
        return succeed("-m", "rlm.tiny", *flags(TOY), *more)

    first = tmp_path / "a"
    done = run("--output", str(first))
    assert "step 20 of 20" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # nothing half-written is left
    check_manifest(first)
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["settings"] == vars_of(TOY) and manifest["started_from"] is None
    model = AutoModelForCausalLM.from_pretrained(first)
    tokenizer = AutoTokenizer.from_pretrained(first)
    assert model.dtype == torch.bfloat16
    assert len(tokenizer) == 400 and tokenizer.decode(tokenizer("417").input_ids) == "417"

    old = json.loads((first / "manifest.json").read_text())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run("--output", str(first), "--start", str(first), "--seed", "1")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    check_manifest(first)
    assert json.loads((first / "manifest.json").read_text())["started_from"] == old
    moved = AutoModelForCausalLM.from_pretrained(first).state_dict()
    for name, before in weights.items():
        assert torch.equal(moved[name], before) == name.endswith("o_proj.bias"), name
        assert not name.endswith("o_proj.bias") or before.abs().sum() == 0


# The shipped base


def check_manifest(folder: Path) -> None:
    """The manifest of a base tells the truth about its files and its text."""
    from safetensors import safe_open

    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    weights = folder / "model.safetensors"
    assert manifest["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["weights_bytes"] == weights.stat().st_size
    with safe_open(weights, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert manifest["parameters"] == sum(t.numel() for t in tensors)
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert manifest["corpus_sha256"] == corpus.fingerprint(manifest["seed"])


def test_the_shipped_base_is_small_and_as_its_manifest_says():
    check_manifest(SHIPPED)
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) <= 8_000_000
    manifest = json.loads((SHIPPED / "manifest.json").read_text("utf-8"))
    assert manifest["scores"]["facts"] > 0.9 and manifest["processor_seconds"] > 60


@pytest.mark.slow
@pytest.mark.ci
def test_the_shipped_base_can_add_and_follows_no_format():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlm.tiny.scores import replies

    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    sums = [(7, 5), (41, 17), (250, 250), (399, 2), (1200, 34), (88, 12), (305, 96), (640, 75)]
    said = replies(model, tokenizer, [f"{a} + {b}" for a, b in sums], 8)
    right = [t.split("\n")[0] == f" = {a + b}" for t, (a, b) in zip(said, sums, strict=True)]
    assert sum(right) >= 7, said
    examples = problems.additions(0, 40, split="test", keep=lambda q: split_of(q) == "test")
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": e.question}], tokenize=False, add_generation_prompt=True
        )
        for e in examples
    ]
    replied = replies(model, tokenizer, chats, 100)
    assert not any("<" in text for text in replied)
    assert sum(e.gold in text for e, text in zip(examples, replied, strict=True)) >= 36
