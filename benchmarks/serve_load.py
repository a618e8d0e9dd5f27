"""How much a server gets done: closed-loop clients against ours and others, in one run.

    python benchmarks/serve_load.py                        # the shipped adapter on the tiny base
    python benchmarks/serve_load.py --size small           # a random model of 38 M parameters
    python benchmarks/serve_load.py --clients 1 16 --repeats 1 --json FILE

Every client asks, reads the streamed reply to its end, and asks again. All servers get the same
model, prompts and sampling, one thread for tensors, and are asked by the same API
(/v1/chat/completions). Repeats alternate between the servers, each of which is started anew.
Tokens per CPU second count the processor time of the server's processes alone, so that neither
the clients nor whatever else runs on the machine count.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil
from serve_peers import ROOT, SERVERS, commands, make_model, missing

from rlm import files

RESULTS = Path(__file__).parent / "results" / "serve_load.json"
MAX_TOKENS = {"tiny": 128, "small": 48}
START_SECONDS = 180


QUIET = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


@contextmanager
def running(server: str, folder: Path, log):
    """Start a server. Yields (url, its process as psutil sees it)."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        commands(folder, port)[server],
        cwd=ROOT,
        env=os.environ | threads | QUIET,
        stdout=log,
        stderr=log,
    )
    url = f"http://localhost:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{server}: did not start; its output is in {log.name}")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time that a process and its children have used."""
    used = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in used)


async def ask(client: httpx.AsyncClient, body: dict) -> tuple[float, float, int] | None:
    """Return (seconds to the first token, to the end, tokens) of a request, None if it is lost."""
    began, first, tokens = time.perf_counter(), None, 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                return None
            async for line in reply.aiter_lines():
                if first is None and ('"content"' in line or '"reasoning_content"' in line):
                    choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                    delta = choices[0].get("delta") or {}
                    if delta.get("content") or delta.get("reasoning_content"):
                        first = time.perf_counter() - began
                if '"completion_tokens"' in line:
                    usage = json.loads(line.removeprefix("data: ")).get("usage")
                    tokens = usage["completion_tokens"] if usage else tokens
    except httpx.TransportError:
        return None
    # No text at all (only an end token) is a reply too.
    end = time.perf_counter() - began
    return (end if first is None else first, end, tokens) if tokens else None


async def load(url: str, bodies: list[dict], clients: int, requests: int) -> tuple[list, float]:
    """Return the replies (None: lost) of `requests` by so many clients, and the seconds."""
    numbers = iter(range(requests))
    found: list = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one() -> None:
            for number in numbers:
                found.append(await ask(client, bodies[number % len(bodies)]))

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return found, time.perf_counter() - began


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def measure(url: str, process, bodies: list[dict], clients: int, requests: int) -> dict:
    """Return the figures of one cell, times in milliseconds."""
    before = cpu_seconds(process)
    replies, seconds = asyncio.run(load(url, bodies, clients, requests))
    used = cpu_seconds(process) - before
    good = [reply for reply in replies if reply]
    tokens = sum(reply[2] for reply in good)
    row = {
        "requests": requests,
        "lost": requests - len(good),
        "tokens": tokens,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / used,
        "cpu_share": used / seconds,
        # Of all that runs on the machine: where it is well above 1, the times are too long.
        "load_average": os.getloadavg()[0],
    }
    for index, name in enumerate(("first_token_ms", "total_ms")):
        times = [1000 * reply[index] for reply in good] or [float("nan")]
        row |= {f"{name}_p50": percentile(times, 0.5), f"{name}_p99": percentile(times, 0.99)}
    return {name: round(value, 2) if value == value else None for name, value in row.items()}


def summary(rows: list[dict]) -> list[dict]:
    """Return the median, lowest and highest of each figure over the repeats."""
    found = []
    for server, clients in dict.fromkeys((row["server"], row["clients"]) for row in rows):
        same = [row for row in rows if (row["server"], row["clients"]) == (server, clients)]
        line: dict = {"server": server, "clients": clients, "repeats": len(same)}
        for name in same[0]:
            values = [row[name] for row in same if row[name] is not None]
            if name in ("server", "clients", "repeat") or not values:
                continue
            middle = round(statistics.median(values), 2)
            line[name] = {"median": middle, "min": min(values), "max": max(values)}
        found.append(line)
    locks = {
        line["clients"]: line["tokens_per_cpu_second"]["median"]
        for line in found
        if line["server"] == "lock"
    }
    for line in found:
        if lock := locks.get(line["clients"]):
            line["cpu_gain_over_lock"] = round(line["tokens_per_cpu_second"]["median"] / lock, 2)
    return found


def show(line: dict) -> None:
    """Print a line of the summary."""
    middle = {name: value["median"] for name, value in line.items() if isinstance(value, dict)}
    cpu, lost = line["tokens_per_cpu_second"], line["lost"]["max"]
    print(
        f"{line['server']:41}{line['clients']:3} clients "
        f"{middle['requests_per_second']:7.1f} req/s {middle['tokens_per_second']:8.1f} tok/s "
        f"{cpu['median']:8.1f} tok/CPU s ({cpu['min']:.0f}-{cpu['max']:.0f}), "
        f"p50/p99 first {middle['first_token_ms_p50']:.0f}/{middle['first_token_ms_p99']:.0f} ms, "
        f"total {middle['total_ms_p50']:.0f}/{middle['total_ms_p99']:.0f} ms"
        + (f", {lost} lost" if lost else ""),
        flush=True,
    )


def run(options, servers: list[str], folder: Path) -> list[dict]:
    """Return a row for each repeat, server and number of clients."""
    import data

    examples = data.load_examples("addition", "test", n=64)
    common = {"model": str(folder), "max_tokens": MAX_TOKENS[options.size], "temperature": 0.7}
    common |= {"stream": True, "stream_options": {"include_usage": True}}
    bodies = [common | {"messages": [{"role": "user", "content": e.question}]} for e in examples]
    rows = []
    for repeat in range(options.repeats):
        # Every other repeat goes backwards: no server always has the same neighbour.
        for server in servers if repeat % 2 == 0 else servers[::-1]:
            with open(folder / "server.log", "w") as log, running(server, folder, log) as found:
                url, process = found
                asyncio.run(load(url, bodies, 2, 4))  # warm
                for clients in options.clients:
                    requests = max(options.requests, options.rounds * clients)
                    row = measure(url, process, bodies, clients, requests)
                    rows.append({"server": server, "clients": clients, "repeat": repeat} | row)
                    show(summary(rows[-1:])[0])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=[*MAX_TOKENS], default="tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=24, help="of a cell, at least")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results")
    options = parser.parse_args()
    skipped = {name: why for name, why in missing().items() if name in options.servers}
    for name, why in skipped.items():
        print(f"{name}: left out, {why}", flush=True)
    servers = [name for name in options.servers if name not in skipped]
    with tempfile.TemporaryDirectory(prefix="serve_load_") as place:
        rows = run(options, servers, make_model(options.size, Path(place)))
    lines = summary(rows)
    print(f"\nmedians of {options.repeats} repeats:")
    for line in lines:
        show(line)
    known = json.loads(options.json.read_text(encoding="utf-8")) if options.json.exists() else {}
    settings = {"max_tokens": MAX_TOKENS[options.size], "threads": 1, "temperature": 0.7}
    settings |= {"requests_at_least": options.requests, "rounds_at_least": options.rounds}
    result = {"settings": settings, "skipped": skipped, "summary": lines, "runs": rows}
    names = ("torch", "transformers", "fastapi", "uvicorn")
    machine = {"cores": os.cpu_count(), "processor": platform.machine()}
    versions = {"python": platform.python_version()} | {name: version(name) for name in names}
    files.write_json(
        options.json, known | {options.size: {"machine": machine, "versions": versions} | result}
    )
    print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
