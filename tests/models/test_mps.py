"""What can be said of Apple's GPUs without one: every operation that we use has a kernel there.

The operations of sampling, GRPO and SFT are recorded on a CPU and looked up in torch's own list of
kernels, which its wheel has (`torchgen`). Not proved: that those kernels are right, or fast.
"""

from pathlib import Path

import torch
import torchgen
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from rlm.engine.engine import Engine, Sampling
from rlm.learner import demonstrations
from rlm.learner.logprobs import ReferencePolicy, pack, token_logprobs
from rlm.learner.losses import importance_weights, kl_estimate, policy_loss
from rlm.learner.metrics import Metrics
from rlm.learner.optimizer import Optimizer
from rlm.records import Prompt
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model

LIST = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
# One's own kernel, or one that is made of other operations.
THERE = {
    "MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
}  # fmt: skip
GROUPS = [([1, 2, 3], [[4, 5, 6], [7]]), ([3], [[4, 4], [5]])]


class Recorder(TorchDispatchMode):
    """Keeps the names of the operations that run inside it."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten":
            self.names.add(str(function).removeprefix("aten.").removesuffix(".default"))
        return function(*args, **(kwargs or {}))


def missing(names: set[str]) -> set[str]:
    """Return the operations that have no kernel on MPS."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    listed = loader(LIST.read_text(encoding="utf-8")).get_data()
    by_name = {each["func"].partition("(")[0]: each for each in listed}

    def there(name: str) -> bool:
        found = by_name[name]
        if "structured_delegate" in found:
            return there(found["structured_delegate"])
        kernels = found.get("dispatch", {"CompositeImplicitAutograd": ""})
        return bool(THERE & {key.strip() for keys in kernels for key in keys.split(",")})

    return {name for name in names if not there(name)}


def sample(model) -> None:
    engine = Engine(model, byte_tokenizer())
    engine.sync()
    for options in ({}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}):
        engine.generate([Prompt([1, 2, 3]), Prompt([4])], 2, Sampling(4, **options), seed=0)


def learn(model) -> None:
    """A step of GRPO with all that can be switched on, then one of SFT."""
    reference, optimizer = ReferencePolicy(model), Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-3
    packed, metrics = pack(GROUPS), Metrics()
    ref = reference.logprobs(packed, vocab_size=SIZE)
    model.train()
    now, entropy = token_logprobs(model, packed, temperature=0.7, statistics=True, vocab_size=SIZE)
    weights, _ = importance_weights(now.detach(), now.detach() - 0.1, 2.0)
    loss, _ = policy_loss(
        now, now.detach() - 0.1, weights, packed.sequence, tokens=9, sequences=4, max_tokens=3,
        kl_weight=0.1, ref_logprobs=ref,
    )  # fmt: skip
    optimizer.backward(loss)
    metrics.mean(entropy=entropy, kl=kl_estimate(now.detach(), ref))
    optimizer.step()
    shown = [(prompt, completion) for prompt, (completion, *_) in GROUPS]
    demonstrations.backward(model, optimizer, shown, tokens=5, token_budget=100)
    optimizer.step()


def test_what_we_use_has_kernels_on_apples_gpus():
    models = [tiny_lora(tiny_model(kind)) for kind in ("qwen2", "qwen3")]
    models += [tiny_lora(tiny_model()).to(torch.float16), tiny_lora(tiny_model()).bfloat16()]
    with Recorder() as recorder, sdpa_kernel(SDPBackend.MATH):  # no kernel of a CPU's own
        for model in models:
            sample(model)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            learn(model)
    assert {"mm", "searchsorted.Tensor", "_softmax_backward_data"} <= recorder.names
    assert missing(recorder.names) == set()


def test_what_has_none_is_found():
    of_a_cpu = "_scaled_dot_product_flash_attention_for_cpu"
    assert missing({"mm", of_a_cpu}) == {of_a_cpu}
    # What attention is made of there without gradients, and the two of float16's loss scaling.
    fused = {"_scaled_dot_product_attention_math_for_mps", "_amp_update_scale_",
             "_amp_foreach_non_finite_check_and_unscale_"}  # fmt: skip
    assert missing(fused) == set()
