"""The benchmark of the servers: its figures by hand, and a small run of it."""

import json
import subprocess
import sys

import pytest

from tests.support.running import ROOT


@pytest.fixture
def serve_load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("serve_load")


def test_percentiles_by_hand(serve_load):
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    # Half of five is 2.5: three of them, up to 3, are the least that are at least half.
    assert serve_load.percentile(values, 0.5) == 3.0
    assert serve_load.percentile(values, 0.99) == 5.0
    assert serve_load.percentile([float(n) for n in range(1, 201)], 0.99) == 198.0
    assert serve_load.percentile([7.0], 0.5) == 7.0


def test_the_summary_by_hand(serve_load):
    rows = [
        {"server": name, "clients": 4, "repeat": i, "tokens_per_cpu_second": value, "lost": 0}
        for name, values in (("ours", (30.0, 50.0, 20.0)), ("lock", (10.0, 12.0, 8.0)))
        for i, value in enumerate(values)
    ]
    ours, lock = serve_load.summary(rows)
    assert ours["tokens_per_cpu_second"] == {"median": 30.0, "min": 20.0, "max": 50.0}
    assert ours["cpu_gain_over_lock"] == 3.0 and lock["cpu_gain_over_lock"] == 1.0
    assert ours["repeats"] == 3


@pytest.mark.slow
def test_a_small_run_measures_ours_and_the_lock(tmp_path):
    file = tmp_path / "results.json"
    words = ["--servers", "ours", "lock", "--clients", "2", "--requests", "4", "--repeats", "1"]
    script = ROOT / "benchmarks" / "serve_load.py"
    subprocess.run([sys.executable, script, *words, "--json", file], check=True, timeout=300)
    result = json.loads(file.read_text())["tiny"]
    assert [line["server"] for line in result["summary"]] == ["ours", "lock"]
    for row in result["runs"]:
        assert row["requests"] == 4 and row["lost"] == 0
        # An answer of the adapter has some 80 tokens, at most 128.
        assert 4 * 40 < row["tokens"] <= 4 * 128
        assert 0 < row["first_token_ms_p50"] <= row["total_ms_p50"] <= row["total_ms_p99"]
        assert row["tokens_per_cpu_second"] > 0
    assert result["versions"]["torch"] and result["machine"]["cores"]
