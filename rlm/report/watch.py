"""Serves a run's report while the run goes on; the page renews itself.

    python -m rlm.report watch runs/grpo               # http://127.0.0.1:6007 on this machine alone
    python -m rlm.report watch runs/demo --every 10    # of a train.py run, all its stages

Only reads: no file is written, and the run knows nothing of it. The page is made anew when a file
of the run has changed, and never takes more than a twentieth of a core's time. What is half-written
is not shown: a table counts up to its last whole line, and the samples of a step are looked at once
nothing has been added to them for a moment.

Another machine's browser comes by the `ssh -L` line that is printed. With --host the page is on
the network: its address then holds a secret, as it shows the run's data to whoever has it.
"""

import argparse
import contextlib
import getpass
import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rlm.errors import InputError
from rlm.report import report
from rlm.report.run_data import stages

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 6007
QUIET_SECONDS = 0.1  # for which a step's samples have not grown: they are all there
SHARE = 20  # of the time a page took to be made that passes before the next is made
NEVER = ("report.html", "learning_curves.png", "learning_curves.svg")  # files that a page is not of
LOST = "The server of this page does not answer: it shows what was known last."


class Live:
    """The page of a run's folder, made anew when a file of the run has changed.

    every: seconds between two looks of the page.
    """

    def __init__(self, folder: Path, every: float):
        self.folder, self.every = folder, every
        self._lock = threading.Lock()
        self._tag, self._page, self._next = "", b"", 0.0
        self._whole: dict[Path, int] = {}  # bytes of each rollouts.jsonl that are known to be whole

    def page(self) -> tuple[str, bytes]:
        """Return the tag of what is shown, another for each page, and the page."""
        with self._lock:
            began = time.monotonic()
            if self._page and began < self._next:
                return self._tag, self._page
            end = self._settled(report.rollouts_of(self.folder))
            tag = self._now(end)
            if tag != self._tag:
                with contextlib.suppress(FileNotFoundError):  # moved away while it was read
                    self._page = self._render(tag, end)
                    self._tag = tag
                self._next = time.monotonic() + SHARE * (time.monotonic() - began)
            return self._tag, self._page

    def _render(self, tag: str, end: int) -> bytes:
        watched = (
            f'<p id="watched" data-tag="{tag}" data-every="{self.every:g}" hidden></p>\n'
            f'<p id="lost" role="status" hidden>{LOST}</p>\n'
        )
        text = report.render(self.folder, end=end, running=True, watched=watched)
        return text.encode(errors="backslashreplace")

    def _settled(self, path: Path) -> int:
        """Return how many bytes of a file are whole steps: its size, unless it is growing now."""
        size = _size(path)
        known = min(self._whole.get(path, 0), size)
        if size != known:
            time.sleep(QUIET_SECONDS)
            known = size if _size(path) == size else known
        self._whole[path] = known
        return known

    def _now(self, end: int) -> str:
        """Return a tag of what the run's files are now, by their names, sizes and times."""
        places = [self.folder, *stages(self.folder)]
        found = [path for place in dict.fromkeys(places) for path in place.glob("[!.]*.*")]
        found += self.folder.parent.glob("[!.]*.json")  # evaluations of train.py
        facts: list = [end]
        for path in sorted(path for path in found if path.name not in (*NEVER, "rollouts.jsonl")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                facts.append((str(path), stat.st_size, stat.st_mtime_ns))
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Server(ThreadingHTTPServer):
    """Answers GET of one path with the page of `live`.

    key: what the path is, beside /; without one only names of this machine are answered, so that
    no page of the web can ask through the browser by a name of its own (DNS rebinding).
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, live: Live, key: str = ""):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.live, self.key = live, key
        super().__init__((host, port), Handler)

    def handle_error(self, request, client_address) -> None:
        """Say nothing of a browser that has gone; a fault of ours keeps its traceback."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds that a silent connection is kept; each reply ends its own

    def do_GET(self) -> None:
        if not self.server.key and self._asked_name() not in LOOPBACK:
            return self._reply(403, b"open it as 127.0.0.1 or localhost\n")
        path = self.path.partition("?")[0].strip("/")
        if not secrets.compare_digest(path.encode(), self.server.key.encode()):
            return self._reply(404, b"no such page\n")
        tag, page = self.server.live.page()
        if not page:
            return self._reply(503, b"the run's folder is being moved\n")
        if self.headers.get("If-None-Match") == tag:
            return self._reply(304, b"")
        return self._reply(200, page, "text/html; charset=utf-8", ETag=tag)

    do_HEAD = do_GET

    def _asked_name(self) -> str | None:
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return None

    def _reply(self, status: int, body: bytes, kind="text/plain; charset=utf-8", **more) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words) -> None:
        """Say nothing: a page that renews itself asks all the time."""


def open_server(host: str, port: int | None, live: Live) -> Server:
    """Return the server, bound to its port; without one PORT, or a free one where that is taken.

    InputError where it cannot listen.
    """
    key = "" if host in LOOPBACK else secrets.token_urlsafe(16)
    wanted = [PORT, 0] if port is None else [port]
    for number in wanted:
        try:
            return Server(host, number, live, key)
        except OSError as error:
            told = error.strerror or str(error)
    raise InputError(
        f"--host {host} --port {wanted[-1]}: cannot listen there ({told}); stop what does, or use "
        "another --port (0 takes a free one)"
    )


def told(server: Server) -> list[str]:
    """Return the lines that say how a browser gets to the page."""
    host, port = server.server_address[:2]
    host = str(host)
    if server.key:
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        return [f"report: http://{_bracketed(name)}:{port}/{server.key}"]
    return [
        f"report: http://{_bracketed(host)}:{port}",
        f"from another machine: ssh -L {port}:{_bracketed(host)}:{port} {remote()}",
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def remote() -> str:
    """Return user and host of this machine for ssh: as the user came here, if by ssh."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "USER"
    came = os.environ.get("SSH_CONNECTION", "").split()
    if len(came) != 4:
        return f"{user}@{socket.gethostname()}"
    return f"{user}@{came[2]}" + ("" if came[3] == "22" else f" -p {came[3]}")


class Parser(argparse.ArgumentParser):
    """Tells wrong input in one line, as the scripts do."""

    def error(self, message):
        raise InputError(f"{message}; see python -m rlm.report watch --help")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m rlm.report watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a run's, such as runs/grpo")
    every = "seconds between two looks of the page, 1 to 3600; default %(default)g"
    parser.add_argument("--every", type=float, default=5.0, metavar="X", help=every)
    host = "address to listen on; default %(default)s, this machine alone"
    parser.add_argument("--host", default=LOOPBACK[0], help=host)
    port = f"0: a free one; default {PORT}, or a free one where it is taken"
    parser.add_argument("--port", type=int, metavar="N", help=port)
    return parser


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C; return 0."""
    given = arguments().parse_args(argv)
    if not given.folder.is_dir():
        raise InputError(
            f"{given.folder}: no such folder; give a run's that has begun, such as runs/grpo"
        )
    if not 1 <= given.every <= 3600:
        raise InputError(f"--every {given.every:g}: out of range; use 1 to 3600 seconds")
    if given.port is not None and not 0 <= given.port <= 65535:
        raise InputError(f"--port {given.port}: out of range; use 0 to 65535")
    with open_server(given.host, given.port, Live(given.folder, given.every)) as server:
        print("\n".join(told(server)), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
