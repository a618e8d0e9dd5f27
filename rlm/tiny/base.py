"""Trains weights/tiny_base from scratch: a small model that does sums and knows no output format.

    python -m rlm.tiny                          # from nothing; about 45 minutes of one core
    python -m rlm.tiny --start weights/tiny_base --seed 2 --steps 2000 --output runs/tiny_base_more
    python -m rlm.tiny --steps 20 --hidden 32 --layers 2 --output runs/toy

The text comes from rlm/tiny/corpus.py. One document stands in a row; rows of one kind and similar
length form a batch; only numbers and signs of the replies weigh fully in the loss. Matrices learn
by Muon, the rest by AdamW, with a long decay of the learning rate to almost nothing.
Weights are learned in float32 and kept in bfloat16. The shipped base was trained in four goes,
each from the weights of the one before; its manifest holds the settings of all.
"""

import copy
import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from rlm.files import beside, put_folder, write_json
from rlm.learner.muon import Muon
from rlm.seeds import derive
from rlm.tiny import corpus, recipe_parser
from rlm.tiny.scores import scores
from rlm.tiny.tokenizer import CONTEXT, build_tokenizer

POOL = 16  # batches of one kind that are cut from one pool of documents


@dataclass(frozen=True)
class Settings:
    """What makes a base; with the same numbers the same corpus and the same start come back."""

    seed: int = 0
    steps: int = 6000
    batch_tokens: int = 2816
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 512
    vocabulary: int = 768
    muon_rate: float = 6e-3
    adam_rate: float = 4e-3
    warmup_steps: int = 50
    decay_fraction: float = 0.7  # of the steps, at the end, over which the rate falls
    last_rate: float = 0.01  # of the peak rate, at the very end
    word_weight: float = 0.3  # of a token of a reply that is neither number nor sign
    tokenizer_texts: int = 20_000


def new_model(settings: Settings, tokenizer):
    """Return a Qwen2 with fresh weights, drawn from torch's generator; it is written as a Llama.

    Of a folder whose model is of type qwen2, AutoTokenizer throws the normaliser and the decoder
    away that give digits their places; of a Llama's it keeps them. A Llama with biases differs
    from Qwen2 only in having one after the attention's output, too: it stays zero.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return without_output_biases(LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.mlp,
        max_position_embeddings=CONTEXT,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )))  # fmt: skip


def without_output_biases(model):
    """Return the Llama with the biases that Qwen2 has not kept as they are: zero."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias.requires_grad_(False)
    return model


def token_weights(tokenizer, word_weight: float) -> torch.Tensor:
    """Return the loss weight of each token, [V]: 1 for numbers, signs and the end of a turn."""
    weights = torch.full((len(tokenizer),), word_weight)
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if any(c.isdigit() or c in "+-*/=" for c in text) or token == tokenizer.eos_token_id:
            weights[token] = 1.0
    return weights


def batches(settings: Settings, tokenizer) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (kind, ids [rows, T], weights [rows, T]) without end.

    rows * T is at most batch_tokens; padding stands on the right and weighs nothing.
    """
    rng = random.Random(derive("batches", settings.seed))
    table = token_weights(tokenizer, settings.word_weight)
    streams = {kind: _of_kind(kind, settings, tokenizer, table) for kind in corpus.KINDS}
    while True:
        kind = rng.choices(list(corpus.KINDS), list(corpus.KINDS.values()))[0]
        yield kind, *next(streams[kind])


def _of_kind(kind: str, settings: Settings, tokenizer, table) -> Iterator[tuple]:
    rng = random.Random(derive("order", kind, settings.seed))
    index, rows_a_pool = 0, settings.batch_tokens // 4
    while True:
        made = [corpus.document(kind, settings.seed, index + i) for i in range(rows_a_pool)]
        index += rows_a_pool
        encoded = tokenizer([d.text for d in made], return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        rows = []
        for d, (ids, offsets) in zip(made, pairs, strict=True):
            rows.append((ids, next(i for i, (_, end) in enumerate(offsets) if end > d.given)))
        rows.sort(key=lambda row: len(row[0]))
        cut = []
        while rows:
            count = max(1, settings.batch_tokens // len(rows[-1][0]))
            rows, batch = rows[:-count], rows[-count:]
            cut.append(batch)
        rng.shuffle(cut)
        for batch in cut:
            yield _tensors(batch, table, tokenizer.pad_token_id)


def _tensors(rows: list[tuple[list[int], int]], table, pad: int):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    place = torch.arange(longest)
    first = torch.tensor([[given] for _, given in rows])
    end = torch.tensor([[len(ids)] for ids, _ in rows])
    return ids, table[ids] * ((place >= first) & (place < end))


def padded(rows: list[tuple[list[int], list[float]]], pad: int):
    """Return (ids [rows, T], weights [rows, T]); padding stands on the right and weighs nothing."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    for i, (own, its) in enumerate(rows):
        ids[i, : len(own)], weights[i, : len(own)] = torch.tensor(own), torch.tensor(its)
    return ids, weights


def loss_of(model, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean cross-entropy in nats; logits exist only where weights do."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets, weights = ids[:, 1:], weights[:, 1:]
    chosen = weights > 0
    logits = model.lm_head(hidden[chosen])
    losses = F.cross_entropy(logits, targets[chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights[chosen].sum()


def rate(settings: Settings, step: int) -> float:
    """Return the share of the peak learning rate at a step from 1 on."""
    left = (settings.steps - step) / (settings.decay_fraction * settings.steps)
    return min(1.0, step / settings.warmup_steps, max(settings.last_rate, left))


def beginning(settings: Settings, start: str = ""):
    """Return (model, tokenizer): those of the folder `start`, or new ones."""
    if start:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(
            start, dtype=torch.float32, use_safetensors=True
        )
        return without_output_biases(model), AutoTokenizer.from_pretrained(start)
    torch.manual_seed(derive("weights", settings.seed))
    texts = corpus.texts(settings.seed, settings.tokenizer_texts)
    tokenizer = build_tokenizer(texts, settings.vocabulary)
    return new_model(settings, tokenizer), tokenizer


def optimizers_of(model, muon_rate: float, adam_rate: float) -> list[tuple]:
    """Return (optimizer, its peak rate): Muon for the matrices, AdamW for all else that learns."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    return [(Muon(matrices, lr=0.0), muon_rate), (adam, adam_rate)]


def take_step(model, optimizers: list[tuple], loss, share: float) -> None:
    """Take a step down the gradient of the loss, at that share of the peak rates."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        optimizer.step()
        optimizer.zero_grad()


def train(model, tokenizer, settings: Settings, log=print, save=None) -> float:
    """Train the model in place; return the seconds of processor time."""
    began, shown = time.process_time(), dict[str, float]()
    model.train()
    optimizers = optimizers_of(model, settings.muon_rate, settings.adam_rate)
    stream = batches(settings, tokenizer)
    for step in range(1, settings.steps + 1):
        kind, ids, weights = next(stream)
        loss = loss_of(model, ids, weights)
        take_step(model, optimizers, loss, rate(settings, step))
        shown[kind] = 0.95 * shown.get(kind, loss.item()) + 0.05 * loss.item()
        if step % 100 == 0 or step == settings.steps:
            losses = " ".join(f"{k} {v:.4f}" for k, v in sorted(shown.items()))
            log(f"step {step} of {settings.steps}, {time.process_time() - began:.0f} s: {losses}")
        if save and step % 200 == 0:
            save(step)
    return time.process_time() - began


def save(model, tokenizer, folder: Path, manifest: dict) -> None:
    """Write the base to the folder at once: an old one is there until the new one is whole."""
    folder = Path(folder)
    fresh = beside(folder, "new")
    fresh.mkdir(parents=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    weights = fresh / "model.safetensors"
    manifest = manifest | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weights_bytes": weights.stat().st_size,
    }
    write_json(fresh / "manifest.json", manifest)
    put_folder(fresh, folder)


@torch.no_grad()
def round_weights(model) -> None:
    """Round the weights to what bfloat16 can hold, in place; the rotary frequencies stay."""
    for p in model.parameters():
        p.copy_(p.bfloat16())


def main(arguments: list[str] | None = None) -> int:
    """The command line: a flag for each field of Settings."""
    parser = recipe_parser("rlm.tiny", __doc__, Settings())
    parser.add_argument("--start", default="", help="folder of a base to go on from; else new")
    parser.add_argument("--output", default="weights/tiny_base", help="the base's folder")
    parser.add_argument("--checkpoint", default="", help="folder saved to every 200 steps")
    parser.add_argument("--threads", type=int, default=1, help="processor threads, default 1")
    options = vars(parser.parse_args(arguments))
    start, output, checkpoint, threads = (
        options.pop(name) for name in ("start", "output", "checkpoint", "threads")
    )
    settings = Settings(**options)
    torch.set_num_threads(threads)
    model, tokenizer = beginning(settings, start)

    def keep(step: int) -> None:
        save(model, tokenizer, Path(checkpoint), {"step": step})

    def log(line: str) -> None:
        print(line, flush=True)

    seconds = train(model, tokenizer, settings, log, keep if checkpoint else None)
    round_weights(model)
    before = json.loads((Path(start) / "manifest.json").read_text("utf-8")) if start else None
    manifest = {
        "seed": settings.seed,
        "settings": asdict(settings),
        "mix": corpus.KINDS,
        "corpus_sha256": corpus.fingerprint(settings.seed),
        "scores": scores(model, tokenizer, settings.seed),
        "processor_seconds": round(seconds),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "started_from": before,
    }
    save(model, tokenizer, Path(output), manifest)
    log(json.dumps(manifest, indent=2))
    return 0
