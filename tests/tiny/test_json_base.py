"""The base of the tiny orchestrator: embeddings drawn anew, and the sums it learns to note."""

import hashlib
import json
import random
import re
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from rlm.agents.graph import Agent, Graph
from rlm.data.problems import addition_question
from rlm.data.splits import split_of
from rlm.files import read_object
from rlm.models.adapters import read_manifest
from rlm.models.loading import load_base
from rlm.tiny.agents import ROLES
from rlm.tiny.json_base import (
    ALIKE,
    CHARACTERS,
    Settings,
    batch,
    draw,
    main,
    note,
    revive,
    score,
    unlearned,
)
from tests.support.running import ROOT
from tests.support.tiny_models import byte_tokenizer, tiny_model

BASE, SHIPPED = ROOT / "weights/tiny_base", ROOT / "weights/tiny_json_base"


def test_rows_that_are_alike_never_learned():
    weight = torch.eye(4)[[0, 1, 2, 2, 3]]  # [5, 4]; rows 2 and 3 are the same
    weight[4, 3] = 1.0
    assert unlearned(weight, [0, 2, 3, 4]) == [2, 3]
    weight[3, 0] = 1.1 * ALIKE
    assert unlearned(weight, [0, 2, 3, 4]) == []


def test_only_what_never_learned_is_drawn_anew():
    model, tokenizer = tiny_model(), byte_tokenizer()
    brace, quote, letter = (tokenizer(c).input_ids[0] for c in '{"a')
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[brace] = weight[quote] + 0.001
    before = weight.detach().clone()
    assert revive(model, tokenizer) == sorted([brace, quote])
    assert torch.dist(weight[brace], weight[quote]) > 1 and not torch.equal(weight, before)
    assert torch.equal(weight[letter], before[letter])


def test_a_note_is_json_of_the_signs_in_order_and_of_nothing_that_a_graph_has():
    rng, shapes, keys = random.Random(0), set(), set()
    for _ in range(500):
        signs = "".join(rng.choices("+-*/", k=2))
        pieces = note(rng, signs)
        text = "".join(piece for piece, _ in pieces)
        found = list(values(json.loads(text)))
        assert [value for value in found if value in "+-*/"] == list(signs)
        assert set(found) <= {*"+-*/ab"}
        assert [piece for piece, kind in pieces if kind == "sign"] == list(signs)
        keys |= {piece for piece, kind in pieces if kind == "key"}
        shapes.add(tuple(piece for piece, kind in pieces if kind == "other"))
    assert len(shapes) == 5 and len(keys) > 40
    graph = Graph(agents=[Agent(id="a", prompt=" ".join(ROLES), reads=[])])
    words = {word.lower() for word in re.findall("[A-Za-z]{2,}", graph.text())}
    assert {"agents", "prompt", "reads", "multiply"} < words and not keys & words


def values(found):
    """Yield what the keys of JSON stand for."""
    if isinstance(found, str):
        yield found
        return
    for value in found.values() if isinstance(found, dict) else found:
        yield from values(value)


def test_the_questions_take_the_sums_that_are_noted():
    rng = random.Random(0)
    made = [draw(rng) for _ in range(400)]
    assert {split_of(question) for question, _ in made} == {"train"}
    plain = [signs for question, signs in made if is_addition(question)]
    assert set(plain) == {"++"} and 50 < len(plain) < 110  # a fifth: 80, deviation 8
    assert len({signs for _, signs in made}) > 8


def is_addition(question):
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    return len(numbers) == 3 and question == addition_question(*numbers)


def test_only_the_note_weighs_and_its_signs_most():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids, weights = batch(random.Random(3), tokenizer, 8)
    assert ids.shape == weights.shape
    for row, its in zip(ids, weights, strict=True):
        signs = tokenizer.decode(row[its == 1.0])
        assert len(signs) == 2 and set(signs) <= set("+-*/")
        first = int(its.nonzero()[0])
        text = tokenizer.decode(row)
        assert text.startswith("<|im_start|>user\n") and (its[:first] == 0).all()
        assert tokenizer.decode(row[:first]).endswith("<|im_start|>assistant\n")
        last = int(its.nonzero()[-1])
        assert row[last] == tokenizer.eos_token_id and (its[last + 1 :] == 0).all()


def test_the_shipped_base_knows_the_sums_and_says_how_it_was_made():
    manifest = read_object(SHIPPED / "manifest.json")
    weights = SHIPPED / "model.safetensors"
    assert manifest["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["base_weights_sha256"] == read_object(BASE / "manifest.json")["weights_sha256"]
    assert manifest["settings"] == asdict(Settings()), "the recipe is that of the shipped base"
    assert len(manifest["drawn_anew"]) == 8 and manifest["scores"]["sums_noted"] > 0.8


@pytest.mark.slow
@pytest.mark.ci
def test_the_shipped_base_notes_what_its_manifest_says():
    model, tokenizer = load_base(str(SHIPPED), device="cpu", dtype="float32")
    expected = read_object(SHIPPED / "manifest.json")["scores"]["sums_noted"]
    # 100 of the questions against 200: a difference of 0.1 has odds below 1 in 100 at 0.9.
    assert score(model, tokenizer, 0, questions=100) == pytest.approx(expected, abs=0.1)


@pytest.mark.slow
def test_the_recipe_makes_the_same_base_twice(tmp_path):
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        main(["--base", str(BASE), "--steps", "2", "--batch-rows", "4", "--output", str(folder)])
        made.append(load_file(folder / "model.safetensors"))
    old = load_file(BASE / "model.safetensors")
    assert all(torch.equal(made[0][name], made[1][name]) for name in old)
    same = [name for name in old if torch.equal(old[name], made[0][name])]
    # Two steps move a norm's weights, all near 1, by less than the file's bfloat16 can show.
    assert all("o_proj.bias" in name or "norm" in name for name in same), "all others learn"


def test_both_bases_read_text_alike():
    from transformers import AutoTokenizer

    texts = [CHARACTERS, "Calculate 417 + 85 + 9"]
    one, two = (AutoTokenizer.from_pretrained(path) for path in (BASE, SHIPPED))
    assert [one(t).input_ids for t in texts] == [two(t).input_ids for t in texts]
    assert one.chat_template == two.chat_template


def test_the_workers_stand_on_the_tiny_base():
    assert read_manifest(ROOT / "weights/tiny_agents_lora")["base"] == "weights/tiny_base"
