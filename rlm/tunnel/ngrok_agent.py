"""One ngrok agent, started through pyngrok: opened within a deadline, looked at, ended.

It knows what pyngrok 9.1 does not promise: its time limit is not kept while the agent prints
nothing, its kill() then waits too, and its get_tunnels() starts a new agent after a death.
"""

import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from rlm.tunnel.ngrok_faults import AGAIN, Fault, clean, explain

TOLD_SECONDS = 3.5  # an agent that needs longer to get ready is told of before its time is over
ASK_SECONDS = 1.3  # what an answer of its API may take
TRIES = 2  # one question without an answer is forgiven: the machine may be busy


class Agent:
    """The agent of the program `path`, with one endpoint to `http://127.0.0.1:port`.

    domain: an address of the account without the scheme; None takes what ngrok gives.
    lost: it lives, but its session with ngrok does not; it tries to get a new one by itself.
    """

    def __init__(self, path: str, port: int, domain: str | None):
        self.lost = False
        self._path, self._port, self._domain = path, port, domain
        self._name = f"rlm-{port}"
        self._said: list[str] = []  # its complaints
        self._began = 0.0
        self._process: subprocess.Popen | None = None
        self._api = ""

    def open(self, seconds: float, stopping: threading.Event, late: Callable) -> str | None:
        """Return the public URL, None if `stopping` was set; Fault if there is none in time.

        late(fault): called once if it takes long, with what is known by then.
        """
        outcome: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._connect, args=(seconds, outcome), daemon=True).start()
        began, told = time.monotonic(), False
        while True:
            with contextlib.suppress(queue.Empty):
                found = outcome.get(timeout=0.05)
                break
            if stopping.is_set():
                return None
            waited = time.monotonic() - began
            if waited < min(seconds, TOLD_SECONDS) or (told and waited < seconds):
                continue
            happened = f"the ngrok agent does not get ready; it is given {seconds:.0f} s"
            fault = explain(self._words(), self._domain) or Fault(happened, AGAIN)
            if waited > seconds:
                raise fault
            told = True
            late(fault)
        if isinstance(found, Exception):
            raise self._why(found)
        self._process, self._began = self._started(), time.monotonic()
        self._api = urlsplit(found.api_url).netloc
        return found.public_url

    def look(self) -> None:
        """Return if its process lives; Fault if it has ended."""
        if self._process is None or self._process.poll() is not None:
            code = f", exit code {self._process.returncode}" if self._process else ""
            happened = f"the ngrok agent ended after {time.monotonic() - self._began:.0f} s{code}"
            raise explain(self._words(), self._domain) or Fault(happened, AGAIN)

    def ask(self) -> None:
        """Ask its API on this machine for the endpoint; Fault if it is gone or no answer comes."""
        for _ in range(TRIES):
            connection = http.client.HTTPConnection(self._api, timeout=ASK_SECONDS)
            try:
                connection.request("GET", "/api/endpoints")
                listed = json.loads(connection.getresponse().read())
                there = (listed.get("endpoints") or []) + (listed.get("tunnels") or [])
            except (OSError, ValueError, AttributeError, http.client.HTTPException):
                continue
            finally:
                connection.close()
            if not any(each.get("name") == self._name for each in there):
                raise Fault("the ngrok agent has dropped the address", AGAIN)
            return
        raise Fault("the ngrok agent does not answer any more", AGAIN)

    def why_lost(self) -> Fault:
        """Return why it has no session with ngrok."""
        known = explain(self._words(), self._domain)
        return known or Fault("ngrok has ended the agent's session", AGAIN)

    def end(self, *, gently: bool) -> None:
        """End its process within a second and a half; gently: ngrok then frees the address."""
        from pyngrok import process as started

        process = self._started()
        if process is None or process.poll() is not None:
            return
        # One that takes its time to end must not be asked for the next tunnel.
        started._current_processes.pop(self._path, None)
        if gently:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.terminate()
                process.wait(1.0)
                return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # It leads a session of its own: whatever it started ends with it.
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait(0.5)

    def _connect(self, seconds: float, outcome: queue.SimpleQueue) -> None:
        """Put pyngrok's tunnel into `outcome`, or the exception. It may hang: in its own thread."""
        from pyngrok import conf, ngrok

        try:
            config = conf.PyngrokConfig(
                ngrok_path=self._path,
                log_event_callback=self._listen,
                startup_timeout=round(seconds) + 60,  # ours comes first, and is kept
                # Ctrl-C is for the server, which closes the tunnel after its last answer.
                start_new_session=True,
            )
            # pyngrok would hand it on as an argument, which every user of the machine can read;
            # the agent takes it from the environment by itself.
            config.auth_token = None
            tunnel = ngrok.connect(
                f"http://127.0.0.1:{self._port}",
                name=self._name,
                pyngrok_config=config,
                # The agent's inspector would keep requests, keys included, for anyone to see.
                inspect=False,
                **({"url": f"https://{self._domain}"} if self._domain else {}),
            )
            outcome.put(tunnel)
        except Exception as error:
            outcome.put(error)

    def _listen(self, log) -> None:
        """Take note of a line of its log."""
        if log.lvl in ("ERROR", "CRITICAL"):
            self._said = [*self._said[-9:], log.line]
            self.lost = self.lost or "session" in (log.msg or "")
        elif log.msg and "client session established" in log.msg:
            self.lost, self._said = False, []

    def _words(self) -> str:
        return " ".join(self._said)

    def _started(self) -> subprocess.Popen | None:
        # Without pyngrok's lock: a connect() that hangs holds it.
        from pyngrok import process

        found = process._current_processes.get(self._path)
        return found.proc if found else None

    def _why(self, error: Exception) -> Fault:
        """Return why pyngrok could not connect.

        A refusal has its code in the body, which is in the text; its attribute for it is empty.
        """
        said = f"{self._words()} {error}"
        if fault := explain(said, self._domain):
            return fault
        if isinstance(error, OSError):
            happened = f"{self._path} cannot be run ({error.strerror or clean(str(error))})"
            return Fault(happened, "install ngrok again, or give its path as PYNGROK_NGROK_PATH")
        if "unable to start" in str(error) and not self._said:
            happened = "the ngrok agent ended without a word"
            return Fault(happened, f"{AGAIN}; by hand: {self._path} start --none --log stdout")
        return Fault(f"ngrok: {clean(said)}", AGAIN)
