"""The base of the tiny demonstration of tools: what it reads, and what of that it learns."""

import hashlib
import random
from dataclasses import asdict

import pytest
import torch
from transformers import AutoTokenizer

from rlm.answers.formats import FORMATS
from rlm.data.problems import LARGEST, tell
from rlm.data.splits import split_of
from rlm.files import read_object
from rlm.models.loading import load_base
from rlm.tiny.base import token_weights
from rlm.tiny.tool_base import USUAL, Settings, batch, draw, main, score, worked
from tests.support.running import ROOT

BASE, SHIPPED = ROOT / "weights/tiny_base", ROOT / "weights/tiny_tool_base"


def test_a_reply_has_all_sums_and_only_its_results_are_given():
    rng, marks = random.Random(0), set()
    for _ in range(300):
        story = tell(rng, rng.choice((2, 3, 4)), rng.choice((1, 7)))
        pieces = worked(rng, story, learned=False)
        given = [text for text, learned in pieces if not learned]
        assert given == [str(s.result) for s in story.sums]
        for (before, _), s in zip(pieces[::2], story.sums, strict=False):
            assert f"{s.left} {s.sign} {s.right}" in before
        last = pieces[-1][0]
        assert last.rstrip(".").endswith(given[-1]) and "\n" in last
        marks.add(pieces[0][0].rpartition(str(story.sums[0].right))[2])
        assert all(learned for _, learned in worked(rng, story, learned=True))
    assert len(marks) > 8


def test_no_tag_of_a_tool_and_none_of_a_format_is_read():
    rng = random.Random(1)
    tags = {"<calc>", "<result>"} | {tag for f in FORMATS.values() for tag in f.tags}
    for _ in range(300):
        text = "".join(piece for piece, _ in worked(rng, tell(rng, 3, 5), learned=False))
        assert not [tag for tag in tags if tag in text], text


def test_the_stories_are_of_the_split_and_mostly_large():
    rng = random.Random(0)
    made = [draw(rng) for _ in range(400)]
    assert {split_of(story.question) for story, _ in made} == {"train"}
    factors = [factor for _, factor in made]
    assert set(factors) == set(range(1, 10))
    assert factors.count(1) / 400 == pytest.approx(USUAL, abs=0.06)  # three deviations
    for story, factor in made:
        assert (max(s.result for s in story.sums) > LARGEST) == (factor > 1)


def test_results_of_large_stories_weigh_nothing_and_what_copies_them_does():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    table = token_weights(tokenizer, 0.1)
    rng, again = random.Random(2), random.Random(2)
    ids, weights = batch(rng, tokenizer, 6, table)
    for row, its in zip(ids, weights, strict=True):
        story, factor = draw(again)
        pieces = worked(again, story, learned=factor == 1)
        start = tokenizer.decode(row).index("<|im_start|>assistant\n")
        at, learned = 0, ""
        for token, weight in zip(row, its, strict=True):
            text = tokenizer.decode([int(token)])
            if at > start and weight > 0:
                learned += text
            at += len(text)
        wanted = "".join(text for text, flag in pieces if flag)
        assert learned == wanted + "<|im_end|>\n"
        prompt = len(tokenizer(tokenizer.decode(row)[:start]).input_ids)
        assert (its[:prompt] == 0).all()
        assert set(its[its > 0].tolist()) == {1.0, torch.tensor(0.1).item()}


def test_the_shipped_base_copies_and_does_not_compute_and_says_how_it_was_made():
    manifest = read_object(SHIPPED / "manifest.json")
    weights = SHIPPED / "model.safetensors"
    assert manifest["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["base_weights_sha256"] == read_object(BASE / "manifest.json")["weights_sha256"]
    assert manifest["settings"] == asdict(Settings()), "the recipe is that of the shipped base"
    assert manifest["scores"]["copied"] > 0.9 and manifest["scores"]["computed"] < 0.5


@pytest.mark.slow
@pytest.mark.ci
def test_the_shipped_base_copies_what_its_manifest_says():
    model, tokenizer = load_base(str(SHIPPED), device="cpu", dtype="float32")
    expected = read_object(SHIPPED / "manifest.json")["scores"]
    assert score(model, tokenizer, 0) == pytest.approx(expected, abs=0.03)


@pytest.mark.slow
def test_the_recipe_makes_the_same_base_twice(tmp_path):
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        main(["--base", str(BASE), "--steps", "2", "--batch-rows", "4", "--output", str(folder)])
        made.append((folder / "model.safetensors").read_bytes())
    assert made[0] == made[1]
