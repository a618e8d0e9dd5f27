"""GO or NO-GO on plain figures, and how it is told; every case by hand."""

from dataclasses import replace
from datetime import datetime

import pytest

from rlm.preflight.forecast import Learning, Plan, Probe, busy
from rlm.preflight.verdict import brief, decide, needed_tokens, report

PROBE = Probe(
    questions=8,
    group_size=8,
    max_tokens=160,
    room_tokens=900,
    reward=0.5,
    truncated=0.0,
    unreadable=0.05,
    unreadable_ended=0.05,
    reasons={"no_close": 0.04, "empty": 0.01},
    right=0.25,
    mixed=0.5,
    wrong=0.25,
    live=0.5,
    p50_tokens=80,
    p95_tokens=110,
    prompt_tokens=400,
    completion_tokens=5120,
    sample_seconds=2.0,
    sample_peak_bytes=500_000_000,
)
LEARNING = Learning(
    tokens=1300,
    asked_tokens=1300,
    budget_tokens=1300,
    seconds=0.5,
    fits=True,
    halves=False,
    peak_bytes=600_000_000,
    total_bytes=10_000_000_000,
)
PLAN = Plan(
    questions_per_step=16,
    steps=32,
    budget_seconds=None,
    eval_every=8,
    validation_questions=200,
    updates_per_batch=1,
    replace_dead_groups=0,
    with_kl=False,
    can_quantize=False,
)
NOON = datetime(2026, 1, 2, 12, 0)


def verdict(learning=LEARNING, plan=PLAN, **change):
    return decide(replace(PROBE, **change), learning, plan)


def test_a_busy_machine_is_told_beside_the_forecast():
    told = "the machine is busy (30% of one core for this process, load 9.1 on 2 cores)"
    assert busy(10.0, 3.0, 9.1, 2).startswith(told)
    assert "as busy as now" in busy(10.0, 3.0, 1.0, 2)  # it waited, whatever the load says
    assert "as busy as now" in busy(10.0, 10.0, 3.1, 2)  # more programs than 1.5 a core
    # On a quiet machine one thread at least works all the time, and two may.
    assert busy(10.0, 10.0, 2.0, 2) == busy(10.0, 19.0, 3.0, 2) == busy(10.0, 7.0, 0.5, 2) == ""
    probe = replace(PROBE, busy=told)
    for tell in (report, brief):
        quiet, loud = (tell(p, LEARNING, PLAN, NOON) for p in (PROBE, probe))
        (other,) = set(loud) - set(quiet)
        assert other.endswith(f"; {told}") and "until 2026-01-02" in other
        assert len(quiet) == len(loud)


def test_the_lenient_reading_stands_beside_the_strict_one():
    for tell in (report, brief):
        lines = tell(replace(PROBE, correct=0.02, lenient=0.29), LEARNING, PLAN, NOON)
        told = "unreadable 5% (empty 1%, no_close 4%); right 2%, by the last number 29%"
        assert sum(told in line for line in lines) == 1
    lines = report(replace(PROBE, lenient=0.29), LEARNING, PLAN, NOON)  # correctness not rewarded
    assert "no_close 4%); by the last number 29%" in "".join(lines)
    assert "last number" not in "".join(report(PROBE, LEARNING, PLAN, NOON))


@pytest.mark.parametrize("share", [0.29, 0.05, None])
def test_a_model_that_lacks_the_format_alone_is_told_apart(share):
    unread = {"unreadable": 0.9, "unreadable_ended": 0.9, "live": 0.1, "wrong": 0.9, "right": 0.0}
    wrong = {"live": 0.0, "mixed": 0.0, "wrong": 1.0, "right": 0.0}
    for change in (unread, wrong):
        (reason, *_) = verdict(correct=0.0, lenient=share, **change).reasons
        told = "by the last number 29% are right, so the format is what is missing" in reason
        assert told == (share == 0.29) and ("--demonstrations own" in reason) == told


def test_a_healthy_probe_is_a_go_without_a_word():
    assert verdict().go and verdict().cautions == []


@pytest.mark.parametrize(
    "change, words",
    [
        # 160 * ln 0.05 / ln 0.36 = 469.2 -> 480
        ({"truncated": 0.36}, "--max-tokens 480"),
        ({"truncated": 0.5}, "--max-tokens 640"),  # four times is the most
        ({"truncated": 0.5, "room_tokens": 300}, "--max-tokens 300"),
        ({"truncated": 0.5, "room_tokens": 160}, "no more room"),
        ({"truncated": 1.0, "live": 0.0, "wrong": 1.0}, "train_sft.py"),
        ({"truncated": 0.4, "unreadable_ended": 0.9, "live": 0.3}, "train_sft.py"),
        ({"unreadable_ended": 0.51, "live": 0.24}, "--format"),
        ({"live": 0.0, "wrong": 1.0, "right": 0.0, "mixed": 0.0}, "train_sft.py first, or take"),
        ({"live": 0.0, "wrong": 0.0, "right": 1.0, "mixed": 0.0}, "harder data (--task, --digits)"),
        ({"live": 0.0, "wrong": 0.5, "right": 0.5, "mixed": 0.0}, "--group-size"),
    ],
)
def test_what_would_waste_the_run_is_a_no_go_with_the_flag(change, words):
    found = verdict(**change)
    assert not found.go and len(found.reasons) == 1 and words in found.reasons[0]


def test_a_plain_base_is_a_no_go_for_two_reasons():
    found = verdict(unreadable=1.0, unreadable_ended=1.0, wrong=1.0, right=0.0, mixed=0.0, live=0.0)
    assert [("read" in text, "nothing to learn" in text) for text in found.reasons] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        # ln 0.05 / ln 0.3 = 2.488: 398.1 -> 416
        ({"truncated": 0.3}, "--max-tokens 416"),
        ({"unreadable_ended": 0.9, "live": 0.25}, "--format"),  # groups differ: GRPO can go on
        ({"live": 0.125, "right": 0.8, "wrong": 0.1}, "take harder data, or try --replace"),
        ({"live": 0.125, "right": 0.1, "wrong": 0.8}, "take easier data, or try --replace"),
        ({"live": 0.9, "right": 0.0, "mixed": 0.0, "wrong": 1.0}, "only the other rewards"),
        ({"questions": 7, "group_size": 2}, "14 completions say little"),
    ],
)
def test_what_is_only_worth_knowing_stays_a_go(change, words):
    found = verdict(**change)
    assert found.go and len(found.cautions) == 1 and words in found.cautions[0]


@pytest.mark.parametrize(
    "change",
    [
        {"truncated": 0.2},
        {"unreadable_ended": 0.5, "live": 0.1, "mixed": 0.1, "wrong": 0.6},
        {"live": 0.25},
        {"questions": 8, "group_size": 2},
    ],
)
def test_thresholds_themselves_are_still_fine(change):
    found = verdict(**change)
    assert found.go and all("teach" in text for text in found.cautions)


def test_replacing_dead_groups_is_not_advised_to_who_does_it():
    plan = replace(PLAN, replace_dead_groups=2)
    (text,) = verdict(plan=plan, live=0.0, right=1.0, mixed=0.0, wrong=0.0).reasons
    assert "--replace-dead-groups" not in text and "harder" in text


GB = 1_000_000_000


@pytest.mark.parametrize(
    "change, plan, is_go, words",
    [
        ({"peak_bytes": 8 * GB}, {}, True, None),
        ({"peak_bytes": 9 * GB}, {}, True, "less, use --token-budget 650"),
        ({"peak_bytes": 10 * GB}, {}, False, "takes 10.00 GB of 10.00 GB that can be had; use --t"),
        # On a CPU the system would end the process; elsewhere the training halves by itself.
        ({"budget_tokens": 325}, {}, False, "of 1300 tokens do not fit into the memory; use --to"),
        ({"budget_tokens": 325, "halves": True}, {}, True, "use --token-budget 325"),
        ({"fits": False, "peak_bytes": 12 * GB}, {}, False, "smaller --max-tokens (160) or model"),
        ({"fits": False}, {"can_quantize": True}, False, "or --quantize 4bit"),
    ],
)
def test_memory(change, plan, is_go, words):
    found = verdict(replace(LEARNING, **change), replace(PLAN, **plan))
    texts = found.reasons + found.cautions
    assert found.go is is_go and len(texts) == (words is not None)
    assert words is None or words in texts[0]
    assert ("4bit" in "".join(texts)) == ("can_quantize" in plan)


def test_a_budget_that_holds_no_step_is_a_no_go():
    # A step takes 4 + (8 + 1 / 3) * 690 / 2600 = 6.2 s, two validations 18.8 s.
    (text,) = verdict(plan=replace(PLAN, budget_seconds=25.0)).reasons
    assert "take 25 s, which is more than --budget" in text
    assert verdict(plan=replace(PLAN, budget_seconds=25.1)).go


def test_no_end_in_sight_asks_for_four_times_as_much():
    assert needed_tokens(100, 1.0, None) == 416  # 400 in whole multiples of 32


def test_the_report_by_hand():
    lines = report(PROBE, LEARNING, PLAN, NOON)
    # Step: 16 questions of 2 s / 8, and half of 16 groups of 690 tokens and a third of one at
    # 2600 tokens/s: 4 + (5520 + 230) / 2600 = 6.21 s. Validation: 200 * 0.25 s * 130 / 690.
    assert lines == [
        "probe    8 questions x 8 samples, reward 0.500",
        "lengths  p50 80, p95 110 of at most 160 tokens; cut off 0%",
        "reading  unreadable 5% (empty 1%, no_close 4%)",
        "groups   all right 25%, mixed 50%, all wrong 25%",
        "speed    sampling 2,560 tokens/s, learning 2,600 tokens/s",
        "memory   sampling 0.50 GB, learning 0.60 GB of 10.00 GB, 1300 tokens learned at once",
        "time     step 6.2 s, validation 9.4 s, run of 32 steps and 5 validations 4 min: "
        "until 2026-01-02 12:04",
        "GO",
    ]


def test_a_no_go_ends_with_its_reasons():
    lines = report(replace(PROBE, truncated=0.9), replace(LEARNING, seconds=0.0), PLAN, NOON)
    assert lines[-2] == "NO-GO" and lines[-1].startswith("  90% of the completions")
    assert "learning not measured" in "\n".join(lines)


def test_in_short_it_is_three_lines_and_the_warnings():
    assert len(brief(PROBE, LEARNING, PLAN, NOON)) == 3
    few = replace(PROBE, truncated=0.9, questions=1)
    lines = brief(few, LEARNING, PLAN, NOON)
    assert all(line.startswith("probe: ") for line in lines[:3])
    assert len(lines) == 5 and all(line.startswith("warning: ") for line in lines[3:])
