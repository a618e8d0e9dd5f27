"""GRPO through the command line on rows of every kind, with a reward file and hostile answers."""

import csv
import json

import pytest

import train_grpo
from rlm.engine.engine import Engine
from tests.support.running import ROOT

HANGS, EATS = r"9^{9^{9^{9}}}", r"\frac{10^{10^{10}}}{2^{10^{10}}}x"
ROWS = [
    {
        "question": "What is the sine of 45 degrees?",
        "answer": r"\frac{\sqrt{2}}{2}",
        "kind": "math",
    },
    {"question": "Which is it?", "choices": ["3", "4"], "answer": "B", "kind": "choice"},
    {
        "question": "What is the capital of France?",
        "answer": ["Paris", "City of Paris"],
        "kind": "text",
    },
    {"question": "What is 2 + 2?", "answer": "4"},
]
# By what the question holds: right, right in other words, wrong, none.
SAID = {
    "sine": [HANGS, EATS, r"\frac{1}{\sqrt{2}}", r"\sqrt{3}"],
    "Which": ["(B)", "4", "A", "A or B"],
    "capital": ["paris.", "The City of Paris", "Rome", "Paris or Rome"],
    "What is 2 + 2": ["4", "4.0", "5", "4 or 5"],
}


@pytest.mark.slow
def test_grpo_on_rows_of_every_kind_survives_what_hangs_and_eats_memory(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tiny_base").symlink_to(ROOT / "weights/tiny_base")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, question in (("validation", "What is 3 + 3?"), ("test", "What is 2 + 4?")):
        held_out = json.dumps({"question": question, "answer": "6"}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(held_out, encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def brevity(example, text, format_name):\n"
        "    return None if example.kind == 'text' else 1 / len(text)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    generate = Engine.generate

    def hostile(self, prompts, samples, sampling, **options):
        groups = generate(self, prompts, samples, sampling, **options)
        for prompt, group in zip(prompts, groups, strict=True):
            asked = self.tokenizer.decode(prompt.ids)
            said = next((texts for word, texts in SAID.items() if word in asked), None)
            for rollout, text in zip(group, said if said and samples == 4 else (), strict=False):
                object.__setattr__(rollout, "text", f"<think>\nSo.\n</think>\n{text}")
                object.__setattr__(rollout, "finish", "stop")
        return groups

    monkeypatch.setattr(Engine, "generate", hostile)
    words = "--task jsonl --data . --adapter none --group-size 4 --questions-per-step 4"
    words += (
        " --max-steps 2 --max-tokens 12 --probe 0 --eval-every 0 --save-every 0 --threads 1 --quiet"
    )
    words += " --math-seconds 1 --reward-file mine.py --rewards correctness=1,brevity=0.001"
    assert train_grpo.main(words.split()) == 0
    with open("runs/grpo/log.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] != "0"]
    assert [row["unjudged_completions"] for row in rows] == ["2", "2"]
    with open("runs/grpo/rollouts.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    first = [r for r in records if r["step"] == 1]
    sine = [r for r in first if "sine" in r["question"]]
    assert [r["judged"] for r in sine] == [False, False, True, True]
    assert [r["advantage"] for r in sine[:2]] == [0, 0]
    assert sine[2]["advantage"] > 0 > sine[3]["advantage"]
    for word in ("Which", "capital", "What is 2 + 2"):
        parts = [r["parts"] for r in first if word in r["question"]]
        assert [p["correctness"] for p in parts] == [1.0, 1.0, 0.0, 0.0], word
        assert ("brevity" in parts[0]) == (word != "capital")
    assert float(rows[0]["reward_correctness"]) == 7 / 14  # 16 completions, 2 of them unjudged
