"""The servers that serve_load.py compares, and the models that it gives them all.

python benchmarks/serve_peers.py FOLDER PORT    # the simplest of them: a lock around generate
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BIN = Path(sys.executable).parent
VLLM = ROOT / ".venv-vllm" / "bin" / "python"  # of `make vllm`: it has an environment of its own
PEER, BATCHING = "transformers serve", "transformers serve --continuous-batching"
SERVERS = ("ours", "lock", PEER, BATCHING, "vllm serve")
SAMPLED = dict(do_sample=True, temperature=0.7, top_k=0, top_p=1.0)
# The shape of the random model: 38 M parameters, of which 16 M are embeddings.
SMALL: dict = dict(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    eos_token_id=256,
    pad_token_id=257,
    bos_token_id=None,
)


def make_model(size: str, folder: Path) -> Path:
    """Write the model that all servers load, in float32, as `folder`; return it.

    tiny: the shipped adapter merged into its base. small: random weights, which write random
    tokens up to the limit.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from rlm.models import loading

    logging.disable_progress_bar()
    base = ROOT / "weights" / "tiny_base"
    model, tokenizer = loading.load_base(str(base), device="cpu", dtype="float32")
    if size == "tiny":
        adapter = ROOT / "weights" / "final_rlm_lora"
        model = loading.load_adapter(model, adapter, trainable=False).merge_and_unload()
    else:
        import torch

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
        tokenizer = wide_tokenizer(tokenizer.chat_template)
    # Without do_sample there `transformers serve` is greedy, whatever a request says.
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**SAMPLED, **ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def wide_tokenizer(chat_template: str):
    """Return a tokenizer of bytes with as many entries as the random model has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "<eos>", "<pad>", *(f"w{i}" for i in range(SMALL["vocab_size"] - 258))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", model_max_length=1024
    )
    made.chat_template = chat_template
    return made


def commands(folder: Path, port: int) -> dict[str, list[str]]:
    """Return server -> the command that starts it."""
    peer = [str(BIN / "transformers"), "serve", str(folder), "--port", str(port), "--device", "cpu"]
    blocks = ["--cb-num-blocks", "1024", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"]
    ours = [sys.executable, str(ROOT / "serve.py"), "--model", str(folder), "--adapter", "none"]
    # The module behind `vllm serve`: the command itself does not start in the build for a CPU.
    vllm = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    vllm += ["--port", str(port), "--dtype", "float32", "--max-num-seqs", "64"]
    return {
        "ours": [*ours, "--format", "think", "--port", str(port), "--device", "cpu"],
        "lock": [sys.executable, __file__, str(folder), str(port)],
        PEER: peer,
        BATCHING: [*peer, "--continuous-batching", *blocks],
        "vllm serve": vllm,
    }


def missing() -> dict[str, str]:
    """Return server -> why it cannot be started here."""
    from transformers.utils.import_utils import is_serve_available

    found = {}
    if not is_serve_available():
        why = "its requirements are not installed: pip install transformers[serving]"
        found = dict.fromkeys((PEER, BATCHING), why)
    if not VLLM.exists():
        found["vllm serve"] = "not installed: make vllm"
    return found


def lock_server(folder: str, port: int) -> None:
    """Serve chat completions the simplest way: `generate`, one request at a time."""
    import torch
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lock, app = threading.Lock(), FastAPI()

    class Tokens(BaseStreamer):
        """Hands on each token at once; transformers' text streamer waits for the word's end."""

        def __init__(self):
            self.queue: queue.SimpleQueue = queue.SimpleQueue()
            self.count = -1  # the first put is the prompt

        def put(self, value) -> None:
            self.count += 1
            if self.count:
                self.queue.put(tokenizer.decode(value.flatten(), skip_special_tokens=True))

        def end(self) -> None:
            self.queue.put(None)

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        asked = await request.json()
        text = tokenizer.apply_chat_template(
            asked["messages"], tokenize=False, add_generation_prompt=True
        )
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        streamer = Tokens()

        def work() -> None:
            with lock, torch.inference_mode():
                model.generate(**inputs, streamer=streamer, max_new_tokens=asked["max_tokens"])

        def events():
            threading.Thread(target=work).start()
            while (piece := streamer.queue.get()) is not None:
                yield event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            yield event({"choices": [], "usage": {"completion_tokens": streamer.count}})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lock_server(sys.argv[1], int(sys.argv[2]))
