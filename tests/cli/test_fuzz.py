"""Arbitrary settings files, flags and variables: settings come out, or one line and exit code 2."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import config
from config import SECTIONS
from rlm.cli.layers import Settings, extra_of, flag_of, plain_type
from tests.support.fuzzing import VALUES, cases

CLASSES = st.sampled_from(sorted(SECTIONS.values(), key=lambda cls: cls.script))
FIELDS = sorted({name for cls in SECTIONS.values() for name in cls.model_fields})


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder with a base, an adapter of it and data, all empty, as the working folder."""
    folder = tmp_path_factory.mktemp("settings")
    for path, content in {
        "weights/tiny_base/config.json": "{}",
        "weights/tiny_base/model.safetensors": "",
        "weights/sft_lora/adapter_config.json": '{"base_model_name_or_path": "weights/tiny_base"}',
        "weights/sft_lora/adapter_model.safetensors": "",
        "data.jsonl": "",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def load(cls, *argv: str, **variables: str) -> Settings | None:
    """Return the settings; None if they were refused in one line, or --help was asked for."""
    out, err = io.StringIO(), io.StringIO()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RLM_")}
    with (
        mock.patch.dict(os.environ, clean | variables, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            settings = config.load(cls, list(argv))
        except SystemExit as stop:
            if stop.code == 0:
                assert {"-h", "--help"} & set(argv) and out.getvalue().startswith("usage: ")
                return None
            assert stop.code == 2 and out.getvalue() == ""
            said = err.getvalue()
            assert said.startswith("error: ") and said.endswith("\n")
            assert said[:-1].isprintable(), "one line, and nothing in it that a terminal obeys"
            return None
    assert json.loads(json.dumps(settings.dump(), allow_nan=False))
    return settings


# --- the file ----------------------------------------------------------------------------------


@cases(100)
@given(CLASSES, st.binary(max_size=60), st.sampled_from(["any.yaml", "any.json"]))
@example(config.GRPOSettings, b"[" * 100_000, "any.yaml")
@example(config.GRPOSettings, b"[" * 100_000, "any.json")
@example(config.GRPOSettings, b'{"grpo": {"seed": ' + b"1" * 5000 + b"}}", "any.json")
def test_arbitrary_bytes_as_a_file(cls, content, name):
    Path(name).write_bytes(content)
    load(cls, "--config", name)


MARKS = st.sampled_from(
    ["common", "grpo", "sft", "models", "seed", "model", "adapter", "digits", "rewards", "run",
     ": ", ":", "\n", "\n  ", "- ", ", ", "{", "}", "[", "]", "? ", "&a ", "*a", "<<: ", "!!int ",
     "!!map ", "!!set ", "!!timestamp ", "!!binary ", "!!omap ", "!!float ", "!!bool ", "!!null ",
     "!!str ", "!!seq ", "!x ", "2020-99-99", "1:99", "0b", "0x", "-", ".inf", ".nan", "1e9", "8",
     "|\n", ">\n", "'", '"', "\t", "# ", "---\n", "...", "%YAML 9.9\n", "~", "\\n", "\u2028", "="]
)  # fmt: skip


@cases(250)
@given(CLASSES, st.lists(MARKS, max_size=14).map("".join))
@example(config.SFTSettings, "common: {seed: 2020-99-99}")
@example(config.SFTSettings, "common: !!int {}")
@example(config.SFTSettings, "!!map 8")
@example(config.SFTSettings, "common: {run: &a [*a]}")
@example(config.SFTSettings, '"a\\nb": 1')
def test_what_nearly_is_yaml(cls, text):
    Path("near.yaml").write_text(text)
    load(cls, "--config", "near.yaml")


BLOCKS = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3)
NAMES = st.dictionaries(st.text(max_size=5), VALUES, max_size=2)


@cases(250)
@given(CLASSES, BLOCKS, BLOCKS, NAMES, st.booleans())
@example(config.SFTSettings, {"model": ["weights/tiny_base"]}, {}, {}, True)
@example(config.SFTSettings, {"adapter": {"a": 1}}, {}, {}, True)
@example(config.SFTSettings, {"model": "~nobody-of-that-name/model"}, {}, {}, True)
@example(config.SFTSettings, {"model": "a" * 5000}, {}, {}, True)
@example(config.SFTSettings, {"model": "a\0b"}, {}, {}, True)
@example(config.GRPOSettings, {}, {"rewards": {"correctness": 10**400}}, {}, True)
@example(config.EvaluateSettings, {"task": "jsonl"}, {"data": "d" * 5000}, {}, True)
@example(config.EvaluateSettings, {"task": "jsonl"}, {"data": "a\0b"}, {}, True)
@example(config.EvaluateSettings, {}, {"models": ["m" * 5000, "\0", "~nobody-here"]}, {}, True)
@example(config.ServeSettings, {}, {"cors_origin": [["http://a"]]}, {"": [1]}, False)
def test_any_value_of_any_setting(cls, common, own, names, as_json):
    content = {"common": common, cls.script: own, "models": names}
    known = set(cls.model_fields)
    content[cls.script] = {name: value for name, value in own.items() if name in known}
    path = Path("values.json" if as_json else "values.yaml")
    write = json.dumps if as_json else yaml.safe_dump
    path.write_text(write(content), encoding="utf-8")
    load(cls, "--config", str(path))


# --- flags and environment ---------------------------------------------------------------------

# What an operating system can hand over: any bytes but NUL.
WORDS = st.binary(max_size=10).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b" "))
) | st.sampled_from(
    ["", "-", "--", "-1", "--seed", "--help=1", "-h", "%s", "1-3", "nan", "9" * 5000, "a\nb",
     "correctness=1", "data.jsonl", "weights/sft_lora", "none", "auto", "base", "{}", "=", ","]
)  # fmt: skip


def sensible(field) -> st.SearchStrategy[str]:
    """Return words that a field of this type may take, so that the checks behind it are reached."""
    choices = getattr(plain_type(field), "__args__", None)
    if choices and all(isinstance(choice, str) for choice in choices):
        return st.sampled_from(choices)
    return st.sampled_from(["0", "1", "2", "0.5", "64", "1-3", "weights/tiny_base", "data.jsonl"])


@st.composite
def command_lines(draw):
    cls = draw(CLASSES)
    argv = []
    for name in draw(st.lists(st.sampled_from(sorted(cls.model_fields)), max_size=5)):
        flags = [flag_of(name), *extra_of(cls.model_fields[name])["flags"]]
        words = draw(st.lists(sensible(cls.model_fields[name]) | WORDS, max_size=2))
        argv += [draw(st.sampled_from(flags)), *words]
    return cls, argv + draw(st.lists(WORDS, max_size=2))


@cases(300)
@given(command_lines())
@example((config.SFTSettings, ["--config", "x" * 5000]))
@example((config.SFTSettings, ["--config", "weights"]))
@example((config.InferenceSettings, ["--", "--seed"]))
@example((config.SFTSettings, ["--no-wandb=1"]))
def test_arbitrary_flags(line):
    cls, argv = line
    load(cls, *argv)


@cases(250)
@given(CLASSES, st.dictionaries(st.sampled_from(FIELDS), WORDS, max_size=4), st.data())
@example(config.SFTSettings, {"named_models": "x"}, None)
@example(config.SFTSettings, {"task": "a\nb"}, None)
def test_arbitrary_variables(cls, texts, data):
    known = [name for name in texts if data and name in cls.model_fields]
    texts |= {name: data.draw(sensible(cls.model_fields[name]) | WORDS) for name in known}
    load(cls, **{f"RLM_{name.upper()}": text for name, text in texts.items() if text})


def test_the_cases_reach_settings_too():
    """Not all that is tried is refused: else the tests above would see the first check only."""
    assert load(config.GRPOSettings, "--group-size", "4").group_size == 4
    Path("good.json").write_text('{"grpo": {"seed": 3}}')
    assert load(config.GRPOSettings, "--config", "good.json", RLM_LORA_R="2").lora_r == 2
    assert load(config.GRPOSettings, "--help") is None and sys.argv
