"""llama.cpp's own server on a GGUF file, in a process of its own: its tokens, prompts, answers.

    with Server(file, rows=8, room=256) as server:
        server.tokens("1 + 2")
        server.rendered([{"role": "user", "content": "1 + 2?"}])
        server.answers([[5, 6, 7]], max_tokens=16)

The runtime is the package xllamacpp (extra `llamacpp`), which holds llama.cpp built for the CPU. It
runs in a child, since llama.cpp ends its process where it finds a file wrong; the child ends with
its parent. What a file has to say is not known here.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rlm.errors import InputError

PACKAGE = "xllamacpp"
TOP = 10  # log-probabilities that are asked for behind each prompt
PATIENCE = 1800.0  # seconds for one request; a slow machine with a large model


class RuntimeFault(InputError):
    """llama.cpp did not take the file, or ended; one line says what it wrote last."""


@dataclass(frozen=True)
class Said:
    """ids: of an answer; some end tokens are told with it, some not. ended: whether one came.

    logprobs: token -> log-probability behind the prompt, of the likeliest tokens; {} where the
    first token is a part of a character, of which the server tells none.
    """

    ids: list[int]
    ended: bool
    logprobs: dict[int, float]


def installed() -> str | None:
    """Return the runtime with its version; None where there is none."""
    return f"{PACKAGE} {version(PACKAGE)}" if find_spec(PACKAGE) else None


class Server:
    """Answers on 127.0.0.1 for as long as its `with` block lasts.

    rows: answers that are written at the same time. room: tokens of the longest prompt and its
    answer. lora: a GGUF file of an adapter. RuntimeFault if llama.cpp cannot load the file.
    """

    def __init__(self, model: Path, *, rows: int, room: int, threads: int = 1,
                 lora: Path | None = None):  # fmt: skip
        self.rows = rows
        self._settings = {
            "model": str(model),
            "lora": str(lora) if lora else None,
            "rows": rows,
            "context": rows * (room + 8),
            "threads": threads,
        }

    def __enter__(self) -> "Server":
        import httpx

        self._errors = tempfile.TemporaryFile()  # closed in __exit__
        # GGML_NO_BACKTRACE: where llama.cpp ends itself it would start a debugger first.
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(self._settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("http://"):
                # No proxy of the environment stands before this machine's own address.
                self._client = httpx.Client(
                    base_url=line.strip(), timeout=PATIENCE, trust_env=False
                )
                return self
        self._child.wait()
        fault = self._fault()
        self.__exit__()
        raise fault

    def __exit__(self, *_) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def tokens(self, text: str, *, begin: bool = False) -> list[int]:
        """Return the ids of a text; special tokens that are written out in it are read as such.

        begin: with what the file says that a prompt begins with.
        """
        asked = {"content": text, "add_special": begin, "parse_special": True}
        return self._post("/tokenize", asked)["tokens"]

    def rendered(self, messages: list[dict]) -> str:
        """Return the prompt that the file's chat template makes of a conversation.

        The token that it begins with is left out where llama.cpp puts it there by itself.
        """
        return self._post("/apply-template", {"messages": messages})["prompt"]

    def answers(self, prompts: list[list[int]], *, max_tokens: int) -> list[Said]:
        """Return the greedy answer to each prompt, given as ids."""
        with ThreadPoolExecutor(self.rows) as pool:
            return list(pool.map(lambda ids: self._answer(ids, max_tokens), prompts))

    def stops_at(self, prompt: list[int], token: int) -> bool:
        """Return whether an answer ends where this token comes, whatever the model would say."""
        found = self._completion(prompt, 2, logit_bias=[[token, 1000.0]])
        return found["stop_type"] == "eos"

    def _answer(self, ids: list[int], max_tokens: int) -> Said:
        found = self._completion(ids, max_tokens)
        # Asked for one token: of several the first one told need not be the first one said.
        told = self._completion(ids, 1, n_probs=TOP).get("completion_probabilities") or [{}]
        logprobs = {each["id"]: each["logprob"] for each in told[0].get("top_logprobs", [])}
        return Said(found["tokens"], found["stop_type"] == "eos", logprobs)

    def _completion(self, ids: list[int], max_tokens: int, **more) -> dict:
        asked = {
            "prompt": ids,
            "n_predict": max_tokens,
            "temperature": 0.0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        return self._post("/completion", asked | more)

    def _post(self, path: str, asked: dict) -> dict:
        import httpx

        try:
            reply = self._client.post(path, json=asked)
        except httpx.HTTPError as error:
            self._child.kill()
            self._child.wait()
            raise self._fault() from error
        found = reply.json()
        if reply.status_code != 200:
            raise RuntimeFault(f"llama.cpp refused {path}: {found.get('error', found)}")
        return found

    def _fault(self) -> RuntimeFault:
        """Return the error of a child that has ended: its own last words but for stack traces."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        told = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "["))]
        telling = [line for line in told if "rror" in line or "ASSERT" in line or "failed" in line]
        last = (telling or told or ["nothing"])[-1]
        return RuntimeFault(f"llama.cpp ({installed()}) cannot use the file; it said: {last}")


def serve(settings: dict) -> None:
    """Serve a file until standard input closes: what the child does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.port, params.hostnames = 0, ["127.0.0.1"]
    params.n_parallel, params.n_ctx = settings["rows"], settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.n_gpu_layers = 0
    params.fit_params = params.warmup = False
    params.cache_ram_mib = 0
    params.verbosity = 0  # errors alone
    # Keys and values as exact as the weights: what is compared is the file.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if settings["lora"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(settings["lora"], 1.0)]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
