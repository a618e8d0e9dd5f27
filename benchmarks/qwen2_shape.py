"""Shapes of Qwen2 models: those that the benchmarks measure and those that docs/scale.md plans for.

torch is not imported.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Qwen2Shape:
    """hidden, mlp: widths; heads, kv_heads: of the attention; tied: the head is the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = True
    name: str = ""

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def body_weights(self) -> int:
        """Weights of the linear layers: what a token is multiplied by, the head aside."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv
        return self.layers * (attention + 3 * self.hidden * self.mlp)


SMALL = Qwen2Shape(512, 8, 8, 2, 2048, 8192, name="small")
MIDDLE = Qwen2Shape(256, 4, 4, 2, 1024, 8192, name="middle")

# `config.json` of Qwen/Qwen2.5-<name> on the hub; layers and heads also in arXiv:2412.15115.
MODELS = (
    Qwen2Shape(896, 24, 14, 2, 4864, 151_936, name="0.5B"),
    Qwen2Shape(1536, 28, 12, 2, 8960, 151_936, name="1.5B"),
    Qwen2Shape(3584, 28, 28, 4, 18_944, 152_064, tied=False, name="7B"),
    Qwen2Shape(5120, 48, 40, 8, 13_824, 152_064, tied=False, name="14B"),
    Qwen2Shape(5120, 64, 40, 8, 27_648, 152_064, tied=False, name="32B"),
    Qwen2Shape(8192, 80, 64, 8, 29_568, 152_064, tied=False, name="72B"),
)

# Sizes of benchmarks/scaling.py, by the weights of their linear layers: hidden, layers.
SIZES = {"0.9M": (128, 4), "3.7M": (256, 4), "29M": (512, 8), "84M": (768, 10)}


def resized(shape, hidden: int, layers: int):
    """Return the shape with other sizes: heads of 64, two key-value heads where they divide."""
    heads = hidden // 64
    kv_heads = 2 if heads % 2 == 0 else 1
    return replace(
        shape, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, mlp=4 * hidden
    )
