"""Results of tools in running rows: in the cache as if sampled, whatever runs beside them."""

import pytest
import torch

from rlm.engine.engine import Engine, Sampling
from rlm.engine.native import NativeRunner
from rlm.engine.sampling import Closing
from rlm.errors import InputError
from rlm.models.token_lengths import TokenLengths
from rlm.records import Prompt
from rlm.seeds import derive
from tests.engine.test_cuda_graphs import with_graphs
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model
from tests.support.tool_models import PRINTABLE, SlowBox, often

TOKENIZER = byte_tokenizer()
TEXTS = ("What_is_2+3?", "a", "Hello,hello!", "7*6")
PROMPTS = [Prompt(TOKENIZER(text)["input_ids"]) for text in TEXTS]
PROMPTS[3] = Prompt(PROMPTS[3].ids, prefill="<t>")


def engine_of(model, **options) -> Engine:
    made = Engine(model, TOKENIZER, **options)
    made.stop_ids, made._vocabulary = frozenset(range(0, 90, 29)), PRINTABLE
    return made


def small(kind="qwen2", **settings):
    return tiny_lora(tiny_model(kind, max_position_embeddings=512, **settings))


def sampling(**options) -> Sampling:
    tools = options.pop("tools", None) or often(TOKENIZER)
    return Sampling(**{"max_tokens": 24, "temperature": 0.9, "tools": tools} | options)


def told(groups) -> list:
    return [[(r.ids, r.text, r.calls, r.finish) for r in group] for group in groups]


WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}


@pytest.mark.parametrize(
    "kind, settings", [("qwen2", {}), ("qwen2", WINDOW), ("llama", {}), ("qwen3", {})]
)
def test_what_is_sampled_behind_a_result_is_as_of_a_full_forward(kind, settings):
    model = small(kind, **settings)
    groups = engine_of(model, max_rows=5).generate(PROMPTS, 3, sampling(), seed=1)
    assert sum(len(r.calls) for group in groups for r in group) > 12
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt.ids + rollout.ids])).logits[0, :, :PRINTABLE]
            own, found = torch.tensor(rollout.sampled), torch.tensor(rollout.logprobs)
            exact = (logits / 0.9).log_softmax(1)[len(prompt.ids) - 1 : -1][own]
            exact = exact.gather(1, torch.tensor(rollout.ids)[own][:, None])[:, 0]
            torch.testing.assert_close(found[own], exact, atol=1e-5, rtol=0)
            assert not found[~own].any() and rollout.length == own.sum() <= 24


def test_a_rollout_says_what_the_tool_wrote():
    for group in engine_of(small()).generate(PROMPTS, 3, sampling(), seed=1):
        for rollout in group:
            assert len(rollout.calls) <= 4
            for number, call in enumerate(rollout.calls):
                written = rollout.text[call.written : call.end]
                assert written == f"<result>{call.result}</result>"
                assert rollout.text[call.written - 1 : call.written] in "#+3;CKS[cks{"
                wrote = rollout.ids[call.first : call.first + call.tokens]
                assert TOKENIZER.decode(wrote) == written
                assert call.failure in (("too_many",) if number == 3 else (None, "cut"))
            lengths = TokenLengths(TOKENIZER)
            prefill = "<t>" if rollout.text.startswith("<t>") else ""
            counts = lengths(rollout.text, rollout.ids, prefill, rollout.calls)
            assert len(counts) == len(rollout.ids)
            assert sum(counts) == len(rollout.text) - len(prefill)
            assert "result" not in rollout.own_text


@pytest.mark.parametrize("way", ["slow", "few rows", "graphs", "again", "transformers", "cache"])
def test_the_same_tokens_however_a_row_waits_and_goes_on(way, monkeypatch):
    model = small()
    expected = told(engine_of(model).generate(PROMPTS, 3, sampling(), seed=5))
    assert len({len(ids) for group in expected for ids, *_ in group}) > 4
    options = {
        "few rows": {"max_rows": 2},
        "transformers": {"transformers": True},
        "cache": {"cache_tokens": 400},
    }.get(way, {})
    engine = engine_of(model, **options)
    if way == "graphs":
        with_graphs(engine)
    if way == "again":
        monkeypatch.setattr(NativeRunner, "goes_on", False)
    box = SlowBox if way in ("slow", "few rows", "graphs", "cache") else None
    tools = often(TOKENIZER, box=box) if box else None
    found = told(engine.generate(PROMPTS, 3, sampling(tools=tools), seed=5))
    assert found == expected
    if way == "graphs":
        assert engine._runner.graphs.captures


def test_a_row_that_waits_holds_up_no_other():
    tools = often(TOKENIZER, box=SlowBox)
    tools.polls = 10**6  # it never answers
    engine = engine_of(small())
    engine.stop_ids = frozenset()
    (waits,) = engine.submit(PROMPTS[0], sampling(tools=tools, max_tokens=99), [derive(5, 0, 0)])
    for _ in range(99):
        engine.step()
    assert len(engine._parked) == 1
    others = engine.submit(PROMPTS[1], Sampling(20), [1, 2])
    done = set()
    for _ in range(25):
        done |= {event.id for event in engine.step() if event.rollout}
    assert done == set(others) and engine.running == [waits] and not engine.idle
    assert engine.cancel(waits).cause == "cancelled"
    assert engine.idle and tools.jobs[0][0].dropped


def test_rows_that_wait_count_as_rows_and_go_with_a_reset():
    tools = often(TOKENIZER, box=SlowBox)
    tools.polls = 10**6
    engine = engine_of(small(), max_rows=2)
    engine.stop_ids = frozenset()
    engine.submit(PROMPTS[0], sampling(tools=tools, max_tokens=99), [1, 2, 3])
    for _ in range(99):
        engine.step()
    assert len(engine._parked) == 2 and len(engine.waiting) == 1
    with pytest.raises(RuntimeError, match="running"):
        engine.sync()
    engine.reset()
    assert not engine.running and all(job.dropped for job, _ in tools.jobs)


@pytest.mark.parametrize("box", [None, SlowBox])
def test_a_stream_is_the_text_that_is_not_streamed(box):
    model = small()
    called, options = 0, {"stop": ("</r", "result>"), "max_tokens": 60}
    for prompt in PROMPTS:
        tools = [often(TOKENIZER, **({"box": box} if box else {})) for _ in range(2)]
        stream = engine_of(model).stream(prompt, sampling(tools=tools[0], **options), seed=3)
        pieces = []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                last = end.value
                break
        ((whole,),) = engine_of(model).generate(
            [prompt], 1, sampling(tools=tools[1], **options), seed=3
        )
        assert "".join(pieces) == whole.text == last.text and last.calls == whole.calls
        called += len(whole.calls)
    assert called > 2  # what a tool wrote stops nothing


def test_the_reasoning_is_closed_after_what_was_sampled_alone():
    ids = tuple(TOKENIZER("</t>")["input_ids"])
    closing = Closing(after=12, ids=ids, opener="<t>", closer="</t>")
    asked = sampling(closing=closing, max_tokens=40, tools=often(TOKENIZER, every=4))
    engine = engine_of(small())
    engine.stop_ids = frozenset()
    (rollouts,) = engine.generate([PROMPTS[3]], 6, asked, seed=2)
    assert any(r.calls and r.calls[0].first < 12 for r in rollouts)
    for rollout in rollouts:
        sampled = [id for id, own in zip(rollout.ids, rollout.sampled, strict=True) if own]
        assert sampled[12:16] == list(ids)


def test_there_has_to_be_room_for_all_results():
    engine = engine_of(small())
    room = often(TOKENIZER).bound(TOKENIZER).room
    assert room == 4 * (len("<result></result>") + 9)
    engine.submit(PROMPTS[1], sampling(max_tokens=511 - room), [1])
    with pytest.raises(InputError, match=f"with {room} for the results of tools"):
        engine.submit(PROMPTS[1], sampling(max_tokens=512 - room), [1])


def test_an_event_tells_of_each_result():
    engine = engine_of(small())
    ids = engine.submit(PROMPTS[0], sampling(), [1, 2, 3], stream=True)
    texts, calls, rollouts = dict.fromkeys(ids, ""), {id: [] for id in ids}, {}
    while not engine.idle:
        for event in engine.step():
            texts[event.id] += event.text
            calls[event.id] += [event.call] if event.call else []
            assert not (event.call and event.token is not None)
            rollouts |= {event.id: event.rollout} if event.rollout else {}
    assert {id: r.text for id, r in rollouts.items()} == texts
    assert {id: list(r.calls) for id, r in rollouts.items()} == calls and any(calls.values())
