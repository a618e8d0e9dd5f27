"""The settings of the rollout engine: their defaults, and what cannot work together."""

import time

import pytest

import config
from config import GRPOSettings
from rlm.addresses import server_url
from rlm.errors import InputError
from settings import grpo
from tests.support.running import ROOT, start

TINY = ["--model", str(ROOT / "weights/tiny_base"), "--adapter", "none"]


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        config.load(GRPOSettings, [*TINY, *argv])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_url_means_vllm(monkeypatch):
    settings = config.load(GRPOSettings, [*TINY, "--vllm-url", "http://127.0.0.1:8000"])
    assert (settings.engine, settings.importance_cap) == ("vllm", 2.0)
    settings = config.load(GRPOSettings, TINY)
    assert (settings.engine, settings.vllm_url, settings.importance_cap) == ("own", None, 0.0)
    monkeypatch.setenv("RLM_VLLM_KEY", "secret")  # is no setting, and no misspelt one
    monkeypatch.setenv("RLM_VLLM_URL", "http://gpu:8000")
    assert config.load(GRPOSettings, TINY).vllm_url == "http://gpu:8000"


def test_rows_and_graphs_are_by_the_device_unless_told(monkeypatch):
    found = [
        config.load(GRPOSettings, [*TINY, *argv]).engine_options()
        for argv in ([], ["--rows", "64", "--no-cuda-graphs"], ["--max-rows", "7", "--cuda-graphs"])
    ]
    assert [each["max_rows"] for each in found] == [None, 64, 7]
    assert [each["cuda_graphs"] for each in found] == [True, False, True]
    monkeypatch.setenv("RLM_MAX_ROWS", "5")
    assert config.load(GRPOSettings, TINY).engine_options()["max_rows"] == 5
    assert config.load(config.ServeSettings, TINY).engine_options()["max_rows"] == 5
    monkeypatch.delenv("RLM_MAX_ROWS")
    assert config.load(config.ServeSettings, TINY).engine_options()["max_rows"] == 32


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--engine", "own", "--vllm-url", "http://a:1"], "--vllm-url http://a:1: --engine own"),
        (["--vllm-url", "gpu:8000"], "--vllm-url gpu:8000: 'gpu:8000' is no URL of a server"),
        (
            ["--engine", "vlm"],
            "--engine vlm: unknown; use own | transformers | vllm; did you mean vllm?",
        ),
        (["--vllm-url", "http://a:1", "--temperature", "0.005"], "vllm takes 0.01 or more"),
        (["--vllm-url", "http://a:1", "--lora-r", "600"], "vllm takes adapters of rank 512"),
        (["--vllm-url", "http://a:1", "--quantize", "4bit"], "--quantize 4bit: vllm would sample"),
        (["--importance-cap", "-1"], "--importance-cap -1: out of range; use 0 or more"),
    ],
)
def test_what_cannot_work(capsys, argv, says):
    assert says in refused(capsys, *argv)


def test_vllm_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(grpo, "find_spec", lambda name: None)
    said = refused(capsys, "--engine", "vllm")
    assert "--engine vllm: vllm is not installed" in said and "requirements-vllm.txt" in said
    config.load(GRPOSettings, [*TINY, "--vllm-url", "http://a:1"])  # a server needs none here
    monkeypatch.setattr(grpo, "find_spec", lambda name: name)
    config.load(GRPOSettings, [*TINY, "--engine", "vllm"])


def test_another_server_may_go_on_with_a_run_another_engine_not():
    here, there = (GRPOSettings(adapter="none", vllm_url=f"http://{x}:1") for x in "ab")
    assert here.lasting() == there.lasting()
    assert here.lasting() != GRPOSettings(adapter="none").lasting()


@pytest.mark.parametrize(
    ("text", "right"),
    [("https://a.b/c", True), ("ftp://a", False), ("http://a:x", False), ("http://", False),
     ("http://[::1]:80", True), ("http://a:70000", False), ("", False)],
)  # fmt: skip
def test_addresses(text, right):
    words = {"flag": "--vllm-url", "given": f"--vllm-url {text}", "variable": "RLM_VLLM_KEY"}
    if right:
        assert server_url(f"{text}/v1/", **words) == server_url(text, **words) == text
    else:
        with pytest.raises(InputError, match=r"--vllm-url.* no URL of a server"):
            server_url(text, **words)


def test_a_secret_in_an_address_is_not_repeated(capsys):
    said = refused(capsys, "--vllm-url", "http://me:s3cret@a")
    assert "--vllm-url: a URL with a user" in said and "s3cret" not in said


def test_help_and_a_wrong_address_answer_before_torch(tmp_path):
    began = time.monotonic()
    done = start("train_grpo.py", *TINY, "--vllm-url", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "no URL of a server" in done.stderr
    assert "torch" not in done.stderr and time.monotonic() - began < 60
