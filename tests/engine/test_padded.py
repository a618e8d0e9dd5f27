"""The engine by transformers' own generate: padded, dropped, streamed, and what a canary finds."""

import pytest
import torch

from rlm.engine import support
from rlm.engine.engine import Engine, Sampling
from rlm.engine.native import NativeRunner
from rlm.engine.padded import PaddedRunner
from rlm.engine.sampling import Closing
from rlm.records import Prompt
from rlm.seeds import derive
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import EOS, SIZE, byte_tokenizer, tiny_lora, tiny_model

TOKENIZER = byte_tokenizer()
PROMPTS = [Prompt(list(text.encode())) for text in ("What is 2 + 3?", "a", "Hello, hello!", "7*6")]


def logprobs_of(model, prompt: Prompt, ids: list[int], temperature: float = 1.0):
    """Return the log-probabilities of `ids` by one forward of this sequence alone."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids + ids]), use_cache=False).logits[0]
    own = (logits[len(prompt.ids) - 1 : -1, :SIZE].float() / temperature).log_softmax(-1)
    return own.gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.fixture(scope="module")
def model():
    made = tiny_lora(tiny_model())
    made.generation_config.eos_token_id = [EOS, *range(0, 256, 16)]  # uneven lengths
    return made


@pytest.fixture(scope="module")
def whole(model):
    native = Engine(model, TOKENIZER)
    assert isinstance(native._runner, NativeRunner)
    return native.generate(PROMPTS, 4, Sampling(14, temperature=0.8), seed=5)


@pytest.mark.parametrize("options", [{}, {"max_rows": 5, "admissions": 2}])
def test_it_samples_what_our_own_cache_samples(model, whole, options):
    engine = Engine(tiny_lora(tiny_model()), TOKENIZER, transformers=True, **options)
    assert isinstance(engine._runner, PaddedRunner) and engine._runner.support.pads
    engine.stop_ids = Engine(model, TOKENIZER).stop_ids
    found = engine.generate(PROMPTS, 4, Sampling(14, temperature=0.8), seed=5)
    assert [[r.ids for r in group] for group in found] == [[r.ids for r in g] for g in whole]
    for group, others in zip(found, whole, strict=True):
        for rollout, other in zip(group, others, strict=True):
            assert rollout.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({len(r.ids) for group in found for r in group}) > 4
    assert engine.idle and not engine._runner._calls


def test_it_streams_stops_closes_and_cancels():
    engine = Engine(tiny_lora(tiny_model()), TOKENIZER, transformers=True)
    engine.stop_ids = frozenset()
    sampling = Sampling(12, temperature=1.3)
    ((alone,),) = engine.generate([PROMPTS[0]], 1, sampling, seed=3)
    assert "".join(engine.stream(PROMPTS[0], sampling, seed=3)) == alone.text
    prompt, opened = PROMPTS[2], Closing(3, tuple(b"</t>"), "<t>", "</t>")
    forced = Prompt(prompt.ids, "<t>")
    ((bounded,),) = engine.generate([forced], 1, Sampling(12, closing=opened), seed=3)
    assert bytes(bounded.ids[3:7]) == b"</t>"
    first, second = engine.submit(PROMPTS[1], Sampling(9), [1, 2])
    engine.step()
    engine.step()
    event = engine.cancel(first)
    assert (event.cause, len(event.rollout.ids)) == ("cancelled", 2)
    rest = None
    while not engine.idle:
        for each in engine.step():
            rest = each.rollout if each.id == second else rest
    assert len(rest.ids) == 9
    engine.generate([PROMPTS[1]], 2, Sampling(9), seed=0)  # and it goes on


def test_the_model_is_left_in_training_with_its_own_attention():
    model = tiny_lora(tiny_model()).train()
    before = model.config._attn_implementation
    engine = Engine(model, TOKENIZER, transformers=True)
    engine.generate(PROMPTS, 2, Sampling(4), seed=0)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == before
    assert not any(p.is_inference() for p in model.parameters())


# What no layout serves: code around the interface, no padding, no copies, no cache.
WAYS = {
    "stablelm": (True, True, True),
    "minimax": (False, False, True),
    "rwkv": (False, True, False),
}


@pytest.mark.parametrize(("name", "way"), WAYS.items())
def test_a_family_that_nothing_else_serves_samples_from_its_own_forward(name, way, caplog):
    model = tiny_family(name)
    caplog.set_level("INFO", logger="rlm")
    engine = Engine(model, TOKENIZER, max_rows=6)
    seen = engine._runner.support
    assert (seen.pads, seen.copies, seen.caches) == way
    assert caplog.text.count("transformers' generate samples") == 1
    sampling, prompts = Sampling(6, temperature=0.7), PROMPTS[1:]
    groups = engine.generate(prompts, 2, sampling, seed=1)
    for prompt, group in zip(prompts, groups, strict=True):
        for rollout in group:
            exact = logprobs_of(model, prompt, rollout.ids, 0.7)
            torch.testing.assert_close(torch.tensor(rollout.logprobs), exact, atol=1e-4, rtol=0)
    (wanted,) = engine.submit(prompts[1], sampling, [derive(1, 1, 1)])
    rollout = None
    while not engine.idle:
        for event in engine.step():
            rollout = event.rollout if event.id == wanted else rollout
    assert rollout.ids == groups[1][1].ids


def test_a_model_that_does_not_hear_of_padding_is_not_padded(monkeypatch):
    model = tiny_model("llama")
    forward = type(model).forward

    def deaf(self, input_ids, attention_mask=None, position_ids=None, **given):
        return forward(self, input_ids, **given)

    monkeypatch.setattr(type(model), "forward", deaf)
    monkeypatch.setattr(support, "_FOUND", {})
    engine = Engine(model, TOKENIZER, transformers=True)
    seen = engine._runner.support
    assert (seen.pads, seen.copies, seen.caches) == (False, True, True)
    for prompt, (rollout,) in zip(
        PROMPTS, engine.generate(PROMPTS, 1, Sampling(9, 0.0), seed=0), strict=True
    ):
        exact = logprobs_of(model, prompt, rollout.ids)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), exact, atol=1e-4, rtol=0)
