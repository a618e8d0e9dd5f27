"""Tasks, files and splits: what is read, what is refused and where, and who may see what."""

import json
import socket
import subprocess
import sys
import threading
import time
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from rlm.answers.reading import read_gold
from rlm.data import hub, openmath, readers, sources
from rlm.data.layouts import Reading
from rlm.data.rows import gsm8k_example, own_example
from rlm.data.splits import keys, question_key, split_of, subset
from rlm.errors import InputError
from rlm.records import Example, Score
from rlm.rollouts.batch import Batch

HERE = Path(__file__).parents[1] / "fixtures"
OWN = str(HERE / "own.jsonl")
GSM8K = str(HERE / "gsm8k")
OPENMATH = str(HERE / "openmath")
REAL = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real GSM8K files are not on this machine")


def example(question: str, id: str = "x-1") -> Example:
    return Example(id, question, "1")


def write(folder: Path, *lines: str | bytes) -> str:
    path = folder / "mine.jsonl"
    path.write_bytes(b"\n".join(s if isinstance(s, bytes) else s.encode() for s in lines))
    return str(path)


def own_rows(path: Path) -> list[Example]:
    return [own_example(row, where, where) for where, row in readers.read_jsonl(path)]


# ---- splits ------------------------------------------------------------------------------


def test_key_ignores_what_makes_no_other_question():
    same = ["Add 1,200 + 3.", "add  1200+3", "ADD 1200 +3 ?", " add\t1200 + 3\n"]
    assert {question_key(text) for text in same} == {"add 1200 + 3"}
    assert question_key("a 120-page book") == question_key("A 120 page book!")
    assert question_key("5 − 3") == question_key("5 - 3") == "5 - 3"


@pytest.mark.parametrize(
    "one, other",
    [
        ("5 - 3", "5 + 3"),
        ("take 3 from 5", "take 5 from 3"),
        ("1.5 km", "1 5 km"),
        ("12 and 3", "1 and 23"),
        ("?", "!"),
    ],
)
def test_key_keeps_what_makes_another_question(one, other):
    assert question_key(one) != question_key(other)


@given(st.lists(st.sampled_from(["Tom", "has", "12", "+", "3.5", "größe", "%", "x"]), min_size=1),
       st.sampled_from([str.upper, str.lower, str.title]),
       st.sampled_from([" ", "  ", "\n", "\t ", "\u00a0"]))  # fmt: skip
def test_split_does_not_depend_on_case_or_spacing(words, change, space):
    assert split_of(change(space.join(words))) == split_of(" ".join(words))


def test_shares_of_the_splits():
    # 20,000 questions; the standard deviation of the 5 % shares is 31: five of them are 155,
    # a false alarm once in a million for a random hash (and this one is fixed).
    found = [split_of(f"What is {i} plus 1?") for i in range(20_000)]
    assert abs(found.count("validation") - 1000) < 155
    assert abs(found.count("test") - 1000) < 155
    assert split_of("What is 1 plus 1?") == "train"  # it never moves: adapters depend on it


def test_without_drops_by_normalised_text_and_overlap_is_an_error():
    train = [example("What is 2+2?", "t-1"), example("What is 2+3?", "t-2")]
    held_out = [example("what is  2 + 3")]
    kept, dropped = data.without(train, [], held_out)
    assert [e.id for e in kept] == ["t-1"] and [e.id for e in dropped] == ["t-2"]
    with pytest.raises(InputError, match=r"1 training questions .* t-2"):
        data.check_no_overlap(train, held_out)
    data.check_no_overlap(kept, held_out)


def test_subset_is_nested_ordered_and_moves_with_the_seed():
    examples = [example("q", f"t-{i}") for i in range(100)]
    small, large = subset(examples, 10, 0), subset(examples, 30, 0)
    assert len(small) == 10 and set(small) < set(large)
    assert [e.id for e in large] == sorted((e.id for e in large), key=lambda s: int(s[2:]))
    assert subset(examples, 10, 1) != small
    assert subset(examples, None, 0) == subset(examples, 0, 0) == subset(examples, 200, 0)
    assert subset(examples, 0, 0) == examples


# ---- generated tasks ---------------------------------------------------------------------


@pytest.mark.parametrize("task, options", [("addition", {"digits": (1, 2)}), ("word_problems", {})])
def test_generated_questions_stay_in_their_split_whatever_the_seed(task, options):
    sets = {
        split: data.load_examples(task, split, n=40, seed=seed, **options)
        for seed, split in enumerate(data.SPLITS)
    }
    for split, examples in sets.items():
        assert len(examples) == 40
        assert {split_of(e.question) for e in examples} == {split}
        assert all(read_gold(e.gold) for e in examples)
        assert len({e.id for e in examples}) == 40
    assert data.load_examples(task, "test", n=40, seed=2, **options) == sets["test"]
    assert data.load_examples(task, "test", n=40, seed=3, **options) != sets["test"]


# ---- gsm8k -------------------------------------------------------------------------------


def test_gsm8k_folder_has_its_own_test_and_training_never_sees_it(caplog):
    train, validation, test = (data.load_examples("gsm8k", s, data=GSM8K) for s in data.SPLITS)
    # 48 training rows; of them 7 go to validation by hash, and 1 stands in test.jsonl too.
    assert (len(train), len(validation), len(test)) == (40, 7, 5)
    assert "1 questions of the train split left out" in caplog.text
    data.check_no_overlap(train, validation, test)
    first = train[0]
    assert first.id == "gsm8k-train-1" and first.gold == "12"
    assert first.solution == "Lena now has 7+5 = 12 apples."


def test_gsm8k_from_parquet_is_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name in ("train", "test"):
        rows = [row for _, row in readers.read_jsonl(HERE / "gsm8k" / f"{name}.jsonl")]
        path = tmp_path / f"{name}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for split in data.SPLITS:
        parquet = data.load_examples("gsm8k", split, data=str(tmp_path))
        assert parquet == data.load_examples("gsm8k", split, data=GSM8K)


def test_gsm8k_without_its_mark_names_the_line(tmp_path):
    path = write(tmp_path, '{"question": "1 + 1?", "answer": "It is 2"}')
    with pytest.raises(InputError, match=r"mine\.jsonl:1: 'answer' has no '#### NUMBER'"):
        data.load_examples("gsm8k", "train", data=path)


@real
def test_real_gsm8k_is_read_whole_and_its_splits_are_disjoint():
    sets = [data.load_examples("gsm8k", split, data=str(REAL)) for split in data.SPLITS]
    train, validation, test = sets
    assert len(train) + len(validation) == 7473 and len(test) == 1319
    assert 0.08 < len(validation) / 7473 < 0.12
    data.check_no_overlap(train, validation, test)
    data.check_no_overlap(validation, test)
    for e in (*train, *validation, *test):
        assert "<<" not in e.solution and "####" not in e.solution and "####" not in e.gold
        assert read_gold(e.gold).value is not None
    # The same questions are on the same side when the training file is cut three ways.
    alone = data.load_examples("gsm8k", "train", data=str(REAL / "train.jsonl"))
    assert keys(alone) == keys(train)


# ---- openmath ----------------------------------------------------------------------------


def test_openmath_takes_right_solutions_one_a_question_prose_first(caplog):
    caplog.set_level("INFO", "rlm.data")
    numbers = {"data": OPENMATH, "reading": Reading(kind="number")}
    bakery, beads = data.load_examples("openmath", "train", **numbers)
    assert bakery.gold == "53" and "<llm-code" not in bakery.solution
    assert bakery.solution == (
        "In the bags there are 6 * 8 = 48 rolls. With the 5 that are left he baked 48 + 5 = 53 "
        "rolls."
    )
    assert beads.solution == (
        "There are 12 + 18 = 30 beads in the jar. Half of them is 30 / 2 = 15."
    )
    for word in ("1 wrong", "1 with an answer that is no number", "1 repeated"):
        assert word in caplog.text


def test_openmath_gives_more_solutions_of_a_question_when_asked():
    examples = data.load_examples("openmath", "train", data=OPENMATH, per_question=3)
    # Two of one question, one of another, and one whose answer is no number.
    solutions = [e.solution for e in examples if e.gold == "53"]
    assert len(solutions) == 2 and len({e.id for e in examples}) == 4
    assert solutions[1] == (
        "The bags hold 6 * 8 rolls, and 5 rolls are left over, so we add both.\n\nThis gives 53."
    )


@pytest.mark.parametrize(
    "solution",
    [
        "Let's use Python.\n<llm-code>\nprint(2 * 21)\n</llm-code>\n<llm-code-output>\n42\n"
        "</llm-code-output>\nSo the total is \\boxed{42}.",
        "There are 2 boxes of 21 pens and we add them.\n<llm-code>\nprint(2 * 21)",
        "There are 2 boxes of 21 pens, in all 2 * 21 = \\boxed{42",
        "The answer is \\boxed{42}.",
        "",
    ],
)
def test_openmath_skips_what_is_no_reasoning(solution):
    assert openmath.plain_reasoning(solution) is None


def test_unboxing_keeps_nested_braces():
    assert openmath.unbox("a \\boxed{\\frac{1}{2}} b \\boxed{3}") == "a \\frac{1}{2} b 3"


def test_openmath_stream_stops_when_it_has_enough(monkeypatch):
    seen = []

    def rows(name, split, streaming):
        assert (name, split, streaming) == ("nvidia/OpenMathInstruct-1", "train", True)
        for where, row in readers.read_jsonl(HERE / "openmath" / "solutions.jsonl"):
            seen.append(where)
            yield where, row

    monkeypatch.setattr(sources, "hub_rows", rows)
    (found,) = data.load_examples("openmath", "train", n=1)
    assert found.gold == "53" and len(seen) == 2  # the first row is code alone


# ---- the user's own ----------------------------------------------------------------------


def test_own_examples_are_all_in_exactly_one_split():
    sets = [data.load_examples("jsonl", split, data=OWN) for split in data.SPLITS]
    assert sum(map(len, sets)) == 60
    data.check_no_overlap(sets[0], sets[1], sets[2])
    by_question = {e.question: e for examples in sets for e in examples}
    number = by_question["What is 4 times 5?"]
    assert (number.gold, number.solution) == ("20", "4 times 5 is 20.")
    assert by_question["What is 3 times 5?"].solution is None


@pytest.mark.parametrize("count", [1, 2, 3, 5, 33, 200])
def test_a_few_rows_have_a_validation_where_they_can(tmp_path, count):
    for start in range(0, 3000, 300):  # other questions: the hash leaves other splits without any
        lines = [json.dumps({"question": f"What is {start + i} + 1?", "answer": i}) for i in
                 range(count)]  # fmt: skip
        path = write(tmp_path, *lines, lines[0])  # the first question twice
        sets = [
            data.load_examples("jsonl", split, data=path, may_be_empty=True)
            for split in data.SPLITS
        ]
        assert [bool(found) for found in sets] == [True, count > 1, count > 2]
        assert sum(map(len, sets)) == count + 1
        data.check_no_overlap(*sets)
        # Two of the splits may take what is missing from training, and nothing else moves.
        moved = [e for split, found in zip(data.SPLITS, sets, strict=True) for e in found
                 if split_of(e.question) != split]  # fmt: skip
        assert len({e.question for e in moved}) <= 2
        if count == 200:
            assert not moved


def test_without_a_validation_it_trains_and_says_so(tmp_path, caplog):
    options = {"source": "jsonl", "seed": 0, "task_options": dict, "data": write(tmp_path, GOOD)}
    train, validation = data.training_sets(
        SimpleNamespace(eval_samples=200, num_samples=0, adapter=None, shots=0, **options)
    )
    assert (len(train), validation) == (1, [])
    assert "too few questions for a validation" in caplog.text
    assert "adapter of the last step" in caplog.text


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"question": "1 + 1?", "answer": 2}\r',
        b" \r",
        b'{"question": "2 + 2?", "answer": "so 2 + 2 is <<2+2=4>>4 #### 4", "solution": null}\r',
        b"",
    ]
    examples = own_rows(Path(write(tmp_path, *lines)))
    assert [(e.gold, e.solution) for e in examples] == [("2", None), ("4", "so 2 + 2 is 4")]


GOOD = '{"question": "1 + 1?", "answer": "2"}'


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"question": "1 + 1?", "answer"', "not JSON"),
        ("[1, 2]", "a list, not an object"),
        ("12", "a number, not an object"),
        ("null", "a NoneType, not an object"),
        ('{"question": "1 + 1?", "answer": NaN}', "NaN is no number"),
        ('{"question": "1 + 1?"}', "'answer' is missing; there are: 'question'"),
        ('{"question": "", "answer": "2"}', "'question' is empty"),
        ('{"question": " \\n", "answer": "2"}', "'question' is empty"),
        ('{"question": 7, "answer": "2"}', "'question' is a number; it must be text"),
        ('{"question": "1?", "answer": true}', "'answer' is a bool; it must be text or a number"),
        ('{"question": "1?", "answer": [2]}', "'answer' is a list"),
        ('{"question": "1?", "answer": "2", "solution": 3}', "'solution' is a number"),
        ('{"question": "1?", "answer": "two or three"}', "gold answer .* cannot be read"),
        ('{"question": "1?", "answer": "2 or 3"}', "gold answer .* cannot be read"),
        ('{"question": "1?", "answer": "x #### "}', "gold answer"),
        ('{"question": "a\\u0000b", "answer": "2"}', "a NUL"),
        ('{"question": "a\\ud800b", "answer": "2"}', "surrogate"),
        (b'{"question": "a\0b", "answer": "2"}', "a NUL character"),
        (b'{"question": "\xff", "answer": "2"}', r"not UTF-8 \(byte 0xff at 14\)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question": "' + "a" * (1 << 20) + '", "answer": "2"}', "longer than 1 MiB"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(InputError, match=message) as caught:
        data.load_examples("jsonl", "train", data=path)
    text = str(caught.value)
    assert text.startswith(f"{path}:3: ") and "\n" not in text and len(text) < 500


# A fixed path: hypothesis would have to clean up a fixture between its examples.
def refuse_or_read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        examples = own_rows(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
    else:
        assert all(e.question.strip() and read_gold(e.gold) for e in examples)


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_arbitrary_bytes_are_read_or_refused_by_line(tmp_path_factory, content):
    refuse_or_read(tmp_path_factory.getbasetemp() / "any.jsonl", content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ROWS = st.dictionaries(st.sampled_from(["question", "answer", "solution", "#"]), VALUES) | VALUES


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROWS, max_size=4))
def test_arbitrary_json_is_read_or_refused_by_line(tmp_path_factory, rows):
    content = "\n".join(map(json.dumps, rows)).encode()
    refuse_or_read(tmp_path_factory.getbasetemp() / "any.jsonl", content)


def test_numbers_keep_their_digits(tmp_path):
    path = Path(write(tmp_path, '{"question": "?1", "answer": 0.1}',
                      '{"question": "?2", "answer": 10000000000000001}'))  # fmt: skip
    assert [e.gold for e in own_rows(path)] == ["0.1", "10000000000000001"]


# ---- folders, names, empty splits --------------------------------------------------------


def test_wrong_input_is_told_in_one_line(tmp_path):
    empty, few = tmp_path / "empty", write(tmp_path, GOOD)
    empty.mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    cases = [
        (("sums", "train", {}), "--task sums: unknown; choose one of addition, word_problems"),
        (("jsonl", "dev", {"data": OWN}), "split dev: unknown; choose one of train, validation"),
        (("jsonl", "train", {}), "needs --data"),
        (("jsonl", "train", {"data": str(tmp_path / "no")}), "no such file or folder"),
        (("jsonl", "train", {"data": str(empty)}), r"no data files \(jsonl, ndjson, json, csv"),
        (("jsonl", "test", {"data": few}), "the test split is empty"),
        (("jsonl", "train", {"data": str(tmp_path / "broken.parquet")}), "not a readable Parquet"),
        (("jsonl", "train", {"data": OWN, "n": -1}), "-1 examples"),
        (("addition", "train", {"data": OWN, "n": 1}), "makes its own questions"),
        (("addition", "train", {}), "no end; say how many"),
        (("openmath", "train", {"data": OPENMATH, "per_question": 0}), "per_question 0"),
        (("openmath", "train", {"data": OWN}), r"own\.jsonl:1: field 'is_correct'"),
    ]
    for (task, split, options), message in cases:
        with pytest.raises(InputError, match=message) as caught:
            data.load_examples(task, split, **options)
        assert "\n" not in str(caught.value)


def test_settings_know_the_same_tasks():
    import config

    fields = config.SFTSettings.model_fields
    assert typing.get_args(fields["task"].annotation) == (*data.TASKS, "orchestrator")
    assert set(typing.get_args(fields["questions"].annotation)) == set(data.TASKS)


def test_import_is_light():
    heavy = ("torch", "datasets", "transformers", "pyarrow", "jinja2")
    code = f"import data, sys; print([m for m in {heavy} if m in sys.modules])"
    run = {"cwd": HERE.parents[1], "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, "-c", code], **run)
    assert done.stdout.strip() == "[]", done.stderr


# ---- the hub -----------------------------------------------------------------------------


@pytest.fixture
def no_switches(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
                 "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server():
    """Takes connections and gives `answer` to each; `url` is where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = SimpleNamespace(url=f"http://127.0.0.1:{listener.getsockname()[1]}", answer=b"")
        connections = []

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the listener was shut down: the test is over
                    return
                connections.append(connection)
                if found.answer:
                    connection.recv(4096)
                    connection.sendall(found.answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield found
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("task", ["gsm8k", "openmath"])
@pytest.mark.parametrize("kind", ["refuses", "silent", "no name"])
def test_a_hub_that_is_not_there_is_told_within_three_seconds(
    task, kind, monkeypatch, no_switches, server
):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}"
    if kind == "no name":  # a name server that does not answer: resolvers wait 5 to 30 s

        def resolve(*_, **__):
            time.sleep(6)
            raise socket.gaierror("no answer")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    address = {"refuses": refusing, "silent": server.url, "no name": "http://hub.invalid"}[kind]
    monkeypatch.setenv("HF_ENDPOINT", address)
    start = time.perf_counter()
    with pytest.raises(InputError, match=rf"{address} does not answer .*--data FILE or FOLDER"):
        data.load_examples(task, "train", n=4)
    assert time.perf_counter() - start < 3


def test_any_answer_of_the_hub_counts(monkeypatch, no_switches, server):
    server.answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert hub.reachable()


@pytest.mark.filterwarnings("error")  # an error in the thread would be a warning
@pytest.mark.parametrize("address", ["nonsense", "http://[", "http://localhost:port", "ftp://"])
def test_an_address_that_is_none_does_not_answer(address, monkeypatch, no_switches):
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert not hub.reachable()


def test_what_is_no_hub_does_not_answer(monkeypatch, no_switches, server):
    server.answer = b"220 mail.example ESMTP\r\n"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert not hub.reachable()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_switches_are_obeyed_without_asking(name, monkeypatch, no_switches):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the network was asked"))
    with pytest.raises(InputError, match=f"{name} is set .*--data"):
        data.load_examples("gsm8k", "train")


def test_a_copy_in_the_local_cache_is_used(monkeypatch, no_switches, tmp_path):
    import datasets
    from datasets.packaged_modules.json.json import Json

    # What load_dataset("openai/gsm8k", "main") leaves behind: OWNER___NAME/CONFIG/VERSION/HASH.
    cache = tmp_path / "cache"
    files = {name: str(HERE / "gsm8k" / f"{name}.jsonl") for name in ("train", "test")}
    names = {"dataset_name": "gsm8k", "config_name": "main", "hash": "0" * 40}
    Json(cache_dir=str(cache), data_files=files, **names).download_and_prepare()
    config = next((cache / "gsm8k").glob("main*"))
    config.rename(cache / "gsm8k" / "main")
    (cache / "gsm8k").rename(cache / "openai___gsm8k")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in data.SPLITS:
        cached = data.load_examples("gsm8k", split)
        assert cached == data.load_examples("gsm8k", split, data=GSM8K)


# ---- batches -----------------------------------------------------------------------------


def ids(batch) -> list[str]:
    return [e.id for e in batch]


def test_batches_go_over_all_examples_before_any_again():
    examples = [example("q", str(i)) for i in range(10)]
    batches = data.Batches(examples, 4, seed=0)
    drawn = [id for _ in range(5) for id in ids(next(batches))]  # two passes
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(ids(examples))
    assert drawn[:10] != drawn[10:] and drawn[:10] != ids(examples)
    assert ids(next(data.Batches(examples, 4, seed=1))) != drawn[:4]
    assert len(next(data.Batches(examples[:3], 8, seed=0))) == 8


def test_batches_go_on_where_they_were_saved():
    examples = [example("q", str(i)) for i in range(7)]
    whole = data.Batches(examples, 3, seed=5)
    for _ in range(4):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    resumed = data.Batches(examples, 3, seed=5)
    resumed.restore(state)
    assert [ids(next(resumed)) for _ in range(6)] == [ids(next(whole)) for _ in range(6)]
    for other in (data.Batches(examples, 3, seed=6), data.Batches(examples[:6], 3, seed=5)):
        with pytest.raises(InputError, match="the run to resume had"):
            other.restore(state)


def earned(examples, *rates):
    """A batch of rollouts in which so many of four completions of each question are right."""
    scores = [[Score(float(i < 4 * rate)) for i in range(4)] for rate in rates]
    return Batch(examples, [], [[]] * len(examples), scores)


def test_a_curriculum_prefers_what_is_solved_sometimes():
    examples = [example("q", str(i)) for i in range(8)]
    course = data.Curriculum(examples, 2, seed=0)
    assert [course.weight(i) for i in range(2)] == [1.0, 1.0]  # never sampled
    course.observe(earned(examples[:4], 0.5, 1.0, 0.0, 0.25))
    # Of four answers: 6 * 3 * 3 / (6 * 7), 6 * 5 * 1 / 42, the same, 6 * 2 * 4 / 42; none: 6 / 6.
    assert [course.weight(i) for i in range(5)] == pytest.approx([9 / 7, 5 / 7, 5 / 7, 8 / 7, 1])
    course.observe(earned(examples[1:2], 0.5))
    # Half of four right, and two right and two wrong: 6 * 5 * 3 / (8 * 9).
    assert course.weight(1) == pytest.approx(5 / 4)
    for _ in range(20):
        course.observe(earned(examples[2:3], 0.0))
    # Never solved: it tends to 8 wrong ones, 6 * 1 * 9 / (10 * 11), and is not given up.
    assert course.weight(2) == pytest.approx(27 / 55, abs=1e-4)
    course.observe(earned(examples, *[0.5] * 4, *[1.0] * 4))
    course.observe(earned(examples, *[0.5] * 4, *[1.0] * 4))
    drawn = [e.id for _ in range(200) for e in next(course)]
    assert len(drawn) == 400 and sum(id in ids(examples[:4]) for id in drawn) > 250
    assert all(len(set(drawn[i : i + 2])) == 2 for i in range(0, 400, 2))
    assert len(next(data.Curriculum(examples, 20, seed=0))) == 20


def test_an_unjudged_completion_is_in_no_pass_rate():
    course = data.Curriculum([example("q", "1")], 1, seed=0)
    scores = [Score(1.2, {"correctness": 1.0}), Score(0.2, {"correctness": 0.0})]
    unjudged = Score(0.0, judged=False)
    course.observe(Batch(course.examples, [], [[]], [[*scores, unjudged]]))
    course.observe(Batch(course.examples, [], [[]], [[unjudged]]))
    assert course.answers == {0: (1, 1)}


def test_a_curriculum_goes_on_where_it_was_saved():
    examples = [example("q", str(i)) for i in range(30)]
    whole = data.Curriculum(examples, 3, seed=5)
    for rate in (0.5, 1.0, 0.0, 0.25):
        whole.observe(earned(next(whole), *[rate] * 3))
    resumed = data.Curriculum(examples, 3, seed=5)
    resumed.restore(json.loads(json.dumps(whole.state())))
    assert resumed.answers == whole.answers and len(whole.answers) > 6
    assert [ids(next(resumed)) for _ in range(6)] == [ids(next(whole)) for _ in range(6)]
    older = {name: value for name, value in whole.state().items() if name != "answers"}
    with pytest.raises(InputError, match="as an older version did"):
        resumed.restore(older | {"rates": [[0, 0.5]]})


def test_batches_of_nothing_are_refused():
    for examples, size in (([], 2), ([example("q")], 0)):
        with pytest.raises(InputError, match="both must be 1 or more"):
            data.Batches(examples, size, seed=0)


def test_fingerprint_sees_every_field_and_the_order():
    a, b = Example("1", "q", "1", "s"), Example("2", "q", "2", "s")
    prints = {
        data.fingerprint(examples)
        for examples in ([a, b], [b, a], [a], [Example("1", "q", "1", None), b],
                         [Example("1", "p", "1", "s"), b], [Example("1", "q", "3", "s"), b])
    }  # fmt: skip
    assert len(prints) == 6


def test_the_steps_of_a_solution_are_its_notes_or_its_lines():
    def steps(**row) -> int:
        return own_example({"question": "?", "answer": "5"} | row, "x:1", "1").steps

    assert steps() == 0
    assert steps(solution="2 + 2 = 4\n\n4 + 1 = 5\n") == 2
    assert steps(answer="2 + 2 = <<2+2=4>>4, so 4 + 1 = <<4+1=5>>5.\nHalf\nof 10.\n#### 5") == 2
    gsm8k = {"question": "?", "answer": "One <<1=1>>1\nTwo <<2=2>>2\nThree <<3=3>>3\n#### 3"}
    assert gsm8k_example(gsm8k, "x:1", "1").steps == 3
