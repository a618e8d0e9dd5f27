"""vLLM started by this script, in processes of its own beside the learner's.

Imported only where it is asked for. Adapters are LoRA requests, each with an id of its own, so
that nothing cached for one is used with another.
"""

import logging
import os
from typing import Any

from rlm.errors import InputError, RunError
from rlm.models.loading import find
from rlm.rollouts.vllm_engine import Completion, Request

logger = logging.getLogger("rlm")

SHUTDOWN_SECONDS = 15
# Compiling takes longer than it saves. A prompt that is prefilled in pieces has its random numbers
# wound back, which a CPU's generator cannot do: "CPU Generator does not use offset".
ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}
BATCH = 4096  # tokens of one step
INSTALL = "pip install -r requirements-vllm.txt, or make vllm (see there for a CPU)"


class LocalVllm:
    """The base model in vLLM. dtype: "float32", ...; sizes: of rlm/rollouts/vllm_sizes.py.

    model: a folder or a name on the hub. memory: {"kv_cache_memory_bytes": n} or
    {"gpu_memory_utilization": share}. known: ids from here on are never sampled. seed: of what is
    sampled for requests without a seed. InputError if vLLM cannot be started with it.
    """

    name = "vLLM"

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        device: str,
        rank: int,
        rows: int,
        context: int,
        memory,
        known: int,
        seed: int,
    ):
        quiet()
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform

            from rlm.rollouts import vllm_mask
        except ImportError as error:
            raise InputError(f"--engine vllm: vllm cannot be loaded ({error}); {INSTALL}") from None
        if current_platform.device_type != device:
            raise InputError(
                f"--engine vllm: this build of vllm runs on {current_platform.device_type}, the "
                f"learner on {device}; give --device, or install the other build"
            )
        self.context_tokens = context
        self._request = LoRARequest
        self._adapter: dict[int, LoRARequest] = {}
        whole = {"max_num_batched_tokens": max(BATCH, context)}
        more = ON_CPU | whole if device == "cpu" else {}
        try:
            self._llm: Any = LLM(
                find(model)[0],
                dtype=dtype,
                skip_tokenizer_init=True,  # ids go in and come out
                generation_config="vllm",  # no penalties that the model's own would bring in
                logprobs_mode="processed_logprobs",  # of the tokens as sampled: with temperature
                enable_lora=True,
                max_lora_rank=rank,
                max_num_seqs=rows,
                max_model_len=context,
                use_tqdm_on_load=False,
                logits_processors=[vllm_mask.NAME],
                additional_config={vllm_mask.KNOWN: known},
                seed=seed % 2**31,
                **more,
                **memory,
            )
        # It raises what its libraries raise: of the model, the memory, a setting.
        except Exception as error:
            raise InputError(
                f"--engine vllm: vllm does not start with {model} ({_reason(error)}); use another "
                "model, --engine own, or see --log-level debug"
            ) from error

    def complete(self, requests: list[Request], version: int | None) -> list[Completion]:
        """Return the completions of the requests, by the adapter of a version or the base."""
        prompts = [{"prompt_token_ids": request.ids} for request in requests]
        parameters = [_parameters(request) for request in requests]
        adapter = None if version is None else self._adapter[version]
        try:
            outputs = self._llm.generate(prompts, parameters, lora_request=adapter, use_tqdm=False)
        except Exception as error:
            raise RunError(f"vLLM has stopped ({_reason(error)}); what was trained is in the run's "
                           "checkpoints: start again to go on") from error  # fmt: skip
        return [_completion(output) for output in outputs]

    def load(self, version: int, folder) -> None:
        """Load the adapter of a folder under a new number; RunError if vLLM refuses it."""
        request = self._request(f"rlm-{version}", version, str(folder.resolve()))
        try:
            self._llm.llm_engine.add_lora(request)
        except Exception as error:
            raise RunError(f"vLLM does not take the adapter: {_reason(error)}") from error
        self._adapter[version] = request

    def unload(self, version: int) -> None:
        """Forget an adapter."""
        self._llm.llm_engine.remove_lora(version)
        self._adapter.pop(version, None)

    def close(self) -> None:
        """End vLLM's processes; a second time nothing is left to do."""
        engine, self._llm = self._llm, None
        if engine:
            engine.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_SECONDS)


def quiet() -> None:
    """Let vLLM print errors alone and report nothing of its use, unless the user has said so."""
    level = "INFO" if logger.isEnabledFor(logging.DEBUG) else "ERROR"
    chosen = {"VLLM_LOGGING_LEVEL": level, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def _parameters(request: Request):
    """Return vLLM's SamplingParams of a request."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        logprobs=0,  # of the sampled token alone
        prompt_logprobs=0 if request.scored else None,
        stop_token_ids=list(request.stops),
        detokenize=False,
    )


def _completion(output) -> Completion:
    (found,) = output.outputs
    ids = list(found.token_ids)
    logprobs = [places[id].logprob for places, id in zip(found.logprobs, ids, strict=True)]
    scored = zip((output.prompt_logprobs or [])[1:], output.prompt_token_ids[1:], strict=False)
    return Completion(ids, logprobs, [places[id].logprob for places, id in scored])


def _reason(error: Exception) -> str:
    """Return an error in short, without the list of all models that vLLM knows."""
    text = str(error).partition(" Supported architectures")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
