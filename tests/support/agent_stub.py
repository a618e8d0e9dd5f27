"""A stand-in for the engine of the agents' model: it says what a function of the prompt says."""

from rlm.engine.requests import Event
from rlm.records import Rollout


class StubEngine:
    """say: prompt text -> the words. batches: the prompts of each round of `step`, as texts."""

    def __init__(self, tokenizer, say, *, context_tokens=None):
        self.tokenizer, self.say = tokenizer, say
        self.context_tokens, self.cache_tokens = context_tokens, None
        self.batches, self.limits, self.seeds = [], [], []
        self._waiting, self._last = [], 0

    @property
    def idle(self) -> bool:
        return not self._waiting

    def submit(self, prompt, sampling, seeds):
        self._last += 1
        self._waiting.append((self._last, self.tokenizer.decode(prompt.ids)))
        self.limits.append(sampling.max_tokens)
        self.seeds += seeds
        return [self._last]

    def step(self):
        waiting, self._waiting = self._waiting, []
        self.batches.append([text for _, text in waiting])
        return [Event(id, None, rollout=self.rollout(text)) for id, text in waiting]

    def rollout(self, prompt: str) -> Rollout:
        words = self.say(prompt)
        ids = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        return Rollout(list(ids), [0.0] * len(ids), words, "stop")

    def cancel(self, id):
        raise AssertionError("nothing is to be cancelled")

    def reset(self):
        pass
