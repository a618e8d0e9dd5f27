"""What vLLM must never sample: rows of the head that have no token, as Qwen2.5 has them.

vLLM imports this in its own process, by the name that rlm/rollouts/vllm_local.py gives it. A
request's own bans would be a list of 271 ids for each of 256 requests, which is made anew whenever
one of them ends; this is one write a step.
"""

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

KNOWN = "rlm_known_tokens"  # in vLLM's additional configuration
NAME = f"{__name__}:KnownTokens"


class KnownTokens(LogitsProcessor):
    """Leaves the tokens that the tokenizer knows: ids below the number in the configuration."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self._known = vllm_config.additional_config[KNOWN]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, self._known :] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Nothing: it is the same for all requests."""
