"""python serve.py as a user starts it: its lines, its exit codes, its end."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.support.running import ROOT, start
from tests.support.serving import PATH, SUM, joined, process, read_events

BODY = {"prompt": SUM, "temperature": 0}


def one_line(done) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "0 to 65535"),
        (["--max-rows", "0"], "1 to 4096"),
        (["--adapter", "weights/none"], "no folder"),
        (["--cors-origin", "example.org"], "https://example.org"),
        (["--tunnel-domain", "a.example"], "--tunnel"),
        (["--task", "addition"], "unknown flag"),
    ],
)
def test_wrong_input_is_one_line(words, said):
    assert said in one_line(start("serve.py", *words, timeout=60))


def test_a_port_that_is_taken_is_one_line_and_quick():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begun = time.monotonic()
        said = one_line(start("serve.py", "--port", port, timeout=60))
        assert str(port) in said and "--port" in said
        assert time.monotonic() - begun < 10, "asked before the model is loaded"


@pytest.mark.slow
@pytest.mark.ci
def test_it_serves_at_once_and_ends_in_good_order():
    with process(forked=False) as place:
        assert place.lines[0] == f"local: {place.url}"
        done = subprocess.run(
            place.lines[1], shell=True, capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout)["object"] == "phase1.reasoning"
        assert httpx.post(f"{place.url}{PATH}", json=BODY).json()["answer"] == "46"
        with httpx.stream("POST", f"{place.url}{PATH}", json=BODY | {"stream": True}) as response:
            chunks = response.iter_text()
            text = next(chunks)
            place.process.send_signal(signal.SIGTERM)
            text += "".join(chunks)
        # It was on its way, so it comes to its end.
        assert joined(read_events(text), "answer") == "46"
        assert place.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{place.url}/health")
    assert not [line for line in place.errors if "Traceback" in line], "".join(place.errors)


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    hot = {"prompt": SUM, "temperature": 2, "n": 16, "stream": True}
    with process("--drain-seconds", 60) as place:
        url = f"{place.url}{PATH}"
        with httpx.stream("POST", url, json=hot) as response:
            next(response.iter_raw())
            place.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            begun = time.monotonic()
            place.process.send_signal(signal.SIGINT)
            place.process.wait(10)
            assert time.monotonic() - begun < 3


@pytest.mark.slow
def test_a_kill_during_a_stream_is_seen_by_the_client():
    hot = {"prompt": SUM, "temperature": 2, "n": 16, "stream": True}
    with process() as place:
        url = f"{place.url}{PATH}"
        with httpx.stream("POST", url, json=hot) as response:
            chunks = response.iter_text()
            next(chunks)
            place.process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(chunks)
    # The port is free again at once.
    with process("--port", place.url.rsplit(":", 1)[1]) as again:
        assert again.url == place.url


@pytest.mark.slow
@pytest.mark.ci
def test_a_key_is_kept_out_of_the_log(tmp_path):
    key = tmp_path / "key"
    with process("--api-key-file", key, "--log-content") as place:
        fresh = re.match("key: (\\S+) ", place.lines[0])[1]
        assert key.read_text().strip() == fresh
        assert f"$(cat {key})" in place.lines[-1] and fresh not in place.lines[-1]
        done = subprocess.run(
            place.lines[-1], shell=True, capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout)["object"] == "phase1.reasoning"
        assert httpx.post(f"{place.url}{PATH}", json=BODY).status_code == 401
        place.process.send_signal(signal.SIGTERM)
        assert place.process.wait(10) == 0
    log = "".join(place.errors)
    assert SUM in log and fresh not in log
    with process("--host", "0.0.0.0", RLM_API_KEY="k" * 20) as place:
        assert place.url.startswith("http://127.0.0.1:") and "$RLM_API_KEY" in place.lines[-1]
        assert httpx.get(f"{place.url}/metrics").status_code == 401
        good = {"Authorization": "Bearer " + "k" * 20}
        assert httpx.get(f"{place.url}/metrics", headers=good).status_code == 200


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused_before_it_listens(tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(ROOT / "weights/final_rlm_lora", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    said = one_line(start("serve.py", "--adapter", adapter, "--port", 0, timeout=60))
    assert "not finite" in said
