"""How much fits: by hand, and what happens when it did not."""

import itertools
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import config
import train_grpo
from rlm.errors import RunError
from rlm.learner import token_budget
from rlm.learner.logprobs import ReferencePolicy
from rlm.learner.losses import advantages
from rlm.learner.optimizer import Optimizer
from rlm.learner.token_budget import Activations, TokenBudget, activations
from rlm.models import memory
from rlm.models.memory import cache_tokens, free_bytes, most_rows
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import Batch
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model


def test_rows_are_as_many_as_logits_have_room_for(monkeypatch):
    class Network:
        weight = SimpleNamespace(
            shape=(1000, 8), device=torch.device("cuda"), element_size=lambda: 2
        )

        def get_input_embeddings(self):
            return self

    assert most_rows(tiny_model()) == 256
    network = Network()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 * 6000 * 300)  # 2 + 4 bytes a logit
    assert most_rows(network) == 300
    monkeypatch.setattr(memory, "free_bytes", lambda device: 80e9)
    assert most_rows(network) == 1024


def test_what_is_free_is_some_of_what_there_is():
    import psutil

    assert 0 < free_bytes("cpu") <= psutil.virtual_memory().total


def test_the_cache_takes_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 76_800)
    # Keys and values of 3 layers, 2 heads of 8 float32 each: 2 * 3 * 2 * 8 * 4 = 384 bytes.
    assert cache_tokens(tiny_model()) == 100
    assert cache_tokens(tiny_model().to(torch.bfloat16)) == 200
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    assert cache_tokens(tiny_model()) == 1


def test_activations_are_counted_by_what_autograd_keeps():
    three, six = (tiny_lora(tiny_model(num_hidden_layers=n)).train() for n in (3, 6))
    found = [activations(model, SIZE).token for model in (three, six)]
    # Per layer at least the inputs of 4 + 3 linear layers: 4 of 32 and 3 of 64 numbers.
    assert found[0] > 3 * (4 * 32 + 3 * 64)
    assert 1.6 < found[1] / found[0] < 2.0
    assert three.training


@pytest.mark.parametrize(
    ("free", "expected"),
    [(2_000_000, 1000), (10**12, token_budget.MOST["cpu"]), (10, token_budget.LEAST)],
)
def test_the_budget_is_what_half_of_the_free_memory_holds(monkeypatch, free, expected):
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: free)
    monkeypatch.setattr(token_budget, "activations", lambda *of: Activations(1000.0))
    assert TokenBudget(tiny_model(), SIZE).tokens == expected
    assert TokenBudget(tiny_model(), SIZE, 77).tokens == 77


def test_a_budget_of_ones_own_is_bounded_by_the_memory_of_a_cpu(monkeypatch, caplog):
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: 6_000_000)
    monkeypatch.setattr(token_budget, "activations", lambda *of: Activations(1000.0))
    # Half of the memory holds 3,000 tokens; more than without a number, which is 1,024 at most.
    assert TokenBudget(tiny_model(), SIZE, 2048).tokens == 2048
    assert not caplog.text
    assert TokenBudget(tiny_model(), SIZE, 16384).tokens == 3000
    assert "--token-budget 16384: half of the free memory holds 3000 tokens" in caplog.text
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: 10)
    assert TokenBudget(tiny_model(), SIZE, 16384).tokens == token_budget.LEAST


def test_on_a_cpu_a_micro_batch_has_a_bound_in_bytes(monkeypatch):
    model = tiny_model()
    size = activations(model, SIZE).token
    monkeypatch.setattr(token_budget, "free_bytes", lambda device: 10**12)
    assert TokenBudget(model, SIZE, cpu_bytes=700.5 * size).tokens == 700


FAILED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be", 2),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.01 GB, other allocations: 0)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 80 bytes. Error code 12"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."),
    MemoryError(),
]  # fmt: skip


def test_an_allocation_that_a_cpu_refuses_is_known_by_its_words():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.out_of_memory(refused.value)
    for other in ("shapes differ", "CUDA error: an illegal memory access was encountered",
                  "CUBLAS_STATUS_EXECUTION_FAILED"):  # fmt: skip
        assert not memory.out_of_memory(RuntimeError(other))
    assert not memory.out_of_memory(OSError("can't allocate memory"))


@pytest.mark.parametrize("error", FAILED, ids=range(len(FAILED)))
def test_out_of_memory_halves_the_budget_says_so_and_goes_on(caplog, error):
    budget, seen, undone = TokenBudget(tiny_model(), SIZE, 1200), [], []

    def work(token_budget):
        seen.append(token_budget)
        if token_budget > 300:
            raise error
        return "done"

    with caplog.at_level(logging.WARNING, logger="rlm"):
        assert budget.attempt(work, undo=lambda: undone.append(1)) == "done"
    assert seen == [1200, 600, 300] and len(undone) == 2 and budget.tokens == 300
    assert [r.getMessage() for r in caplog.records] == [
        "out of memory: going on with --token-budget 600",
        "out of memory: going on with --token-budget 300",
    ]


def test_out_of_memory_at_the_least_says_what_to_do():
    budget = TokenBudget(tiny_model(), SIZE, 256)

    def work(token_budget):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match="of 256 tokens; use a smaller --max-tokens"):
        budget.attempt(work, undo=lambda: None)


def test_another_error_is_not_taken_for_that():
    def work(token_budget):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        TokenBudget(tiny_model(), SIZE, 4096).attempt(work, undo=lambda: None)


@pytest.mark.parametrize(("updates", "failing"), [(1, 1), (2, 2)])
def test_a_step_that_ran_out_of_memory_half_way_is_the_same_step(updates, failing):
    draw = torch.Generator().manual_seed(0)
    lengths = [[200, 90, 120], [60, 150, 33], [80, 10, 45]]
    prompts = [Prompt([5] * 9), Prompt([7] * 30), Prompt([1, 2])]
    groups = [
        [
            Rollout(torch.randint(256, (n,), generator=draw).tolist(), [-5.0] * n, "", "stop")
            for n in row
        ]
        for row in lengths
    ]
    scores = [[Score(1.0), Score(0.0), Score(0.5)]] * 3
    batch = Batch([Example(str(i), "", "0") for i in range(3)], prompts, groups, scores)
    flags = ["--adapter", "none", "--updates-per-batch", str(updates)]
    settings = config.load(config.GRPOSettings, flags)

    def step(failing: int):
        model = tiny_lora(tiny_model(max_position_embeddings=512))
        optimizer = Optimizer(model, max_grad_norm=1.0)
        optimizer.learning_rate = 1e-2
        policy = Policy(model, byte_tokenizer(), "", {})
        backward, turns = optimizer.backward, itertools.count(1)

        def scarce(loss):
            backward(loss)
            if next(turns) == failing:  # by now there are gradients that have to go again
                raise torch.OutOfMemoryError("CUDA out of memory")

        optimizer.backward = scarce
        budget = TokenBudget(model, SIZE, 1024 if failing else 512)
        metrics = train_grpo.update(
            policy, optimizer, batch, advantages(batch.rewards()), settings,
            ReferencePolicy(model), budget,
        )  # fmt: skip
        assert budget.tokens == 512
        return metrics, {n: p for n, p in model.named_parameters() if "lora" in n}

    (metrics, weights), (others, other_weights) = step(failing), step(0)
    # What was done before it ran out had larger micro-batches, and rounded otherwise.
    assert metrics == (others if failing == 1 else pytest.approx(others, rel=1e-3, abs=1e-5))
    near = torch.equal if failing == 1 else partial(torch.allclose, atol=1e-3)
    assert all(near(p, other_weights[n]) for n, p in weights.items())


def test_a_peak_is_what_was_taken_since_it_was_forgotten():
    if not (memory.PROCESS / "clear_refs").exists():
        pytest.skip("this system counts no peak")
    memory.forget_peak("cpu")  # of the tests before
    block = bytearray(200_000_000)
    assert memory.peak_bytes("cpu") >= memory.used_bytes("cpu") > 200_000_000
    high = memory.peak_bytes("cpu")
    del block
    memory.forget_peak("cpu")
    low = memory.peak_bytes("cpu")
    assert low < high - 150_000_000
    bytearray(300_000_000)
    assert memory.peak_bytes("cpu") > low + 250_000_000


def test_a_system_that_counts_no_peak_tells_what_is_taken_now(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    monkeypatch.setattr(memory, "used_bytes", lambda device: 77)
    memory.forget_peak("cpu")
    (tmp_path / "status").write_text("Name: x\n")
    assert memory.peak_bytes("cpu") == 77


@pytest.mark.cuda
def test_a_gpu_that_runs_out_of_memory_goes_on_with_half_the_tokens(caplog):
    model = tiny_lora(tiny_model()).to("cuda")
    budget, seen = TokenBudget(model, SIZE, 1024), []
    free, _ = torch.cuda.mem_get_info()

    def work(token_budget):
        seen.append(token_budget)
        taken = torch.empty(int(free * (2 if token_budget > 300 else 0.1)), dtype=torch.uint8,
                            device="cuda")  # fmt: skip
        return len(taken)

    assert budget.attempt(work, undo=lambda: None) > 0
    assert seen == [1024, 512, 256] and "going on with --token-budget 256" in caplog.text
