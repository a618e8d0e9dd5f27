"""Whether two models are the same, and that what is saved is what was trained."""

import json
import weakref
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlm.errors import InputError
from rlm.evaluation.measure import Evaluation
from rlm.export import proof
from rlm.export.save import save_policy
from rlm.models import adapters, loading, policy
from rlm.models.policy import Policy, check_learned
from tests.support.saving import Run
from tests.support.tiny_models import byte_tokenizer, tiny_lora, tiny_model

ROOM = dict(max_position_embeddings=512)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model(**ROOM).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions():
    return proof.prompts(byte_tokenizer(), "think")


def trained(base_folder, dtype="float32") -> Policy:
    """A policy as it is at the end of a training: its B is not zero, it is in training mode."""
    model, tokenizer = loading.load_base(str(base_folder), device="cpu", dtype=dtype)
    return Policy(tiny_lora(model).train(), tokenizer, str(base_folder), {})


def save(live, tmp_path, accuracy=0.5, **facts):
    run = Run(tmp_path / "run")
    evaluation = Evaluation("x", [], {"accuracy": accuracy, "questions": 4})
    facts = {"format": "think", "task": "addition"} | facts
    return save_policy(live, tmp_path / "out", evaluation, run, overwrite=False, **facts), run


def test_the_prompts_are_32_fixed_ones(questions):
    assert len(questions) == 32 == len({tuple(p.ids) for p in questions})
    assert questions == proof.prompts(byte_tokenizer(), "think")
    assert questions[0] != proof.prompts(byte_tokenizer(), "xml")[0]


def test_a_look_sees_the_models_own_logits_and_answers(questions):
    model, few = tiny_lora(tiny_model(**ROOM)).train(), questions[:3]
    seen = proof.look(model, byte_tokenizer(), few, max_tokens=4)
    assert model.training, "the model's own state stays"
    model.eval()
    for prompt, logits, answer in zip(few, seen.logits, seen.answers, strict=True):
        with torch.no_grad():
            plain = model(torch.tensor([prompt.ids])).logits[0, -1]
        assert torch.allclose(logits, plain, atol=1e-4)
        assert answer[0] == int(plain[:258].argmax()) and 1 <= len(answer) <= 4


def test_a_model_is_the_same_as_itself_and_no_other(questions):
    def compared(other):
        pair = tiny_model(**ROOM), other
        return proof.same_model(
            *pair, byte_tokenizer(), questions, tolerance=proof.EXACT, max_tokens=8
        )

    same = {"prompts": 32, "max_tokens": 8, "logit_difference": 0.0, "logit_tolerance": 1e-5}
    assert compared(tiny_model(**ROOM)) == same | {"equal_answers_fraction": 1.0}
    with pytest.raises(proof.ProofError, match=r"logits differ by up to \d.* 32 greedy answers"):
        compared(tiny_model(seed=1, **ROOM))
    nudged = tiny_model(**ROOM)
    nudged.lm_head.weight.data[7] += 1e-4
    with pytest.raises(proof.ProofError, match="0 of 32 greedy answers differ"):
        compared(nudged)


def test_the_comparison_by_hand():
    one = proof.Seen(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [[1], [2, 3]], 2)
    two = proof.Seen(torch.tensor([[1.0, 2.5], [3.25, 4.0]]), [[1], [2, 4]], 2)
    assert proof.difference(one, two) == 0.5
    found = proof.compare(one, two, tolerance=0.5, same_answers=False)
    assert found["logit_difference"] == 0.5 and found["equal_answers_fraction"] == 0.5
    with pytest.raises(proof.ProofError, match=r"up to 0.5 \(0.5 is allowed\), 1 of 2"):
        proof.compare(one, two, tolerance=0.5)
    with pytest.raises(proof.ProofError, match=r"0.4 is allowed"):
        proof.compare(one, two, tolerance=0.4, same_answers=False)
    no_number = proof.Seen(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), one.answers, 2)
    with pytest.raises(proof.ProofError, match="nan"):
        proof.compare(one, no_number, tolerance=9.0)
    smaller = proof.Seen(one.logits[:, :1], one.answers, 2)
    with pytest.raises(proof.ProofError, match="inf"):
        proof.compare(one, smaller, tolerance=9.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_adapter_is_proved_and_saved(base_folder, tmp_path, dtype):
    live = trained(base_folder, dtype)
    saved, run = save(live, tmp_path)
    assert saved == tmp_path / "out" and live.model.training
    found = loading.read_manifest(saved)["proof"]
    assert found["logit_difference"] <= 1e-5 and found["equal_answers_fraction"] == 1.0
    assert any("32 of 32 greedy answers of 16 tokens are equal" in line for line in run.said)


def test_a_failed_proof_leaves_what_was_there(base_folder, tmp_path, monkeypatch):
    live = trained(base_folder)
    save(live, tmp_path, accuracy=0.4)
    before = (tmp_path / "out" / "manifest.json").read_text()
    write = live.model.save_pretrained

    def spoiled(folder, **options):
        """Write what is not in the model: the way from the tensors to the disk is broken."""
        write(folder, **options)
        path = f"{folder}/adapter_model.safetensors"
        save_file({k: v * 1.01 for k, v in load_file(path).items()}, path)

    monkeypatch.setattr(live.model, "save_pretrained", spoiled)
    with pytest.raises(InputError, match=r"run/adapter: \d+ of 42 tensors are not those") as error:
        save(live, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "manifest.json").read_text() == before


def test_the_proof_sees_what_the_tensors_do_not_tell(base_folder, tmp_path, monkeypatch):
    live, write = trained(base_folder), adapters.files.write_json

    def other_scale(path, value):
        more = {"lora_alpha": 9} if "lora_alpha" in value else {}
        return write(path, value | more)

    monkeypatch.setattr(adapters.files, "write_json", other_scale)
    with pytest.raises(proof.ProofError, match=r"run/adapter: loaded afresh .* logits differ by"):
        save(live, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_base_that_changed_on_the_disk_is_found(base_folder, tmp_path):
    live = trained(base_folder)
    live.model.get_base_model().lm_head.weight.data[5] *= 1.001  # the signs stay
    with pytest.raises(proof.ProofError, match="the base's files have changed"):
        save(live, tmp_path)


@pytest.mark.parametrize("why", ["quantised", "no memory"])
def test_where_logits_cannot_be_compared_the_tensors_are(base_folder, tmp_path, monkeypatch, why):
    live = trained(base_folder)
    if why == "quantised":
        live.model.get_base_model().config.quantization_config = {"bits": 4}
    else:
        monkeypatch.setattr("rlm.export.save.free_bytes", lambda device: 1000)
    monkeypatch.setattr(policy, "open_policy", lambda *a, **k: pytest.fail("loaded again"))
    saved, run = save(live, tmp_path)
    skipped = loading.read_manifest(saved)["proof"]["skipped"]
    assert why in skipped and any("logits not compared" in line for line in run.said)


def full():
    """An error of its own each time: one that was raised keeps the frames that it came through."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("where", ["the live model", "loading", "the second model"])
def test_a_proof_without_memory_for_it_is_a_line_and_the_adapter_is_saved(
    base_folder, tmp_path, monkeypatch, where
):
    live, opened, looked = trained(base_folder), [], []
    true_open, true_look = policy.open_policy, proof.look

    def open_policy(*given, **options):
        if where == "loading":
            raise full()
        found = true_open(*given, **options)
        opened.append(weakref.ref(found.model))
        return found

    def look(*given, **options):
        looked.append(1)
        if len(looked) == {"the live model": 1, "the second model": 2}.get(where):
            raise full()
        return true_look(*given, **options)

    @contextmanager
    def aside(network):
        yield
        assert all(model() is None for model in opened), "there is no room for the live one yet"

    monkeypatch.setattr("rlm.export.save.open_policy", open_policy)
    monkeypatch.setattr("rlm.export.save.proof.look", look)
    monkeypatch.setattr("rlm.export.save._aside", aside)
    saved, run = save(live, tmp_path)
    told = "the memory was not enough for a second copy of the base"
    assert loading.read_manifest(saved)["proof"] == {"skipped": told}
    assert any(f"logits not compared: {told}" in line for line in run.said)
    assert len(opened) == (where == "the second model")


def test_another_failure_of_a_proof_is_not_taken_for_that(base_folder, tmp_path, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("rlm.export.save.open_policy", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        save(trained(base_folder), tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_lora_that_learned_nothing_is_an_error(base_folder, tmp_path, caplog):
    model, tokenizer = loading.load_base(str(base_folder), device="cpu")
    fresh = Policy(loading.add_lora(model, r=4, alpha=8, seed=0), tokenizer, str(base_folder), {})
    for facts in ({}, {"step": 3}):
        with pytest.raises(InputError, match=r"nothing was learned.*raise the learning rate"):
            save(fresh, tmp_path, **facts)
    assert not list(tmp_path.iterdir())
    # The best of a GRPO run can be its start: that is kept, with a word.
    saved, _ = save(fresh, tmp_path, step=0)
    assert "the start was the best" in caplog.text
    assert json.loads((saved / "manifest.json").read_text())["proof"]["logit_difference"] == 0


def test_one_step_with_a_gradient_is_enough_to_have_learned():
    from rlm.learner.optimizer import Optimizer

    model = loading.add_lora(tiny_model(), r=4, alpha=8, seed=0)
    optimizer = Optimizer(model, max_grad_norm=1.0)
    for rate in (0.0, 1e-6):
        with pytest.raises(InputError):
            check_learned(model)
        optimizer.learning_rate = rate
        optimizer.backward(model(torch.tensor([[1, 2, 3]])).logits[0, -1, 0])
        assert optimizer.step() > 0
    check_learned(model)
    check_learned(tiny_model())  # no LoRA, nothing to say
