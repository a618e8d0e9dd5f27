"""Every example as a user runs it: against serve.py in a process of its own, with a key."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from config import ServeSettings
from tests.support.running import ROOT
from tests.support.serving import process

EXAMPLES = ROOT / "examples"
KEY = "a-key-of-22-characters"
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@pytest.fixture(scope="module")
def url():
    with process(RLM_API_KEY=KEY) as server:
        yield server.url


def run(*words, **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in words],
        env=os.environ | {"KEY": KEY} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_output(done, *wanted: str) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(text in done.stdout for text in wanted), done.stdout
    return done.stdout


STEPS = "1. Adding the first two: 23 + 15 = 38\n2. Adding the third: 38 + 8 = 46"


@needs_curl
@pytest.mark.slow
@pytest.mark.ci
def test_curl(url):
    said = check_output(run("bash", EXAMPLES / "curl.sh", URL=url))
    replies = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [reply["object"] for reply in replies] == [
        "phase1.reasoning",
        "phase1.reasoning",
        "chat.completion",
    ]
    assert replies[0]["answer"] == "46" and replies[1]["vote"]["n"] == 8
    assert "event: done\n" in said and "</think>\n24" in said
    wrong = run("bash", EXAMPLES / "curl.sh", URL=url, KEY="wrong")
    assert wrong.returncode != 0 and "authentication_error" in wrong.stdout


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["python_httpx.py", "javascript_fetch.mjs"])
def test_reply_vote_and_stream(url, name):
    program = sys.executable if name.endswith("py") else shutil.which("node")
    if not program:
        pytest.skip("Node is not installed")
    said = check_output(run(program, EXAMPLES / name, URL=url), "511", "votes: ")
    plain, stream = said.split("stream:\n")
    assert STEPS in plain and STEPS in stream
    assert "answer: 46\n" in plain and re.search(r"\nanswer: 46 \(.* tokens/s\)\n", stream)
    wrong = run(program, EXAMPLES / name, URL=url, KEY="wrong")
    assert wrong.returncode != 0 and "401" in wrong.stderr


@pytest.mark.slow
@pytest.mark.ci
def test_openai(url):
    pytest.importorskip("openai", reason="the openai package is not installed")
    said = check_output(run(sys.executable, EXAMPLES / "python_openai.py", URL=url))
    plain, stream = said.split("stream:\n")
    assert STEPS in plain and "answer: 46\n" in plain
    assert STEPS in stream and re.search(r"\nanswer: 46 \(\d+ tokens\)\n", stream)


@pytest.mark.slow
@pytest.mark.ci
def test_the_kept_answers_are_those_of_the_shipped_adapter(url):
    check_output(run(sys.executable, EXAMPLES / "prompts.py", URL=url), "-> 46 (right)")


def test_the_prompts_show_what_it_can_and_what_it_cannot():
    lines = [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) >= 10
    for line in lines:
        assert line.keys() == {"prompt", "gold", "answer", "reasoning"}
        assert sum(map(int, re.findall(r"\d+", line["prompt"]))) == int(line["gold"])
    assert {line["answer"] == line["gold"] for line in lines} == {True, False}


EVENTS = (
    ': keep-alive\n\nevent: reasoning\ndata: {"delta": "é – 😀"}\n\n'
    'event: reasoning\ndata: {"delta": "\\nnext"}\n\n: keep-alive\n\n'
    'event: done\ndata: {"answer": "46", "timing": {"tokens_per_second": 9}}\n\n'
)


class Canned(http.server.BaseHTTPRequestHandler):
    """Answers as the server does; a stream comes in chunks of `size` bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    size = 1

    def log_message(self, *words):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        if not asked.get("stream"):
            text = b'{"reasoning": "r", "answer": "46", "vote": {"votes": {}}}'
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = EVENTS.encode()
        for start in range(0, len(body), self.size):
            piece = body[start : start + self.size]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            time.sleep(0.003)  # or the network would join them again
        self.wfile.write(b"0\r\n\r\n")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", ["python_httpx.py", "javascript_fetch.mjs"])
def test_a_stream_is_read_right_however_the_network_cuts_it(name, size):
    program = sys.executable if name.endswith("py") else shutil.which("node")
    if not program:
        pytest.skip("Node is not installed")
    handler = type("Sized", (Canned,), {"size": size})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run(program, EXAMPLES / name, URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    stream = check_output(done).split("stream:\n")[1]
    assert stream == "é – 😀\nnext\nanswer: 46 (9 tokens/s)\n"


def test_the_guide_names_flags_and_files_that_are_there():
    guide = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    flags = set(re.findall(r"--([a-z][a-z-]+)", guide))
    assert {"tunnel", "require-tunnel", "tunnel-domain", "api-key-file"} <= flags
    assert {flag.replace("-", "_") for flag in flags} <= ServeSettings.model_fields.keys()
    for name in re.findall(r"\]\(([\w.]+)\)", guide):
        assert (EXAMPLES / name).is_file()
