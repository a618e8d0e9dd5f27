"""The speed benchmarks: their sums by hand, and each of them once with tiny numbers."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import grpo_vs_trl  # noqa: E402
import scaling  # noqa: E402
import sft_vs_trl  # noqa: E402
import tables  # noqa: E402
import turns  # noqa: E402
from shapes import END_RATE, EOS, Workload, median_and_range, random_model, word_prompts  # noqa: E402

from rlm.errors import RunError  # noqa: E402
from tests.support.running import succeed  # noqa: E402

SMALL = Workload(32, 2, 4, 2, 64, 300, prompts=2, group=2, max_tokens=40, prompt_tokens=(3, 9))


def test_the_weights_are_counted_as_the_model_has_them():
    model = random_model(SMALL)
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert SMALL.body_weights == sum(m.weight.numel() for m in linear)
    assert SMALL.head_weights == model.lm_head.weight.numel()


def test_completions_end_after_half_of_the_maximum_on_average():
    # The mean of a geometric law that is cut off at m: (1 - (1 - p)^m) / p.
    for m in (40, 128, 256):
        p = END_RATE / m
        assert (1 - (1 - p) ** m) / p == pytest.approx(m / 2, rel=0.02)
    model = random_model(SMALL)
    ids = torch.randint(5, 300, (64, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        share = model(ids).logits[:, -1].softmax(-1)[:, EOS].mean()
    assert float(share) == pytest.approx(END_RATE / 40, rel=0.1)


def test_prompts_have_the_lengths_of_the_shape():
    lengths = [len(text.split()) for text in word_prompts(SMALL, 50, seed=0)]
    assert min(lengths) == 3 and max(lengths) == 9
    assert word_prompts(SMALL, 3, seed=0) != word_prompts(SMALL, 3, seed=1)


def test_the_floor_by_hand():
    work = grpo_vs_trl.Work("x", Workload(2, 1, 1, 1, 4, 10), torch.float32, "cpu")
    # Linear layers: 4 * 2 * 2 + 3 * 2 * 4 = 40 weights, the head 20. 10 prompt tokens, 5 sampled.
    rates = {"matrix_gflops": 1e-9, "memory_gbs": 1e-9}  # one operation, one byte a second
    found = grpo_vs_trl.floor(work, rates, {"prompt": 10, "completion": 5, "longest": 3})
    assert found["learn"] == 2 * (80 * 15 + 40 * 5)
    assert found["rollout"] == max(80 * 15 + 40 * 5, 60 * 4 * 3)


def test_ratios_are_per_token_and_turn_by_turn():
    taken = {
        "ours": [{"step": 1.0, "tokens": 10}, {"step": 2.0, "tokens": 10}],
        "default": [{"step": 8.0, "tokens": 20}, {"step": 8.0, "tokens": 10}],
    }
    assert grpo_vs_trl.ratios(taken, "default", "step") == [4.0, 4.0]
    assert median_and_range([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


class Contender:
    """Takes 100 bytes of a device, and 50 more at a step. most: that were taken at a time."""

    here, most = 0, 0

    def __init__(self, room=10**9):
        self.room = room
        self.taken(100)

    def __del__(self):
        Contender.here -= 100

    def step(self, turn):
        self.taken(50)
        Contender.here -= 50
        return {"turn": turn}

    def taken(self, count):
        Contender.here += count
        Contender.most = max(Contender.most, Contender.here)
        if Contender.here > self.room:
            Contender.here -= 50 if count == 50 else 0
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 50 bytes.")


@pytest.fixture
def uncollected(monkeypatch):
    """Nothing here refers to itself, and the garbage of all tests takes long to look through."""
    monkeypatch.setattr(turns, "gc", SimpleNamespace(collect=lambda: None))


@pytest.mark.parametrize(
    ("way", "room", "failed", "most"),
    [
        ("alternating", 10**9, [], 350),
        ("alone", 10**9, [], 150),
        ("alone", 150, [], 150),
        ("alternating", 250, ["c"], 300),
        ("alone", 120, ["a", "b", "c"], 150),
    ],
)
def test_who_runs_out_of_memory_drops_out_and_each_turn_is_kept(
    tmp_path, uncollected, way, room, failed, most
):
    Contender.here = Contender.most = 0
    keep = tmp_path / "x.turns.jsonl"
    taking = turns.Turns({name: partial(Contender, room) for name in "abc"}, keep)
    getattr(taking, way)(3)
    assert taking.failed == failed and Contender.most == most
    done = [] if "a" in failed else [{"turn": 0}, {"turn": 1}, {"turn": 2}]
    assert taking.found["a"] == done
    assert all(taking.found[name] == ([] if name in failed else done) for name in "bc")
    rows = [json.loads(line) for line in keep.read_text().splitlines()]
    assert sorted(r["name"] for r in rows if "failed" in r) == failed
    assert sum("turn" in r for r in rows) == 3 * (3 - len(failed))


def test_a_learner_that_cannot_halve_any_more_has_run_out_of_memory_too(uncollected):
    def learn():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise RunError("out of memory with micro-batches of 256 tokens") from error

    def fail():
        raise RuntimeError("shapes differ")

    taking = turns.Turns({"ours": lambda: SimpleNamespace(step=lambda turn: learn())})
    assert taking.alone(1).failed == ["ours"]
    with pytest.raises(RuntimeError, match="shapes differ"):
        turns.Turns({"ours": fail}).alone(1)


def test_the_table_goes_without_who_dropped_out(monkeypatch, uncollected):
    def full(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    step = {"rollout": 1.0, "learn": 1.0, "step": 2.0, "tokens": 10, "rows": 2, "learn_mb": 3.0,
            "rollout_mb": 2.0}  # fmt: skip
    ours = step | {"detail": {"prompt": 4, "completion": 10, "longest": 6, "longest_prompt": 2}}
    taken = {"ours": lambda *_: SimpleNamespace(step=lambda turn: ours),
             "theirs": lambda *_, fastest: full() if fastest else
             SimpleNamespace(step=lambda turn: step)}  # fmt: skip
    monkeypatch.setattr(grpo_vs_trl, "Ours", taken["ours"])
    monkeypatch.setattr(grpo_vs_trl, "Theirs", taken["theirs"])
    work = grpo_vs_trl.Work("q7b", SMALL, torch.float32, "cpu")
    found = grpo_vs_trl.compare(work, 0.0, 2)
    assert found["out_of_memory"] == ["fastest"] and list(found["ratios"]) == ["default"]
    assert "fastest" not in grpo_vs_trl.table(found, "x") and "default" in found["seconds"]
    monkeypatch.setattr(grpo_vs_trl, "Ours", full)
    found = grpo_vs_trl.compare(work, 0.0, 2)
    assert found["out_of_memory"] == ["ours", "fastest"] and found["ratios"] == {}
    assert "default" in grpo_vs_trl.table(found, "x")


def test_a_slope_is_the_exponent_between_the_largest_two():
    points = [{"x": x, "step": {"median": y}} for x, y in ((1, 9.0), (4, 1.0), (16, 8.0))]
    assert scaling.slope(points, "step") == pytest.approx(1.5)  # 4 ** 1.5 == 8


def test_the_table_of_the_orchestrator_has_its_controls_beside_it(monkeypatch):
    def summary(share):
        return {"accuracy": share, "accuracy_low": share - 0.1, "accuracy_high": share + 0.1,
                "direct_accuracy": 0.05, "direct_votes_accuracy": 0.02, "leak_fraction": 0.0,
                "graph_valid_fraction": 0.995}  # fmt: skip

    solved = {"question": "How many?", "graph": "{}", "agents": "a, reads the question: Add.\n5"}
    # Of the log the last ten steps count: 8 with all graphs valid, 2 with 0.9: 2 % are not.
    log = [{"graph_valid_fraction": share} for share in (0.1, *[1.0] * 8, 0.9, 0.9)]
    run = {"seed": 3, "sft": summary(0.125), "grpo": summary(0.5), "log": log, "solved": solved,
           "processor_seconds": 99.6}  # fmt: skip
    fixed = {"best": "Multiply. Subtract.", "best_accuracy": 0.25, "best_of_each_question": 0.9}
    found = {"results": [run], "fixed": [fixed]}
    named = {"orchestrator": found, "orchestrator_untried": found}
    monkeypatch.setattr(tables, "read_named", named.__getitem__)
    table, words = tables.orchestrator_table().split("\n\n", 1)
    cells = dict(line.strip("| ").rsplit(" | ", 1) for line in table.splitlines()[2:])
    assert list(cells.values()) == [
        "12.5 [2.5, 22.5]", "50.0 [40.0, 60.0]", "25.0 (Multiply. Subtract.)", "90.0", "5.0 / 2.0",
        "0.5 / 2.0", "0.0", "100",
    ]  # fmt: skip
    assert "How many?\n\n{}\n\na, reads the question: Add.\n5" in words
    assert tables.orchestrator_untried_table().splitlines() == [
        "| without tried graphs | seed 3 |", "| --- | --- |",
        "| after SFT | 12.5 [2.5, 22.5] |", "| after GRPO | 50.0 [40.0, 60.0] |",
    ]  # fmt: skip


def test_tokens_of_demonstrations_by_hand():
    # 4 + 2 and 3 + 1 tokens. Padded: 2 * 6. In our row 1 2 stands once, nothing follows the last.
    batch = [([1, 2, 3, 4], [5, 6]), ([1, 2, 7], [8])]
    assert sft_vs_trl.lengths([batch]) == {
        "prompt_tokens": 3.5, "completion_tokens": 1.5, "padded_over_true_tokens": 1.2,
        "packed_over_true_tokens": 0.6,
    }  # fmt: skip
    turns = {"own": [(2.0, 0, 0), (4.0, 0, 0)], "trl": [(5.0, 0, 0), (6.0, 0, 0)]}
    assert sft_vs_trl.ratios(turns, "trl") == [2.5, 1.5]


def test_the_table_of_sft_is_made_of_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.sft_table().startswith("Not measured yet")
    ratio = {"median": 2.0, "low": 1.25, "high": 3.0}
    found = {
        "size": "x", "dtype": "float32", "repeats": 3,
        "load": {"prompt_tokens": 12.4, "completion_tokens": 7.6,
                 "padded_over_true_tokens": 1.5, "packed_over_true_tokens": 0.8},
        "seconds": {"own": {"median": 0.5}}, "peak_mb": {"own": 1.0, "trl": 20.4, "one": 3.0},
        "ratios": {"trl": ratio, "trl, one by one": ratio},
        "machine": {"processor": "P", "threads": 1, "versions": {"torch": "2"}},
    }  # fmt: skip
    for name, seconds in (("b", 0.5), ("a", 2.0)):
        found["size"], found["seconds"] = name, {"own": {"median": seconds}}
        (tmp_path / f"sft_vs_trl_{name}_float32_cpu.json").write_text(json.dumps(found))
    lines = tables.sft_table().splitlines()
    cells = "12 + 8 | 0.50 | 2.00 (1.25–3.00) | 2.00 (1.25–3.00) | 1.5 / 0.8 | 1 / 20 / 3"
    assert lines[2] == f"| b, float32, 3 turns | {cells} |"
    assert lines[3].startswith("| a, float32, 3 turns |")
    assert lines[-1] == "Measured on P, 1 thread; torch 2."


@pytest.mark.slow
def test_the_comparison_of_sft_takes_the_same_steps(tmp_path):
    place = tmp_path / "found.json"
    words = ("--size", "tiny", "--repeats", 2, "--json", place)
    succeed("benchmarks/sft_vs_trl.py", *words)
    found = json.loads(place.read_text(encoding="utf-8"))
    for name, ratio in found["ratios"].items():
        assert ratio["low"] > 0
        assert found["losses"][name] == pytest.approx(found["losses"]["own"], abs=2e-4)
    assert found["batch"] == 8 and found["machine"]["versions"]["trl"]


@pytest.mark.slow
def test_the_comparison_runs_and_writes_what_it_found(tmp_path):
    place = tmp_path / "found.json"
    few = ("--repeats", 1, "--prompts", 2, "--group", 4, "--max-tokens", 12)
    succeed("benchmarks/grpo_vs_trl.py", "--size", "tiny", *few, "--json", place)
    found = json.loads(place.read_text(encoding="utf-8"))
    for name in ("default", "fastest"):
        for phase in ("rollout", "learn", "step"):
            assert found["ratios"][name][phase]["median"] > 0
            assert found["with_kl"]["0.04"]["ratios"][name][phase]["median"] > 0
    assert found["machine"]["matrix_gflops"] > 0 and found["machine"]["versions"]["trl"]
    assert found["load"] == {"prompts": 2, "group": 4, "max_tokens": 12}
