"""The engine on a pretended CUDA device: no CPU tensor beside a CUDA one, and what a step costs."""

import pytest

from tests.support.pretended_cuda import Mixed, in_child

LAYERS = 3  # of tests/support/tiny_models.py


def opened(kind: str, dtype):
    """Return (model with a LoRA on the CPU, engine's class, prompts)."""
    import torch

    from rlm.records import Prompt
    from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

    texts = ("What is 2 + 3?", "a", "Hello, hello!", "7*6")
    prompts = [Prompt(list(text.encode())) for text in texts]
    model = tiny_lora(tiny_model(kind).to(getattr(torch, dtype)))
    model.generation_config.eos_token_id = None
    return model, byte_tokenizer(), prompts


def with_graphs(engine):
    """Give an engine graphs whose captures need no CUDA; return what counts them."""
    from rlm.engine.cuda_graphs import DecodeGraphs
    from tests.support.fake_graphs import FakeGraphs

    fake, runner = FakeGraphs(), engine._runner
    runner.graphs = DecodeGraphs(runner.cache, fake.capture, fake.pools)
    return fake


def same_tokens(kind: str) -> None:
    """In float32 the tokens are the CPU's, by graphs and without; in halves nothing mixes."""
    from rlm.engine.engine import Engine, Sampling
    from tests.support.pretended_tensors import pretend, to_cuda

    mixes = [
        Sampling(14, temperature=0.8),
        Sampling(14, temperature=0.0),
        Sampling(14, temperature=0.9, top_p=0.9),
    ]
    for dtype in ("float32", "bfloat16", "float16"):
        model, tokenizer, prompts = opened(kind, dtype)
        plain = Engine(model, tokenizer)
        expected = [plain.generate(prompts, 3, sampling, seed=4) for sampling in mixes]
        with pretend():
            to_cuda(model)
            eager = Engine(model, tokenizer, cuda_graphs=False)
            graphs = Engine(model, tokenizer, cuda_graphs=False)
            with_graphs(graphs)
            for engine in (eager, graphs, graphs):
                found = [engine.generate(prompts, 3, sampling, seed=4) for sampling in mixes]
                if dtype == "float32":
                    for ours, theirs in zip(found, expected, strict=True):
                        ids = [[[r.ids for r in group] for group in x] for x in (ours, theirs)]
                        assert ids[0] == ids[1]
            assert graphs._runner.graphs._graphs and not graphs._runner.graphs.broken
            assert not eager._runner.graphs


def costs() -> None:
    """A decode step sends once and waits once; rows move by two kernels a tensor."""
    from rlm.engine.engine import Engine, Sampling
    from tests.support.pretended_tensors import pretend, to_cuda

    model, tokenizer, prompts = opened("qwen2", "bfloat16")
    with pretend("a100") as counts:
        to_cuda(model)
        engine = Engine(model, tokenizer, cuda_graphs=False)
        fake = with_graphs(engine)
        engine.submit(prompts[0], Sampling(100), [1, 2, 3, 4])
        engine.submit(prompts[2], Sampling(30, temperature=0.5), [5])
        counts.clear()
        engine.step()  # prompts and rows join
        print("first step", counts.launches, sum(counts.copies.values()), dict(counts.syncs))
        assert counts.syncs.total() == 1
        # By graphs: what is sent, and what comes back. The rest is inside.
        for _ in range(2):
            engine.step()
        assert fake.captured == 1
        for _ in range(3):
            counts.clear()
            engine.step()
            assert (counts.copies.total(), counts.syncs.total()) == (1, 1), counts.copies
        print("decode step, bfloat16 with LoRA", counts.launches, dict(counts.kernels))
        assert counts.launches <= 33 * LAYERS + 54
        # Key lengths in eights: attention makes no copy of its mask.
        assert {(kernel, padded) for kernel, _, padded in counts.attention} == {
            ("efficient", False)
        }
        runner = engine._runner
        assert len(runner.cache._blocks) == 1
        counts.clear()
        runner.move([4], [0], 20)
        print("a row that ends", counts.launches, dict(counts.kernels))
        assert counts.launches <= 4 and counts.copies.total() == 1 and not counts.syncs
        group_of_one(engine, prompts[1])
        # Other weights at the same places: the graphs stay.
        engine.reset()
        captured, addresses = fake.captured, runner.model.addresses
        engine.sync()
        assert runner.model.addresses == addresses
        engine.generate(prompts[:1], 5, Sampling(20), seed=0)
        assert fake.captured == captured and len(runner.graphs._graphs) == captured


def group_of_one(engine, prompt) -> None:
    """A prompt that was read stands in the rows by one kernel, and two for their bias."""
    from rlm.engine.requests import Group
    from tests.support.pretended_tensors import COUNTS

    group, runner = Group(prompt), engine._runner
    runner._run([], [group.prompt.ids])
    (prefix,) = runner.cache.prefixes()
    COUNTS.clear()
    runner.cache.store(5, 2, prefix)
    print("rows that join", COUNTS.launches, dict(COUNTS.kernels))
    assert COUNTS.launches <= 3 and not COUNTS.syncs and not COUNTS.copies


def eager_costs() -> None:
    """Without graphs a step sends once and waits once, too."""
    from rlm.engine.engine import Engine, Sampling
    from tests.support.pretended_tensors import pretend, to_cuda

    model, tokenizer, prompts = opened("qwen3", "bfloat16")
    with pretend("a100") as counts:
        to_cuda(model)
        engine = Engine(model, tokenizer, cuda_graphs=False)
        engine.submit(prompts[0], Sampling(100), [1, 2, 3, 4])
        for _ in range(4):
            counts.clear()
            engine.step()
        assert (counts.copies.total(), counts.syncs.total()) == (1, 1), counts.copies
        assert not any(padded for _, _, padded in counts.attention)


def moved() -> None:
    """A model that learned and sampled on the CPU does both on the device it is moved to."""
    import torch

    from rlm.engine.engine import Engine, Sampling
    from rlm.learner import logprobs as learner
    from tests.support.pretended_tensors import pretend, to_cuda

    model, tokenizer, prompts = opened("llama", "float32")

    def learn(device: str):
        packed = learner.pack([(p.ids, [[5, 6, 7, 8], [9]]) for p in prompts], device=device)
        model.train()
        model.zero_grad()
        with learner.use(model):
            found, _ = learner.token_logprobs(model, packed, vocab_size=258)
            found.sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.cat([getattr(x, "real", x).flatten() for x in grads])

    expected = learn("cpu")
    tokens = Engine(model, tokenizer).generate(prompts, 2, Sampling(8), seed=0)
    with pretend():
        to_cuda(model)
        found = Engine(model, tokenizer).generate(prompts, 2, Sampling(8), seed=0)
        assert [[r.ids for r in g] for g in found] == [[r.ids for r in g] for g in tokens]
        grads = learn("cuda")
    torch.testing.assert_close(grads, expected)


def states() -> None:
    """A step that carries states is no graph: it would carry them on twice where one is made."""
    from rlm.engine.engine import Engine, Sampling
    from rlm.engine.native import NativeRunner
    from tests.support.pretended_tensors import pretend, to_cuda
    from tests.support.tiny_families import tiny_family

    _, tokenizer, prompts = opened("qwen2", "float32")
    model = tiny_family("lfm2")
    expected = Engine(model, tokenizer).generate(prompts, 2, Sampling(12), seed=0)
    with pretend():
        engine = Engine(to_cuda(model), tokenizer)
        assert isinstance(engine._runner, NativeRunner) and engine._runner.graphs is None
        found = engine.generate(prompts, 2, Sampling(12), seed=0)
        assert [[r.ids for r in g] for g in found] == [[r.ids for r in g] for g in expected]
        plain = NativeRunner(
            to_cuda(tiny_family("qwen2")), max_rows=8, cache_tokens=None, cuda_graphs=True
        )
        assert plain.graphs is not None


def mixing() -> None:
    """What CUDA would refuse is refused, and what waits is counted."""
    import torch

    from tests.support.pretended_tensors import pretend

    with pretend() as counts:
        there = torch.ones(3, device="cuda")
        with pytest.raises(Mixed, match="add"):
            there + torch.ones(3)
        assert not counts.syncs
        assert float((there + 1).sum()) == 6.0
        assert counts.syncs.total() == 1


def everything() -> None:
    """All but the tokens in one process: torch takes seconds to import."""
    for work in (mixing, costs, eager_costs, moved, states):
        work()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_no_devices_are_mixed_and_the_tokens_are_those_of_the_cpu(kind):
    in_child(same_tokens, kind)


@pytest.mark.slow
def test_what_a_step_costs_and_what_a_move_leaves_behind():
    in_child(everything)
