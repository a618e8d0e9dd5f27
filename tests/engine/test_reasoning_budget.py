"""The engine closes a reasoning that has used up its tokens, and disturbs nobody with it."""

import pytest
import torch

from rlm.engine.batching import ContinuousBatch
from rlm.engine.engine import Engine
from rlm.engine.sampling import Closing, Sampling
from rlm.records import Prompt
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

TOKENIZER = byte_tokenizer()
PROMPT = Prompt(TOKENIZER("What_is_1+1?")["input_ids"], prefill="<t>")
CLOSER = TOKENIZER("</t>")["input_ids"]
CLOSE = Closing(after=6, ids=tuple(CLOSER), opener="<t>", closer="</t>")
PRINTABLE = 94  # the first ids of this tokenizer are ! to ~


def run(engine: ContinuousBatch, *asked: tuple[Prompt, Sampling, int]) -> list:
    """Return the rollouts of requests that run together, in order."""
    ids = [engine.submit(prompt, sampling, [seed])[0] for prompt, sampling, seed in asked]
    found = {}
    while not engine.idle:
        for event in engine.step():
            if event.rollout:
                found[event.id] = event.rollout
    return [found[id] for id in ids]


@pytest.fixture
def model():
    return tiny_lora(tiny_model())


@pytest.fixture
def engine(model):
    made = Engine(model, TOKENIZER)
    made.stop_ids, made._vocabulary = frozenset(), PRINTABLE
    return made


def full_logprobs(model, prompt, ids, temperature):
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids + ids])).logits[0, :, :PRINTABLE]
    own = (logits / temperature).log_softmax(1)[len(prompt.ids) - 1 : -1]
    return own.gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_closer_comes_after_the_budget_and_counts(engine, model, temperature):
    free = Sampling(20, temperature)
    bound = Sampling(20, temperature, closing=CLOSE)
    (plain,), (closed,) = (run(engine, (PROMPT, s, 5)) for s in (free, bound))
    assert closed.ids[:6] == plain.ids[:6], "what comes before is the same"
    assert closed.ids[6:10] == CLOSER and "</t>" not in plain.text
    assert len(closed.ids) == 20 and closed.ids[10:] != plain.ids[10:]
    exact = full_logprobs(model, PROMPT, closed.ids, temperature or 1.0)
    torch.testing.assert_close(torch.tensor(closed.logprobs), exact, atol=1e-5, rtol=0)


def test_the_other_rows_get_the_same_as_without_it(engine):
    others = [(PROMPT, Sampling(30, t), 7 + i) for i, t in enumerate((0.0, 0.9, 1.3))]
    others += [(PROMPT, Sampling(30, 1.0, top_k=9, top_p=0.9), 20)]
    alone = run(engine, *others)
    mixed = run(engine, others[0], (PROMPT, Sampling(30, 0.9, closing=CLOSE), 1), *others[1:])
    assert [r.ids for r in (mixed[0], *mixed[2:])] == [r.ids for r in alone]


def test_nothing_is_forced_where_there_is_no_reasoning_or_it_is_closed(engine):
    text = run(engine, (PROMPT, Sampling(20, 0.9), 5))[0].text.removeprefix("<t>")
    for opener, closer, prefill in (
        ("<t>", "</t>", ""),  # the completion does not begin with the opener
        ("<t>", text[2:4], "<t>"),  # it is closed before the budget ends
    ):
        closing = Closing(6, (0,), opener, closer)
        prompt = Prompt(PROMPT.ids, prefill)
        (bound,) = run(engine, (prompt, Sampling(20, 0.9, closing=closing), 5))
        assert bound.text == prefill + text


def test_an_opener_under_way_is_waited_for(engine):
    """The budget is over inside the opener: it is written to its end, and then closed."""
    plain = run(engine, (PROMPT, Sampling(20, 0.9), 5))[0]
    opener = plain.text.removeprefix("<t>")[:4]
    (bound,) = run(
        engine,
        (
            Prompt(PROMPT.ids),
            Sampling(20, 0.9, closing=Closing(1, tuple(CLOSER), opener, "</t>")),
            5,
        ),
    )
    assert bound.text.removeprefix(opener).startswith("</t>")


def test_max_tokens_and_stop_texts_hold_inside_the_closer(engine):
    (cut,) = run(engine, (PROMPT, Sampling(8, 0.9, closing=CLOSE), 5))
    assert (cut.ids[6:], cut.finish, cut.text[-2:]) == (CLOSER[:2], "length", "</")
    (stopped,) = run(engine, (PROMPT, Sampling(20, 0.9, stop=("/t",), closing=CLOSE), 5))
    assert stopped.finish == "stop" and stopped.text.endswith("<") and len(stopped.ids) == 9


def test_tiny_shares_and_temperatures_are_greedy(engine):
    """Numbers that float32 takes for 0 once ended the step for everybody."""
    greedy = run(engine, (PROMPT, Sampling(9, 0.0), 1))[0].ids
    for sampling in (
        Sampling(9, 1.0, top_p=1e-300),
        Sampling(9, 1.0, top_p=1e-300, top_k=5),
        Sampling(9, 1e-300),
        Sampling(9, 1e-40, top_p=0.5),
    ):
        (found,) = run(engine, (PROMPT, sampling, 1))
        assert found.ids == greedy
        assert all(-100 < logprob <= 0 for logprob in found.logprobs)
