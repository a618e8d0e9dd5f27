"""Loss and gradient equal those of TRL's GRPOTrainer on the same rollouts.

TRL pads, runs one forward per completion and uses its own fused head; here the same completions
go packed through `rlm.learner.logprobs` and `rlm.learner.losses`. Two micro-batches of one group
each, temperature 0.8, so that accumulation and temperature are in the comparison.
"""

import copy

import pytest
import torch

from rlm.learner.logprobs import pack, token_logprobs
from rlm.learner.losses import LOSSES, UNCLIPPED, advantages, policy_loss, uncertain
from tests.support.tiny_models import EOS, PAD, SIZE, byte_tokenizer, tiny_lora, tiny_model

TEMPERATURE, MAX_TOKENS, G = 0.8, 16, 4
LENGTHS = [[9, 1, 16, 5], [2, 12, 7, 1]]  # two groups of four completions
# TRL has no loss named gspo: it is its grpo with weights of whole sequences.
THEIRS = {loss: dict(loss_type=loss) for loss in LOSSES}
THEIRS["gspo"] = dict(loss_type="grpo", importance_sampling_level="sequence")
THEIRS["luspo"]["importance_sampling_level"] = "sequence"


def trainer_for(model, folder, **options):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=G,
        gradient_accumulation_steps=2,
        num_generations=G,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        gradient_checkpointing=False,
        epsilon=0.2,
        epsilon_high=0.3,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
        args=GRPOConfig(**settings | options),
        train_dataset=Dataset.from_dict({"prompt": ["a", "bc", "def", "g"]}),
        processing_class=byte_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 2
    return trainer


@pytest.fixture(scope="module")
def model():
    return tiny_lora(tiny_model())


@pytest.fixture(scope="module")
def rollouts(model):
    """Two groups with advantages, and log-probabilities of other policies far from this one."""
    draw = torch.Generator().manual_seed(3)

    def ids(n):
        return torch.randint(EOS, (n,), generator=draw).tolist()

    groups = [(ids(6), [ids(n) for n in LENGTHS[0]]), (ids(3), [ids(n) for n in LENGTHS[1]])]
    with torch.no_grad():
        new, _ = token_logprobs(model, pack(groups), temperature=TEMPERATURE)
    noise = torch.randn(2, len(new), generator=draw)
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.5, 1.0]])
    return groups, advantages(reward), new + 0.4 * noise[0], new + 0.5 * noise[1]


def padded(values, pad, *, left=False):
    width = max(map(len, values))
    rows = [[pad] * (width - len(v)) + v if left else v + [pad] * (width - len(v)) for v in values]
    return torch.tensor(rows)


def split(flat, lengths):
    return [part.tolist() for part in flat.split(lengths)]


def theirs(model, folder, rollouts, *, with_old, kl_weight, masked, options):
    """Return TRL's loss, gradients and metrics, summed as its training loop does."""
    groups, advantage, old, ref = rollouts
    trainer = trainer_for(copy.deepcopy(model), folder, beta=kl_weight, **options)
    network = trainer.model.train()
    lengths = [n for group in LENGTHS for n in group]
    old, ref = (padded(split(x, lengths), 0.0) for x in (old, ref))
    masks = padded([[float(i not in masked)] * n for i, n in enumerate(lengths)], 0.0)
    total = 0.0
    for g, (prompt, completions) in enumerate(groups):
        rows, width = slice(G * g, G * g + G), max(LENGTHS[g])
        inputs = {
            "prompt_ids": torch.tensor([prompt] * G),
            "prompt_mask": torch.ones(G, len(prompt), dtype=torch.long),
            "completion_ids": padded(completions, PAD),
            "completion_mask": masks[rows, :width].long(),
            "advantages": advantage[g],
            "num_items_in_batch": masks.sum(),
        }
        if with_old:
            inputs["old_per_token_logps"] = old[rows, :width]
        if kl_weight:
            inputs["ref_per_token_logps"] = ref[rows, :width]
        loss = trainer.compute_loss(network, inputs)
        loss.backward()
        total += loss.item()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return total, gradients, trainer._metrics["train"]


def ours(
    model, rollouts, *, with_old, kl_weight, masked, loss_type, kl_unbiased=True,
    entropy_share=1.0, entropy_bonus=0.0,
):  # fmt: skip
    groups, advantage, old, ref = rollouts
    tokens = sum(n for i, n in enumerate(n for ns in LENGTHS for n in ns) if i not in masked)
    model.zero_grad()
    total, metrics, start = 0.0, {}, 0
    for g, group in enumerate(groups):
        packed = pack([group])
        part = slice(start, start + sum(LENGTHS[g]))
        start = part.stop
        logprobs, entropy = token_logprobs(
            model, packed, temperature=TEMPERATURE, chunk=10, statistics=True,
            entropy_gradient=entropy_bonus > 0,
        )  # fmt: skip
        counts = torch.tensor([float(G * g + i not in masked) for i in range(G)])
        mask, learned = packed.per_token(counts), packed.per_token(advantage[g])
        if entropy_share < 1:
            learned = learned * uncertain(entropy, entropy_share, mask)
        loss, more = policy_loss(
            logprobs,
            old[part] if with_old else None,
            learned,
            packed.sequence,
            loss_type=loss_type,
            tokens=tokens,
            sequences=2 * G,
            max_tokens=MAX_TOKENS,
            clip_low=0.2,
            clip_high=0.3,
            ref_logprobs=ref[part] if kl_weight else None,
            kl_weight=kl_weight,
            kl_unbiased=kl_unbiased,
            entropy=entropy,
            entropy_bonus=entropy_bonus,
            mask=mask,
        )
        loss.backward()
        total += loss.item()
        metrics = {name: metrics.get(name, 0.0) + value.item() for name, value in more.items()}
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, metrics


@pytest.mark.parametrize("masked", [(), (2, 7)], ids=["all", "masked"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("with_old", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_equal_trl(
    loss_type, with_old, kl_weight, masked, model, rollouts, tmp_path
):
    case = dict(with_old=with_old, kl_weight=kl_weight, masked=masked)
    options = dict(THEIRS[loss_type])
    if loss_type == "cispo":
        options["epsilon_high"] = 1.3  # TRL's bound itself; ours is 1 + clip_high
    loss, gradients, metrics = theirs(model, tmp_path, rollouts, options=options, **case)
    our_loss, our_gradients, our_metrics = ours(model, rollouts, loss_type=loss_type, **case)

    assert our_loss == pytest.approx(loss, abs=1e-5)
    assert our_gradients.keys() == gradients.keys() and len(gradients) > 30
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).abs().max() < 1e-5, name
    whole, our_whole = (torch.cat([g[n].flatten() for n in gradients]) for g in
                        (gradients, our_gradients))  # fmt: skip
    assert whole.norm() > 1e-3 and (our_whole - whole).norm() / whole.norm() < 1e-5
    if with_old and loss_type not in ("gspo", "luspo", "cispo", *UNCLIPPED):
        assert our_metrics["clip_high_fraction"] > 0.03 and our_metrics["clip_low_fraction"] > 0.03
        shares = torch.tensor([sum(n for i, n in enumerate(ns, G * g) if i not in masked)
                               for g, ns in enumerate(LENGTHS)]).float()  # fmt: skip
        shares = shares / shares.sum()  # TRL logs a mean per micro-batch
        for ending, key in (("low", "clip_low_fraction"), ("high", "clip_high_fraction")):
            logged = (torch.tensor(metrics[f"clip_ratio/{ending}_mean"]) * shares).sum()
            assert our_metrics[key] == pytest.approx(logged.item(), abs=1e-6)
    if kl_weight:
        assert our_metrics["kl"] > 0.05


def test_learning_from_the_most_uncertain_tokens_equals_trl(model, rollouts, tmp_path):
    case = dict(with_old=True, kl_weight=0.1, masked=(2, 7))
    options = dict(loss_type="dapo", top_entropy_quantile=0.3)
    loss, gradients, _ = theirs(model, tmp_path, rollouts, options=options, **case)
    found = ours(model, rollouts, loss_type="dapo", entropy_share=0.3, **case)
    assert found[0] == pytest.approx(loss, abs=1e-5)
    assert all((found[1][name] - x).abs().max() < 1e-5 for name, x in gradients.items())
    assert found[0] != pytest.approx(ours(model, rollouts, loss_type="dapo", **case)[0], abs=1e-3)


def test_an_entropy_bonus_equals_trl(model, rollouts, tmp_path):
    # TRL's is a mean over each micro-batch's tokens: without the first completion both have 22.
    case = dict(with_old=True, kl_weight=0.0, masked=(0,))
    options = dict(loss_type="dapo", entropy_coef=0.2)
    loss, gradients, _ = theirs(model, tmp_path, rollouts, options=options, **case)
    found = ours(model, rollouts, loss_type="dapo", entropy_bonus=0.2, **case)
    assert found[0] == pytest.approx(loss, abs=1e-5)
    assert all((found[1][name] - x).abs().max() < 1e-5 for name, x in gradients.items())
    assert found[0] < ours(model, rollouts, loss_type="dapo", **case)[0] - 0.1


@pytest.mark.parametrize("kl_unbiased", [True, False])
def test_both_kinds_of_kl_equal_trl(kl_unbiased, model, rollouts, tmp_path):
    case = dict(with_old=True, kl_weight=0.3, masked=())
    options = THEIRS["dapo"] | dict(use_bias_correction_kl=kl_unbiased)
    loss, gradients, _ = theirs(model, tmp_path, rollouts, options=options, **case)
    ours_ = ours(model, rollouts, loss_type="dapo", kl_unbiased=kl_unbiased, **case)
    assert ours_[0] == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        assert (ours_[1][name] - gradient).abs().max() < 1e-5, name


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trl(scale, tmp_path):
    """From TRL's own generation and scoring to its advantages."""
    torch.manual_seed(0)
    trainer = trainer_for(tiny_model(), tmp_path, scale_rewards=scale, max_completion_length=4)
    seen = []
    score = trainer._calculate_rewards

    def record(*arguments):
        seen.append(score(*arguments))
        # Groups of four: mixed, all equal, mixed.
        seen[-1] = torch.tensor([0.0, 1, 2, 1, 1, 1, 1, 1, 0.5, 0, 0, 0])[:, None]
        return seen[-1]

    trainer._calculate_rewards = record
    inputs = [{"prompt": prompt} for prompt in ("ab", "c", "def") for _ in range(G)]
    trainer.model.train()
    result = trainer._generate_and_score_completions(inputs)["advantages"]
    mine = advantages(seen[-1].view(-1, G), scale)
    torch.testing.assert_close(mine.flatten(), result, atol=1e-6, rtol=0)
    assert not mine[1].any() and mine[0].any()


def test_the_vocabulary_of_the_test_covers_the_ids(rollouts):
    assert max(t for p, cs in rollouts[0] for c in [p, *cs] for t in c) < SIZE
