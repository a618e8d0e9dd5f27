"""Where everything is local, nothing asks for a name or for an address beyond this machine.

Every script runs in a process whose sockets record and refuse that; no offline switch is set. It
sees what goes through Python's sockets, in the scripts' own children too; a library that opened
one in compiled code would not be seen.
"""

import json
import os
import subprocess
import sys

import httpx
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.running import ROOT, start
from tests.support.serving import process

pytestmark = [pytest.mark.slow, pytest.mark.ci]

TINY = ROOT / "weights" / "tiny_base"
GUARD = """
import os
import socket
import traceback

LOCAL = ("localhost", "127.0.0.1", "::1", "", "0.0.0.0", None)


def refuse(what, address):
    with open(os.environ["NETWORK_LOG"], "a") as file:
        print(what, address, file=file)
        traceback.print_stack(limit=60, file=file)
    raise OSError(f"no network here: {what} {address}")


def guarded(what, function, place):
    def call(*arguments, **options):
        address = arguments[place] if len(arguments) > place else None
        host = address[0] if isinstance(address, tuple) else address
        host = host.decode() if isinstance(host, bytes) else host
        if not (isinstance(address, str) and address.startswith("/")) and host not in LOCAL:
            refuse(what, address)
        return function(*arguments, **options)

    return call


for name, place in (("connect", 1), ("connect_ex", 1), ("sendto", -1)):
    original = getattr(socket.socket, name)
    setattr(socket.socket, name, guarded(name, original, place if place > 0 else 2))
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
    setattr(socket, name, guarded(name, getattr(socket, name), 0))
"""
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE",
            "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "WANDB_MODE", "WANDB_DISABLED")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with data of its own and the guard; an SFT adapter is trained in it."""
    path = tmp_path_factory.mktemp("network")
    (path / "guard").mkdir()
    (path / "guard" / "sitecustomize.py").write_text(GUARD)
    rows = [{"question": f"How many is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
            for n in range(60)]  # fmt: skip
    (path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "sums.parquet")
    words = ["--num-samples", 16, "--max-steps", 2, "--task", "jsonl", "--data", "sums.jsonl"]
    run(path, "train_sft.py", *SMALL, *words)
    return path


SMALL = ["--model", TINY, "--eval-samples", 2, "--max-tokens", 16]


def guarded(path) -> dict[str, str]:
    """The variables of a process that is watched: no switch, nothing in a cache."""
    variables = dict.fromkeys(SWITCHES, "")
    places = {"NETWORK_LOG": str(path / "log"), "HF_HOME": str(path / "empty")}
    return variables | places | {"PYTHONPATH": str(path / "guard"), "OMP_NUM_THREADS": "1"}


def told(path) -> str:
    """What was tried since the last call."""
    log = path / "log"
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return text


def run(path, script, *words):
    done = start(script, *words, cwd=path, **guarded(path))
    assert told(path) == ""
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('192.0.2.1', 80), 1)",
        "socket.getaddrinfo('huggingface.co', 443)",
        "socket.socket().connect_ex(('192.0.2.1', 80))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
        "__import__('urllib.request').request.urlopen('http://192.0.2.1')",
        "__import__('subprocess').run([__import__('sys').executable, '-c', "
        "'import socket; socket.gethostbyname(chr(97))'], check=True)",
    ],
)
def test_the_guard_sees_and_refuses(folder, code):
    done = subprocess.run(
        [sys.executable, "-c", f"import socket; {code}"],
        env=os.environ | guarded(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "no network here" in done.stderr
    assert told(folder) != ""


def test_sft_from_a_local_file(folder):
    assert (folder / "weights/sft_lora/adapter_model.safetensors").is_file()


def test_grpo(folder):
    words = ["--num-samples", 8, "--max-steps", 1, "--questions-per-step", 2, "--group-size", 2]
    run(folder, "train_grpo.py", *SMALL, *words, "--probe", 1, "--output", "weights/grpo")
    assert (folder / "weights/grpo/adapter_model.safetensors").is_file()


def test_grpo_by_trl(folder):
    words = ["--num-samples", 8, "--max-steps", 1, "--questions-per-step", 2, "--group-size", 2]
    run(folder, "train_grpo.py", *SMALL, *words, "--backend", "trl", "--output", "weights/trl")
    assert (folder / "weights/trl/adapter_model.safetensors").is_file()


def test_both_stages_in_one_go(folder):
    words = [
        "--num-samples",
        8,
        "--sft-max-steps",
        1,
        "--grpo-max-steps",
        1,
        "--grpo-group-size",
        2,
    ]
    run(folder, "train.py", *SMALL, *words, "--weights", "both", "--no-wandb")
    assert (folder / "both/final_rlm_lora/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.parquet"])
def test_data_of_a_file(folder, name):
    code = f"import data; assert data.load_examples('jsonl', 'train', data={name!r})"
    environment = os.environ | guarded(folder)
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=False)
    assert told(folder) == "" and done.returncode == 0


def test_evaluate_base_and_adapter_on_a_local_file(folder):
    data = ["--task", "jsonl", "--data", "sums.jsonl", "--split", "validation"]
    done = run(folder, "evaluate.py", *SMALL, *data, "--models", "base", "weights/sft_lora")
    assert "sft_lora" in done.stdout


def test_inference(folder):
    run(folder, "inference.py", "Calculate 1 + 2 + 3", "--adapter", "weights/sft_lora")


def test_what_is_exported(folder):
    words = [sys.executable, "-m", "rlm.export", "merged", "--model", TINY,
             "--adapter", folder / "weights/sft_lora", "--output", folder / "merged"]  # fmt: skip
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, env=os.environ | guarded(folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told(folder) == "" and done.returncode == 0, done.stderr


def test_the_server(folder):
    words = ("--adapter", folder / "weights/sft_lora")
    with process(*words, cwd=folder, forked=False, **guarded(folder)) as place:
        asked = {"prompt": "Calculate 1 + 2 + 3", "max_tokens": 8}
        assert httpx.post(f"{place.url}/phase1/reasoning", json=asked).status_code == 200
        assert httpx.get(place.url).status_code == 200
    assert told(folder) == ""


def test_all_that_was_saved_is_safetensors(folder):
    names = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz"}
