"""What the tests with the real vLLM share: when they are skipped, and a server of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        find_spec("vllm") is None,
        reason="vllm is not installed: make test-vllm runs this in an environment that has it",
    ),
]
START_SECONDS = 900  # on a machine that is busy with other things; it takes some 15 otherwise


@contextmanager
def serving(model, folder, *more):
    """Serve a model's folder in float32 on this machine's CPU; yields the address.

    The command `vllm serve` looks for a package of the name vllm, which the build for a CPU has
    not; this is the module behind it.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port),
               "--max-num-seqs", "256", *map(str, more)]  # fmt: skip
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
             "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}  # fmt: skip
    log = folder / "server.log"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait(url: str, process, log) -> None:
    """Return once the server answers; fails with the end of its log if it does not."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
