"""Packing, the attention layouts and advantages on random shapes, against the plain way."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rlm.engine.kv_cache import KVCache, Prefix
from rlm.learner.logprobs import micro_batches, pack, token_logprobs
from rlm.learner.losses import EPSILON, SCALES, advantages, live
from rlm.learner.packed_groups import PackedGroups
from tests.learner.test_logprobs import separately
from tests.support.fuzzing import cases
from tests.support.tiny_models import tiny_lora, tiny_model

SEEDS = st.integers(0, 2**31)
# (key heads, query heads of each, depth)
HEADS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5))


def random(*shape, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def naive(query, key, value, scaling):
    """Causal attention of one sequence, a score at a time: [n, H, D] of [n, H, D], [n, KV, D]."""
    out = torch.zeros_like(query)
    repeats = query.shape[1] // key.shape[1]
    for place in range(len(query)):
        for head in range(query.shape[1]):
            seen, weights = value[: place + 1, head // repeats], []
            for other in range(place + 1):
                score = query[place, head] @ key[other, head // repeats] * scaling
                weights.append(score.exp())
            weights = torch.stack(weights)
            out[place, head] = (weights / weights.sum()) @ seen
    return out


def assert_same(ours, plain):
    torch.testing.assert_close(ours, plain, atol=1e-10, rtol=1e-10)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Shapes are so small that a second thread only waits, for milliseconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- packed groups -----------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
SHAPES = st.lists(st.tuples(st.integers(1, 6), LENGTHS), min_size=1, max_size=4)


def groups_of(shape, seed, size=50):
    """Groups of random ids; shape: (prompt tokens, [tokens of each completion])."""
    draw = torch.Generator().manual_seed(seed)

    def ids(number):
        return torch.randint(size, (number,), generator=draw).tolist()

    return [(ids(prompt), [ids(length) for length in lengths]) for prompt, lengths in shape]


@cases(100)
@given(SHAPES, SEEDS)
def test_every_target_follows_what_stands_before_it(shape, seed):
    groups = groups_of(shape, seed)
    packed = pack(groups)
    # By sequence, in order: (the token before, its position, the target).
    expected = [
        ((prompt + completion)[len(prompt) + n - 1], len(prompt) + n - 1, target)
        for prompt, completions in groups
        for completion in completions
        for n, target in enumerate(completion)
    ]
    found = [None] * len(expected)
    sources = packed.rows[packed.row_of].tolist()
    for target, source in zip(packed.by_row.tolist(), sources, strict=True):
        before, position = packed.ids[source].item(), packed.positions[source].item()
        found[target] = (before, position, packed.targets[target].item())
    assert found == expected
    lengths = [length for _, lengths in shape for length in lengths]
    assert packed.lengths == tuple(lengths)
    assert packed.sequence.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert packed.row_of.tolist() == sorted(packed.row_of.tolist())
    # Nothing stands there twice, nothing that is not needed.
    assert len(packed.ids) == sum(p + sum(n - 1 for n in lengths) for p, lengths in shape)


@cases(60)
@given(SHAPES, HEADS, SEEDS, st.booleans())
def test_packed_attention_is_that_of_each_sequence_alone(shape, heads, seed, repeat):
    keys, shared, depth = heads
    prompts = [prompt for prompt, _ in shape]
    completions = [(owner, n) for owner, (_, lengths) in enumerate(shape) for n in lengths]
    completions.sort(key=lambda completion: -completion[1])
    total = sum(prompts) + sum(n for _, n in completions)
    query = random(keys * shared, total, depth, seed=seed)
    key, value = (random(keys, total, depth, seed=seed + n) for n in (1, 2))
    layout = PackedGroups(prompts, completions)
    with pytest.MonkeyPatch.context() as patch:
        if repeat:  # as on devices that cannot group heads
            patch.setattr("rlm.models.attention.takes_fewer_keys", lambda query, masked: False)
        ours = layout.attend(0, query, key, value, 0.7)[0]
    assert ours.shape == (total, keys * shared, depth)

    flat = [x.transpose(0, 1) for x in (query, key, value)]
    starts = torch.tensor([0, *prompts]).cumsum(0).tolist()
    at = starts[-1]
    for owner, prompt in enumerate(prompts):
        rows = slice(starts[owner], starts[owner] + prompt)
        assert_same(ours[rows], naive(*(x[rows] for x in flat), 0.7))
    for owner, tokens in completions:
        rows = [*range(starts[owner], starts[owner + 1]), *range(at, at + tokens)]
        assert_same(ours[at : at + tokens], naive(*(x[rows] for x in flat), 0.7)[prompts[owner] :])
        at += tokens


MODEL = tiny_lora(tiny_model(num_hidden_layers=1)).double()


@cases(15)
@given(SHAPES, SEEDS, st.integers(1, 12))
def test_packed_log_probabilities_are_those_of_separate_forwards(shape, seed, chunk):
    groups = groups_of(shape, seed)
    with torch.no_grad():
        ours, entropies = token_logprobs(MODEL, pack(groups), chunk=chunk, statistics=True)
        plain, plain_entropies = separately(MODEL, groups)
    # The head works in float32.
    torch.testing.assert_close(ours.double(), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), plain_entropies, atol=1e-4, rtol=0)


@cases(300)
@given(SHAPES, SEEDS, st.integers(1, 60))
def test_micro_batches_hold_every_completion_once_and_keep_to_the_budget(shape, seed, budget):
    groups = groups_of(shape, seed)
    parts = micro_batches(groups, budget)
    found = [
        (i, row) for part in parts for i, rows in part for row in range(len(groups[i][1]))[rows]
    ]
    assert sorted(found) == [(i, r) for i, g in enumerate(groups) for r in range(len(g[1]))]
    for part in parts:
        packed = pack([(groups[i][0], groups[i][1][rows]) for i, rows in part])
        assert len(packed.ids) <= budget or len(packed.lengths) == 1
    longest = [max(map(len, groups[i][1][rows])) for part in parts for i, rows in part]
    assert longest == sorted(longest), "pieces of like length share a part"
    for i, (prompt, lengths) in enumerate(shape):
        pieces = sum(index == i for part in parts for index, _ in part)
        if prompt + sum(n - 1 for n in lengths) <= budget:
            assert pieces == 1, "a group that fits is not cut"


# --- the cache ---------------------------------------------------------------------------------


class Plain:
    """The engine's cache as lists: for each row and layer the (query, key, value) of its tokens."""

    def __init__(self, heads, layers, seed):
        (self.keys, self.shared, self.depth), self.layers, self.seed = heads, layers, seed
        self.rows: list[list[list]] = []

    def fresh(self, tokens):
        """New random queries, keys, values: [H, n, D], [KV, n, D] twice."""
        self.seed += 3
        shapes = (self.keys * self.shared, self.keys, self.keys)
        return [random(h, tokens, self.depth, seed=self.seed + n) for n, h in enumerate(shapes)]

    def attend(self, history):
        """What the last of a history of (q, k, v), each [heads, D], sees: [H, D]."""
        stacked = [torch.stack([token[n] for token in history]) for n in range(3)]
        return naive(*stacked, 0.7)[-1]


def forward(cache: KVCache, plain: Plain, prompts: list[int]) -> list[Prefix]:
    """One forward of all rows and of new prompts, checked; return the prompts' caches."""
    n = len(plain.rows)
    positions = [len(row[0]) for row in plain.rows]
    width = 1 + max(positions, default=0)
    if n:
        rows, tokens = cache.capacity
        cache.resize(max(rows, n), max(tokens, width), None)
    cache.begin(torch.tensor(positions, dtype=torch.long), width, prompts)
    told = []
    for layer in range(plain.layers):
        new = plain.fresh(n + sum(prompts))
        out = cache.attend(layer, *new, 0.7)[0]
        for index, row in enumerate(plain.rows):
            row[layer].append([x[:, index] for x in new])
            assert_same(out[index], plain.attend(row[layer]))
        start, caches = n, []
        for length in prompts:
            part = [x[:, start : start + length].transpose(0, 1) for x in new]
            assert_same(out[start : start + length], naive(*part, 0.7))
            caches.append(list(zip(*part, strict=True)))
            start += length
        told.append(caches)
    prefixes = cache.prefixes() if prompts else []
    for index, prefix in enumerate(prefixes):
        prefix.told = [caches[index] for caches in told]
    return prefixes


STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=2),  # who joins
        st.sets(st.integers(0, 7), max_size=3),  # who leaves
        st.integers(0, 3),  # spare room
    ),
    min_size=1,
    max_size=6,
)


@cases(40)
@given(STEPS, HEADS, st.integers(1, 2), SEEDS)
@example([([(3, 2)], set(), 0), ([(1, 1)], {0}, 2), ([], {0, 1}, 0)], (2, 2, 3), 2, 0)
def test_a_cache_whose_rows_come_and_go_attends_as_each_sequence_alone(steps, heads, layers, seed):
    cache, plain = KVCache(), Plain(heads, layers, seed)
    for joining, leaving, spare in steps:
        if not plain.rows and not joining:
            continue
        prefixes = forward(cache, plain, [length for length, _ in joining])
        for prefix, (_, samples) in zip(prefixes, joining, strict=True):
            start = len(plain.rows)
            rows, tokens = cache.capacity
            room = max(rows, start + samples) + spare, max(tokens, prefix.length + 1) + spare
            cache.resize(*room, prefix)
            cache.store(start, samples, prefix)
            copies = [[list(layer) for layer in prefix.told] for _ in range(samples)]
            plain.rows += copies
        # The last rows move into the holes, as the engine does it.
        for hole in sorted((i for i in leaving if i < len(plain.rows)), reverse=True):
            last = len(plain.rows) - 1
            if hole != last:
                cache.move([last], [hole], len(plain.rows[last][0]))
            plain.rows[hole] = plain.rows[last]
            plain.rows.pop()
        if plain.rows and spare == 0:  # a smaller cache keeps what is in it
            cache.resize(len(plain.rows), max(len(row[0]) for row in plain.rows), None)
    if plain.rows:
        forward(cache, plain, [])


# --- advantages --------------------------------------------------------------------------------


@st.composite
def rewards(draw):
    """[B, G] float64; many groups are all equal, as with a right-or-wrong reward."""
    samples = draw(st.integers(2, 8))
    value = st.sampled_from([0.0, 1.0]) | st.floats(-10, 10, width=32)
    row = st.lists(value, min_size=samples, max_size=samples) | value.map(lambda x: [x] * samples)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=torch.float64)


def spread(r, scale):
    """The standard deviation that a scale divides by, [B, 1] or [1, 1]."""
    return r.std(1, keepdim=True) if scale == "group" else r.std().reshape(1, 1)


@cases(200)
@given(rewards(), st.sampled_from(SCALES), st.integers(-1000, 1000))
def test_advantages_do_not_change_with_a_shift(r, scale, shift):
    shifted = r + shift
    assume(torch.equal(live(shifted), live(r)))  # a difference of 1e-300 is rounded away
    close = {"atol": 1e-8, "rtol": 1e-6}
    # Where rewards differ by little, so does what is left of them beside 1,000: 1e-13 / 1e-4.
    torch.testing.assert_close(advantages(shifted, scale), advantages(r, scale), **close)


@cases(200)
@given(rewards(), st.sampled_from(SCALES), st.floats(0.01, 1000))
def test_advantages_do_not_change_with_a_positive_factor(r, scale, factor):
    ours, scaled = advantages(r, scale), advantages(r * factor, scale)
    assume(torch.equal(live(r * factor), live(r)))
    if scale == "none":  # nothing is divided by: they grow with the rewards
        torch.testing.assert_close(scaled, ours * factor, atol=1e-9, rtol=1e-9)
        return
    # But for epsilon beside the standard deviation s: (s + e) / (s + e / factor).
    deviation = spread(r, scale)
    expected = ours * (deviation + EPSILON) / (deviation + EPSILON / factor)
    torch.testing.assert_close(scaled, expected, atol=1e-9, rtol=1e-6)
    wide = (deviation > 0.1).expand_as(ours)
    shift = EPSILON * abs(1 - 1 / factor) / 0.1
    torch.testing.assert_close(scaled[wide], ours[wide], atol=1e-9, rtol=shift + 1e-9)


@cases(200)
@given(rewards(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_advantages_move_with_their_samples_and_groups(r, scale, random):
    groups, samples = r.shape
    inside = torch.tensor([random.sample(range(samples), samples) for _ in range(groups)])
    order = random.sample(range(groups), groups)
    mixed = advantages(r.gather(1, inside)[order], scale)
    expected = advantages(r, scale).gather(1, inside)[order]
    torch.testing.assert_close(mixed, expected, atol=1e-8, rtol=1e-8)


@cases(200)
@given(rewards(), st.sampled_from(SCALES))
def test_advantages_rank_as_rewards_and_cancel_in_each_group(r, scale):
    result = advantages(r, scale)
    assert (result.sum(1).abs() <= 1e-9 * (1 + result.abs().sum(1))).all()
    for own, of_group in zip(result.tolist(), r.tolist(), strict=True):
        by_reward = sorted(zip(of_group, own, strict=True))
        ranked = [advantage for _, advantage in by_reward]
        assert ranked == sorted(ranked)
        assert (min(of_group) == max(of_group)) == (set(own) == {0.0})
