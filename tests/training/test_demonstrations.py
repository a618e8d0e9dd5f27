"""The base's own right answers: which are kept, how they are rewritten, where they lie."""

import json

import pytest

import config
import data
from rlm.data.readers import parse_line
from rlm.errors import InputError
from rlm.models.prompts import written_turn
from rlm.records import Example, Rollout
from tests.support.running import ROOT, start, succeed
from training import demonstrations
from training.demonstrations import choose, is_right, kept, line, read, rewritten

EXAMPLE = Example("q-1", "Calculate 23 + 15 + 8", "46")
WORKED = "23 + 15 = 38, and 38 + 8 = 46."


def rollout(text: str, tokens: int = 1, finish: str = "stop") -> Rollout:
    return Rollout([1] * tokens, [0.0] * tokens, text, finish)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (WORKED, True),  # two numbers and no statement: the last number decides
        (f"{WORKED}\n#### 46", True),
        ("The answer is 46, which took 2 sums.", False),  # a statement that cannot be read
        ("The answer is 46. I checked it 2 times.", True),  # what is stated goes before 2
        ("The answer is 12. No: 23 + 15 + 8 = 46", False),
        ("I do not know.", False),
    ],
)
def test_what_is_right_in_own_words(text, right):
    assert is_right(EXAMPLE, text) == right


@pytest.mark.parametrize(
    ("text", "solution"),
    [
        (f" {WORKED}\n", WORKED),
        (f"{WORKED}\n\n#### 46", WORKED),
        (f"#### First\n{WORKED}", f"#### First\n{WORKED}"),
        (f"#### First\n{WORKED}\n#### 46\n", f"#### First\n{WORKED}"),
        (f"{WORKED}\u2028So it is.", f"{WORKED}\u2028So it is."),
        ("46", None),  # nothing is worked out
        ("#### 46", None),
        ("So the answer is 46.", None),
        (f"<think>{WORKED}", None),  # a tag of the format
        (f"{WORKED}</think>\n46", WORKED),  # tags are taken off, as those of data are
        (f"{WORKED}\0", None),
        (f"{WORKED}\ud800", None),
    ],
)
def test_an_answer_becomes_a_solution(text, solution):
    made = rewritten(EXAMPLE, text, "think")
    assert (made and made.solution) == solution
    if made:
        assert (made.id, made.question, made.gold) == ("q-1", EXAMPLE.question, "46")
        assert written_turn(made, "think") == f"<think>\n{solution}\n</think>\n46"
        assert read(line(made), "x") == [made], "as it is read back"


@pytest.mark.parametrize(
    ("kind", "gold", "accepted", "text"),
    [
        ("choice", "B", (), "The sky has no clouds today, so it is blue.\n\nAnswer: B"),
        ("text", "Paris", ("paris, France",), "The largest city of France is it.\n#### Paris"),
    ],
)
def test_answers_that_are_no_numbers(kind, gold, accepted, text):
    example = Example("c", "Which?\nA. red\nB. blue", gold, kind=kind, accepted=accepted)
    assert is_right(example, text)
    made = rewritten(example, text, "think")
    assert (made.kind, made.gold, made.accepted) == (kind, gold, accepted)
    assert made.solution == text.partition("\n####")[0].strip()
    assert rewritten(example, f"Answer: {gold}", "think") is None, "nothing is worked out"


def test_the_shortest_or_the_first_of_those_that_will_do_is_kept():
    group = [
        rollout("46", 1),  # works nothing out
        rollout(f"{WORKED} long", 9),
        rollout(f"{WORKED} short", 5),
        rollout(f"{WORKED} cut", 2, "length"),
        rollout("23 + 15 + 8 = 47", 3),
    ]
    assert choose(EXAMPLE, group, "xml", "shortest").solution == f"{WORKED} short"
    assert choose(EXAMPLE, group, "xml", "first").solution == f"{WORKED} long"
    assert choose(EXAMPLE, group[3:], "xml", "first") is None


def test_the_file_is_what_task_jsonl_reads(tmp_path):
    headed = rewritten(EXAMPLE, f"#### First\n{WORKED}", "think")
    lines = [line(headed)] + [line(Example(f"{i}", f"{i} + 1?", f"{i + 1}", f"{i} + 1"))
                              for i in range(8)]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(lines), encoding="utf-8")
    assert parse_line(lines[0].encode(), "x")["solution"].endswith("\n#### 46")
    place = str(tmp_path / "d.jsonl")
    found = [e for split in data.SPLITS for e in data.load_examples("jsonl", split, data=place)]
    assert len(found) == 9
    assert headed.solution in [e.solution for e in found if e.question == EXAMPLE.question]


def test_a_file_that_was_changed_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config.SFTSettings(demonstrations="own", run="r")
    folder = tmp_path / "runs/r"
    folder.mkdir(parents=True)
    assert kept(settings) is None
    text = line(rewritten(EXAMPLE, WORKED, "think"))
    (folder / demonstrations.NAME).write_text(text)
    beside = {"asked": 3, "with": {"seed": 0}, "sha256": demonstrations._digest(text)}
    (folder / demonstrations.BESIDE).write_text(json.dumps(beside))
    assert kept(settings) == beside | {"text": text}
    assert kept(config.SFTSettings(demonstrations="own", run="r", resume="never")) is None
    assert kept(config.SFTSettings(run="r")) is None
    (folder / demonstrations.NAME).write_text(text + text)
    assert kept(settings) is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--own-samples", "2"], "--own-samples 2: only with --demonstrations own"),
        (["--demonstrations", "own", "--task", "orchestrator"], "random graphs"),
        (["--demonstrations", "own", "--own-temperature", "0"], "--own-samples 4: greedy"),
        (["--demonstrations", "mine"], "human | own"),
    ],
)
def test_wrong_input_is_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        config.load(config.SFTSettings, words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and told in error and error.count("\n") == 1


def test_without_solutions_the_way_out_is_named():
    with pytest.raises(InputError, match="--demonstrations own"):
        demonstrations.human([EXAMPLE], config.SFTSettings())


@pytest.mark.slow
def test_a_killed_run_on_ones_own_rows_goes_on_with_what_was_sampled(tmp_path):
    rows = [{"question": f"Calculate {i} + {i + 9} + 3", "answer": 2 * i + 12} for i in range(9)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task", "jsonl", "--data", "mine.jsonl", "--demonstrations", "own", "--run", "r"]
    words += ["--max-steps", 2, "--own-samples", 2, "--eval-samples", 4, "--max-tokens", 100]
    killer = ROOT / "tests/support/dying.py"
    # Writes to the disk: settings.json, then each file of the demonstrations, with two each.
    done = start(killer, 7, ROOT / "train_sft.py", *words, cwd=tmp_path)
    assert done.returncode == 137 and "sampled now" in done.stderr, done.stderr
    sampled = (tmp_path / "runs/r/demonstrations.jsonl").read_bytes()
    done = succeed("train_sft.py", *words, cwd=tmp_path)
    assert "sampled before" in done.stderr and "questions asked" not in done.stderr
    assert (tmp_path / "runs/r/demonstrations.jsonl").read_bytes() == sampled
    manifest = json.loads((tmp_path / "weights/sft_lora/manifest.json").read_text())
    count = sampled.count(b"\n")
    about = {"kind": "own", "count": count, "questions": 7, "samples": 2}
    assert manifest["demonstrations"] == about and 0 < count <= 7
    # Another seed samples anew; nothing right is told, with what to do.
    bad = [*words[:-1], 1, "--output", "other", "--overwrite", "--seed", 1]
    done = start("train_sft.py", *bad, cwd=tmp_path, forked=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "error: --demonstrations own: none of 7 questions gave one: of 14 samples 0 were right and "
        "100% cut off at --max-tokens 1; use"
    )
