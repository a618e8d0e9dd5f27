"""A whole model that was trained here: what learns, whether it did, and where it may stand."""

import json

import pytest
import torch

from rlm.errors import InputError
from rlm.models import adapters, loading, lookup
from rlm.models.policy import check_learned, check_output, open_policy
from rlm.models.whole import learn_all, unchanged
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import byte_tokenizer, tiny_model

MANIFEST = {"train": "full", "base": "some/base", "base_fingerprint": "a-b", "format": "xml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a plain base, a whole model and a LoRA on the whole model lie."""
    path = tmp_path_factory.mktemp("whole")
    for name, seed in (("base", 0), ("whole", 1)):
        tiny_model(seed=seed).save_pretrained(path / name)
        byte_tokenizer().save_pretrained(path / name)
    (path / "whole/manifest.json").write_text(json.dumps(MANIFEST))
    opened = open_policy(None, path / "whole", device="cpu", lora={"r": 2, "alpha": 4, "seed": 0})
    with torch.no_grad():
        for name, weight in opened.model.named_parameters():
            weight.add_(0.1 if "lora_B" in name else 0.0)
    loading.save_adapter(opened.model, path / "lora", {"base": opened.base, "format": "think"})
    return path


def test_everything_learns_but_routers():
    model = learn_all(tiny_family("qwen3_moe"))
    still = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert len(still) == 4 and all(n.endswith("mlp.gate.weight") for n in still)
    assert all(p.requires_grad for p in learn_all(tiny_model()).parameters())
    model.lm_head.weight.data = model.lm_head.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match=r"lm_head.weight is quantised .* use --train lora"):
        learn_all(model)


def test_a_single_changed_number_is_seen():
    assert unchanged(tiny_model()) is None
    model = learn_all(tiny_model().bfloat16())
    mark = adapters.fingerprint(model)
    assert unchanged(model)
    with pytest.raises(InputError, match="nothing was learned: no weight of the model is another"):
        check_learned(model)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.01
        model.model.embed_tokens.weight.neg_()
    assert not unchanged(model)
    check_learned(model)
    assert adapters.fingerprint(model) == mark, "the fingerprint is that of the start"


def test_it_stands_wherever_an_adapter_may_stand(folder):
    base, whole, lora = (str(folder / name) for name in ("base", "whole", "lora"))
    assert [lookup.is_whole(x) for x in (base, whole, lora)] == [False, True, False]
    assert [lookup.is_trained(x) for x in (base, whole, lora)] == [False, True, True]
    assert lookup.adapter_base(whole) == "some/base" == lookup.origin(whole)
    assert lookup.origin(base) == base and lookup.adapter_format(whole) == "xml"
    given = {"model": "some/base", "adapter": whole}
    for asked in (given, {"model": whole}, {"adapter": whole}):
        assert lookup.resolve(asked, {}, "none", None) == given
    # But an adapter may stand on it.
    on_it = {"model": whole, "adapter": lora}
    assert lookup.resolve(on_it, {}, "none", None) == on_it
    assert lookup.resolve({"adapter": lora}, {}, "none", None) == on_it
    lookup.check_adapter(whole, "--adapter", "some/base")
    lookup.check_adapter(lora, "--adapter", whole)
    with pytest.raises(InputError, match="an adapter of some/base, not of other/one"):
        lookup.check_adapter(whole, "--adapter", "other/one")


def test_what_is_opened(folder):
    base, whole, lora = (str(folder / name) for name in ("base", "whole", "lora"))
    ids = torch.tensor([[1, 2, 3]])
    expected = tiny_model(seed=1)(ids).logits
    opened = open_policy(base, whole, device="cpu")  # the base is not looked at
    assert torch.equal(opened.model(ids).logits, expected)
    assert opened.base == whole and opened.manifest["format"] == "xml"
    opened = open_policy("some/base", whole, device="cpu", full=True)
    # What is trained from it goes back to the first base.
    assert opened.origin() == {"base": "some/base", "base_fingerprint": "a-b"}
    assert opened.full and all(p.requires_grad for p in opened.model.parameters())
    for options in ({"model": whole, "adapter": lora}, {"model": None, "adapter": lora}):
        on_it = open_policy(**options, device="cpu")
        assert not torch.allclose(on_it.model(ids).logits, expected)
        assert on_it.origin()["base"] == whole
    plain = open_policy(base, None, device="cpu", full=True)
    mark = adapters.fingerprint(tiny_model())
    assert plain.origin() == {"base": base, "base_fingerprint": mark}
    with pytest.raises(InputError, match="a LoRA, of which --train full has none; merge it"):
        open_policy(whole, lora, device="cpu", full=True)


def test_what_may_not_be_replaced(folder, tmp_path):
    whole, lora = folder / "whole", folder / "lora"
    full = open_policy(str(folder / "base"), None, device="cpu", full=True)
    adapter = open_policy(None, lora, device="cpu", lora={})
    options = {"overwrite": False}
    check_output(full, tmp_path / "new", train="full", **options)
    with pytest.raises(InputError, match="holds a whole model of some/base, the new one is of"):
        check_output(full, whole, train="full", **options)
    with pytest.raises(
        InputError, match="holds an earlier adapter, what is trained is a new whole"
    ):
        check_output(full, lora, train="full", **options)
    check_output(full, lora, train="full", overwrite=True)
    # What was not made here is never replaced, and no adapter takes the place of its own base.
    with pytest.raises(InputError, match="exists and is no whole model; give another folder"):
        check_output(full, folder / "base", train="full", overwrite=True)
    with pytest.raises(InputError, match="holds the base that the adapter stands on"):
        check_output(adapter, whole, overwrite=True)
