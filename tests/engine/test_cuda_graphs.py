"""Decoding by CUDA graphs, with a capture that needs no CUDA: same tokens, few captures."""

import random
from types import SimpleNamespace

import pytest
import torch

from rlm.engine import cuda_graphs
from rlm.engine.cuda_graphs import DecodeGraphs, rounded_rows, rounded_width
from rlm.engine.engine import Engine, Sampling
from rlm.engine.kv_cache import KVCache
from rlm.records import Prompt
from tests.support.fake_graphs import FakeGraphs
from tests.support.tiny_models import EOS, byte_tokenizer, tiny_lora, tiny_model

TOKENIZER = byte_tokenizer()
PROMPTS = [Prompt(list(text.encode())) for text in ("What is 2 + 3?", "a", "Hello, hello!", "7*6")]


def with_graphs(engine: Engine) -> DecodeGraphs:
    """Let an engine on the CPU run as one on CUDA does: one cache, and graphs."""
    fake, runner = FakeGraphs(), engine._runner
    runner.cache = KVCache(joined=True)
    runner.graphs = DecodeGraphs(runner.cache, fake.capture, fake.pools)
    return runner.graphs


def ids(groups):
    return [[rollout.ids for rollout in group] for group in groups]


MIXES = [
    [Sampling(40, temperature=0.8)],
    [Sampling(40, temperature=0.0)],
    [Sampling(30, 0.0), Sampling(40, 1.0), Sampling(35, 1.3)],
    [Sampling(40, 0.9, top_p=0.9), Sampling(30, 0.0)],
]


@pytest.mark.parametrize("mix", MIXES)
def test_decoding_by_graphs_gives_the_same_tokens(mix):
    model = tiny_lora(tiny_model())
    model.generation_config.eos_token_id = [EOS, *range(0, 256, 16)]  # uneven lengths
    plain, engine = (Engine(model, TOKENIZER, max_rows=11) for _ in range(2))
    graphs = with_graphs(engine)

    def run(each):
        found = {}
        for number, prompt in enumerate(PROMPTS):
            sampling = mix[number % len(mix)]
            for id in each.submit(prompt, sampling, [number, 7, 8, 9]):
                found[id] = None
        while not each.idle:
            for event in each.step():
                found[event.id] = event.rollout
        each.reset()
        return list(found.values())

    made = []
    for _ in range(3):
        for rollout, same in zip(run(engine), run(plain), strict=True):
            assert rollout.ids == same.ids
            assert rollout.logprobs == pytest.approx(same.logprobs, abs=1e-5)
        made.append(graphs.captures)
    # Rows go down from 11, the cache does not grow any more: the graphs of the first times serve.
    assert len(made) == 3 and 0 < made[1] == made[2] == len(graphs._graphs)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(-3.0)
    for each in (plain, engine):
        each.sync()
    assert [rollout.ids for rollout in run(engine)] == [rollout.ids for rollout in run(plain)]
    assert not graphs.broken


def test_a_cache_that_grows_takes_new_graphs_and_a_new_pool():
    model = tiny_model()
    engine = Engine(model, TOKENIZER)
    graphs = with_graphs(engine)
    for count, tokens in ((1, 8), (9, 8), (9, 100), (30, 100)):
        expected = Engine(model, TOKENIZER).generate(PROMPTS[:1], count, Sampling(tokens), seed=1)
        assert ids(engine.generate(PROMPTS[:1], count, Sampling(tokens), seed=1)) == ids(expected)
        assert graphs._graphs and not graphs.broken
    rows, width = engine._runner.cache.capacity
    assert (rows, width) == (32, 128)
    engine._runner.release()
    assert not graphs._graphs and engine._runner.cache.capacity == (0, 0)
    assert ids(engine.generate(PROMPTS[:1], 30, Sampling(100), seed=1)) == ids(expected)


def test_a_pool_whose_graphs_are_gone_is_not_used_again():
    # As CUDA refuses it; without this a fake capture would hide the fault.
    fake = FakeGraphs()
    pool = fake.pools()
    graph = fake.capture(lambda: torch.zeros(1), pool)
    del graph
    with pytest.raises(RuntimeError, match="use_count > 0"):
        fake.capture(lambda: torch.zeros(1), pool)


def test_a_graph_that_cannot_be_captured_is_done_without(caplog):
    model = tiny_lora(tiny_model())
    plain, engine = (Engine(model, TOKENIZER) for _ in range(2))

    def fails(work, pool):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    engine._runner.graphs = DecodeGraphs(engine._runner.cache, fails, lambda: 1)
    sampling = Sampling(20, temperature=0.0)
    groups = engine.generate(PROMPTS, 2, sampling, seed=0)
    assert ids(groups) == ids(plain.generate(PROMPTS, 2, sampling, seed=0))
    assert caplog.text.count("no CUDA graphs: operation not permitted; going on without") == 1


def test_all_of_a_failed_capture_is_left_whatever_else_fails(monkeypatch):
    done = []

    def fails(*arguments):
        done.append(arguments)
        raise RuntimeError("no capture here")

    class Generator:
        def clone_state(self):
            return "fresh"

        def graphsafe_set_state(self, state):
            done.append(state)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fails, raising=False)
    monkeypatch.setattr(torch.cuda, "default_generators", [Generator()])
    cuda_graphs._end_capture(SimpleNamespace(capture_end=fails), "pool")
    assert done == [(), (0, "pool"), "fresh"]


def test_a_run_captures_in_its_first_steps_alone():
    # 32 prompts of other lengths each time, 8 samples of each, up to 256 tokens, as in training.
    class Cache:
        capacity, bias = (256, 512), torch.zeros(0)

    graphs = DecodeGraphs(Cache(), lambda work, pool: (lambda: None, work()), lambda: 1)
    draw, captures = random.Random(0), []
    for _ in range(20):
        before = graphs.captures
        graphs.rest()
        rows = [(draw.randint(60, 150), draw.randint(20, 256)) for _ in range(32) for _ in range(8)]
        for step in range(1, 256):
            alive = [prompt for prompt, tokens in rows if tokens > step]
            inputs = torch.zeros(4, len(alive), dtype=torch.int32)
            if alive:
                graphs.run(lambda x, width: x, inputs, max(alive) + step, 1, True)
        captures.append(graphs.captures - before)
    assert captures[0] <= 12 and sum(captures[1:4]) <= 5 and not any(captures[4:]), captures


def test_sizes_are_rounded_up():
    assert [rounded_rows(n, 300) for n in (1, 3, 17, 200, 257, 299)] == [1, 4, 24, 256, 300, 300]
    assert [rounded_width(n) for n in (1, 128, 129)] == [128, 128, 256]


def test_the_attention_of_cudnn_is_off():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.cuda
def test_cuda_graphs_give_the_same_tokens():
    model, sampling = tiny_lora(tiny_model()).cuda(), Sampling(40, temperature=0.8)
    plain, engine = (Engine(model, TOKENIZER, cuda_graphs=on) for on in (False, True))
    expected = plain.generate(PROMPTS, 4, sampling, seed=5)
    groups = engine.generate(PROMPTS, 4, sampling, seed=5)
    assert not engine._runner.graphs.broken and engine._runner.graphs._graphs
    assert ids(groups) == ids(expected)


@pytest.mark.cuda
def test_a_failed_capture_leaves_the_generator_usable():
    from rlm.engine.cuda_graphs import capture_cuda, new_pool

    with pytest.raises(RuntimeError):  # a wait of the host is not allowed inside
        capture_cuda(lambda: torch.ones(3, device="cuda").cumsum(0) + float(torch.rand(1).cuda()),
                     new_pool())  # fmt: skip
    pool = new_pool()
    replay, _ = capture_cuda(lambda: torch.ones(3, device="cuda") * 2, pool)
    del replay, _
    assert torch.rand(3, device="cuda").isfinite().all()
