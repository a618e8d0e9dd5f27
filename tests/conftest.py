"""For all tests: `pytest --hypothesis-profile=long` tries 20 times the cases of a normal run.

They run on the CPU, on a machine with a GPU too: what they expect are its sums, in float32.
`RLM_DEVICE=cuda python -m pytest -m cuda` runs those that need a GPU.
"""

import os

import pytest
from hypothesis import settings

from tests.support.running import QWEN, ROOT

# Nothing is downloaded, so a plain `pytest` asks no hub; this is read when its client is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ON_A_GPU = os.environ.get("RLM_DEVICE") == "cuda"
if not ON_A_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks; for what tests start, too
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each, their subprocesses too. torch reads it once, when it
    # is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("long", max_examples=20 * settings.get_profile("default").max_examples)

# Files that take longest, of the quick tests and of the slow: they go first, so that no process is
# left with one of them at the end (--dist loadfile --no-loadscope-reorder).
LONGEST = (
    "ground/test_parallel.py", "scripts/test_scripts.py", "run/test_resume.py",
    "repository/test_network.py", "tunnel/test_tunnel.py", "server/test_upstream.py",
    "trl/test_grpo.py", "run/test_trackers.py", "learner/test_sharding.py", "run/test_safety.py",
    "server/test_page.py", "server/test_stream.py", "scripts/test_gsm8k.py", "tiny/test_base.py",
    "server/test_failover.py", "export/test_export.py", "training/test_tryout.py",
    "report/test_report.py", "learner/test_fuzz_tensors.py", "server/test_clients.py",
    "cli/test_fuzz.py", "data/test_fuzz.py", "repository/test_packaging.py",
    "rollouts/test_vllm.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    needy = [item for item in items if item.get_closest_marker("cuda")]
    if why := no_gpu() if needy else "":
        for item in needy:
            item.add_marker(pytest.mark.skip(reason=why))


def no_gpu() -> str:
    """Return why a test that needs a GPU cannot run, "" if it can."""
    if not ON_A_GPU:
        return "needs a GPU, and is run with RLM_DEVICE=cuda alone"
    import torch

    return "" if torch.cuda.is_available() else "RLM_DEVICE=cuda, but torch sees no GPU here"


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
