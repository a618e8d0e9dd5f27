"""Worked examples at the server: those of the adapter, before every conversation."""

import json

import httpx
import pytest

import config
import serve
from rlm.errors import InputError
from rlm.models.prompts import make_prompt
from rlm.records import Example
from tests.support.serving import PATH, SUM, policy, served

SHOTS = [Example("shot-0", "Calculate 1 + 1", "2", "1 + 1 = 2"),
         Example("shot-1", "Calculate 2 + 3", "5", "2 + 3 = 5")]  # fmt: skip


def test_every_prompt_has_them():
    tokenizer = policy().tokenizer
    with served(shots=SHOTS) as place:
        asked = {"prompt": SUM, "max_tokens": 4, "temperature": 0}
        reply = httpx.post(f"{place.url}{PATH}", json=asked, timeout=60).json()
    shown = make_prompt(SUM, tokenizer, "think", SHOTS).ids
    assert reply["usage"]["prompt_tokens"] == len(shown)
    assert len(shown) > len(make_prompt(SUM, tokenizer, "think").ids) + 20


def test_they_are_the_first_ones_of_the_adapter(tmp_path):
    rows = [{"question": e.question, "answer": e.gold, "solution": e.solution} for e in SHOTS]
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "weights/tiny_base"}'
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "think", "shots": rows}))
    tokenizer, place = policy().tokenizer, str(tmp_path)

    def found(context=1000, **given):
        settings = config.ServeSettings(**({"adapter": place} | given))
        return serve.worked_examples(settings, tokenizer, context)

    assert found() == SHOTS and found(shots=1) == SHOTS[:1] and found(shots=0) == []
    assert found(adapter="none") == []
    with pytest.raises(InputError, match=r"--shots 3: .* has 2; use --shots 2"):
        found(shots=3)
    with pytest.raises(InputError, match=r"--shots 1: .*a base has 0"):
        found(adapter="none", shots=1)
    with pytest.raises(InputError, match=r"--shots 2: they take \d+ tokens, .* has 40; use fewer"):
        found(context=40)
