"""Worked examples: who may be one, that nobody is asked them, and that an adapter keeps its own."""

import ast
import json
import re
from dataclasses import replace

import pytest

import config
import data
from rlm.answers import formats
from rlm.data.splits import question_key, split_of
from rlm.errors import InputError
from rlm.export import model_card
from rlm.models import prompts
from rlm.models.lookup import adapter_shots, shots_of
from rlm.records import Example

ROWS = [{"question": "1 + 1?", "answer": "2", "solution": "1 + 1 = 2"},
        {"question": "2 + 3?", "answer": "5", "solution": "2 + 3\n#### two\n= 5"}]  # fmt: skip


def settings(cls=config.SFTSettings, **given):
    return cls(adapter="none", **given)


def adapter(folder, rows=ROWS, **facts):
    """Write what the settings look at of an adapter's folder."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "weights/tiny_base"}')
    manifest = {"format": "xml", **facts} | ({"shots": rows} if rows else {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("task", ["addition", "word_problems", "mixed"])
def test_they_are_drawn_from_the_training_split_by_the_seed(task):
    given = {"task": task, "shots": 3, "terse_fraction": 1.0}
    shots = data.worked_examples(settings(**given))
    assert len(shots) == 3 and {split_of(e.question) for e in shots} == {"train"}
    assert all(len(e.solution) > 10 for e in shots), "they show how, whatever the terse fraction"
    assert data.worked_examples(settings(**given)) == shots
    assert data.worked_examples(settings(**given, seed=1)) != shots
    # A script without training data, for the same task, draws the same ones.
    evaluation = config.EvaluateSettings(task=task, shots=3, models=["base"])
    assert data.worked_examples(evaluation) == shots
    assert data.worked_examples(settings(task=task)) == []


def test_no_question_is_a_worked_example_and_asked(tmp_path):
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i, "solution": f"{i} + {i}"}
            for i in range(12)]  # fmt: skip
    place = write(tmp_path / "mine.jsonl", *rows)
    given = {"task": "jsonl", "data": place, "num_samples": 0}
    whole, validation = data.training_sets(settings(**given))
    train, same = data.training_sets(settings(**given, shots=4))
    shots = data.worked_examples(settings(**given, shots=4))
    assert len(shots) == 4 and same == validation and set(shots) <= set(whole)
    assert train == [e for e in whole if e not in shots]
    with pytest.raises(InputError, match=r"--shots .*no other training question is left"):
        data.training_sets(settings(**given, shots=len(whole)))
    with pytest.raises(InputError, match=f"{len(whole)} training questions .*--shots {len(whole)}"):
        data.worked_examples(settings(**given, shots=len(whole) + 1))


def test_without_solutions_there_are_none(tmp_path):
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i} for i in range(9)]
    given = {"task": "jsonl", "data": write(tmp_path / "mine.jsonl", *rows)}
    with pytest.raises(InputError, match=r"--shots 1: 0 training questions .*use --shots 0"):
        data.worked_examples(settings(**given, shots=1))
    worked = {"question": "a?", "answer": 1, "solution": "1 is 1"}
    only = write(tmp_path / "one.jsonl", worked)
    assert data.worked_examples(settings(task="jsonl", data=only, shots=1, format="xml"))


def test_an_adapters_own_go_before_drawn_ones(tmp_path):
    place = adapter(tmp_path / "a")
    found = data.worked_examples(settings(shots=2), [None, place])
    assert [(e.question, e.gold, e.solution) for e in found] == [tuple(r.values()) for r in ROWS]
    drawn = data.worked_examples(settings(shots=2))
    assert found != drawn
    assert data.worked_examples(settings(shots=1), [place]) == data.worked_examples(
        settings(shots=1)
    ), "another number is drawn"
    # A question of the adapter's is not asked again, wherever it stands.
    held = write(tmp_path / "mine.jsonl", *ROWS, *({"question": f"{i}?", "answer": i,
                 "solution": "so"} for i in range(9)))  # fmt: skip
    given = {"task": "jsonl", "data": held, "num_samples": 0}
    theirs = {question_key(row["question"]) for row in ROWS}

    def asked(**more) -> set:
        both = data.training_sets(config.GRPOSettings(**given, **more))
        return {question_key(e.question) for part in both for e in part}

    assert asked(adapter=place, shots=2) == asked(adapter="none") - theirs < asked(adapter="none")


def test_a_worked_example_keeps_the_kind_of_its_answer():
    (one, other) = shots_of({"shots": [ROWS[0] | {"kind": "choice", "answer": "B"}, ROWS[1]]})
    assert (one.kind, other.kind) == ("choice", "number")
    assert prompts.written_turn(one, "xml").endswith("<answer>\nB\n</answer>")


@pytest.mark.parametrize("rows", ["x", [1], [{}], [ROWS[0] | {"solution": ""}], {"a": 1}])
def test_a_manifest_that_cannot_be_read_has_none(rows):
    assert shots_of({"shots": rows}) == [] == shots_of({})


def test_the_adapters_number_is_the_default_of_every_script(tmp_path):
    place, bare = adapter(tmp_path / "a"), adapter(tmp_path / "b", rows=None)
    assert adapter_shots(place)[0] == Example("shot-0", "1 + 1?", "2", "1 + 1 = 2")
    for cls in (config.GRPOSettings, config.InferenceSettings, config.ServeSettings):
        assert cls(adapter=place).shots == 2 and cls(adapter=place, shots=0).shots == 0
        assert cls(adapter=bare).shots == 0
    assert config.SFTSettings().shots == 0 == config.GRPOSettings(adapter="none").shots
    assert config.EvaluateSettings(models=["base", place]).shots == 2
    with pytest.raises(InputError, match="adapters of 0 and 2 worked examples"):
        config.EvaluateSettings(compare=[bare, place]).check_values()


def test_the_adapters_place_of_the_instruction_is_the_default(tmp_path, monkeypatch):
    place = adapter(tmp_path / "a", instruction_role="user")
    old = adapter(tmp_path / "old")
    monkeypatch.setitem(formats.FORMATS, "xml", replace(formats.XML, instruction_role="both"))
    for cls in (config.GRPOSettings, config.InferenceSettings, config.ServeSettings):
        assert cls(adapter=place).role == "user"
        assert cls(adapter=place, instruction_role="system").role == "system"
        assert cls(adapter=old).role == "system", "a manifest that does not say"
        assert cls(adapter="none", format="xml").role == "both", "the format's"
    with pytest.raises(InputError, match="instruction roles system and user"):
        config.EvaluateSettings(compare=[old, place]).check_values()


def test_the_card_shows_how_it_is_asked():
    manifest = {"base": "b", "format": "xml", "export": {"kind": "adapter", "lora": {}},
                "shots": ROWS[:1], "instruction_role": "both"}  # fmt: skip
    card = model_card.write(manifest, "a", local=False)
    code = re.search(r"^chat = (.*)$", card, re.M)[1]
    told = formats.XML.instruction
    assert ast.literal_eval(code) == [
        {"role": "system", "content": told},
        {"role": "user", "content": f"1 + 1?\n\n{told}"},
        {"role": "assistant", "content": formats.render(formats.XML, "1 + 1 = 2", "2")},
        {"role": "user", "content": f"{model_card.QUESTION}\n\n{told}"},
    ]
    assert "these worked examples" in card and "also stands behind each question" in card


def test_what_was_trained_on_is_made_again_without_them(tmp_path):
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i, "solution": f"{i} + {i}"}
            for i in range(12)]  # fmt: skip
    given = {"task": "jsonl", "data": write(tmp_path / "mine.jsonl", *rows)}
    before = settings(shots=2, num_samples=0, **given)
    train, _ = data.training_sets(before)
    shots = data.worked_examples(before)
    shown = [{"question": e.question, "answer": e.gold, "solution": e.solution} for e in shots]
    manifest = {"settings": before.dump(), "data": data.fingerprint(train), "shots": shown}
    asked = config.EvaluateSettings(models=["base"], **given)
    again, seen, note = data.trained_on(asked, manifest)
    assert again == seen == train and "with the fingerprint that the manifest has" in note
    assert len(data.trained_on(asked, manifest | {"shots": []})[0]) == len(train) + 2


@pytest.mark.parametrize(
    ("cls", "words", "told"),
    [
        (config.SFTSettings, ["--shots", "17"], "--shots 17: out of range; use 0 to 16"),
        (config.GRPOSettings, ["--task", "orchestrator", "--shots", "1"], "no solutions to show"),
    ],
)
def test_wrong_input_is_one_line(cls, words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        config.load(cls, words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and told in error and error.count("\n") == 1


def test_all_stages_of_a_run_have_the_same_number(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("grpo: {shots: 2}\n")
    with pytest.raises(SystemExit):
        config.load(config.TrainSettings, ["--config", str(tmp_path / "c.yaml")])
    assert "shots 0, 2: all stages of a run" in capsys.readouterr().err
    stages = config.TrainSettings(shots=2)
    assert {s().shots for s in (stages.sft, stages.grpo, stages.evaluate)} == {2}
