"""Which rollouts a report shows: all if they fit, else questions across steps, and every step."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rlm.report.rollout_sample import TEXT, choose, halving, sample, shorten


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(step, id, reward=1.0, **more):
    return {"step": step, "id": id, "question": f"{id}?", "gold": "3", "text": "<b>3", "tokens": 2,
            "finish": "stop", "reward": reward, "parts": {"correctness": reward}, "reason": None,
            "advantage": 0.5, **more}  # fmt: skip


def test_a_small_file_is_shown_whole_by_question_and_step(tmp_path):
    path = written(
        tmp_path / "r.jsonl",
        [record(1, "a"), record(1, "a", 0.0), record(1, "b"), record(3, "a")],
    )
    found = sample(path)
    assert (found["total"], found["shown"]) == (4, 4)
    assert [(q["id"], [s["step"] for s in q["steps"]]) for q in found["questions"]] == [
        ("a", [1, 3]),
        ("b", [1]),
    ]
    first = found["questions"][0]["steps"][0]["completions"]
    assert [c["reward"] for c in first] == [1.0, 0.0]
    assert found["questions"][0]["question"] == "a?" and "question" not in first[0]


def test_lines_that_cannot_be_read_are_left_out(tmp_path):
    path = written(tmp_path / "r.jsonl", [record(1, "a"), {"step": None, "id": "x"}, [], 7])
    with open(path, "a") as file:
        file.write('{"step": NaN, "id": "n"}\n\n\xff\n{"step": 2, "id": "a", "te')
    assert sample(path) == sample(written(tmp_path / "s.jsonl", [record(1, "a")]))
    nothing = {"total": 0, "shown": 0, "questions": []}
    assert sample(tmp_path / "nowhere.jsonl") == nothing


def test_half_is_for_questions_across_steps_and_half_for_all_steps():
    # One question at all of 10 steps, and at each step 9 others that never come again.
    sizes = {(s, "often"): 10 for s in range(10)} | {
        (s, f"{s}-{i}"): 10 for s in range(10) for i in range(9)
    }
    chosen = choose(sizes, 300)  # of 1000
    assert {(s, "often") for s in range(10)} <= chosen
    assert {step for step, id in chosen if id != "often"} == set(range(10))
    assert sum(sizes[g] for g in chosen) <= 300 and len(chosen) >= 29
    assert choose(sizes, 300) == chosen, "the same file gives the same sample"
    assert choose(sizes, 1000) == set(sizes)


@given(st.dictionaries(st.tuples(st.integers(0, 9), st.sampled_from("abcdef")),
                       st.integers(1, 500)), st.integers(1, 3000))  # fmt: skip
def test_a_sample_never_is_over_its_budget(sizes, budget):
    chosen = choose(sizes, budget)
    assert chosen <= set(sizes) and sum(sizes[g] for g in chosen) <= budget


@given(st.lists(st.integers(), unique=True))
def test_halving_has_every_item_once_and_starts_at_the_ends(items):
    found = halving(items)
    assert sorted(found) == sorted(items) and found[:1] == items[:1]
    assert len(items) < 2 or found[1] == items[-1]


def test_a_long_text_is_cut_and_says_so():
    cut = shorten(record(1, "a") | {"text": "x" * (TEXT + 5), "logprobs": [0] * (TEXT + 5)})
    assert len(cut["text"]) == TEXT == len(cut["logprobs"]) and cut["cut"] == TEXT + 5
    agents = [{"id": "s", "prompt": "p" * (TEXT + 5), "output": "3", "reads": []}]
    assert len(shorten(record(1, "a", agents=agents))["agents"][0]["prompt"]) == TEXT
    odd = shorten({"text": None, "reward": float("nan"), "parts": {"a": float("inf")}})
    assert odd == {"text": "", "reward": "nan", "parts": {"a": "inf"}}
