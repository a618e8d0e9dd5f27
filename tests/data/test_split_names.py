"""Which split a file is by its name, and that what says evaluation is never trained on."""

import json
from pathlib import Path

import pytest

import data
from rlm.data.sources import split_files
from rlm.data.split_names import said, splits_of
from rlm.errors import InputError


def write(folder: Path, **files: int) -> str:
    """Write files of so many questions each, no question in two of them; "__" is a folder's end."""
    start = 0
    for name, count in files.items():
        path = folder / (name.replace("__", "/") + ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"What is {i} + 1?", "answer": i + 1}
                for i in range(start, start + count)]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        start += count
    return str(folder)


@pytest.mark.parametrize(
    "name, split",
    [
        ("train", "train"),
        ("TRAIN_1", "train"),
        ("training", "train"),
        ("trainset-v2", "train"),
        ("my.train", "train"),
        ("test-00000-of-00001", "test"),
        ("gsm8k_test", "test"),
        ("gsm8k.test", "test"),
        ("MathTest", "test"),
        ("testset2", "test"),
        ("TestData", "test"),
        ("holdout", "test"),
        ("hold-out", "test"),
        ("heldOut", "test"),
        ("mine_held_out_v3", "test"),
        ("benchmark", "test"),
        ("val", "validation"),
        ("valid2", "validation"),
        ("validation", "validation"),
        ("my-validation-set", "validation"),
        ("dev", "validation"),
        ("devset", "validation"),
        ("eval", "eval"),
        ("evaluation_data", "eval"),
        ("math_evals", "eval"),
        ("train_val", "validation"),
        ("eval_of_training", "eval"),
        ("mine", None),
        ("testament", None),
        ("latest", None),
        ("contest", None),
        ("values", None),
        ("retrained", None),
        ("medieval", None),
        ("data", None),
    ],
)
def test_what_a_name_says(name, split):
    assert said(name) == split


@pytest.mark.parametrize(
    "names, splits",
    [
        (("train", "eval"), ("train", "test")),
        (("train", "eval", "test"), ("train", "validation", "test")),
        (("train", "dev", "eval"), ("train", "validation", "test")),
        (("train/a", "test/a", "b"), ("train", "test", None)),
        (("train/test_part", "test/train_part"), ("test", "test")),
    ],
)
def test_evaluation_is_the_test_unless_another_file_is(names, splits):
    files = [Path("root") / f"{name}.jsonl" for name in names]
    assert tuple(splits_of(files, Path("root")).values()) == splits


def test_the_folder_itself_says_nothing(tmp_path):
    place = write(tmp_path / "test", mine=1)
    assert list(split_files(place).values()) == [None]


@pytest.mark.parametrize("name", ["eval", "gsm8k_test", "holdout", "my_dev_set", "test__part"])
def test_what_is_held_out_by_name_is_never_trained_on(tmp_path, name):
    place = write(tmp_path, train=40, **{name: 20})
    held_out = {f"What is {i} + 1?" for i in range(40, 60)}
    sets = {split: data.load_examples("jsonl", split, data=place) for split in data.SPLITS}
    assert not held_out & {e.question for e in sets["train"]}
    assert held_out <= {e.question for split in data.SPLITS[1:] for e in sets[split]}


def test_files_named_after_a_split_are_that_split(tmp_path, caplog):
    caplog.set_level("INFO", "rlm.data")
    place = write(tmp_path, train_a=1, data__validation=1, test=1)
    (tmp_path / "notes.txt").write_text("not read")
    (tmp_path / "dataset_info.json").write_text('{"features": 2}')
    for split, number in zip(data.SPLITS, (2, 1, 3), strict=True):  # sorted: data, test, train
        (only,) = data.load_examples("jsonl", split, data=place)
        assert only.question == f"What is {[1, 0, 2][number - 1]} + 1?"
    line = f"{place}: by their names train: train_a.jsonl; validation: validation.jsonl; test: "
    assert line + "test.jsonl" in caplog.text


def test_a_name_that_says_nothing_is_named(tmp_path, caplog):
    caplog.set_level("WARNING", "rlm.data")
    place = write(tmp_path, train=30, more=30, eval=5)
    assert data.load_examples("jsonl", "train", data=place)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    text = "more.jsonl: no split in the name, so taken as train and validation, cut by hash"
    assert text in record.getMessage()
    caplog.clear()
    caplog.set_level("INFO", "rlm.data")
    data.load_examples("jsonl", "train", data=f"{place}/more.jsonl")
    assert (
        "no split in its name, so taken as train, validation and test, cut by hash" in caplog.text
    )
    assert "WARNING" not in caplog.text


def test_an_empty_split_tells_how_the_file_was_taken(tmp_path):
    write(tmp_path, my_eval=5)
    with pytest.raises(InputError, match=r"the train split is empty.*test: my_eval\.jsonl"):
        data.load_examples("jsonl", "train", data=f"{tmp_path}/my_eval.jsonl")


def test_folders_with_data_are_named_where_the_folder_itself_has_none(tmp_path):
    write(tmp_path, main__a=1, socratic__a=1)
    with pytest.raises(InputError, match="give one of the folders in it: main, socratic"):
        data.load_examples("jsonl", "train", data=str(tmp_path))
