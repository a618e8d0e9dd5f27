"""Tests run on the CPU wherever they run; those that need a GPU are skipped with a word."""

import os
from types import SimpleNamespace

import pytest
import torch

from tests.support.running import ROOT


@pytest.fixture
def conftest(request):
    return request.config.pluginmanager.get_plugin(str(ROOT / "tests/conftest.py"))


@pytest.mark.skipif(os.environ.get("RLM_DEVICE") == "cuda", reason="a GPU was asked for")
def test_no_gpu_is_seen_unless_asked_for():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


def skipped(conftest, *marks: str) -> list[str]:
    """Return why a test with some marks would be skipped."""
    found: list[str] = []
    item = SimpleNamespace(
        path=ROOT / "tests/x.py",
        get_closest_marker=lambda name: name in marks,
        add_marker=lambda mark: found.append(mark.kwargs["reason"]),
    )
    conftest.pytest_collection_modifyitems([item])
    return found


def test_what_needs_a_gpu_is_skipped_where_there_is_none(conftest, monkeypatch):
    monkeypatch.setattr(conftest, "ON_A_GPU", False)
    told = "needs a GPU, and is run with RLM_DEVICE=cuda alone"
    assert skipped(conftest, "cuda") == [told] and skipped(conftest, "slow") == []
    monkeypatch.setattr(conftest, "ON_A_GPU", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert skipped(conftest, "cuda") == ["RLM_DEVICE=cuda, but torch sees no GPU here"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert skipped(conftest, "cuda") == []
