"""The share of tokens for which engine and learner choose other experts."""

import pytest

from rlm.engine.engine import Engine, Sampling
from rlm.models.loading import add_lora
from rlm.records import Prompt
from rlm.rollouts.router_gap import router_gap
from tests.support.tiny_families import EXPERTS, tiny_family
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

PROMPTS = [Prompt(list(b"What is 2 + 3?")), Prompt(list(b"And 4?"))]


def learning(name: str):
    targets = ("attention", "experts")
    model = add_lora(tiny_family(name, **EXPERTS[name]), r=2, alpha=4, seed=0, targets=targets)
    return model.eval()


def sampled(model, **options):
    engine = Engine(model, byte_tokenizer(), **options)
    return engine, engine.generate(PROMPTS, 3, Sampling(12), seed=0)


@pytest.mark.parametrize("name", EXPERTS)
def test_in_float32_both_choose_the_same_and_a_planted_difference_is_seen(name):
    model = learning(name)
    engine, groups = sampled(model)
    assert router_gap(engine, model, PROMPTS, groups) == 0.0
    # In the last of four layers the engine's choice is turned round: experts 0 and 3, 1 and 2.
    # Of the six pairs out of four two stay the same pair.
    last = [m for m in engine.network.modules() if type(m).__name__.endswith("Router")][-1]
    plain = last.forward
    last.forward = lambda x: (*plain(x)[:-1], 3 - plain(x)[-1])
    assert 0 < router_gap(engine, model, PROMPTS, groups) <= 0.25
    again = engine.generate(PROMPTS, 1, Sampling(4), seed=0)  # the engine goes on after it
    assert [len(rollout.ids) for (rollout,) in again] == [4, 4]


@pytest.mark.parametrize("name", ["granitemoe", "jetmoe"])
def test_of_granite_and_jetmoe_too(name):
    model = add_lora(tiny_family(name), r=2, alpha=4, seed=0, targets=("attention",)).eval()
    engine, groups = sampled(model)
    assert router_gap(engine, model, PROMPTS, groups) == 0.0
    routers = [m for n, m in engine.network.named_modules() if n.endswith("router")]
    last = routers[-1] if name == "granitemoe" else routers[-1].layer
    plain = last.forward
    if name == "granitemoe":  # the other way round: experts 0 and 3, 1 and 2
        last.forward = lambda x: (3 - plain(x)[0], *plain(x)[1:])
    else:  # the other two experts
        last.forward = lambda x: -plain(x)
    assert 0 < router_gap(engine, model, PROMPTS, groups) <= 1 / 4  # of its layer


def test_it_is_measured_where_generate_samples():
    model = learning("qwen3_moe")
    engine, groups = sampled(model, transformers=True)
    assert router_gap(engine, model, PROMPTS, groups) == 0.0


def test_it_is_measured_of_our_engine_and_of_models_with_experts_alone():
    model = tiny_lora(tiny_model())
    engine, groups = sampled(model)
    assert router_gap(engine, model, PROMPTS, groups) is None
    model = tiny_lora(tiny_family("qwen3_moe"))
    engine, groups = sampled(model)
    assert router_gap(object(), model, PROMPTS, groups) is None
    for group in groups:
        for rollout in group:
            del rollout.ids[1:]
    assert router_gap(engine, model, PROMPTS, groups) is None
