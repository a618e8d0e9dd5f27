"""Stage 1, SFT: the model learns to show its reasoning in a fixed format.

    python train_sft.py                                        # the tiny base, additions
    python train_sft.py --task gsm8k --data DIR --model Qwen/Qwen2.5-0.5B-Instruct
    python train_sft.py --demonstrations own                   # the base's own right answers
    python train_sft.py --backend own                          # our learner in place of TRL's
    python train_sft.py --stage prep --config configs/solution_prep_full_grpo.yaml
    python train_sft.py --stage full --base-adapter prep_sft_model --config ...
    python train_sft.py --train full                           # all weights, no LoRA
    torchrun --standalone --nproc_per_node 2 -- train_sft.py   # two processes, one adapter

Supervised fine-tuning of a LoRA with trl's SFTTrainer, or with our packed learner (--backend own,
training/sft.py), or of all weights, by the latter. The loss falls on the assistant's turn only, its
end token included. SFT teaches the format and the habits of its demonstrations; it does not learn
which reasoning is right (that is train_grpo.py).
"""

import sys
import time

import config
import data
from rlm import parallel
from rlm.errors import InputError, run_main
from training import demonstrations, sft
from training.stage import begin


def main(argv: list[str] | None = None) -> int:
    train(config.load(config.SFTSettings, argv))
    return 0


def train(settings) -> dict:
    """Train, evaluate, save the adapter; return the summary of the evaluation."""
    from rlm.models.loading import pick_device
    from rlm.run.folder import start

    began = time.monotonic()
    start(settings.model, **settings.process())
    parallel.check_one_gpu(pick_device(settings.device).type, shared=True)
    # 1. Demonstrations, none of which is a question of the validation set.
    examples, validation = data.training_sets(settings)
    own = settings.demonstrations == "own"
    shown = examples if own else demonstrations.human(examples, settings)
    earlier = demonstrations.kept(settings)

    # 2. The policy: a fresh LoRA, an earlier stage's adapter to go on from, or all weights.
    stage = begin(settings, began)
    about = {"kind": "human", "count": len(shown)}
    if own:
        shown, about = demonstrations.own(stage, examples, earlier)
    about |= stage.task.prepare(shown, stage.run.info)
    records = token_records(shown, stage.task, settings)
    stage.run.info(
        f"SFT ({settings.stage}) on {len(records)} of {len(shown if own else examples)} "
        f"demonstrations: epochs {settings.epochs:g}, batch {settings.batch_size}, "
        f"rate {stage.peak_rate:g}"
    )

    # 3. Train, measure on questions that were not trained on, and keep the adapter.
    fit = sft.fit if settings.backend == "own" else fit_by_trl
    guard = fit(stage, records, len(validation))
    found = stage.validate(validation)
    if found:
        stage.run.log({"step": stage.run.step, "validation_accuracy": found.summary["accuracy"]})
    summary = stage.finish(found, shown, stage=settings.stage, demonstrations=about)
    guard.check()
    return summary


def token_records(examples, task, settings) -> list[dict]:
    """Return input_ids and labels of each demonstration; -100 marks what is not trained on.

    A demonstration longer than --max-length is left out, never cut: a cut one would teach the
    model not to stop. InputError if none is left.
    """
    records = []
    for example in examples:
        tokens = task.demonstration(example)
        prompt, completion = tokens["prompt_ids"], tokens["completion_ids"]
        # The trap this guards: an end token that is masked, and a model that never stops.
        assert completion[-1] in tokens["end_ids"], "the end token must be trained"
        if len(prompt) + len(completion) <= settings.max_length:
            learned = tokens.get("learned") or [True] * len(completion)
            own = [token if own else -100 for token, own in zip(completion, learned, strict=True)]
            labels = [-100] * len(prompt) + own
            records.append({"input_ids": prompt + completion, "labels": labels})
    if not records:
        raise InputError(
            f"--max-length {settings.max_length}: all {len(examples)} demonstrations are longer; "
            "use a larger --max-length"
        )
    return records


def fit_by_trl(stage, records: list[dict], questions: int):
    """Run trl's SFTTrainer over the records; its metrics go to the run's log.

    questions: of the validation that follows. Returns the `NonFiniteGuard` of its batches.
    """
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    from rlm.run.nonfinite import NonFiniteGuard
    from rlm.run.steps import RunState
    from rlm.trl.sft import Trainer

    disable_progress_bars()
    guard = NonFiniteGuard(stage.run.path)
    arguments, steps = trainer_arguments(stage, len(records))
    trainer = Trainer(
        model=stage.policy.model,
        args=arguments,
        train_dataset=Dataset.from_list(records),
        processing_class=stage.policy.tokenizer,
        callbacks=[stage.run.trainer_callback(max(1, min(10, steps // 10)))],
        run_state=RunState(**stage.run_state(guard=guard)),
        guard=guard,
    )
    trainer.remove_callback(PrinterCallback)
    budget = stage.budget()
    if budget:
        # An answer of the validation takes about as long as a demonstration's step.
        fitting = trainer.fit_into(budget, lambda step: stage.reserve(questions * step))
        fitting += stage.found.step if stage.found else 0
        fitting = parallel.world().broadcast(fitting, "the steps that fit")
        arguments.max_steps = max(1, min(steps, fitting))
        stage.run.info(f"--budget: {arguments.max_steps} of {steps} steps fit")
    trainer.run()
    return guard


def trainer_arguments(stage, count: int):
    """Return (SFTConfig, number of optimiser steps) for `count` records.

    A batch is that of all processes together. InputError if they cannot share it evenly.
    """
    import torch
    from trl import SFTConfig

    from rlm.models.states import mixers

    settings, processes = stage.settings, parallel.world().size
    if settings.packing and mixers(stage.policy.model):
        raise InputError(
            f"{settings.given('packing')}: the model has layers with a state, which would go from "
            "one demonstration into the next; leave it out, or use --backend own"
        )
    if settings.batch_size % processes:
        raise InputError(
            f"--batch-size {settings.batch_size}: {processes} processes share it evenly; use a "
            f"multiple of {processes}"
        )
    weight = next(stage.policy.model.parameters())
    steps = sft.last_step(count, settings)
    arguments = SFTConfig(
        output_dir=str(stage.run.path),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size // processes,
        learning_rate=stage.peak_rate,
        lr_scheduler_type="linear",
        # The first step of a warm-up has rate 0: a single step would teach nothing.
        warmup_steps=settings.warmup_fraction if steps > 1 else 0,
        weight_decay=0.0,
        router_aux_loss_coef=0.0,  # routers stay as they are
        max_length=settings.max_length,
        packing=settings.packing,
        # The records are tokenised, masked and short enough; only packing has work to do.
        dataset_kwargs={"skip_prepare_dataset": not settings.packing},
        # It saves memory and costs a third of the time: worth it where memory is scarce.
        gradient_checkpointing=stage.checkpoints_by_trl,
        bf16=weight.dtype == torch.bfloat16,
        fp16=weight.dtype == torch.float16,
        use_cpu=weight.device.type == "cpu",
        dataloader_pin_memory=weight.device.type == "cuda",
        seed=settings.seed,
        logging_steps=1,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 1,
        report_to="none",
        disable_tqdm=True,
    )
    return arguments, steps


if __name__ == "__main__":
    sys.exit(run_main(main))
