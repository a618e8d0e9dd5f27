"""What the stages of gpu.py are made of: models, prompts, and ways to run them."""

import contextlib
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def cudnn(on: bool) -> None:
    """Let SDPA take cuDNN's kernels, or not."""
    torch.backends.cuda.enable_cudnn_sdp(on)


def lora_model(bench, name: str, r: int = 16):
    """Return a model of a published shape in bfloat16, random, with a LoRA that is not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from rlm.models.loading import add_lora

    shapes = {
        "0.5B": (Qwen2Config, Qwen2ForCausalLM, (896, 4864, 24, 14, 2, 64, 151936, True)),
        "7B": (Qwen2Config, Qwen2ForCausalLM, (3584, 18944, 28, 28, 4, 128, 152064, False)),
        "Qwen3-0.6B": (Qwen3Config, Qwen3ForCausalLM, (1024, 3072, 28, 16, 8, 128, 151936, True)),
    }
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    config_class, model_class, sizes = shapes[name]
    sizes = (64, 128, 2, 4, 2, 16, 4096, True) if bench.small else sizes
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = config_class(
        **dict(zip(names, sizes, strict=True)), max_position_embeddings=32768, **ends
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(bench.device):
        model = model_class(config).eval()
    torch.set_default_dtype(torch.float32)
    model = add_lora(model, r=r, alpha=2 * r, seed=0)
    not_zero(model, 0.01)
    return model


def not_zero(model, spread: float) -> None:
    """Give the B of a LoRA random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, spread)


class Words:
    """A tokenizer as far as the engine asks for one."""

    eos_token_id = None

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def decode(self, ids, **options):
        return " ".join(map(str, ids))


def random_prompts(vocabulary: int, count: int) -> list:
    from rlm.records import Prompt

    return [Prompt(torch.randint(5, vocabulary, (100 + i,)).tolist()) for i in range(count)]


@contextlib.contextmanager
def masks():
    """Inside the block the learner attends under masks, as on a GPU without flash kernels."""
    from rlm.learner import flash

    before, flash.serves = flash.serves, lambda *layer: False
    try:
        yield
    finally:
        flash.serves = before
