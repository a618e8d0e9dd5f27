"""Single changes to the recipe: what is run, how runs are compared, what the table says."""

import json
import shlex
import sys
from pathlib import Path
from statistics import stdev

import pytest
from scipy.stats import t as student

import config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = "weights/final_rlm_lora"
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation_tables  # noqa: E402
from ablation_tables import (  # noqa: E402
    STUDENT,
    area,
    draw,
    measured,
    paired,
    picture,
    points,
    rows_drawn,
    table,
    verdict,
)
from ablations import CHANGES, SEEDS, TASKS, Change, changes_of, commands, curve  # noqa: E402


def test_trl_takes_no_tools():
    assert set(CHANGES) - set(changes_of("tools")) == {"trl"}
    assert set(changes_of("addition")) == set(CHANGES)


def test_each_change_is_one_that_the_scripts_take():
    plain = {}
    for name, change in CHANGES.items():
        sft, grpo, test = (shlex.split(c)[1:] for c in commands("addition", name, 3))
        start, end = sft[sft.index("--output") + 1], grpo[grpo.index("--output") + 1]
        assert start == grpo[grpo.index("--adapter") + 1], "GRPO starts from what SFT made"
        assert end == test[test.index("--models") + 1]
        grpo, test = (
            [SHIPPED if w in (start, end) else w for w in words] for words in (grpo, test)
        )
        made = (config.load(config.SFTSettings, sft), config.load(config.GRPOSettings, grpo))
        assert config.load(config.EvaluateSettings, test).seed == 3
        places = ("run", "run_dir", "output", "adapter", "weights")
        values = [{k: v for k, v in m.model_dump().items() if k not in places} for m in made]
        plain[name] = json.dumps(values, sort_keys=True, default=str)
        assert bool(change.sft) == (f"-{name}-" in start)
    assert len(set(plain.values())) == len(CHANGES), "two changes are the same run"


def test_a_change_and_the_default_share_their_start():
    mine, its = (commands("addition", name, 1) for name in ("kl-0.1", "default"))
    assert mine[0] == its[0] and mine[1] != its[1]
    assert commands("addition", "rank-1", 1)[0] != its[0]
    assert all(c.against in CHANGES for c in CHANGES.values())


def test_the_curve_counts_what_was_sampled_between_validations():
    log = [{"step": 0, "validation_accuracy": 0.1}, {"step": 1, "sampled_completions": 8},
           {"step": 2, "sampled_completions": 24, "validation_accuracy": 0.5}]  # fmt: skip
    assert curve(log) == [[0, 0.1], [32, 0.5]]


@pytest.mark.parametrize(
    ("points_", "until", "expected"),
    [
        ([[0, 0.0], [10, 1.0], [20, 1.0]], 20, 0.75),  # (5 + 10) / 20
        ([[0, 0.0], [10, 1.0]], 20, 0.75),  # keeps its last value
        ([[0, 0.0], [20, 1.0]], 10, 0.25),  # cut at 10, where it is at one half
        ([[0, 0.2], [4, 0.6], [30, 0.0]], 4, 0.4),
        ([[0, 0.5]], 8, 0.5),
    ],
)
def test_the_area_is_that_of_straight_lines(points_, until, expected):
    assert area(points_, until) == pytest.approx(expected)


def test_intervals_are_student_s():
    values = [0.1, 0.2, 0.3, 0.25, 0.0]
    mean, half = paired(values)
    assert mean == pytest.approx(0.17)
    assert half == pytest.approx(student.ppf(0.975, 4) * stdev(values) / 5**0.5, rel=1e-3)
    assert {n: round(student.ppf(0.975, n), 3) for n in STUDENT} == STUDENT
    assert paired([0.1])[1] == float("inf")


def test_what_an_interval_says():
    assert verdict(0.02, 0.03) == "within noise" == verdict(-0.02, 0.02)
    assert (verdict(0.02, 0.01), verdict(-0.02, 0.01)) == ("better", "worse")
    assert verdict(*paired([0.0, 0.0])) == "the same" and verdict(0.0, 0.01) == "within noise"
    assert points((0.021, 0.005)) == "+2.1 ± 0.5" and points((0.5, float("inf"))) == "+50.0"


def run(accuracy, curve):
    return {"accuracy": accuracy, "curve": curve, "mean_tokens": 80.0}


def test_a_change_is_compared_with_its_pair_on_common_seeds(tmp_path, monkeypatch):
    runs = {
        "default": {"0": run(0.9, [[0, 0.1], [100, 0.9]]), "1": run(0.8, [[0, 0.1], [100, 0.7]]),
                    "2": run(0.7, [[0, 0.0], [100, 0.5]])},
        "kl-0.1": {"0": run(0.95, [[0, 0.1], [100, 1.0]]), "1": run(0.9, [[0, 0.1], [100, 0.9]])},
        "kl-0.1-reset": {"1": run(0.7, [[0, 0.1], [100, 0.9]])},
    }  # fmt: skip
    found = measured(runs, "kl-0.1", CHANGES["kl-0.1"])
    assert found["seeds"] == 2 and found["lowest"] == 0.9
    assert found["end_change"][0] == pytest.approx((0.05 + 0.1) / 2)
    assert found["area_change"][0] == pytest.approx((0.05 + 0.1) / 2)  # 0.55 - 0.5, 0.5 - 0.4
    other = measured(runs, "kl-0.1-reset", CHANGES["kl-0.1-reset"])
    assert other["end_change"] == (pytest.approx(-0.2), float("inf"))  # against kl-0.1, one pair
    assert measured(runs, "curriculum", Change("", "")) is None
    monkeypatch.setattr(ablation_tables, "PATH", tmp_path / "ablations.json")
    ablation_tables.PATH.write_text(json.dumps({"runs": {"addition": runs}}))
    shown = table("addition")
    assert f"6 of {len(CHANGES) * len(SEEDS)} runs were measured." in shown
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 and "| KL | 0.1 |" in rows[3] and "+7.5" in rows[3]
    assert table("word_problems").startswith("Not measured yet")
    drawn = rows_drawn(runs)
    assert [label for label, _ in drawn] == ["KL: 0.1"]  # the other has one pair, so no interval
    assert picture().startswith("![")
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000
    ablation_tables.PATH.unlink()
    assert not picture().startswith("![") and table("addition").startswith("Not measured yet")
    draw(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_every_task_has_a_recipe_that_is_there():
    assert all((ROOT / made.config).is_file() for made in TASKS.values())
