"""The engine against the model's own generate and forward, alone and in every mix."""

import copy

import pytest
import torch

from rlm.engine.engine import Engine, Sampling
from rlm.errors import InputError, RunError
from rlm.models.lora_linear import LoraLinear
from rlm.models.text_stream import TextStream
from rlm.records import Prompt
from rlm.seeds import derive
from tests.support.tiny_models import EOS, PAD, SIZE, byte_tokenizer, tiny_lora, tiny_model

TOKENIZER = byte_tokenizer()
PROMPTS = [Prompt(list(text.encode())) for text in ("What is 2 + 3?", "a", "Hello, hello!", "7*6")]


def reference(model, prompt: Prompt, max_tokens: int) -> list[int]:
    """Return what transformers' own greedy generate makes of one prompt."""
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=PAD,
        )
    return out[0, len(prompt.ids) :].tolist()


def full_logprobs(model, prompt: Prompt, ids: list[int], temperature: float = 1.0):
    """Return the log-probabilities of `ids` by one forward over the whole sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids + ids])).logits[0, len(prompt.ids) - 1 : -1]
    logprobs = (logits[:, :SIZE].float() / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_greedy_tokens_equal_generate(kind):
    model = tiny_lora(tiny_model(kind))
    # A token of the second answer ends all of them, so that rows leave at different times.
    model.generation_config.eos_token_id = [EOS, reference(model, PROMPTS[1], 12)[-1]]
    expected = [reference(model, prompt, 40) for prompt in PROMPTS]
    assert len({len(ids) for ids in expected}) > 1
    groups = Engine(model, TOKENIZER).generate(PROMPTS, 2, Sampling(40, temperature=0.0), seed=0)
    assert [[r.ids for r in group] for group in groups] == [[ids, ids] for ids in expected]
    for prompt, (rollout, _) in zip(PROMPTS, groups, strict=True):
        exact = full_logprobs(model, prompt, rollout.ids)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_log_probabilities_equal_a_full_forward(kind):
    model = tiny_lora(tiny_model(kind))
    sampling = Sampling(30, temperature=0.7, top_k=20, top_p=0.9)
    for prompt, group in zip(
        PROMPTS, Engine(model, TOKENIZER).generate(PROMPTS, 3, sampling, seed=1), strict=True
    ):
        for rollout in group:
            exact = full_logprobs(model, prompt, rollout.ids, 0.7)
            torch.testing.assert_close(torch.tensor(rollout.logprobs), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_rows": 3},
        {"max_rows": 5, "admissions": 2},
        {"cache_tokens": 200},
        {"prefill_tokens": 1},
    ],
)
def test_the_same_seed_gives_the_same_tokens_in_any_mix(options):
    model, sampling = tiny_lora(tiny_model()), Sampling(24, temperature=0.8)
    model.generation_config.eos_token_id = [EOS, *range(0, 256, 16)]  # uneven lengths
    whole = Engine(model, TOKENIZER).generate(PROMPTS, 4, sampling, seed=5)
    assert len({len(r.ids) for group in whole for r in group}) > 4
    assert len({tuple(r.ids) for r in whole[0]}) == 4
    engine = Engine(model, TOKENIZER, **options)
    mixed = engine.generate(PROMPTS, 4, sampling, seed=5)
    assert [[r.ids for r in g] for g in mixed] == [[r.ids for r in g] for g in whole]
    # Alone, and beside requests of every other kind.
    for others in ([], [Sampling(9, 0.0), Sampling(30, 1.3), Sampling(20, 0.9, 3, 0.5)]):
        for other in others:
            engine.submit(PROMPTS[3], other, [1, 2])
        (wanted,) = engine.submit(PROMPTS[2], sampling, [derive(5, 2, 1)])
        rollout = None
        while not engine.idle:
            for event in engine.step():
                rollout = event.rollout if event.id == wanted else rollout
        assert rollout.ids == whole[2][1].ids


def test_the_cache_keeps_to_its_bound():
    engine = Engine(tiny_model(), TOKENIZER, cache_tokens=160)
    engine.submit(PROMPTS[1], Sampling(20), [1, 2, 3, 4, 5, 6, 7, 8, 9])
    engine.submit(PROMPTS[0], Sampling(100), [1, 2])
    most = 0
    while not engine.idle:
        engine.step()
        rows, tokens = engine._runner.cache.capacity
        assert rows * tokens <= 160
        most = max(most, len(engine.running))
    assert most == 7  # 160 // (1 + 20)


def test_ids_past_the_tokenizer_are_never_sampled():
    model = tiny_model(vocabulary=300)
    with torch.no_grad():
        model.lm_head.weight[SIZE:] *= 5.0  # their logits are now the extreme ones
    assert max(reference(model, PROMPTS[0], 20)) >= SIZE
    engine = Engine(model, TOKENIZER)
    for sampling in (Sampling(60, 0.0), Sampling(60, 1.5), Sampling(60, 1.5, 290, 0.99)):
        groups = engine.generate(PROMPTS, 4, sampling, seed=0)
        for prompt, group in zip(PROMPTS, groups, strict=True):
            for rollout in group:
                assert max(rollout.ids) < SIZE
                exact = full_logprobs(model, prompt, rollout.ids, sampling.temperature or 1.0)
                torch.testing.assert_close(torch.tensor(rollout.logprobs), exact, atol=1e-4, rtol=0)


def test_stop_ids_and_the_maximum_end_a_completion():
    model = tiny_model()
    plain = reference(model, PROMPTS[0], 20)
    stop = plain[7]
    at = plain.index(stop)
    prompt = Prompt(PROMPTS[0].ids, prefill="<think>\n")
    model.generation_config.eos_token_id = stop
    ((rollout,),) = Engine(model, TOKENIZER).generate([prompt], 1, Sampling(20, 0.0), seed=0)
    assert (rollout.ids, rollout.finish) == (plain[: at + 1], "stop")
    assert rollout.text == "<think>\n" + TOKENIZER.decode(plain[:at])
    ((rollout,),) = Engine(model, TOKENIZER).generate([prompt], 1, Sampling(at, 0.0), seed=0)
    assert (rollout.ids, rollout.finish) == (plain[:at], "length")
    model.generation_config.eos_token_id = None
    assert Engine(model, TOKENIZER).stop_ids == {EOS}


def test_a_prompt_without_room_is_refused_with_the_numbers():
    engine = Engine(tiny_model(), TOKENIZER)
    with pytest.raises(InputError, match=r"14 tokens and max_tokens 115 .* 128 tokens.* 114 or"):
        engine.generate([PROMPTS[0]], 1, Sampling(115), seed=0)
    ((rollout,),) = engine.generate([PROMPTS[0]], 1, Sampling(114, 0.0), seed=0)
    # By now the cache has grown more than once.
    assert rollout.ids == reference(tiny_model(), PROMPTS[0], 114)
    assert len(rollout.ids) == 114
    for bad in ([], [5, 258]):
        with pytest.raises(InputError):
            engine.generate([Prompt(bad)], 1, Sampling(4), seed=0)


@pytest.mark.parametrize("stop", [(), ("e", "\ufffd"), ("ab", "zzz")])
def test_a_stream_joins_to_the_text_of_the_rollout(stop):
    engine = Engine(tiny_lora(tiny_model()), TOKENIZER)
    for seed in range(4):
        prompt = Prompt(PROMPTS[2].ids, prefill="<think>")
        sampling = Sampling(60, temperature=1.5, stop=stop)
        ((rollout,),) = engine.generate([prompt], 1, sampling, seed=seed)
        pieces = list(engine.stream(prompt, sampling, seed=seed))
        assert pieces[0] == "<think>"
        assert "".join(pieces) == rollout.text
        assert len(pieces) > 3 or rollout.finish == "stop"


def test_text_is_whole_characters_and_ends_before_a_stop_text():
    stream = TextStream(TOKENIZER)
    ids = TOKENIZER("é€😀!")["input_ids"]
    assert len(ids) == 10
    assert [piece for token in ids if (piece := stream.push(token))] == ["é", "€", "😀", "!"]
    stream = TextStream(TOKENIZER, ("</b>", "###"))
    pieces = [stream.push(token) for token in TOKENIZER("x < y </c> z </b> w")["input_ids"]]
    assert "".join(pieces) == stream.text == "x < y </c> z "
    assert stream.stopped
    assert pieces[8:10] == ["/", "c"] or "</c" in pieces  # held back until it was no stop text
    stream = TextStream(TOKENIZER, ("###",))
    pieces = [stream.push(token) for token in TOKENIZER("a##")["input_ids"]]
    assert (pieces, stream.finish()) == (["a", "", ""], "##")


def test_a_stop_text_ends_the_completion_and_its_ids_are_kept():
    model = tiny_model()
    ((free,),) = Engine(model, TOKENIZER).generate([PROMPTS[0]], 1, Sampling(30, 0.9), seed=3)
    stop = next(c for c in free.text if c.isascii() and c.isprintable())
    at = free.text.index(stop)
    ((cut,),) = Engine(model, TOKENIZER).generate(
        [PROMPTS[0]], 1, Sampling(30, 0.9, stop=(stop,)), seed=3
    )
    assert (cut.text, cut.finish) == (free.text[:at], "stop")
    assert cut.ids == free.ids[: len(cut.ids)]
    assert TOKENIZER.decode(cut.ids) == free.text[:at] + stop


def test_the_model_is_not_changed():
    model = tiny_lora(tiny_model()).train()
    before = copy.deepcopy(model.state_dict())
    implementation = model.config._attn_implementation
    engine = Engine(model, TOKENIZER)
    engine.sync()
    engine.generate(PROMPTS, 2, Sampling(8), seed=0)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == implementation
    assert not any(p.is_inference() for p in model.parameters())
    # Only the adapted layers have a copy of their own.
    network = engine._runner.model.network
    assert network.model.layers[0].self_attn.q_proj.weight.data_ptr() not in {
        p.data_ptr() for p in model.parameters()
    }
    head = model.get_base_model().lm_head.weight
    assert network.lm_head.weight.data_ptr() == head.data_ptr()


def test_sync_takes_over_the_adapter():
    model = tiny_lora(tiny_model())
    engine = Engine(model, TOKENIZER)
    greedy = Sampling(20, 0.0)
    before = engine.generate(PROMPTS, 1, greedy, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(-3.0)
    assert engine.generate(PROMPTS, 1, greedy, seed=0) == before
    engine.sync()
    after = [group[0].ids for group in engine.generate(PROMPTS, 1, greedy, seed=0)]
    assert after == [reference(model, prompt, 20) for prompt in PROMPTS]
    assert after != [group[0].ids for group in before]


def test_nothing_is_merged_in_bfloat16():
    model = tiny_lora(tiny_model().to(torch.bfloat16))
    engine = Engine(model, TOKENIZER)
    layer = engine._runner.model.network.model.layers[0].self_attn.q_proj
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, LoraLinear)
    assert layer.base.weight.data_ptr() == base.weight.data_ptr()
    assert layer.down.dtype == torch.bfloat16
    ((rollout,),) = engine.generate([PROMPTS[0]], 1, Sampling(20), seed=0)
    exact = full_logprobs(model, PROMPTS[0], rollout.ids)
    # 8 bits of mantissa in logits of some 10: 0.1 covers them; without the LoRA it is over 1.
    assert (torch.tensor(rollout.logprobs) - exact).abs().max() < 0.3
    with model.disable_adapter():
        without = full_logprobs(model, PROMPTS[0], rollout.ids)
    assert (torch.tensor(rollout.logprobs) - without).abs().max() > 1.0


def test_an_interruption_leaves_a_working_engine():
    model = tiny_model()
    engine, sampling = Engine(model, TOKENIZER, max_rows=5), Sampling(20)
    expected = engine.generate(PROMPTS, 4, sampling, seed=0)
    seen = []

    def interrupt(b, g, token):
        seen.append((b, g, token))
        if len(seen) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, 4, sampling, seed=0, on_token=interrupt)
    assert engine.idle
    assert all(expected[b][g].ids[i] == t for i, (b, g, t) in enumerate(seen[:1]))
    stream = engine.stream(PROMPTS[0], sampling, seed=0)
    next(stream)
    stream.close()
    assert engine.idle
    forward = engine._runner.model.network.forward
    engine._runner.model.network.forward = lambda **options: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS, 4, sampling, seed=0)
    engine._runner.model.network.forward = forward
    assert engine.idle
    assert engine.generate(PROMPTS, 4, sampling, seed=0) == expected


def test_cancel_returns_what_there_is():
    engine = Engine(tiny_model(), TOKENIZER, max_rows=2)
    first, second, third = engine.submit(PROMPTS[0], Sampling(20), [1, 2, 3], watch=True)
    assert {event.id for event in engine.step()} == {first, second}
    assert (engine.running, engine.waiting) == ([first, second], [third])
    event = engine.cancel(first)
    assert (event.cause, len(event.rollout.ids)) == ("cancelled", 1)
    assert engine.cancel(third).rollout.ids == []
    assert engine.cancel(third) is None
    assert engine.running == [second]


@pytest.mark.parametrize("sampling", [Sampling(9, 0.0), Sampling(9), Sampling(9, 1.0, 5, 0.9)])
def test_logits_that_are_not_finite_end_the_step_with_one_line(sampling):
    model = tiny_model().to(torch.bfloat16)
    engine = Engine(model, TOKENIZER)
    with torch.no_grad():
        model.model.embed_tokens.weight[ord("a")] = float("nan")  # the second prompt has it
    told = r"request \d+: the logits of its token 1 are not finite in bfloat16 \(2 of 4 rows"
    with pytest.raises(RunError, match=told + ".*use --dtype float32;.*--learning-rate"):
        engine.generate([PROMPTS[3], PROMPTS[1]], 2, sampling, seed=0)
    assert engine.idle
    assert engine.generate(PROMPTS[3:], 2, sampling, seed=0)
