"""benchmarks/sharpening.py: what it runs, what it does not run again, and its table."""

import json
import sys
from pathlib import Path

import pytest

from rlm.evaluation.sharpening import Sampled, pass_at_k_metrics

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import sharpening  # noqa: E402


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The commands that are run: each writes what its script would, without a model."""
    commands = []

    def once(command: str) -> float:
        words = command.split()
        commands.append(words[1])
        if "--output" in words:
            place = tmp_path / words[words.index("--output") + 1]
            place.mkdir(parents=True, exist_ok=True)
            (place / "manifest.json").write_text("{}")
        else:
            run = tmp_path / "runs" / words[words.index("--run") + 1]
            run.mkdir(parents=True, exist_ok=True)
            models = [Sampled("sft_lora", [2] * 20, 8), Sampled("final_rlm_lora", [8] * 20, 8)]
            made = {"asked": {"seed": 0}, "pass_at_k": pass_at_k_metrics(models)}
            (run / "comparison.json").write_text(json.dumps(made))
        return 1.5

    monkeypatch.setattr(sharpening, "ROOT", tmp_path)
    monkeypatch.setattr(sharpening, "once", once)
    return commands


def test_what_is_there_is_not_made_again(tmp_path, ran):
    path = tmp_path / "found.json"
    words = ["--tasks", "addition", "--questions", "20", "--samples", "8", "--output", str(path)]
    stages = ["train_sft.py", "train_grpo.py", "evaluate.py"]
    assert sharpening.main([*words, "--seeds", "1"]) == 0 and ran == stages
    assert sharpening.main([*words, "--seeds", "0", "1"]) == 0 and ran == stages * 2
    found = json.loads(path.read_text())
    assert [each["seed"] for each in found["results"]] == [0, 1]
    # Without its result the adapters are still there; without the start both are made again.
    path.write_text(json.dumps(found | {"results": found["results"][:1]}))
    assert sharpening.main([*words, "--seeds", "1"]) == 0 and ran == [*stages * 2, "evaluate.py"]
    path.unlink()
    (tmp_path / "weights/sharpening/addition-1/sft_lora/manifest.json").unlink()
    assert sharpening.main([*words, "--seeds", "1"]) == 0 and ran[7:] == stages


def test_other_numbers_do_not_mix(tmp_path, ran, capsys):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"questions": 200, "samples": 64, "results": []}))
    with pytest.raises(SystemExit) as stopped:
        sharpening.main(["--samples", "8", "--output", str(path)])
    assert stopped.value.code == 2 and not ran
    assert "has 200 questions with 64 samples; give another file" in capsys.readouterr().err


def test_a_row_a_part_and_its_sentence(tmp_path, ran):
    path = tmp_path / "found.json"
    assert sharpening.table(path).startswith("Not measured yet")
    words = ["--tasks", "word_problems", "--seeds", "2", "--questions", "20", "--samples", "8"]
    sharpening.main([*words, "--output", str(path)])
    lines = sharpening.table(path).splitlines()
    assert lines[0] == "|  | pass@1 | pass@8 |"
    # 2 of 8 in every question, then 8: no question is left to gain in 8 tries.
    assert lines[2] == (
        "| word problems, seed 2 | 25.0 → 100.0: +75.0 [+75.0, +75.0] "
        "| 100.0 → 100.0: +0.0 [+0.0, +0.0] |"
    )
    assert lines[4].startswith("- word problems, seed 2: pass@1 rose, pass@8 stayed within noise")
    assert lines[4].endswith("Questions left to gain: 0 of 20, too few for pass@8 to be seen "
                             "to rise.")  # fmt: skip
    assert lines[-1].startswith("Measured on ") and ", 1 thread, torch " in lines[-1]


def test_a_command_is_timed_and_its_failure_ends_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(sharpening, "ROOT", tmp_path)
    (tmp_path / "busy.py").write_text("import sys, time\nwhile time.process_time() < 0.3: pass\n"
                                      "sys.exit(len(sys.argv) - 1)\n")  # fmt: skip
    assert 0.3 <= sharpening.once("python busy.py") < 3
    with pytest.raises(Exception, match="non-zero exit status 1"):
        sharpening.once("python busy.py one")
