"""The memory that well-known checkpoints need, from their configurations alone: no weight is read.

    python benchmarks/model_sizes.py                 # writes benchmarks/results/model_sizes.json
    python benchmarks/model_sizes.py Qwen3-4B        # one; writes nothing

A model is made on torch's meta device, where tensors have shapes and no bytes. There the library
counts what it counts of a real one: the numbers that a forward keeps for its backward
(rlm.learner.token_budget), the cache of a token (rlm.models.memory), a row's state. On CUDA flash
kernels attend; what they keep (queries, keys, values, output) stands in for them here, and so do
as many experts as a token goes to. The sums are those of docs/scale.md. Where the numbers of a
configuration are from stands beside them in model_configs.json; the weights that are counted have
to be those that the checkpoint is said to have, within 3 %.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from scale_model import HALF, RESERVED, SHARE, SINGLE  # noqa: E402
from transformers import masking_utils  # noqa: E402

from rlm import files  # noqa: E402
from rlm.engine import support  # noqa: E402
from rlm.learner import flash, logprobs  # noqa: E402
from rlm.learner.lm_head import LOGITS  # noqa: E402
from rlm.learner.packed_groups import PackedGroups  # noqa: E402
from rlm.learner.token_budget import activations, can_checkpoint  # noqa: E402
from rlm.models import memory  # noqa: E402
from rlm.models.adapters import network_of  # noqa: E402
from rlm.models.loading import add_lora  # noqa: E402
from rlm.models.lora_targets import expert_modules  # noqa: E402
from rlm.models.states import State  # noqa: E402

CONFIGS = Path(__file__).parent / "model_configs.json"
RESULT = Path(__file__).parent / "results" / "model_sizes.json"
RANK, GROUP, SEQUENCE = 16, 8, 256 + 1024  # a prompt and its longest completion
REQUESTS, CONTEXT = 16, 4096  # that are served at once
OFF = 0.1  # of the weights that a checkpoint is said to have


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of model_configs.json; default: all")
    names = parser.parse_args(argv).names
    logging.disable(logging.WARNING)
    given = json.loads(CONFIGS.read_text(encoding="utf-8"))
    found = []
    for one in given["checkpoints"]:
        if not names or one["name"] in names:
            found.append(size_of(one))
            print(found[-1], flush=True)
    if not names:
        load = {
            "rank": RANK, "group": GROUP, "tokens": SEQUENCE, "served": REQUESTS, "context": CONTEXT
        }  # fmt: skip
        files.write_json(RESULT, {"load": load, "sources": given["sources"], "checkpoints": found})
    return 0


def size_of(one: dict) -> dict:
    """Return what a checkpoint needs, in bytes."""
    model = made(one)
    network = network_of(model)
    weights = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    if abs(weights / 1e9 / one["weights"] - 1) > OFF:
        raise ValueError(f"{one['name']}: {weights:,} weights, not {one['weights']} billion")
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    kept, states = kept_bytes(model)
    vocabulary = network.get_input_embeddings().num_embeddings
    chunk = 3 * SINGLE * max(16, min(4096, LOGITS["cuda"] // vocabulary)) * vocabulary
    # The base; the LoRA, its gradient, two moments, the best so far, and the engine's copy.
    fixed = HALF * weights + (5 * SINGLE + HALF) * lora + RESERVED
    again = kept.checkpointed(network) if can_checkpoint(model) else kept
    learning = SEQUENCE * again.each(SEQUENCE) / SHARE + chunk
    token = memory.token_bytes(network)
    sampling = GROUP * (SEQUENCE * token + states) / SHARE
    served = HALF * (weights + lora) + RESERVED + REQUESTS * (CONTEXT * token + states)
    return {
        "name": one["name"], "source": one["source"], "model_type": one["model_type"],
        "weights": weights, "lora": lora, "token_bytes": token, "state_bytes": states,
        "kept_token_bytes": round(kept.token), "kept_pair_bytes": round(kept.pair, 1),
        "sft_bytes": round(fixed + learning), "grpo_bytes": round(fixed + max(learning, sampling)),
        "serving_bytes": round(served),
    }  # fmt: skip


def made(one: dict):
    """Return the model with a LoRA on all linear layers, in bfloat16, on the meta device."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = dict(one["settings"])
    kinds = settings.get("layer_types")
    if isinstance(kinds, dict):
        settings["layer_types"] = kinds["cycle"] * kinds["times"]
    with torch.device("meta"):
        config = CONFIG_MAPPING[one["model_type"]](**settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for module in expert_modules(model):
            module.forward = as_many_experts(module, config.num_experts_per_tok)
        return add_lora(model, r=RANK, alpha=2 * RANK, seed=0)


def as_many_experts(module, chosen: int):
    """Return a forward that keeps what `chosen` experts keep of a token: which is not known here.

    Routing depends on numbers, which the meta device has not.
    """

    def forward(hidden, *routed, **given):
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights = next(x for x in (*routed, *given.values()) if torch.is_floating_point(x))
        each = flat.repeat_interleave(chosen, 0)
        first, last = (oriented(w[0], flat.shape[-1]) for w in
                       (module.gate_up_proj, module.down_proj))  # fmt: skip
        gate, up = (each @ first).chunk(2, -1)
        out = (F.silu(gate) * up) @ last.t()
        out = out * weights.flatten()[: len(out), None].to(out.dtype)
        return out.view(-1, chosen, out.shape[-1]).sum(1).view(hidden.shape)

    return forward


def oriented(weight: torch.Tensor, width: int) -> torch.Tensor:
    """Return a weight [width, ...]: experts' weights lie in either order."""
    return weight if weight.shape[0] == width else weight.t()


def kept_bytes(model):
    """Return (what a forward keeps, the bytes of a row's states)."""
    network = network_of(model)
    key = (*support.architecture(network), support.forced(network))
    logprobs._WAYS[key] = logprobs.PACKED  # as families.json has it of each of these families
    states: dict[int, int] = {}
    plain = PackedGroups.mix

    def mix(layout, layer, run, hidden):
        def noting(rows, state: State):
            out = run(rows, state)
            states[layer] = sum(x[0].numel() * x.element_size() for _, _, x in state.tensors())
            return out

        return plain(layout, layer, noting, hidden)

    with (
        patch.object(flash, "kernel", standing_in),
        patch.object(flash, "serves", as_on_cuda),
        patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None),
        patch.object(PackedGroups, "mix", mix),
    ):  # the third reads numbers, which the meta device has not
        return activations(model, 1000), sum(states.values())


def standing_in(q, k, v, spans, scale, *, causal, window=None):
    """Return what a flash kernel returns, without its sums."""
    return torch.empty_like(q), q.new_empty(q.shape[1::-1], dtype=torch.float32), ()


def as_on_cuda(query, key, value, rules) -> bool:
    """Return whether flash kernels would serve on CUDA, as `rlm.learner.flash.serves`."""
    width = query.shape[-1]
    narrow = width <= flash.WIDEST and width % 8 == 0 and value.shape[-1] == width
    return narrow and not rules.cap and rules.sinks is None


if __name__ == "__main__":
    sys.exit(main())
