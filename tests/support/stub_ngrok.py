#!/usr/bin/env python3
"""A stand-in for the ngrok agent, for tests without ngrok's cloud: give its path as
PYNGROK_NGROK_PATH. It prints the log lines, serves the local API that pyngrok expects, and really
forwards: the "public" URL is a port of this machine.

STUB_NGROK sets a fault: no_token, bad_token, refuses:CODE (with that code, when it starts),
offline, hang, silent_exit, refused_domain, dies:SECONDS, stuck:SECONDS (its API stops answering),
drops:SECONDS (its endpoint goes), loses:SECONDS (its session is lost for a second, then there
again). Without it all is well, but for a NGROK_AUTHTOKEN that is missing. STUB_NGROK_ONCE names a
file: once it is there, faults are over; a fault makes it. STUB_NGROK_LOG names a file that gets a
line of JSON for each start.
"""

import http.client
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

NO_TOKEN = (
    r"authentication failed: Usage of ngrok requires a verified account and authtoken.\n\nSign up "
    r"for an account: https://dashboard.ngrok.com/signup\r\n\r\nERR_NGROK_4018\r\n"
)
BAD_TOKEN = (
    r"authentication failed: The authtoken you specified does not look like a proper ngrok "
    r"authtoken.\nYour authtoken: %s\nInstructions to install your authtoken are on your ngrok "
    r"dashboard.\r\n\r\nERR_NGROK_105\r\n"
)
OFFLINE = (
    'failed to dial ngrok server with address \\"connect.ngrok-agent.com:443\\": dial tcp: lookup '
    "connect.ngrok-agent.com: no such host"
)
REFUSED = "The domain '%s' is not reserved by your account.\r\n\r\nERR_NGROK_7118"
ENDPOINTS: dict[str, dict] = {}
STUCK = threading.Event()


def say(lvl: str, msg: str, **more: str) -> None:
    words = [f'{k}="{v}"' if " " in v else f"{k}={v}" for k, v in more.items()]
    print("t=2026-01-01T00:00:00+0000", f"lvl={lvl}", f'msg="{msg}"', *words, flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status: int, value=None) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Forward(Handler):
    """The public side: passes each request on, and the reply back as it comes."""

    def forward(self) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=600)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        headers |= {"X-Forwarded-For": self.client_address[0], "X-Forwarded-Proto": "https"}
        try:
            upstream.request(self.command, self.path, self.body() or None, headers)
            found = upstream.getresponse()
        except OSError:
            self.reply(502, {"error": "ERR_NGROK_8012"})
            return
        self.send_response_only(found.status)
        for name, value in found.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while piece := found.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass  # the client has gone: closing upstream tells the server
        finally:
            found.close()
            upstream.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_PATCH = forward


class Api(Handler):
    """The agent's own API, for programs on this machine."""

    def do_GET(self) -> None:
        if STUCK.is_set():
            time.sleep(3600)
        self.reply(200, {"endpoints": list(ENDPOINTS.values()), "uri": "/api/endpoints"})

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        if self.server.refused and asked.get("url"):
            said = REFUSED % urlsplit(asked["url"]).netloc
            told = {
                "error_code": 103,
                "status_code": 400,
                "msg": "failed",
                "details": {"err": said},
            }
            self.reply(400, told)
            return
        public = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
        public.daemon_threads = True
        public.upstream = urlsplit(asked["upstream"]["url"]).netloc
        threading.Thread(target=public.serve_forever, daemon=True).start()
        url, name = f"http://127.0.0.1:{public.server_port}", asked["name"]
        ENDPOINTS[name] = {"name": name, "uri": f"/api/endpoints/{name}", "url": url}
        ENDPOINTS[name]["asked"] = asked
        self.reply(201, ENDPOINTS[name])

    def do_DELETE(self) -> None:
        known = ENDPOINTS.pop(self.path.rsplit("/", 1)[-1], None)
        self.reply(204 if known else 404)


def fail_at_start(mode: str, code: str) -> None:
    """The faults of an agent that never gets ready."""
    token = os.environ.get("NGROK_AUTHTOKEN", "")
    if mode == "hang":
        time.sleep(3600)
    if mode == "silent_exit":
        sys.exit(1)
    while mode == "offline":
        say("eror", "failed to reconnect session", obj="tunnels.session", err=OFFLINE)
        time.sleep(0.5)
    if mode in ("no_token", "bad_token", "refuses") or not token:
        error = BAD_TOKEN % token if mode == "bad_token" else NO_TOKEN
        error = error.replace("4018", code) if mode == "refuses" else error
        say("eror", "failed to auth", obj="tunnels.session", err=error)
        say("crit", "command failed", err=error)
        sys.exit(1)


def fail_later(mode: str, seconds: float) -> None:
    """The faults of an agent that was ready."""
    time.sleep(seconds)
    if mode == "dies":
        os._exit(3)
    if mode == "stuck":
        STUCK.set()
    if mode == "drops":
        ENDPOINTS.clear()
    if mode == "loses":
        say("eror", "session closed, starting reconnect session", obj="csess", err=OFFLINE)
        time.sleep(1)
        say("info", "client session established", obj="tunnels.session")


def end_with(parent: int) -> None:
    """End with the test that started it."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def main() -> None:
    words = sys.argv[1:]
    if words == ["--version"]:
        print("ngrok version 3.99.0")
        return
    if words[:2] == ["config", "add-authtoken"]:
        print("Authtoken saved to configuration file: nowhere, this is a stub")
        return
    if words[:2] != ["start", "--none"]:
        sys.exit(f"unknown command {words}")
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    if os.environ.get("STUB_NGROK_LOG"):
        with open(os.environ["STUB_NGROK_LOG"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"words": words, "pid": os.getpid(), "time": time.time()}) + "\n")
    mode, _, given = os.environ.get("STUB_NGROK", "").partition(":")
    if once := os.environ.get("STUB_NGROK_ONCE"):
        mode = "" if os.path.exists(once) else mode
        with open(once, "a", encoding="utf-8"):
            pass
    fail_at_start(mode, given)
    api = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    api.daemon_threads, api.refused = True, mode == "refused_domain"
    threading.Thread(target=api.serve_forever, daemon=True).start()
    say("info", "starting web service", obj="web", addr=f"127.0.0.1:{api.server_port}")
    say("info", "client session established", obj="tunnels.session")
    say("info", "tunnel session started", obj="tunnels.session")
    if given and mode:
        threading.Thread(target=fail_later, args=(mode, float(given)), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
