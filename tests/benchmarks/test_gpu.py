"""The benchmark for a GPU, tried on a CPU: figures are kept whatever a stage does."""

import json
import sys

import pytest
import torch

from tests.support.running import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu


def figures(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]


def test_each_figure_is_a_line_and_a_failure_is_one_too(tmp_path, capsys):
    bench = gpu.Bench(tmp_path, small=True)
    bench.keep(stage="right", gap=0.5)
    with bench.tried(stage="right", dtype="float16"):
        raise ValueError("two devices")
    assert figures(tmp_path) == [
        {"stage": "right", "gap": 0.5},
        {"stage": "right", "dtype": "float16", "failed": "ValueError: two devices"},
    ]
    assert "Traceback" in capsys.readouterr().err


def test_a_stage_that_hangs_costs_its_own_figures_only(tmp_path, monkeypatch):
    script = tmp_path / "stage.py"
    script.write_text(
        "import sys, time\n"
        "if 'facts' in sys.argv: time.sleep(60)\n"
        "if 'right' in sys.argv: print('{\"stage\": \"right\"}')\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setitem(gpu.STAGES, "facts", 0.5)
    bench = gpu.Bench(tmp_path, small=True)
    assert gpu.run_all(bench, ["facts", "right"], 570) == 1
    assert [(f["stage"], f["ended"]) for f in figures(tmp_path)] == [
        ("facts", "timeout"), ("right", 0),
    ]  # fmt: skip
    assert gpu.run_all(bench, ["right"], 570) == 0
    assert gpu.run_all(bench, ["right"], 5) == 0
    assert figures(tmp_path)[-1] == {"stage": "right", "skipped": "no time left"}


def test_what_is_no_stage_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["rigth"])
    assert (
        ended.value.code == 2 and "no stage 'rigth'; use facts | right" in capsys.readouterr().err
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2 and "torch sees no GPU here; --small" in capsys.readouterr().err


@pytest.mark.slow
def test_all_stages_run_small(tmp_path):
    wanted = [name for name in gpu.STAGES if name != "run"]  # tests/scripts do that
    assert gpu.main([*wanted, "--small", "--out", str(tmp_path)]) == 0
    found = figures(tmp_path)
    assert not any("failed" in f for f in found)
    right = [f for f in found if f["stage"] == "right" and "dtype" in f]
    assert [f["dtype"] for f in right] == ["float32", "bfloat16", "float16"]
    assert right[0]["gradient_gap"] < 1e-6 and right[0]["graphs_same_tokens"] == [24, 24]
