"""The public URL: an ngrok agent that is watched, and started again when it ends.

    tunnel = Tunnel(port, endpoint_file=Path("runs/endpoint.json"), on_up=print, on_down=print)
    tunnel.start()                      # at once; a daemon thread does the work
    if not tunnel.wait(15): print(tunnel.failure)
    tunnel.stop()

It does not know what listens on the port, and nothing that happens to it reaches whoever does:
a fault becomes a line of text and another try. It looks at the agent's process and at its API on
this machine; the public URL is never asked, since every request counts on the free plan.
"""

import atexit
import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rlm import files
from rlm.tunnel.ngrok_agent import Agent
from rlm.tunnel.ngrok_faults import AGAIN, UNKNOWN_TRIES, Fault, clean, find_agent

logger = logging.getLogger("rlm")
LOOK_SECONDS = 0.2  # between two looks at the process
ASK_SECONDS = 1.0  # between two questions to the agent's API
STEADY_SECONDS = 10.0  # after a tunnel that lived so long the waits begin with the first again


class Tunnel:
    """A tunnel to `http://127.0.0.1:port`, kept up until `stop`.

    url: the public one while it is up, else None. failure: while it is down, why and what to do.
    on_up(url), on_down(line): called from its thread, on_down once for each new fault.
    domain: an address of the account; None takes what ngrok gives.
    connect_seconds: what an attempt may take before the agent is killed.
    first_wait, longest_wait: seconds between attempts; each wait is twice the one before, and
        the longest comes at once after a fault that only the user can mend. One that nobody
        knows is given up after UNKNOWN_TRIES in a row.
    """

    def __init__(
        self,
        port: int,
        *,
        endpoint_file: Path,
        on_up: Callable[[str], None],
        on_down: Callable[[str], None],
        domain: str | None = None,
        connect_seconds: float = 15.0,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
    ):
        self.url: str | None = None
        self.failure: str | None = None
        self._port, self._file = port, Path(endpoint_file)
        self._on_up, self._on_down = on_up, on_down
        self._domain = re.sub(r"^https?://|/+$", "", domain) if domain else None
        self._connect_seconds = connect_seconds
        self._first_wait, self._longest_wait = first_wait, longest_wait
        self._agent: Agent | None = None
        self._rose = 0.0  # when it came up in this attempt, 0 if it did not
        self._hopeless = False  # the fault is one that only the user can mend
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)

    def start(self) -> None:
        """Open the tunnel in a thread; return at once."""
        atexit.register(self.stop)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Return True once it is up; False after `seconds`, or if only the user can mend it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.url or self._hopeless or self._stopping.is_set(), seconds
            )
            return self.url is not None

    def stop(self) -> None:
        """Close it for good within 3 seconds: no agent and no endpoint file is left."""
        atexit.unregister(self.stop)
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        if self._agent:
            self._agent.end(gently=False)
        self._forget()

    def _run(self) -> None:
        wait, unknown = self._first_wait, 0
        # pyngrok repeats every line of the agent at its level, and some hold the token.
        logging.getLogger("pyngrok").setLevel(logging.CRITICAL + 1)
        _local_without_proxy()
        while not self._stopping.is_set():
            lasting = False
            try:
                self._keep_up()
            except Fault as fault:
                lasting = fault.lasting
                unknown = unknown + 1 if fault.unknown and not self._rose else 0
                if unknown == UNKNOWN_TRIES:
                    self._report(fault.given_up(unknown))
                    break
                self._report(fault)
            except Exception as error:
                happened = f"the tunnel failed ({type(error).__name__}: {clean(str(error))})"
                self._report(Fault(happened, AGAIN))
            if self._agent:
                self._agent.end(gently=self._stopping.is_set())
            if self._rose and time.monotonic() - self._rose > STEADY_SECONDS:
                wait = self._first_wait
            self._stopping.wait(self._longest_wait if lasting else wait)
            wait = min(2 * wait, self._longest_wait)
        if self._agent:
            self._agent.end(gently=False)
        self._forget()

    def _keep_up(self) -> None:
        """Open the tunnel and watch it; return when it is to stop, Fault when it is down."""
        from pyngrok import conf

        self._rose = 0.0
        self._agent = agent = Agent(find_agent(conf.DEFAULT_NGROK_PATH), self._port, self._domain)
        url = agent.open(self._connect_seconds, self._stopping, late=self._report)
        if url is None:
            return
        self._rise(url)
        self._rose = asked = time.monotonic()
        while not self._stopping.wait(LOOK_SECONDS):
            agent.look()
            if agent.lost and self.url:
                self._report(agent.why_lost())
            elif not agent.lost and not self.url:
                self._rise(url)
            if time.monotonic() - asked > ASK_SECONDS:
                agent.ask()
                asked = time.monotonic()

    def _rise(self, url: str) -> None:
        """Show that it is up."""
        with self._changed:
            if self._stopping.is_set():
                return
            local = f"http://127.0.0.1:{self._port}"
            with contextlib.suppress(OSError):  # a full disk is no reason to have no tunnel
                files.write_json(self._file, {"url": url, "local": local, "pid": os.getpid()})
            # After the file: who sees the URL finds the file.
            self.url, self.failure, self._hopeless = url, None, False
            self._changed.notify_all()
        _call(self._on_up, url)

    def _report(self, fault: Fault) -> None:
        """Show that it is down, and tell of the fault if it is another than before."""
        self._forget()
        with self._changed:
            known, self.failure = self.failure, str(fault)
            self._hopeless = fault.lasting
            self._changed.notify_all()
            if self._stopping.is_set() or self.failure == known:
                return
        _call(self._on_down, str(fault))

    def _forget(self) -> None:
        """Remove the endpoint file, if it is ours: another server may have written its own."""
        with self._changed:
            self.url = None
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if json.loads(self._file.read_text(encoding="utf-8"))["pid"] == os.getpid():
                    self._file.unlink()


def _call(callback: Callable[[str], None], text: str) -> None:
    try:
        callback(text)
    except Exception:
        logger.exception("the tunnel goes on: its listener failed")


def _local_without_proxy() -> None:
    """Let pyngrok reach the agent's API on this machine where a proxy is set."""
    skipped = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "127.0.0.1" not in skipped:
        os.environ["no_proxy"] = ",".join([*filter(None, [skipped]), "127.0.0.1"])
