"""Several draws of each template: how files are read, and the spread worked out by hand."""

import json

import pytest

from rlm.errors import InputError
from rlm.evaluation.measure import Evaluation
from rlm.evaluation.robustness import read_draws, symbolic_card, symbolic_metrics, symbolic_rows


def write(path, *objects) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return str(path)


def line(template, number: int, **more) -> dict:
    answer = f"{number} + 1 = <<{number}+1={number + 1}>>{number + 1}\n#### {number + 1}"
    return {"template_id": template, "question": f"{number} and 1?", "answer": answer} | more


def test_a_folder_with_numbered_draws(tmp_path):
    write(tmp_path / "a.jsonl", line("t1", 1), line("t2", 2))
    write(tmp_path / "b.jsonl", line("t1", 3), line("t2", 4))
    found = read_draws(str(tmp_path))
    assert [(e.template, d, e.gold) for e, d in zip(found.examples, found.draws, strict=True)] == [
        ("t1", "0", "2"), ("t2", "0", "3"), ("t1", "1", "4"), ("t2", "1", "5")]  # fmt: skip
    assert found.examples[0].id == "t1~0" and found.examples[0].steps == 1


def test_fields_as_gsm_symbolic_has_them(tmp_path):
    lines = [
        {"id": 7, "instance": i, "question": f"{i}?", "answer": f"#### {i}", "original_id": 70}
        for i in (0, 1, 2)
    ]
    found = read_draws(write(tmp_path / "s.jsonl", *lines))
    assert found.draws == ["0", "1", "2"] and {e.template for e in found.examples} == {"70"}


@pytest.mark.parametrize(
    "lines, said",
    [
        ([{"question": "1?", "answer": "1"}], r"s.jsonl:1: no template; name it in .*template_id"),
        ([line("t", 1, draw=3), line("t", 2, draw=3)], r"s.jsonl:2: draw 3 of template t once mo"),
        ([line("t", 1), line("u", 2)], "no template has two questions"),
        ([line("t", 1), {"template": "t", "question": "?", "answer": "many"}], "s.jsonl:2"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(tmp_path, lines, said):
    with pytest.raises(InputError, match=said):
        read_draws(write(tmp_path / "s.jsonl", *lines))


def answered(found, *right: int) -> Evaluation:
    names = {1: "right", 0: "wrong"}
    return Evaluation("m", [{"id": e.id, "verdict": names[r], "last_number": bool(r)}
                            for e, r in zip(found.examples, right, strict=True)], {})  # fmt: skip


def test_the_spread_by_hand(tmp_path):
    # t1: right 1 1 0, t2: right 1 0 0; so the draws have 2/2, 1/2 and 0/2
    lines = [line(t, i * 10 + n, draw=i) for i in range(3) for n, t in enumerate(("t1", "t2"))]
    found = read_draws(write(tmp_path / "s.jsonl", *lines))
    metrics = symbolic_metrics(found, answered(found, 1, 1, 1, 0, 0, 0))
    assert metrics["accuracy"]["count"] == 3
    evaluation = answered(found, 1, 1, 1, 0, 0, 0)
    for row in evaluation.rows[:5]:
        row["last_number"] = True
    assert symbolic_metrics(found, evaluation)["lenient"]["count"] == 5
    one = metrics["by_template"]["t1"]
    assert one["draws"] == 3 and one["mean"] == pytest.approx(2 / 3)
    # (1/9 + 1/9 + 4/9) / 2 = 1/3
    assert one["deviation"] == pytest.approx((1 / 3) ** 0.5)
    draws = metrics["by_draw"]
    assert draws["accuracy"] == {"0": 1.0, "1": 0.5, "2": 0.0}
    assert draws["mean"] == 0.5 and draws["deviation"] == pytest.approx(0.5)
    # by chance: sqrt(1/3 + 1/3) / 2 templates
    assert metrics["expected"] == pytest.approx((2 / 3) ** 0.5 / 2)
    text = symbolic_card([metrics], {"data": "s"})
    assert (
        "| m     | 50.0 [18.8, 81.2] | 50.0 [18.8, 81.2] | 3     | 50.0 | 50.0      | 40.8      |"
        in text
    )
    assert "| t1       | 3     | 66.7    | 57.7      |" in text
    assert [r["draw"] for r in symbolic_rows(found, [answered(found, 1, 1, 1, 0, 0, 0)])] == list(
        "001122"
    )


def test_only_whole_draws_have_a_spread(tmp_path):
    found = read_draws(write(tmp_path / "s.jsonl", line("t", 1), line("t", 2), line("u", 3)))
    metrics = symbolic_metrics(found, answered(found, 1, 0, 1))
    assert metrics["by_draw"]["draws"] == 1 and metrics["by_draw"]["deviation"] is None
    assert metrics["expected"] is None
    assert "| too few" in symbolic_card([metrics], {})
