"""What both training stages begin with and end with: the policy, its run's folder, its adapter."""

from dataclasses import dataclass

import data
import tasks


@dataclass(frozen=True)
class Stage:
    """policy: `rlm.policy.Policy`. engine: samples from it. out: `rlm.runs.Run`, the folder.

    task: what the policy is asked and what it earns, of tasks.py.
    """

    settings: object
    policy: object
    engine: object
    out: object
    task: object

    def validate(self, examples):
        """Return the greedy `rlm.evaluation.Evaluation` of the policy as it is now."""
        self.engine.sync()
        name, limit = self.settings.script, self.settings.max_tokens
        return self.task.measure(self.engine, examples, name=name, max_tokens=limit)

    def check_learned(self) -> None:
        """InputError if the steps so far left the LoRA without any effect."""
        from rlm.policy import check_learned

        check_learned(self.policy.model)

    def finish(self, evaluation, examples, **facts) -> dict:
        """Save the adapter with what is known of it, end the logs, return the summary.

        The summary is that of the evaluation, and "log": what was logged, a dictionary a step.
        """
        from rlm.policy import save_policy

        facts |= described(self.settings) | {"data": data.fingerprint(examples)}
        options = {"overwrite": self.settings.overwrite}
        save_policy(self.policy, self.settings.output, evaluation, self.out, **options, **facts)
        self.out.close()
        return evaluation.summary | {"log": self.out.rows}


def begin(settings) -> Stage:
    """Open the policy and the run's folder; InputError if the output could not be written."""
    from rlm.engine import Engine
    from rlm.policy import check_output, open_policy
    from rlm.runs import Run

    policy = open_policy(
        settings.model,
        settings.adapter,
        **settings.loading(),
        lora={"r": settings.lora_r, "alpha": settings.lora_alpha, "seed": settings.seed},
    )
    facts = described(settings)
    check_output(policy, settings.output, overwrite=settings.overwrite, **facts)
    out = Run(settings.run_dir, facts["settings"], settings.wandb and settings.wandb_project)
    engine = Engine(policy.model, policy.tokenizer, **settings.engine())
    return Stage(settings, policy, engine, out, tasks.task_of(settings, policy))


def described(settings) -> dict:
    """Return what an adapter's manifest says of the settings it came from."""
    return {"task": settings.task, "format": settings.format, "settings": settings.dump()}
