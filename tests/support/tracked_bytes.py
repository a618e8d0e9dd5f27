"""Bytes of a learner's forward and backward at real sizes, on fake tensors: no data, no GPU.

Every tensor that the code makes is followed by its storage for as long as something holds it.
Attention is flash kernels', which allocate what CUDA's do and compute nothing.
"""

import weakref
from dataclasses import dataclass

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlm.learner import flash, lm_head, logprobs
from rlm.learner.losses import policy_loss
from rlm.learner.token_budget import checkpoint
from rlm.models.loading import add_lora

SHAPES = {
    "Qwen3-0.6B": (Qwen3Config, Qwen3ForCausalLM, dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True)),
    "Qwen2.5-7B": (Qwen2Config, Qwen2ForCausalLM, dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)),
}  # fmt: skip


@dataclass
class Tracked(TorchDispatchMode):
    """now, peak: bytes of all storages that are there."""

    now: int = 0
    peak: int = 0

    def __post_init__(self):
        super().__init__()
        self.seen: dict[int, weakref.ref] = {}

    def see(self, tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.seen:
            return

        def gone(_):
            if self.seen.pop(key, None) is not None:
                self.now -= size

        self.seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            self.see(tensor)
        return out


def _kernel(q, k, v, spans, scale, *, causal, window=None):
    return torch.empty_like(q), torch.empty(q.shape[1], q.shape[0]), ()


def _kernel_backward(grad, q, k, v, *rest, **options):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def peak_gb(monkeypatch, name: str, groups, *, checkpointing: bool) -> float:
    """Return the peak GB of a micro-batch of one of SHAPES in bfloat16 with a LoRA of rank 16."""
    monkeypatch.setattr(flash, "kernel", _kernel)
    monkeypatch.setattr(flash, "kernel_backward", _kernel_backward)
    monkeypatch.setattr(flash, "serves", lambda *layer: True)
    # Its first use would compare numbers, which fake tensors have none of; a GPU's head.
    monkeypatch.setattr(logprobs, "way_of", lambda base: logprobs.PACKED)
    monkeypatch.setattr(lm_head, "logits_at_once", lambda device: lm_head.LOGITS["cuda"])
    config_class, model_class, shape = SHAPES[name]
    packed = logprobs.pack(groups)
    with FakeTensorMode(allow_non_fake_inputs=True), Tracked() as tracked:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = model_class(config_class(**shape, max_position_embeddings=32768)).train()
        finally:
            torch.set_default_dtype(before)
        with pytest.MonkeyPatch.context() as patch:  # what is fake cannot be put elsewhere
            patch.setattr(torch.nn.Module, "to", lambda self, *place, **options: self)
            model = add_lora(model, r=16, alpha=32, seed=0).train()
        checkpoint(model, on=checkpointing)
        with logprobs.use(model):
            found, _ = logprobs.token_logprobs(model, packed, statistics=True)
            loss, _ = policy_loss(
                found, None, packed.per_token(torch.ones(len(packed.lengths))), packed.sequence,
                tokens=len(found), sequences=len(packed.lengths), max_tokens=max(packed.lengths),
            )  # fmt: skip
            loss.backward()
    return tracked.peak / 1e9
