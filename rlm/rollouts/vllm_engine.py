"""vLLM as the engine of a training: the same rollouts as our own, sampled by other kernels.

    engine = VllmEngine(model, tokenizer, backend, ...)   # rlm/rollouts/choice.py opens it
    groups = engine.generate(prompts, 8, Sampling(max_tokens=256), seed=0)   # (B, G) rollouts
    engine.sync(version=step)                              # after each update of the adapter

The backend runs vLLM in this script (rlm/rollouts/vllm_local.py) or talks to a server
(rlm/rollouts/vllm_server.py). Only the adapter travels: `sync` writes it as a PEFT folder, loads it
under a new number, takes the last one out and asks the canary (rlm/rollouts/canary.py) whether it
is the learner's that now answers. Other kernels round otherwise: log-probabilities differ from the
learner's, which the importance weights of rlm/learner/losses.py make up for.
"""

import atexit
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm.engine.inference_model import context_tokens, stop_ids
from rlm.engine.sampling import COLDEST, Sampling
from rlm.errors import InputError, RunError
from rlm.models import adapters
from rlm.models.text_stream import decode
from rlm.parallel import world
from rlm.records import Prompt, Rollout
from rlm.rollouts import canary
from rlm.seeds import derive

logger = logging.getLogger("rlm")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that a backend is asked for. temperature 0 is greedy.

    seed: of its random numbers, None for the backend's own. stops: ids that end it. banned: ids
    that are never sampled. scored: whether the log-probabilities of the prompt are wanted, too.
    """

    ids: list[int]
    max_tokens: int
    temperature: float
    seed: int | None
    stops: tuple[int, ...]
    banned: range
    scored: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """ids, logprobs: the sampled tokens, the end token included, at the request's temperature.

    prompt_logprobs: of the prompt's tokens but the first, for a request that is scored.
    """

    ids: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]


class VllmEngine:
    """Samples by vLLM from a PEFT model whose adapter is trained here.

    backend: has complete(requests, version), load(version, folder), unload(version), close();
        version None is the base. folder: where adapters are written, of this engine alone.
    temperature: of the training; format_name: its format. tolerance: of the canary in nats, 0 for
        the one of the model's number format (`rlm.rollouts.canary.TOLERANCES`).
    seeded: whether each completion has a seed of its own, and is the same in the same run again.
        On a GPU vLLM then draws row by row, 256 kernels a step in place of one.
    version: of the weights, as in rlm/engine/engine.py. learner_tokens: of the micro-batches that
    the memory was divided for, 0 if it was not. InputError for a backend of another base model.
    """

    version, learner_tokens = 0, 0

    def __init__(
        self,
        model,
        tokenizer,
        backend,
        *,
        folder: Path,
        format_name: str,
        temperature: float,
        tolerance: float = 0.0,
        seeded: bool = True,
    ):
        self.tokenizer, self._model, self._backend, self._folder = tokenizer, model, backend, folder
        network = model.get_base_model()
        self.context_tokens = context_tokens(network)
        self.stop_ids = stop_ids(network, tokenizer)
        rows = network.get_input_embeddings().num_embeddings
        self._banned = range(min(len(tokenizer), rows), rows)
        self._temperature, self.seeded = temperature, seeded
        self.tolerance = tolerance or canary.TOLERANCES[str(network.dtype).removeprefix("torch.")]
        self._text = canary.canary_text(tokenizer, format_name)
        self._loaded, self._digest = 0, ""
        atexit.register(self.close)  # a run that is stopped leaves nothing behind either
        self._before: canary.Look | None = None
        self._base = self._look(None)
        if not self._base.gap <= self.tolerance:
            raise InputError(
                f"{backend.name}: another base model than the learner's, or one in another number "
                f"format: log-probabilities of a fixed text differ by {self._base.gap:.3g} nats, "
                f"{self.tolerance:.3g} are allowed; serve {network.config._name_or_path} in "
                f"{str(network.dtype).removeprefix('torch.')}"
            )
        self.sync()

    def sync(self, version: int | None = None) -> None:
        """Take over the adapter as it is now; version: its number from now on, if given.

        RunError, which names the version, if the canary says that the engine samples from other
        weights than the learner's.
        """
        self.version = self.version if version is None else version
        digest = self._fingerprint()
        if digest == self._digest:
            return
        last, self._loaded = self._loaded, self._loaded + 1
        path = self._folder / f"{self._loaded:06d}"
        if world().first:  # of several processes, which share a server
            adapters.save_adapter(self._model, path, {}, overwrite=True)
            self._backend.load(self._loaded, path)
            if last:
                self._backend.unload(last)
            shutil.rmtree(path, ignore_errors=True)  # it has been read
        world().barrier("the adapter at the engine")
        self._digest = digest
        self._check()

    def generate(
        self,
        prompts: list[Prompt],
        samples: int,
        sampling: Sampling,
        *,
        seed: int,
        numbers: Sequence[int] | None = None,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Rollout]]:
        """Return (B, G) rollouts: `samples` for each prompt, in order.

        Seeded, sample g of prompt b has the random numbers of derive(seed, number, g), its number
        b, or the b-th of `numbers`: that of the prompt in a longer list.
        on_token: called with (b, g, token) for each token, when all of them are there.
        InputError if a prompt and max_tokens are more than the context, or for a way to sample
        whose log-probabilities vLLM would give otherwise: top-k, top-p, stop texts, a closing.
        """
        self._allow(prompts, sampling)
        numbers = range(len(prompts)) if numbers is None else numbers
        requests = [
            self._request(prompt.ids, sampling, derive(seed, number, g) if self.seeded else None)
            for prompt, number in zip(prompts, numbers, strict=True)
            for g in range(samples)
        ]
        found = iter(self._complete(requests, self._loaded))
        rollouts = [[self._rollout(prompt, next(found)) for _ in range(samples)]
                    for prompt in prompts]  # fmt: skip
        if on_token:
            for b, group in enumerate(rollouts):
                for g, rollout in enumerate(group):
                    for token in rollout.ids:
                        on_token(b, g, token)
        return rollouts

    def close(self) -> None:
        """Free what the engine holds; it cannot be used any more."""
        atexit.unregister(self.close)
        self._backend.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _request(
        self, ids: list[int], sampling: Sampling, seed: int | None, *, scored=False
    ) -> Request:
        heat = 0.0 if sampling.temperature < COLDEST else sampling.temperature
        stops = tuple(sorted(self.stop_ids))
        return Request(ids, sampling.max_tokens, heat, seed, stops, self._banned, scored)

    def _complete(self, requests: list[Request], version: int | None) -> list[Completion]:
        """Return the backend's completions; RunError if they hold what cannot have been sampled.

        InputError at the start, when the base alone is asked.
        """
        found, known = self._backend.complete(requests, version), self._banned.start
        for each in found:
            if not each.ids or len(each.ids) != len(each.logprobs) or max(each.ids) >= known:
                raise (InputError if version is None else RunError)(
                    f"{self._backend.name}: has sampled {len(each.ids)} tokens up to id "
                    f"{max(each.ids, default=-1)} with {len(each.logprobs)} log-probabilities, but "
                    f"the tokenizer knows {known} tokens: another base model than the learner's, "
                    "or another version of vllm than 0.31.0"
                )
        return found

    def _rollout(self, prompt: Prompt, found: Completion) -> Rollout:
        ended = found.ids[-1] in self.stop_ids
        text = prompt.prefill + decode(self.tokenizer, found.ids[:-1] if ended else found.ids)
        finish = "stop" if ended else "length"
        return Rollout(found.ids, found.logprobs, text, finish, self.version)

    def _allow(self, prompts: list[Prompt], sampling: Sampling) -> None:
        if sampling.top_k or sampling.top_p < 1.0 or sampling.stop or sampling.closing:
            raise InputError("vLLM samples without top-k, top-p, stop texts and closings here; "
                             "leave them out, or use --engine own")  # fmt: skip
        limits = [n for n in (self.context_tokens, self._backend.context_tokens) if n]
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        if limits and longest + sampling.max_tokens > min(limits):
            raise InputError(
                f"a prompt of {longest} tokens and max_tokens {sampling.max_tokens} are more than "
                f"the {min(limits)} tokens that {self._backend.name} takes; use fewer max_tokens"
            )

    def _fingerprint(self) -> str:
        """Return a hash of the adapter's tensors: weights that did not change travel once."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save

        state = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        return hashlib.sha256(save(plain)).hexdigest()

    def _look(self, version: int | None) -> canary.Look:
        """Return what engine and learner say of the canary's text; version None: of the base."""
        sampling = Sampling(canary.SAMPLED, temperature=self._temperature)
        (found,) = self._complete([self._request(self._text, sampling, 0, scored=True)], version)
        heard = canary.Heard(found.prompt_logprobs, found.ids, found.logprobs)
        options: dict = {"temperature": self._temperature, "vocab_size": self._banned.start}
        adapter = version is not None
        return canary.look(self._model, self._text, heard, adapter=adapter, **options)

    def _check(self) -> None:
        now = self._look(self._loaded)
        problem = canary.judge(now, self._base, self._before, self.tolerance)
        logger.debug("canary of version %d: gap %.3g nats", self.version, now.gap)
        self._before = now
        if problem:
            raise RunError(
                f"adapter version {self.version} has not arrived: {self._backend.name} {problem}. "
                "What it samples would not be the policy's; start the engine anew and go on"
            )
