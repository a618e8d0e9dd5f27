"""--upstream as a user gives it: what is taken, what is refused in one line, serve.py with it."""

import shutil
import signal

import httpx
import pytest

import config
from rlm.models.loading import load_tokenizer
from rlm.models.prompts import end_ids
from tests.support.fake_vllm import BASE, FakeVLLM
from tests.support.running import ROOT, start
from tests.support.serving import PATH, SUM, process

URL = "http://127.0.0.1:8001"
KEY = "secret-of-the-servers"


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ([URL], [URL]),
        ([f"{URL}/"], [URL]),
        ([f"{URL}/v1,https://gpu.example/llm/v1/"], [URL, "https://gpu.example/llm"]),
        ([URL, "--upstream", "http://b", "http://[::1]:3"], [URL, "http://b", "http://[::1]:3"]),
    ],
)
def test_urls_in_every_way_they_are_given(given, urls):
    settings = config.load(config.ServeSettings, ["--upstream", *given])
    assert settings.upstream_urls == urls
    assert (settings.model, settings.adapter) == (BASE, None), "the adapter is loaded there"


def test_the_environment_names_them_too(monkeypatch):
    monkeypatch.setenv("RLM_UPSTREAM", f"{URL},http://b")
    monkeypatch.setenv("RLM_UPSTREAM_KEY", KEY)  # no setting, and no slip of one
    settings = config.load(config.ServeSettings, [])
    assert settings.upstream_urls == [URL, "http://b"] and KEY not in str(settings.dump())


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        config.load(config.ServeSettings, list(argv))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--upstream", "127.0.0.1:8001"], "no URL of a server"),
        (["--upstream", "ftp://a"], "no URL of a server"),
        (["--upstream", "http://a:70000"], "no URL of a server"),
        (["--upstream", "http://a/?x=1"], "no URL of a server"),
        (["--upstream", f"{URL},{URL}/v1"], "stands there twice"),
        (["--upstream-model", "rlm"], "--upstream-model rlm: needs --upstream"),
        (["--upstream", URL, "--adapter", "weights/final_rlm_lora"], "--lora-modules"),
        (["--upstream", URL, "--model", "weights/final_rlm_lora"], "--upstream-model"),
        (["--upstream", URL, "--dtype", "bfloat16"], "--dtype bfloat16: with --upstream"),
        (["--upstream", URL, "--cuda-graphs"], "leave --cuda-graphs out"),
        (["--upstream", URL, "--model", "configs"], "the folder has no tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line(capsys, argv, said):
    assert said in refused(capsys, *argv)


def test_a_password_in_a_url_is_not_shown(capsys):
    said = refused(capsys, "--upstream", f"http://me:{KEY}@a")
    assert "RLM_UPSTREAM_KEY" in said and KEY not in said


def test_what_a_file_has_for_all_scripts_is_no_mistake(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("common: {dtype: float32}\nserve: {upstream: [http://a, http://b]}\n")
    settings = config.load(config.ServeSettings, ["--config", str(path)])
    assert settings.upstream_urls == ["http://a", "http://b"]


def test_the_tokenizer_comes_without_weights(tmp_path):
    """What ends a turn is in generation_config.json, else in config.json."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / BASE / name, tmp_path)
    argv = ["--upstream", URL, "--model", str(tmp_path)]
    assert config.load(config.ServeSettings, argv).model == str(tmp_path)
    tokenizer, nothing = load_tokenizer(str(tmp_path))
    assert nothing is None and end_ids(tokenizer, nothing) == [2]
    shutil.copy(ROOT / BASE / "config.json", tmp_path)
    assert load_tokenizer(str(tmp_path))[1].eos_token_id == 2
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert end_ids(*load_tokenizer(str(tmp_path))) == [2, 7]


@pytest.mark.slow
@pytest.mark.ci
def test_serve_py_answers_from_its_servers_and_ends_in_good_order():
    with FakeVLLM(key=KEY) as one, FakeVLLM(key=KEY) as other:
        urls = (one.url, f"{other.url}/v1")
        words = ("--upstream", *urls, "--upstream-model", "rlm")
        with process(*words, RLM_UPSTREAM_KEY=KEY) as place:
            reply = httpx.post(f"{place.url}{PATH}", json={"prompt": SUM, "n": 4}).json()
            assert reply["answer"] == "46" and reply["model"] == "rlm"
            assert [len(server.asked) for server in (one, other)] == [2, 2]
            one.kill()
            for _ in range(2):
                assert httpx.post(f"{place.url}{PATH}", json={"prompt": SUM}).status_code == 200
            place.process.send_signal(signal.SIGTERM)
            assert place.process.wait(10) == 0
    log = "".join(place.errors)
    assert "taken out" in log and "Traceback" not in log and KEY not in log


@pytest.mark.slow
@pytest.mark.ci
def test_an_unknown_model_ends_serve_py_with_one_line():
    with FakeVLLM() as fake:
        done = start("serve.py", "--port", 0, "--upstream", fake.url, "--upstream-model", "none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: --upstream {fake.url}: serves {BASE}, rlm, no none")
