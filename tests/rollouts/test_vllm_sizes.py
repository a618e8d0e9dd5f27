"""How large vLLM is opened: by hand, and bounds that hold for any machine."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import InputError
from rlm.rollouts import vllm_sizes
from rlm.rollouts.vllm_sizes import GIB, context, cpu_cache_bytes, gpu_share, lora_rank, rows


def test_the_docstrings_examples():
    result = doctest.testmod(vllm_sizes)
    assert result.attempted >= 6 and result.failed == 0


def test_ranks():
    assert [lora_rank(r) for r in (1, 8, 9, 64, 257, 512)] == [8, 8, 16, 64, 320, 512]
    with pytest.raises(InputError, match=r"rank 513: vLLM takes up to 512"):
        lora_rank(513)


def test_context_by_hand():
    # 100 * 3 // 2 = 150 is more than the canary's 70; with 160 sampled tokens 310.
    assert context([80, 100], 160, 70, None) == 310
    assert context([], 160, 70, None) == 230
    assert context([80, 100], 160, 70, 256) == 256


def test_rows_are_those_of_a_step():
    assert [rows(n) for n in (1, 16, 200, 257)] == [16, 16, 200, 256]


def test_a_cpu_that_is_too_small_says_what_to_do():
    with pytest.raises(InputError, match=r"0\.5 GiB of memory are free.*--vllm-url"):
        cpu_cache_bytes(GIB // 2, 2**20, 16, 1024)


def test_a_gpu_by_hand():
    # 24 GiB, of which 10 are free: 10 - 0.5 - 1.2 (5 % of 24) = 8.3; 8.3 / 24 = 0.3458
    assert gpu_share(10 * GIB, 24 * GIB, GIB // 2, 6 * GIB, GIB // 2) == 0.34
    with pytest.raises(InputError, match=r"8.3 GiB of the GPU are left.*needs 9.4"):
        gpu_share(10 * GIB, 24 * GIB, GIB // 2, 8 * GIB, GIB // 2)
    with pytest.raises(InputError, match=r"0.0 GiB of the GPU are left"):
        gpu_share(0, 24 * GIB, GIB, GIB, GIB)


sizes = st.integers(0, 200 * GIB)


@given(sizes, st.integers(1, 2**21), st.integers(1, 256), st.integers(1, 2**15))
def test_a_cpus_cache_holds_a_sequence_and_leaves_the_rest(free, each, rows, tokens):
    try:
        size = cpu_cache_bytes(free, each, rows, tokens)
    except InputError:
        assert tokens * each > min(free // 4, 32 * GIB)
    else:
        assert tokens * each <= size <= min(free // 4, 32 * GIB, rows * tokens * each)


@given(sizes, st.integers(GIB, 200 * GIB), sizes, sizes, st.integers(1, GIB))
def test_a_gpus_share_is_never_more_than_what_is_free(free, total, pending, weights, one):
    free = min(free, total)
    try:
        share = gpu_share(free, total, pending, weights, one)
    except InputError:
        assert 1.1 * (weights + one) > free - pending - total // 20 - 1
    else:
        assert 0 <= share <= 0.95 and share * total + pending <= free
