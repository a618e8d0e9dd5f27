"""The canary: when it sings, by hand, and that it hears the learner's own forward."""

import doctest

import pytest
import torch

from rlm.engine.engine import Engine, Sampling
from rlm.records import Prompt
from rlm.rollouts import canary
from rlm.rollouts.canary import Heard, Look, judge
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model

TEXT = list(b"Calculate 1 + 2 ")


def test_the_docstrings_examples():
    result = doctest.testmod(canary)
    assert result.attempted >= 4 and result.failed == 0


def of(engine, learner, text=None) -> Look:
    return Look(torch.tensor(engine), torch.tensor(learner), text or len(engine))


BASE = of([-1.0, -2.0], [-1.001, -2.0])


@pytest.mark.parametrize(
    ("now", "before", "says"),
    [
        (of([-1.5, -2.5], [-1.5, -2.55]), None, None),
        (of([-1.5, -2.5], [-1.5, -2.75]), None, "differs from the learner by 0.25 nats"),
        (of([-1.5, -2.5], [-1.5, float("nan")]), None, "differs from the learner by nan"),
        # It has moved by half of the tolerance, the engine not at all: it is still the base.
        (of([-1.0, -2.0], [-1.05, -2.0]), None, "bit for bit what the base"),
        # Such a move may be rounding.
        (of([-1.0, -2.0], [-1.0005, -2.0]), None, None),
        # So small a step that the tolerance cannot tell it: the bits can.
        (of([-1.5, -2.5], [-1.51, -2.5]), of([-1.5, -2.5], [-1.5, -2.5]), "the version before"),
        (of([-1.5001, -2.5], [-1.51, -2.5]), of([-1.5, -2.5], [-1.5, -2.5]), None),
        # Nothing was learned, so nothing need be other than before.
        (of([-1.5, -2.5], [-1.5, -2.5]), of([-1.5, -2.5], [-1.5, -2.5]), None),
        # What was sampled after the text is another text each time.
        (of([-1.5, -9.0], [-1.55, -9.0], 1), of([-1.5, -3.0], [-1.5, -3.0], 1), "version before"),
    ],
)
def test_judged_by_hand(now, before, says):
    found = judge(now, BASE, before, 0.1)
    assert (says in found) if says else (found is None)


def heard(model, temperature) -> Heard:
    """What our own engine says of the text; its prompt's figures from the plain model."""
    engine = Engine(model, byte_tokenizer())
    sampling = Sampling(canary.SAMPLED, temperature=temperature)
    ((rollout,),) = engine.generate([Prompt(TEXT)], 1, sampling, seed=3)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([TEXT])).logits[0].log_softmax(1)
    prompt = [float(logits[i, id]) for i, id in enumerate(TEXT[1:])]
    return Heard(prompt, rollout.ids, rollout.logprobs)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_it_hears_the_learner_at_both_temperatures(temperature):
    # More rows than tokens: those of the prompt count them in, the sampled ones do not.
    model = tiny_lora(tiny_model(vocabulary=SIZE + 20))
    options = {"temperature": temperature, "vocab_size": SIZE}
    model.train()
    now = canary.look(model, TEXT, heard(model, temperature), **options)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert now.gap < 1e-4 and now.text == len(TEXT) - 1 < len(now.engine)
    with model.disable_adapter():
        off = heard(model, temperature)
    assert canary.look(model, TEXT, off, adapter=False, **options).gap < 1e-4
    assert canary.look(model, TEXT, off, **options).gap > 0.1


def test_the_text_is_a_question_and_its_worked_answer():
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(canary.canary_text(tokenizer, "think"))
    assert "Calculate 12 + 34 + 56" in text and text.endswith("102")
    other = tokenizer.decode(canary.canary_text(tokenizer, "solution"))
    assert "102" in other and other != text
