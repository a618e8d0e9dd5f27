"""Positions of kind llama3 in a GGUF file: a tensor of factors, where transformers has settings.

factors = llama3_factors(settings, head_size)      # written as the tensor TENSOR
settings = llama3_settings(factors, rope_theta)    # read back; None where they are of no such kind
"""

import math

TENSOR = "rope_freqs.weight"
# What all published models of this kind have; a file does not tell them, only what they come to.
PUBLISHED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip


def llama3_factors(settings: dict, head_size: int) -> list[float]:
    """Return by what each frequency is divided, [head_size / 2].

    As transformers computes it (`_compute_llama3_parameters`): short waves stay, long ones are
    stretched by `factor`, those between by something between.
    """
    factor, context = settings["factor"], settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    found = []
    for i in range(0, head_size, 2):
        wave = 2 * math.pi * settings["rope_theta"] ** (i / head_size)
        if wave < context / high:
            found.append(1.0)
        elif wave > context / low:
            found.append(float(factor))
        else:
            smooth = (context / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def llama3_settings(factors: list[float], rope_theta: float) -> dict | None:
    """Return transformers' settings that come to these factors; None where none do."""
    told = {"rope_type": "llama3", "rope_theta": rope_theta, "factor": max(factors)} | PUBLISHED
    again = llama3_factors(told, 2 * len(factors))
    equal = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, again, strict=True))
    return told if equal else None
