"""For all tests: `pytest --hypothesis-profile=long` tries 20 times the cases of a normal run."""

import os

import pytest
from hypothesis import settings

from tests.support.running import QWEN

# Nothing is downloaded, so a plain `pytest` asks no hub; this is read when its client is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each, their subprocesses too. torch reads it once, when it
    # is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("long", max_examples=20 * settings.get_profile("default").max_examples)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder with a randomly initialised model of the Qwen2.5-0.5B shape and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("qwen")
    config = AutoConfig.from_pretrained(QWEN)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(QWEN).save_pretrained(path)
    return path
