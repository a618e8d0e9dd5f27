"""A script in a process of its own that need not import torch, transformers and trl again.

A server imports them once, then forks for each script: the new process has its own arguments,
variables, folder and pipes, runs the script as __main__, gets signals and leaves an exit code, as
one does that was started by its command. What differs: the seed of hashes is the server's, torch
has one thread, and sitecustomize was run before. Tests that mean these start Python anew.
"""

import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress

POSSIBLE = sys.platform == "linux"
LIBRARIES = (
    "torch", "transformers.models.qwen2.modeling_qwen2", "transformers.models.llama.modeling_llama",
    "peft", "trl.trainer.sft_trainer", "matplotlib.figure",
)  # fmt: skip
LARGEST = 1 << 20  # bytes of a request: words, folder and variables


class Forked:
    """A process of a script, with what subprocess.Popen has of pid, poll, wait and kill."""

    def __init__(self, words, *, cwd, env, pipes: list[int]):
        """words: a script, or -m and a module, with its arguments; pipes: descriptors 0 to 2."""
        asked = {"words": [*map(str, words)], "cwd": str(cwd), "env": env}
        self._status, theirs = os.pipe()
        content = json.dumps(asked).encode()
        assert len(content) < LARGEST
        socket.send_fds(server(), [content], [*pipes, theirs])
        os.close(theirs)
        self.args, self.returncode, self._told = words, None, b""
        self.pid = int(self._line(None))

    def _line(self, seconds: float | None) -> str | None:
        """Return the next line that the server tells of this process, None if it is late."""
        until = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._told:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._status], [], [], left)[0]:
                return None
            piece = os.read(self._status, 100)
            assert piece, "the server of forked processes has ended"
            self._told += piece
        line, _, self._told = self._told.partition(b"\n")
        return line.decode()

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None and (line := self._line(seconds)) is not None:
            self.returncode = int(line)
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def popen(words, *, cwd, env, merged=False) -> Forked:
    """Start a script with pipes to read from: stdout and stderr, or both in stdout if merged."""
    out, err = os.pipe(), os.pipe()
    with open(os.devnull) as nothing:
        pipes = [nothing.fileno(), out[1], (out if merged else err)[1]]
        process = Forked(words, cwd=cwd, env=env, pipes=pipes)
    os.close(out[1])
    os.close(err[1])
    process.stdout, process.stderr = os.fdopen(out[0]), os.fdopen(err[0])
    return process


def run(words, *, cwd, env, stdin: str = "", timeout: float) -> subprocess.CompletedProcess:
    """Run a script to its end, as subprocess.run does with capture_output and text."""
    with ExitStack() as files:
        pipes = [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        pipes[0].write(stdin)
        pipes[0].seek(0)
        process = Forked(words, cwd=cwd, env=env, pipes=[file.fileno() for file in pipes])
        try:
            process.wait(timeout)
        finally:
            process.kill()
        told = []
        for file in pipes[1:]:
            file.seek(0)
            told.append(file.read())
    return subprocess.CompletedProcess(words, process.returncode, *told)


@functools.cache
def server() -> socket.socket:
    """Start the server; it ends when this process does, since the other end is then closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with theirs:
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], env=os.environ | one | {"HF_HUB_DISABLE_TELEMETRY": "1"},
            start_new_session=True, **quiet,
        )  # fmt: skip
    return ours


# What follows runs in the server and in what it forks.


def serve(control: socket.socket) -> list[str]:
    """Fork for each request. Returns in the new processes only: the words that each has to run."""
    for name in LIBRARIES:
        with suppress(ImportError):  # vLLM's environment has not all of them
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        content, descriptors, _, _ = socket.recv_fds(control, LARGEST, 4)
        if not content:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            return attend(json.loads(content), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def attend(asked: dict, descriptors: list[int]) -> list[str]:
    """Fork once more: one is the script's process, and returns; this one tells how that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *pipes, status = descriptors
    pid = os.fork()
    if pid == 0:
        os.close(status)
        return become(asked, pipes)
    for descriptor in pipes:
        os.close(descriptor)
    os.write(status, b"%d\n" % pid)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)


def become(asked: dict, pipes: list[int]) -> list[str]:
    import random

    for target, descriptor in enumerate(pipes):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    return asked["words"]


if __name__ == "__main__":
    import runpy

    del sys.path[0]  # this file's folder, unless the interpreter was told to leave it out
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")
