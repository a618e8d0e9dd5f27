"""The container: no Docker runs here, so the Dockerfile is linted and its commands are run without.

They run on the files that .dockerignore lets through, in a tree that is read-only, as a user who
owns nothing but the volumes and may do nothing else; the proxy's configuration runs in a real
nginx, where one is installed.
"""

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import httpx
import pytest
import yaml

from tests.repository.test_documents import wrong
from tests.support.running import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
MODEL, PROXY = COMPOSE["services"]["model"], COMPOSE["services"]["proxy"]
PATTERNS = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
AS_ROOT, NOBODY = os.geteuid() == 0, 65534
# Takes all that root may do beyond an ordinary user.
ORDINARY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if AS_ROOT else []
KEY = "a-key-of-22-characters"
HADOLINT = Path(sys.executable).with_name("hadolint")
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


# ---- The files ----


def complaints(text: str) -> set[str]:
    """Return the rules of hadolint that a Dockerfile breaks."""
    if not HADOLINT.exists():
        pytest.skip("hadolint is not installed: pip install -e .[dev]")
    words = [HADOLINT, "--no-color", "-"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    found = set(re.findall(r"\b(?:DL|SC)\d{4}\b", done.stdout))
    assert done.returncode == bool(found), done.stdout + done.stderr
    return found


def test_hadolint_has_no_complaint():
    assert complaints(DOCKERFILE) == set()


def test_hadolint_sees_what_is_wrong():
    wrong_one = "FROM python:latest\nRUN pip install x\nRUN cd /app\nUSER root\n"
    assert complaints(wrong_one) >= {"DL3007", "DL3013", "DL3042", "DL3003", "DL3002"}


def json_of(instruction: str) -> list[str]:
    """Return the words of an instruction that is a JSON list; the last one, for CMD."""
    return json.loads(re.findall(rf"^ *{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])


def test_the_server_is_not_root_and_looked_after():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users and users[-1].split(":")[0].isdigit() and users[-1].split(":")[0] != "0"
    assert "HEALTHCHECK" in DOCKERFILE and json_of("VOLUME") == ["/app/runs", "/models"]
    assert re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE) == [
        "PYTHON",
        "TORCH_INDEX",
        "EXTRAS",
    ]


def test_the_commands_in_the_comments_are_right():
    lines = (DOCKERFILE + Path(ROOT / "compose.yaml").read_text()).replace("\\\n#", "").splitlines()
    ours = [re.sub(r"^.* reasoning ", "", line) for line in lines if " python train" in line]
    assert ours and [wrong(line) for line in ours] == [[]]
    assert wrong(" ".join(json_of("CMD"))) == []


def test_compose_serves_what_the_image_does_with_a_key_and_no_more_rights():
    assert MODEL["command"] == json_of("CMD")
    assert MODEL["environment"]["RLM_API_KEY"].startswith("${RLM_API_KEY:?"), "no key, no server"
    assert "ports" not in MODEL, "it is reached by the proxy alone"
    assert PROXY["ports"] == ["${LISTEN:-127.0.0.1:8080}:8080"], "this machine alone, unless told"
    assert MODEL["read_only"] and MODEL["cap_drop"] == ["ALL"]
    places = {volume.partition(":")[2] for volume in MODEL["volumes"]}
    assert places == set(json_of("VOLUME"))
    names = {volume.partition(":")[0] for volume in MODEL["volumes"]}
    assert names == COMPOSE["volumes"].keys()
    assert PROXY["depends_on"] == {"model": {"condition": "service_healthy"}}


# ---- What is sent to the build ----


def is_sent(name: str) -> bool:
    """Return whether .dockerignore lets a file through: the last pattern that matches decides."""
    path, sent = PurePosixPath(name), True
    candidates = [str(each) for each in (path, *path.parents)]
    for pattern in PATTERNS:
        plain = re.escape(pattern.removeprefix("!"))
        regex = plain.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(regex, each) for each in candidates):
            sent = pattern.startswith("!")
    return sent


@pytest.mark.parametrize(
    ("name", "sent"),
    [("train_grpo.py", True), ("settings/shared.py", True), ("training/stage.py", True),
     ("rlm/report/report.html", True), ("requirements.txt", True),
     ("weights/tiny_base/model.safetensors", True), ("configs/accelerate/one_machine.yaml", True),
     ("weights/mine/adapter_model.safetensors", False), ("runs/api_key", False), (".env", False),
     (".git/config", False), (".venv/bin/python", False), ("tests/conftest.py", False),
     ("rlm/report/__pycache__/watch.pyc", False), ("__pycache__/data.pyc", False)],
)  # fmt: skip
def test_what_the_image_gets(name, sent):
    assert is_sent(name) is sent


# ---- As it runs ----


@contextmanager
def image():
    """A folder as the image has it; its tree is read-only, and of another user where root runs."""
    folder = Path(tempfile.mkdtemp())
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    try:
        for name in filter(is_sent, filter(None, listed)):
            (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "app" / name)
        for place in (folder / "app/runs", folder / "models", folder / "scratch"):
            place.mkdir()
        volumes = {folder / "app/runs", folder / "models", folder / "scratch"}
        for path in set(folder.rglob("*")) - volumes:
            path.chmod(0o555 if path.is_dir() else 0o444)
            if AS_ROOT:
                os.chown(path, NOBODY, NOBODY)
        yield folder
    finally:
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def variables(folder: Path) -> dict[str, str]:
    """Return the environment of the image, its places being those of a folder."""
    block = re.search(r"^ENV (.*?)\n[A-Z]", DOCKERFILE, re.DOTALL | re.MULTILINE)[1]
    pairs = dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())
    placed = {name: re.sub(r"^/", f"{folder}/", value) for name, value in pairs.items()}
    mine = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return placed | mine | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(bool(ORDINARY) and not shutil.which("setpriv"), reason="needs util-linux")
def test_its_commands_run_for_an_ordinary_user_in_a_tree_that_is_read_only():
    port = free_port()

    command = [*ORDINARY, sys.executable, *json_of("CMD")[1:-1], str(port)]
    with image() as folder:
        options = {"cwd": folder / "app", "env": variables(folder) | {"RLM_API_KEY": KEY}}
        touched = subprocess.run([*ORDINARY, "touch", "data.py", "new"], check=False, **options)
        assert touched.returncode, "the tree is read-only"
        before = {path for path in folder.rglob("*") if path.is_file()}
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        try:
            until = time.monotonic() + 400
            while closed(port) or health(port, options):
                assert server.poll() is None, server.stderr.read()
                assert time.monotonic() < until, "it never became healthy"
                time.sleep(0.5)
            url = f"http://127.0.0.1:{port}/phase1/reasoning"
            asked = {"prompt": "Calculate 23 + 15 + 8"}
            assert httpx.post(url, json=asked).status_code == 401
            keyed = {"Authorization": f"Bearer {KEY}"}
            assert httpx.post(url, json=asked, headers=keyed, timeout=60).json()["answer"] == "46"
            server.send_signal(signal.SIGTERM)
            assert server.wait(120) == 0
        finally:
            server.kill()
            server.communicate()
        assert {path for path in folder.rglob("*") if path.is_file()} == before
        assert health(port, options) == 1


def closed(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def health(port: int, options: dict) -> int:
    """Return the exit code of the health check, for a server on another port."""
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])\n", DOCKERFILE, re.DOTALL)[1]
    words = [sys.executable, *(word.replace("8000", str(port)) for word in json.loads(found)[1:])]
    return subprocess.run(words, capture_output=True, check=False, **options).returncode


# ---- The proxy ----


class Stream(http.server.BaseHTTPRequestHandler):
    """Sends one piece, and the next once `seen` is set."""

    protocol_version = "HTTP/1.1"
    kind = "text/event-stream"
    seen = threading.Event()

    def log_message(self, *words):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.send_header("X-Host", self.headers["Host"])
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"6\r\nfirst\n\r\n")
        self.seen.wait(20)
        self.wfile.write(b"7\r\nsecond\n\r\n0\r\n\r\n")

    do_GET = do_POST


@contextmanager
def proxied(folder: Path, upstream: int):
    """Run nginx with the configuration of compose.yaml; yields its port."""
    port = free_port()
    text = COMPOSE["configs"]["proxy"]["content"].replace("$$", "$")
    for old, new in (("listen 8080", f"listen 127.0.0.1:{port}"),
                     ("model:8000", f"127.0.0.1:{upstream}")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    places = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder / 'pid'};\nerror_log {folder / 'error'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{text}}}\n"
    )
    words = [
        NGINX,
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
        "-e",
        str(folder / "error"),
    ]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 20
        while closed(port):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield port
    finally:
        running.terminate()
        running.communicate(timeout=20)


@pytest.mark.skipif(not NGINX, reason="the proxy is not tested: apt-get install nginx")
@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain"])
def test_the_proxy_passes_a_stream_on_as_it_comes(tmp_path, kind):
    tmp_path.chmod(0o755)
    handler = type("Kind", (Stream,), {"kind": kind, "seen": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        try:
            with proxied(tmp_path, upstream.server_port) as port:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("POST", "/phase1/reasoning", b"{}", {"Host": "here:1"})
                reply = connection.getresponse()
                assert reply.getheader("X-Host") == "here:1"
                assert reply.read1(100) == b"first\n", "the second has not been sent yet"
                handler.seen.set()
                assert reply.read() == b"second\n"
                connection.request("GET", "/metrics")
                assert connection.getresponse().status == 404
        finally:
            handler.seen.set()
            upstream.shutdown()


def test_the_proxy_waits_as_long_as_the_server_and_keeps_nothing_back():
    text = COMPOSE["configs"]["proxy"]["content"]
    assert re.search(r"^ *proxy_buffering off;", text, re.MULTILINE)
    assert re.search(r"^ *proxy_read_timeout 1h;", text, re.MULTILINE)
    assert not re.search(r"(?<!\$)\$(?!\$)", text), "a single dollar is compose's own"
