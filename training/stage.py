"""What both training stages begin with and end with: the policy, its run's folder, what is kept."""

import time
from dataclasses import dataclass
from typing import Any

import data
from rlm import parallel
from rlm.errors import InputError
from rlm.seeds import derive
from training import rates, tasks


@dataclass(frozen=True)
class Stage:
    """policy: `rlm.models.policy.Policy`. engine: samples from it. run: its `rlm.run.folder.Run`.

    task: what the policy is asked and what it earns, of training/tasks.py.
    """

    settings: Any
    policy: Any
    engine: Any
    run: Any
    task: Any
    found: Any = None  # the `rlm.run.checkpoint.Checkpoint` that it goes on from
    opened: float = 0.0  # seconds that opening the policy took
    began: float = 0.0  # of time.monotonic, when the script began

    def validate(self, examples):
        """Return the greedy `rlm.evaluation.measure.Evaluation` of the policy as it is now.

        None without examples. Each process answers its share of the questions.
        """
        if not examples:
            return None
        self.engine.sync()
        name, limit = self.settings.script, self.settings.max_tokens
        engine = parallel.SharedEngine(self.engine)
        found = self.task.measure(engine, examples, name=name, max_tokens=limit)
        found.summary.pop("seconds", None)  # what is kept of a run says nothing of the machine
        self.run.measured(found.summary)
        return found

    @property
    def peak_rate(self) -> float:
        """The learning rate that was set, or that of the model's width."""
        return rates.peak_rate(self.settings, self.policy.model)

    def optimizer(self, **options):
        """Return the `rlm.learner.optimizer.Optimizer` of the settings, and say what it takes."""
        from rlm.learner.optimizer import Optimizer

        full = self.policy.full
        optimizer = Optimizer(
            self.policy.model, kind=self.settings.optimizer, fused=full, **options
        )
        if full and self.run:
            self.run.info(f"--train full: {optimizer.told()}")
        return optimizer

    def reference(self):
        """Return the `rlm.learner.logprobs.ReferencePolicy`: the policy as it is now, for the KL.

        None where it would be a copy of all weights that nothing needs.
        """
        from rlm.learner.logprobs import ReferencePolicy

        if self.policy.full and not self.settings.kl_weight:
            return None
        return ReferencePolicy(self.policy.model)

    def token_budget(self, longest: int, **options):
        """Return the `rlm.learner.token_budget.TokenBudget` as set, or as the engine was sized for.

        longest: tokens of the longest sequence that is learned from. options: as its own.
        """
        from rlm.learner.token_budget import TokenBudget

        policy, again = self.policy, self.settings.checkpointing
        tokens = self.settings.token_budget or getattr(self.engine, "learner_tokens", 0)
        options |= {"longest": longest, "checkpointing": again}
        return TokenBudget(policy.model, len(policy.tokenizer), tokens, **options)

    def longest(self, examples) -> int:
        """Return the tokens of the longest prompt with its completion, about: by characters."""
        asked = sorted(examples, key=lambda example: len(example.question))[-16:]
        prompts = [self.task.prompt(example.question, **example.asks) for example in asked]
        return max(len(prompt.ids) for prompt in prompts) + self.most_tokens

    @property
    def most_tokens(self) -> int:
        """The tokens that a completion may have, with those that tools write."""
        box = self.task.toolbox
        return self.settings.max_tokens + (box.bound(self.policy.tokenizer).room if box else 0)

    @property
    def checkpoints_by_trl(self) -> bool:
        """Whether TRL runs layers again in the backward: where memory is scarce, unless told."""
        again, place = self.settings.checkpointing, next(self.policy.model.parameters()).device
        return again == "on" or (again == "auto" and place.type == "cuda")

    def reserve(self, validation: float) -> float:
        """Return the seconds to keep for the end: a validation, the save and its proof."""
        return validation + 3 * self.opened + 2

    def budget(self):
        """Return the `rlm.run.time_budget.TimeBudget` of the settings, or None."""
        from rlm.run.time_budget import TimeBudget

        seconds = self.settings.seconds()
        return None if seconds is None else TimeBudget(seconds, self.began)

    def run_state(self, **parts) -> dict:
        """Return the arguments of `rlm.run.steps.RunState`: what changes, and what must not."""
        from rlm.run.steps import Trained

        return {
            "run": self.run.path,
            "parts": {"policy": Trained(self.policy.model), "log": self.run, **parts},
            "facts": self.facts(),
            "last": self.settings.max_steps,
            "found": self.found,
        }

    def steps(self, best, **parts):
        """Return the `rlm.run.steps.Steps` of the settings, from where a stopped run was."""
        from rlm.run.steps import Steps

        return Steps(
            **self.run_state(best=best, **parts),
            save_every=self.settings.save_every,
            best=lambda: best.step,
            budget=self.budget(),
            reserve=lambda: self.reserve(best.seconds),
        )

    def facts(self) -> dict:
        """What a stopped run must have in common with the one that goes on."""
        from rlm.models.adapters import fingerprint

        base = fingerprint(self.policy.model)
        return {"settings": self.settings.lasting(), "base_fingerprint": base}

    def check_learned(self) -> None:
        """InputError if the steps so far left the model as it was."""
        from rlm.models.policy import check_learned

        check_learned(self.policy.model)

    def finish(self, evaluation, examples, **facts) -> dict:
        """Save the adapter, or the whole model, with what is known of it; end the logs.

        Return the summary.

        evaluation: None of a training without a validation. The summary is that of the
        evaluation, and "log": what was logged, a dictionary a step.
        """
        from rlm.export.save import save_policy

        for engine in (self.engine, *self.task.engines):
            engine.close()  # the proof of the adapter may need their memory
        facts |= {"learning_rate": self.peak_rate} | described(self.settings)
        facts |= {"data": data.fingerprint(examples)}
        if self.task.shots:
            facts["shots"] = [
                {"question": e.question, "answer": e.gold, "solution": e.solution} | e.asks
                for e in self.task.shots
            ]
        options = {"overwrite": self.settings.overwrite}
        if parallel.world().first:
            save_policy(self.policy, self.settings.output, evaluation, self.run, **options, **facts)
        parallel.world().barrier("the saved adapter")
        self.run.finish()
        return (evaluation.summary if evaluation else {}) | {"log": self.run.rows}


def begin(settings, began: float, *, logged: bool = True, questions=()) -> Stage:
    """Open the policy and the run's folder; InputError if the output could not be written.

    questions: texts that will be asked; another engine than our own is sized by the longest.
    began: when the script began, seconds of time.monotonic. logged: False leaves the run's
    folder alone: nothing is gone on from, and `run` is None.
    """
    from rlm.learner import sharding
    from rlm.models.loading import pick_device
    from rlm.models.policy import check_output, open_policy
    from rlm.rollouts.choice import open_engine
    from rlm.run import checkpoint
    from rlm.run.folder import Run, Silent

    world = parallel.world()
    found = checkpoint.find(settings.resume, settings.run_dir) if logged and world.first else None
    found = world.broadcast(found, "the checkpoint")
    defaults = {"settings": settings.defaults()}
    if found:
        settings = same_day(settings, found.facts)
        checkpoint.check_same(found, {"settings": settings.lasting()}, defaults)
    loading, sharded = settings.loading(), sharding_asked(settings)
    opening = time.monotonic()
    policy = open_policy(
        settings.model,
        settings.adapter,
        **(sharding.loading(loading) if sharded else loading),
        **settings.learning(),
    )
    if sharded:
        sharding.shard(policy.model, pick_device(settings.device))
    opened = time.monotonic() - opening
    facts = described(settings)
    check_output(policy, settings.output, overwrite=settings.overwrite, **facts)
    run: Any = None
    if logged and world.first:
        goes_on = found is not None
        run = Run(settings.run_dir, facts["settings"], **settings.logging(), goes_on=goes_on)
    elif logged:
        run = Silent(settings.run_dir)
    shots = data.worked_examples(settings, [settings.adapter])
    task = tasks.task_of(settings, policy, shots)
    engine = open_engine(
        policy,
        getattr(settings, "engine", "own"),
        own=settings.engine_options(),
        url=getattr(settings, "vllm_url", None),
        vllm=lambda: _vllm(settings, task, questions, run, found),
    )
    tasks.check_shots(settings, task, settings.max_tokens, engine.context_tokens)
    stage = Stage(settings, policy, engine, run, task, found, opened, began)
    if found:
        checkpoint.check_same(found, stage.facts(), defaults)
        run.info(f"goes on after step {found.step}, from {found.path}")
    if run:
        run.info(rates.told(settings, policy.model))
    return stage


def same_day(settings, facts: dict):
    """Return the settings with the date of the run that goes on, unless they were given one."""
    began = (facts.get("settings") or {}).get("template_date")
    given = "template_date" in settings._origins
    return settings if given or not began else settings.model_copy(update={"template_date": began})


def sharding_asked(settings) -> bool:
    """Return whether the launcher wants the base cut; InputError where it cannot be."""
    asked = parallel.sharding_asked()
    if asked and settings.script != "grpo":
        raise InputError(
            "the launcher asks for a sharded base, which only train_grpo.py can train; use "
            "configs/accelerate/one_machine.yaml, with --quantize 4bit if the base is too large"
        )
    return asked


def _vllm(settings, task, questions, run, found):
    """Return the `rlm.rollouts.choice.VllmPlan` of the settings.

    found: the checkpoint that is gone on from; the samples behind it are not those of the start.
    """
    from rlm.rollouts.choice import VllmPlan

    longest = sorted(questions, key=len)[-64:]  # by characters: tokens go roughly with them
    return VllmPlan(
        prompts=[task.prompt(question) for question in longest],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        completions=settings.questions_per_step * settings.group_size,
        group_size=settings.group_size,
        token_budget=settings.token_budget,
        checkpointing=settings.checkpointing,
        format_name=settings.format,
        tolerance=settings.canary_tolerance,
        folder=run.path if run and parallel.world().first else None,
        seeds=settings.vllm_seeds,
        seed=derive("vllm", settings.seed, found.step if found else 0),
        ahead=settings.ahead > 0,
    )


def described(settings) -> dict:
    """Return what an adapter's manifest says of the settings it came from."""
    asked = {"format": settings.format, "instruction_role": settings.role}
    whole = {"train": "full"} if settings.train == "full" else {}
    return {"task": settings.task} | asked | whole | {"settings": settings.dump()}
