"""The tunnel with a stub agent that really forwards: every fault is told in a line within 5 s."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest

from rlm.tunnel.ngrok_agent import Agent
from rlm.tunnel.ngrok_faults import UNKNOWN_TRIES, Fault, clean, explain, find_agent
from rlm.tunnel.tunnel import Tunnel
from tests.support.running import ROOT
from tests.support.serving import joined, process, read_events

STUB = ROOT / "tests" / "support" / "stub_ngrok.py"
TOKEN = "a-token-that-nobody-may-see"
SOON = 5.0  # seconds: what a fault may take to be told, and a new URL after a death


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello from {self.path}".encode())

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def port():
    """The port of a local server, which has to answer whatever the tunnel does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def fetch(url: str) -> str:
    with urllib.request.urlopen(f"{url}/page", timeout=5) as reply:
        return reply.read().decode()


class Watched:
    """A tunnel and all that it told, with the seconds since its start."""

    def __init__(self, port, folder, **options):
        self.ups, self.downs, self.began = [], [], time.monotonic()
        self.file = folder / "runs" / "endpoint.json"
        self.tunnel = Tunnel(
            port,
            endpoint_file=self.file,
            on_up=lambda url: self.ups.append((time.monotonic() - self.began, url)),
            on_down=lambda line: self.downs.append((time.monotonic() - self.began, line)),
            **dict(first_wait=0.1, longest_wait=0.5) | options,
        )
        self.tunnel.start()

    def until(self, there, seconds=SOON):
        """Wait until `there()` is true and return its value."""
        end = time.monotonic() + seconds
        while not (found := there()):
            assert time.monotonic() < end, f"not within {seconds} s; told: {self.ups} {self.downs}"
            time.sleep(0.02)
        return found

    def fault(self) -> str:
        """The first line told of a fault, which has to come soon after the start."""
        seconds, line = self.until(lambda: self.downs and self.downs[0])
        assert seconds < SOON and "\n" not in line and TOKEN not in line
        return line


@pytest.fixture
def opened(port, tmp_path, monkeypatch):
    """Returns a function that opens a tunnel with a stub in the given mode."""
    from pyngrok import conf

    monkeypatch.setattr(conf, "DEFAULT_NGROK_CONFIG_PATH", str(tmp_path / "ngrok.yml"))
    monkeypatch.setenv("PYNGROK_NGROK_PATH", str(STUB))
    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    monkeypatch.setenv("STUB_NGROK_LOG", str(tmp_path / "starts"))
    stack = contextlib.ExitStack()

    def open_one(mode="", once=False, **options):
        monkeypatch.setenv("STUB_NGROK", mode)
        if once:
            monkeypatch.setenv("STUB_NGROK_ONCE", str(tmp_path / "once"))
        watched = Watched(port, tmp_path, **options)
        stack.callback(watched.tunnel.stop)
        return watched

    with stack:
        yield open_one
        assert fetch(f"http://127.0.0.1:{port}") == "hello from /page", "the local server answers"


def starts(folder) -> list[dict]:
    path = folder / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_forwards_and_says_where(opened, port, tmp_path):
    watched = opened()
    assert watched.tunnel.wait(SOON) and watched.tunnel.failure is None
    url = watched.tunnel.url
    assert fetch(url) == "hello from /page"
    found = json.loads(watched.file.read_text())
    assert found == {"url": url, "local": f"http://127.0.0.1:{port}", "pid": os.getpid()}
    watched.until(lambda: watched.ups == [(watched.ups[0][0], url)] if watched.ups else False)
    assert not watched.downs


def test_the_token_is_in_the_environment_and_in_no_argument(opened, tmp_path, caplog):
    watched = opened()
    assert watched.tunnel.wait(SOON)
    (start,) = starts(tmp_path)
    assert start["words"] == ["start", "--none", "--log", "stdout"]
    assert TOKEN not in watched.file.read_text() and TOKEN not in caplog.text


def test_requests_are_not_kept_by_the_agents_inspector(opened, tmp_path):
    watched = opened()
    assert watched.tunnel.wait(SOON)
    with urllib.request.urlopen(f"http://{watched.tunnel._agent._api}/api/endpoints") as reply:
        (endpoint,) = json.load(reply)["endpoints"]
    assert endpoint["asked"]["inspect"] is False
    assert endpoint["asked"]["upstream"]["url"].startswith("http://127.0.0.1:")


def test_stop_leaves_no_agent_and_no_file(opened, tmp_path):
    watched = opened()
    assert watched.tunnel.wait(SOON)
    began = time.monotonic()
    watched.tunnel.stop()
    assert time.monotonic() - began < 3
    assert not watched.file.exists() and watched.tunnel.url is None
    assert not alive(starts(tmp_path)[0]["pid"])
    watched.tunnel.stop()  # twice is no error
    assert not watched.downs, "a stop is no fault"


def test_another_servers_file_stays(opened):
    watched = opened()
    assert watched.tunnel.wait(SOON)
    watched.file.write_text('{"url": "of another server", "pid": 1}')
    watched.tunnel.stop()
    assert watched.file.exists()


def test_a_killed_agent_is_replaced(opened, tmp_path):
    watched = opened(first_wait=1.0)
    assert watched.tunnel.wait(SOON)
    first, killed = watched.tunnel.url, time.monotonic()
    os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
    watched.until(lambda: watched.tunnel.url not in (first, None))
    assert time.monotonic() - killed < SOON
    assert fetch(watched.tunnel.url) == "hello from /page"
    assert json.loads(watched.file.read_text())["url"] == watched.tunnel.url != first
    assert "ended" in watched.fault() and "exit code -9" in watched.fault()


@pytest.mark.parametrize(
    "mode, said",
    [
        ("no_token", ["ERR_NGROK_4018", "no token", "NGROK_AUTHTOKEN"]),
        ("bad_token", ["ERR_NGROK_105", "refuses the token", "your-authtoken"]),
        ("refused_domain", ["ERR_NGROK_7118", "mine.example.com", "/domains"]),
        ("refuses:103", ["ERR_NGROK_103", "suspended", "does not pass by itself"]),
        ("refuses:9040", ["ERR_NGROK_9040", "IP address", "does not pass by itself"]),
    ],
)
def test_what_only_the_user_can_mend_ends_the_wait(opened, caplog, mode, said):
    watched = opened(mode, domain="https://mine.example.com")
    began = time.monotonic()
    assert watched.tunnel.wait(60) is False
    assert time.monotonic() - began < SOON
    line = watched.fault()
    assert all(word in line for word in said) and watched.tunnel.failure == line
    assert (
        not watched.file.exists()
        and watched.tunnel.url is None
        and "again" not in line.replace("start again", "")
    )
    assert TOKEN not in caplog.text, "the agent prints a token that it refuses"


@pytest.mark.parametrize(
    "mode, said",
    [
        ("offline", "cannot be reached"),
        ("hang", "does not get ready"),
        ("silent_exit", "without a word"),
        ("dies:0.5", "ended after"),
    ],
)
def test_a_fault_is_told_soon_and_mended_by_another_try(opened, tmp_path, mode, said):
    watched = opened(mode, once=True, connect_seconds=4.0)
    line = watched.fault()
    assert said in line and "tried again" in line
    watched.until(lambda: watched.tunnel.url and len(starts(tmp_path)) == 2, seconds=8)
    assert fetch(watched.tunnel.url) == "hello from /page" and watched.tunnel.failure is None
    assert not alive(starts(tmp_path)[0]["pid"]), "the first agent is gone"


def test_a_fault_that_nobody_knows_is_not_met_for_ever(opened, tmp_path):
    watched = opened("refuses:9999", first_wait=0.01, longest_wait=0.02)
    assert "a few times" in watched.fault()
    line = watched.until(lambda: len(watched.downs) == 2 and watched.downs[1][1], seconds=4 * SOON)
    assert "ERR_NGROK_9999" in line and f"{UNKNOWN_TRIES} times in a row" in line
    assert watched.tunnel.wait(60) is False, "nobody waits for it any more"
    watched.tunnel._thread.join(SOON)
    assert len(starts(tmp_path)) == UNKNOWN_TRIES and not watched.tunnel._thread.is_alive()


def test_an_agent_that_takes_long_is_told_of_before_its_time_is_over(opened, tmp_path):
    watched = opened("hang", connect_seconds=60.0)
    assert "it is given 60 s" in watched.fault()
    assert len(starts(tmp_path)) == 1 and alive(starts(tmp_path)[0]["pid"])


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    "mode, said", [("stuck:0.2", "does not answer"), ("drops:0.2", "dropped the address")]
)
def test_an_agent_that_lives_but_serves_no_more_is_replaced(opened, tmp_path, mode, said):
    watched = opened(mode, once=True)
    assert watched.tunnel.wait(SOON)
    assert said in watched.fault()
    watched.until(lambda: len(watched.ups) == 2)
    assert fetch(watched.tunnel.url) == "hello from /page"


def test_a_lost_session_is_told_and_the_agent_kept(opened, tmp_path):
    watched = opened("loses:0.3")
    assert watched.tunnel.wait(SOON)
    assert "cannot be reached" in watched.fault() and not watched.file.exists()
    watched.until(lambda: len(watched.ups) == 2)
    assert watched.ups[0][1] == watched.ups[1][1] and len(starts(tmp_path)) == 1
    assert watched.file.exists() and watched.tunnel.failure is None


def test_the_same_fault_is_told_once_and_the_waits_double(opened, tmp_path, monkeypatch):
    waits = []

    class Noted(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Noted)
        watched = opened("silent_exit", first_wait=0.31, longest_wait=60.0)
    watched.until(lambda: len(starts(tmp_path)) == 4, seconds=4 * SOON)
    times = [each["time"] for each in starts(tmp_path)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # What a start takes comes on top, and depends on the machine.
    assert all(gap > wait for gap, wait in zip(gaps, (0.31, 0.62, 1.24), strict=True))
    assert [wait for wait in waits if wait in (0.31, 0.62, 1.24)] == [0.31, 0.62, 1.24]
    assert len(watched.downs) == 1


def test_an_agent_that_ends_is_not_asked_for_the_next_tunnel():
    from pyngrok import process as known

    sleeping = subprocess.Popen(["sleep", "60"], start_new_session=True)
    known._current_processes["x"] = SimpleNamespace(proc=sleeping)
    Agent("x", 1, None).end(gently=False)
    assert "x" not in known._current_processes and sleeping.poll() is not None


@pytest.mark.parametrize("mode", ["hang", "offline"])
def test_stop_does_not_wait_for_an_agent_that_hangs(opened, tmp_path, mode):
    watched = opened(mode)
    watched.until(lambda: starts(tmp_path))
    began = time.monotonic()
    watched.tunnel.stop()
    assert time.monotonic() - began < 1.5
    watched.until(lambda: not alive(starts(tmp_path)[0]["pid"]), seconds=1)


def test_a_listener_that_fails_does_not_end_the_tunnel(opened, tmp_path):
    watched = opened()
    watched.until(lambda: watched.ups)
    watched.tunnel._on_down = lambda line: 1 / 0
    os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
    watched.until(lambda: len(watched.ups) == 2)


def test_a_missing_agent_is_told_and_never_downloaded(opened, monkeypatch, tmp_path):
    from pyngrok import conf, installer

    def refuse(*words, **more):
        raise AssertionError("a download")

    monkeypatch.setattr(installer, "install_ngrok", refuse)
    monkeypatch.setattr(conf, "DEFAULT_NGROK_PATH", str(tmp_path / "none" / "ngrok"))
    monkeypatch.delenv("PYNGROK_NGROK_PATH")
    # The script that pyngrok installs beside Python would download the agent, too.
    wrapper = tmp_path / "ngrok"
    wrapper.write_text(f"#!{sys.executable}\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    watched = opened()
    assert watched.tunnel.wait(SOON) is False
    assert "not installed" in watched.fault() and "ngrok.com/download" in watched.fault()


def test_a_program_on_the_path_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("PYNGROK_NGROK_PATH", raising=False)
    (tmp_path / "ngrok").write_bytes(b"\x7fELF")
    (tmp_path / "ngrok").chmod(0o755)
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    assert find_agent(str(tmp_path / "none")) == str(tmp_path / "ngrok")
    assert find_agent(str(STUB)) == str(STUB), "pyngrok's own place comes first"


def test_a_wrong_path_is_told_with_its_name(opened, monkeypatch):
    monkeypatch.setenv("PYNGROK_NGROK_PATH", "/nowhere/ngrok")
    watched = opened()
    assert watched.tunnel.wait(SOON) is False
    assert "PYNGROK_NGROK_PATH is /nowhere/ngrok" in watched.fault()


@pytest.mark.parametrize(
    "said, lasting, told",
    [
        ("... ERR_NGROK_108 ...", False, "as many agents"),
        ("The endpoint is already online. ERR_NGROK_334", False, "already online"),
        ("ERR_NGROK_727", True, "this month's requests"),
        *[
            (f"ERR_NGROK_{code}", True, "does not pass by itself")
            for code in ("102", "103", "115", "116", "205", "338", "725", "8014", "9040")
        ],
        ("something new ERR_NGROK_9999", False, "docs/errors/err_ngrok_9999"),
        ("the domain mine.dev is odd ERR_NGROK_9998", True, "domain mine.dev"),
        ("dial tcp: i/o timeout", False, "cannot be reached"),
    ],
)
def test_the_agents_words_are_explained(said, lasting, told):
    fault = explain(said, "mine.dev")
    assert isinstance(fault, Fault) and fault.lasting is lasting and told in str(fault)
    assert explain("all is well", "mine.dev") is None


def test_no_token_is_repeated(monkeypatch):
    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    assert TOKEN not in clean(f"say {TOKEN}")
    assert "abc" not in clean(r"proper.\nYour authtoken: abc\nInstructions")
    assert clean(r"one\r\ntwo").split() == ["one", "two"]


def test_the_stub_speaks_the_command_line():
    def say(*words):
        return subprocess.run([STUB, *words], capture_output=True, text=True, check=False).stdout

    assert say("--version").startswith("ngrok version 3.")
    assert "Authtoken saved" in say("config", "add-authtoken", "x")


# serve.py with the stub: what a client far away sees.

MODEL = ["--model", ROOT / "weights/tiny_base", "--adapter", ROOT / "weights/final_rlm_lora"]
EASY = {"prompt": "Calculate 23 + 15 + 8", "temperature": 0}


def stubbed(folder, **more) -> dict:
    """The environment of a serve.py whose agent is the stub."""
    variables = {"PYNGROK_NGROK_PATH": str(STUB), "NGROK_AUTHTOKEN": TOKEN}
    log = {"STUB_NGROK_LOG": str(folder / "starts"), "XDG_CONFIG_HOME": str(folder / "config")}
    return variables | log | more


def public_url(server) -> str:
    """Read the server's lines until the next public URL; they are added to `lines`."""
    for line in server.process.stdout:
        server.lines.append(line.rstrip("\n"))
        if line.startswith("public: "):
            return line.removeprefix("public: ").strip()
    raise AssertionError(f"it ended: {server.lines} {server.errors}")


@pytest.mark.slow
@pytest.mark.ci
def test_serve_answers_through_the_public_url(tmp_path):
    with process("--tunnel", *MODEL, cwd=tmp_path, **stubbed(tmp_path)) as server:
        url = public_url(server)
        key = (tmp_path / "runs" / "api_key").read_text().strip()
        assert "\n".join(server.lines).count(key) == 1, "shown once, when it is made"
        endpoint = tmp_path / "runs" / "endpoint.json"
        assert json.loads(endpoint.read_text())["url"] == url and key not in endpoint.read_text()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, timeout=30, headers=headers) as client:
            reply = client.post("/phase1/reasoning", json=EASY)
            assert reply.status_code == 200 and reply.json()["answer"] == "46"
            stranger = client.post("/phase1/reasoning", json=EASY, headers={"Authorization": ""})
            assert stranger.status_code == 401
            with client.stream("POST", "/phase1/reasoning", json=EASY | {"stream": True}) as reply:
                pieces = list(reply.iter_text())
            events = read_events("".join(pieces))
            assert len(pieces) > 3, "it comes as it is made, not at the end"
            assert joined(events, "answer") == "46" and events[-1][0] == "done"
        # The agent is killed: a new URL, and the server behind it never noticed.
        killed = time.monotonic()
        os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
        fresh = public_url(server)
        assert fresh != url and time.monotonic() - killed < SOON
        reply = httpx.post(f"{fresh}/phase1/reasoning", json=EASY, headers=headers)
        assert reply.json()["answer"] == "46"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert not endpoint.exists() and not alive(starts(tmp_path)[1]["pid"])
    said = "".join(server.errors)
    assert "exit code -9" in said and key not in said and TOKEN not in said
    assert not any(TOKEN in word for start in starts(tmp_path) for word in start["words"])


@pytest.mark.slow
@pytest.mark.ci
def test_serve_goes_on_without_its_tunnel(tmp_path):
    environment = stubbed(tmp_path, STUB_NGROK="bad_token")
    with process("--tunnel", *MODEL, cwd=tmp_path, **environment) as server:
        began = time.monotonic()
        while not any("ERR_NGROK_105" in line for line in server.errors):
            assert time.monotonic() - began < SOON
            time.sleep(0.02)
        key = (tmp_path / "runs" / "api_key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        reply = httpx.post(f"{server.url}/phase1/reasoning", json=EASY, headers=headers)
        assert reply.json()["answer"] == "46"
        assert not (tmp_path / "runs" / "endpoint.json").exists()
    said = "".join(server.errors)
    assert said.count("ERR_NGROK_105") == 1 and TOKEN not in said


@pytest.mark.slow
def test_serve_that_requires_a_tunnel_ends_without_one(tmp_path):
    environment = stubbed(tmp_path, STUB_NGROK="no_token")
    with process("--require-tunnel", *MODEL, cwd=tmp_path, **environment) as server:
        assert server.process.wait(15) == 3
    assert "ERR_NGROK_4018" in server.errors[-1] and "Traceback" not in "".join(server.errors)
