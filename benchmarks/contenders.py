"""The two sides of grpo_vs_trl.py: each takes one whole GRPO step and says what it took."""

import copy
import itertools
import logging
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from shapes import Workload, clock, peak_memory, random_model, word_prompts, word_tokenizer

import config
import data
import train_grpo
from rlm.data.problems import additions
from rlm.engine.engine import Engine, Sampling
from rlm.learner.logprobs import ReferencePolicy
from rlm.learner.losses import advantages
from rlm.learner.optimizer import Optimizer
from rlm.learner.token_budget import TokenBudget
from rlm.models.loading import add_lora, load_base
from rlm.models.policy import Policy
from rlm.records import Example, Prompt, Score
from rlm.rollouts.batch import Batch

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = 512
RATE = 1e-6  # so small that both sides go on with the policy they started with


def reward(ids: list[int]) -> float:
    """Return the share of even token ids: groups hardly ever have equal rewards."""
    return sum(id % 2 == 0 for id in ids) / max(1, len(ids))


@dataclass(frozen=True)
class Work:
    """What both sides do. dtype: of the base model's weights."""

    size: str
    shape: Workload
    dtype: torch.dtype
    device: str

    @cached_property
    def base(self):
        """(model in float32 on the CPU, tokenizer)."""
        if self.size == "tiny":
            model, tokenizer = load_base(str(ROOT / "weights/tiny_base"), device="cpu")
            return model, tokenizer
        model = random_model(self.shape, device=self.device)
        return model.cpu(), word_tokenizer(self.shape.vocabulary)

    @cached_property
    def prompts(self) -> list[str]:
        if self.size != "tiny":
            return word_prompts(self.shape, QUESTIONS, seed=1)
        tokenizer = self.base[1]
        questions = [e.question for e in additions(0, QUESTIONS)]
        ids = [data.make_prompt(q, tokenizer, "think").ids for q in questions]
        return [tokenizer.decode(i) for i in ids]

    def lora(self, dtype: torch.dtype):
        """Return a PEFT model on weights of its own, the same at every call."""
        model = copy.deepcopy(self.base[0]).to(dtype).to(self.device)
        return add_lora(model, r=16, alpha=32, seed=0)

    def load(self) -> dict:
        shape = self.shape
        return {"prompts": shape.prompts, "group": shape.group, "max_tokens": shape.max_tokens}


class Ours:
    """The step of train_grpo.py, with its own functions.

    transformers: as with `--engine transformers`, padded in both stages.
    """

    def __init__(self, work: Work, kl_weight: float, *, transformers: bool = False):
        shape = work.shape
        flags = {
            "group-size": shape.group, "questions-per-step": shape.prompts,
            "max-tokens": shape.max_tokens, "kl-weight": kl_weight, "learning-rate": RATE,
            "adapter": "none", "max-steps": 1000,
        }  # fmt: skip
        arguments = [str(x) for name, value in flags.items() for x in (f"--{name}", value)]
        self.settings = config.load(config.GRPOSettings, arguments)
        model, tokenizer = work.lora(work.dtype), work.base[1]
        self.work, self.policy = work, Policy(model, tokenizer, work.size, {})
        self.engine = Engine(model, tokenizer, cuda_graphs=True, transformers=transformers)
        self.reference = ReferencePolicy(model)
        self.optimizer = Optimizer(model, max_grad_norm=1.0)
        self.optimizer.learning_rate = RATE
        self.budget = TokenBudget(model, len(tokenizer))
        self.prompts = itertools.cycle(
            [Prompt(tokenizer(text)["input_ids"]) for text in work.prompts]
        )

    def step(self, turn: int) -> dict:
        shape, device = self.work.shape, self.work.device
        began = clock(device)
        prompts = list(itertools.islice(self.prompts, shape.prompts))
        with peak_memory(device) as rollout_mb:
            sampling = Sampling(max_tokens=shape.max_tokens)
            began_rollout = clock(device)
            self.engine.sync()
            groups = self.engine.generate(prompts, shape.group, sampling, seed=turn + 1)
            rollout = clock(device) - began_rollout
        scores = [[Score(reward(r.ids)) for r in group] for group in groups]
        examples = [Example(str(i), "", "0") for i in range(len(prompts))]
        batch = Batch(examples, prompts, groups, scores)
        with peak_memory(device) as learn_mb:
            began = clock(device)
            advantage = advantages(batch.rewards())
            train_grpo.update(
                self.policy, self.optimizer, batch, advantage, self.settings, self.reference,
                self.budget,
            )  # fmt: skip
            learn = clock(device) - began
        lengths = [len(r.ids) for group in groups for r in group]
        return {
            "rollout": rollout, "learn": learn, "step": rollout + learn,
            "tokens": sum(lengths), "rows": len(lengths),
            "rollout_mb": (rollout_mb or [0.0])[0], "learn_mb": (learn_mb or [0.0])[0],
            "detail": {
                "prompt": sum(len(p.ids) for p in prompts),
                "completion": sum(lengths), "longest": max(lengths),
                "longest_prompt": max(len(p.ids) for p in prompts),
            },
        }  # fmt: skip


class Theirs:
    """TRL's GRPOTrainer, driven micro-batch by micro-batch as its own loop does."""

    def __init__(self, work: Work, kl_weight: float, *, fastest: bool):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        logging.getLogger("accelerate").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        shape, half = work.shape, work.dtype != torch.float32
        rows = min(shape.rows if fastest else 8, shape.prompts * shape.group)
        self.work, self.parts = work, shape.prompts * shape.group // rows
        self.folder = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=self.folder.name, report_to="none", disable_tqdm=True,
            use_cpu=work.device == "cpu", bf16=half, beta=kl_weight, learning_rate=RATE,
            per_device_train_batch_size=rows, gradient_accumulation_steps=self.parts,
            num_generations=shape.group, max_completion_length=shape.max_tokens,
            gradient_checkpointing=not fastest,
        )  # fmt: skip
        self.trainer = GRPOTrainer(
            model=work.lora(work.dtype if fastest else torch.float32),
            reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": work.prompts}),
            processing_class=copy.deepcopy(work.base[1]),
        )
        trainer = self.trainer
        if not fastest:  # what trainer.train() does before its first step
            trainer.model.gradient_checkpointing_enable()
        trainer.create_optimizer()
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
            trainer.model, trainer.optimizer
        )
        trainer.current_gradient_accumulation_steps = self.parts
        self.batches = itertools.chain.from_iterable(
            iter(trainer.get_train_dataloader()) for _ in itertools.count()
        )
        self.rollout, self.rollout_mb = 0.0, 0.0
        self.lengths: list[int] = []
        self._watch(trainer)

    def _watch(self, trainer) -> None:
        """Take the time of the sampling alone."""
        generate = trainer._generate_single_turn

        def watched(*arguments, **options):
            with peak_memory(self.work.device) as memory:
                began = clock(self.work.device)
                found = generate(*arguments, **options)
                self.rollout = clock(self.work.device) - began
            self.rollout_mb = (memory or [0.0])[0]
            self.lengths = [len(ids) for ids in found[0]]
            self.learning_began = clock(self.work.device)
            self.memory = peak_memory(self.work.device)
            self.learn_mb = self.memory.__enter__()
            return found

        trainer._generate_single_turn = watched

    def step(self, turn: int) -> dict:
        trainer, device = self.trainer, self.work.device
        for part in range(self.parts):
            trainer.accelerator.gradient_state._set_sync_gradients(part == self.parts - 1)
            trainer.training_step(trainer.model_wrapped, next(self.batches), None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.state.global_step += 1
        learn = clock(device) - self.learning_began
        self.memory.__exit__(None, None, None)
        return {
            "rollout": self.rollout, "learn": learn, "step": self.rollout + learn,
            "tokens": sum(self.lengths), "rows": len(self.lengths),
            "rollout_mb": self.rollout_mb, "learn_mb": (self.learn_mb or [0.0])[0],
        }  # fmt: skip
