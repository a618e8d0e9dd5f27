"""benchmarks/backends.py: what it measures of a script, and the table that is made of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import backends  # noqa: E402
import tables  # noqa: E402

SCRIPT = """
import sys, time  # noqa: E402
assert sys.argv[1:] == ["one", "2"] and __name__ == "__main__"
block = bytearray(b"x") * 200_000_000
before = time.perf_counter()
time.sleep(0.5)
assert time.perf_counter() - before < 0.4, "the clock is the processor's"
"""


def test_a_script_is_measured_by_the_processors_clock(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # From a process of its own: the peak of a child is at least what started it, else these tests.
    words = (str(tmp_path / "script.py"), "one", 2)
    call = f"import backends, json; print(json.dumps(backends.call(*{words!r})))"
    place = ROOT / "benchmarks"
    done = subprocess.run([sys.executable, "-c", call], cwd=place, capture_output=True, check=True)
    took = json.loads(done.stdout)
    assert took["wall_seconds"] >= 0.5 and took["seconds"] > 0
    assert 190 < took["peak_memory_mb"] < 400
    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="ended with 3"):
        backends.call(str(tmp_path / "script.py"))


def summary(accuracy: float) -> dict:
    interval = {"accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.01}
    return {"accuracy": accuracy, "last_number": accuracy} | interval


def test_a_row_a_backend_in_the_order_they_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "Not measured yet" in tables.backends_table()
    took = {"seconds": 61.4, "step_seconds": 1.234, "peak_memory_mb": 700.6}
    found = {
        "seed": 3, "order": ["trl", "own"], "sft": summary(0.15),
        "own": {"test": summary(0.98), **took},
        "trl": {"test": summary(0.97), **took | {"seconds": 300.0}},
    }  # fmt: skip
    (tmp_path / "backends.json").write_text(json.dumps({"results": [found]}))
    lines = tables.backends_table().splitlines()
    assert lines[2:] == [
        "| trl | 3 | 15.0 [13.0, 16.0] | 97.0 [95.0, 98.0] | 97.0 | 300 | 1.23 | 701 |",
        "| own | 3 | 15.0 [13.0, 16.0] | 98.0 [96.0, 99.0] | 98.0 | 61 | 1.23 | 701 |",
    ]
