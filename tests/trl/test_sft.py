"""What TRL's SFTTrainer is kept from: rounding the LoRA, and masks of a whole packed row."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

import config
import train_sft
from rlm.models.policy import Policy
from rlm.run.steps import RunState
from rlm.run.time_budget import TimeBudget
from rlm.trl import sft
from rlm.trl.sft import Trainer
from tests.support.tiny_models import EOS, byte_tokenizer, tiny_lora, tiny_model
from training.stage import Stage

FLAGS = ("--batch-size", "2", "--max-steps", "1", "--max-length", "64", "--seed", "5")
# Prompt and completion tokens: rows of 64 hold several of them.
LENGTHS = [(9, 5), (12, 8), (3, 20), (7, 7), (16, 9), (5, 11), (8, 30), (2, 3)]


def records() -> list[dict]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for prompt, completion in LENGTHS:
        drawn = torch.randint(0, 256, (prompt + completion - 1,), generator=draw)
        ids = [*drawn.tolist(), EOS]
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return found


def trainer(tmp_path, *flags, model=None) -> Trainer:
    """Return the trainer that train_sft.py makes of some flags, on a tiny model."""
    settings = config.load(config.SFTSettings, [*FLAGS, *flags])
    policy = Policy(model or tiny_lora(tiny_model()), byte_tokenizer(), "", {})
    stage = Stage(settings, policy, None, SimpleNamespace(path=tmp_path), None)
    arguments, _ = train_sft.trainer_arguments(stage, len(LENGTHS))
    state = RunState(run=tmp_path, parts={}, facts={}, last=1, found=None)
    return Trainer(
        model=policy.model, args=arguments, train_dataset=Dataset.from_list(records()),
        processing_class=policy.tokenizer, run_state=state,
        guard=SimpleNamespace(passed=lambda *_: True, gave_up=False),
    )  # fmt: skip


def gradients(made: Trainer) -> dict[str, torch.Tensor]:
    """Return the gradients of one step, before they are cut."""
    found: dict[str, torch.Tensor] = {}

    def keep(model):
        found.update((n, p.grad.clone()) for n, p in model.named_parameters() if p.requires_grad)
        return torch.tensor(1.0)

    made._clip_grad_norm = keep
    made.run()
    return found


class Spy:
    """Stands for torch's attention and keeps the shapes of its queries and of its masks."""

    def __init__(self, monkeypatch):
        self.queries, self.masks = set(), set()
        true = F.scaled_dot_product_attention

        def attend(query, key, value, attn_mask=None, **options):
            self.queries.add(tuple(query.shape))
            self.masks.add(None if attn_mask is None else tuple(attn_mask.shape))
            return true(query, key, value, attn_mask=attn_mask, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)


@pytest.mark.parametrize("flags", [{"is_loaded_in_4bit": True}, {}], ids=["4bit", "plain"])
def test_the_lora_stays_float32_bit_for_bit(tmp_path, flags):
    model = tiny_lora(tiny_model())
    vars(model).update(flags)  # what TRL asks of a base, and takes as a reason to round
    before = copy.deepcopy({n: p for n, p in model.named_parameters() if p.requires_grad})
    made = trainer(tmp_path, model=model)
    after = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys() and len(after) == 3 * 7 * 2
    assert all(p.dtype == torch.float32 and p.equal(before[n]) for n, p in after.items())


def test_a_packed_row_has_no_mask_and_the_gradients_of_one(tmp_path, monkeypatch):
    packed = trainer(tmp_path, "--packing")
    plain = trainer(tmp_path, "--packing")
    plain._unmasked = False  # as TRL does it by itself
    with monkeypatch.context() as patch:
        seen = Spy(patch)
        true = gradients(plain)
    (mask,) = seen.masks
    assert mask[-1] == mask[-2] > 64, "TRL by itself has a square mask of all rows together"
    seen = Spy(monkeypatch)
    found = gradients(packed)
    assert seen.masks == {None}
    assert seen.queries == {(6, 4, 23, 8)}, "six demonstrations, as long as the longest of them"
    assert found.keys() == true.keys()
    for name, gradient in true.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    assert packed.model.get_base_model().config._attn_implementation == "sdpa"


def test_a_batch_that_is_not_packed_has_masks_of_its_longest_alone(tmp_path, monkeypatch):
    seen = Spy(monkeypatch)
    gradients(trainer(tmp_path))
    most = max(sum(each) for each in LENGTHS)
    assert all(mask is None or mask[-1] <= most for mask in seen.masks)


def test_a_step_is_timed_between_two_waits_for_the_device(tmp_path, monkeypatch):
    events: list[str] = []
    made = trainer(tmp_path)
    monkeypatch.setattr(sft, "wait", lambda device: events.append(device.type))
    true = sft.SFTTrainer.training_step

    def step(self, *arguments):
        events.append("step")
        return true(self, *arguments)

    monkeypatch.setattr(sft.SFTTrainer, "training_step", step)
    assert made.fit_into(TimeBudget(3600.0, 0.0), lambda taken: taken) >= 0
    assert events == ["cpu", "step", "cpu"] * 2
