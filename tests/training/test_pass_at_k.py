"""What train.py tells of pass@k after its evaluations, from the rows that they wrote."""

import json
from types import SimpleNamespace

import train
from rlm import files


def test_it_is_made_of_the_rows_of_the_evaluations(tmp_path):
    # Of 8 samples 2 are right in half of the questions; after GRPO all are.
    for name, right in (("base", 0), ("sft", 2), ("grpo", 8)):
        rows = [{"id": i, "right_samples": right if i < 10 else 0} for i in range(20)]
        files.write_csv(tmp_path / f"test-{name}.csv", rows)
    names = ["base", "sft", "grpo"]
    found = train.pass_at_k(tmp_path, names, SimpleNamespace(samples=8, seed=0))
    assert found and json.loads((tmp_path / "pass_at_k.json").read_text())["pass_at_k"] == found
    shares = {m["model"]: [e["share"] for e in m["pass_at_k"]] for m in found["models"]}
    assert shares == {"base": [0, 0], "sft": [1 / 8, 1 / 2], "grpo": [1 / 2, 1 / 2]}
    last = found["differences"][-1]
    assert (last["before"], last["after"]) == ("sft", "grpo")
    assert last["finding"].startswith("pass@1 rose, pass@8 stayed within noise: sharpening")
    # A greedy run in the same folder leaves nothing of it.
    assert train.pass_at_k(tmp_path, names, SimpleNamespace(samples=1, seed=0)) is None
    assert not (tmp_path / "pass_at_k.json").exists()
