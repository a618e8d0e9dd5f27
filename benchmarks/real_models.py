"""What the recipes do to pretrained models: every row with its commands, its log and its machine.

    python benchmarks/real_models.py --part smollm2                     # after `make smollm2`
    python benchmarks/real_models.py --part rates
    python benchmarks/real_models.py --part qwen --model FILE.gguf --data DIR
    python benchmarks/tables.py                                         # docs/results.md

smollm2: SmolLM2-135M-Instruct on additions; the base, SFT and GRPO by the one command that the
recipe names; then SFT on 100, 500 and 1,000 demonstrations that all are worked out. rates:
learning rates of both stages on it. qwen: Qwen2.5-Coder-0.5B-Instruct on GSM8K; the base in each
format, SFT on human demonstrations and on its own, then a few GRPO steps. Evaluations are greedy,
on test questions that no training has seen (rates: on validation questions). Rows that are there
already are not measured again, `--rows` chooses some. The results go to
benchmarks/results/real_models.json; `differences` says of each pair how much of the change is
format and how much is reasoning (rlm/evaluation/comparison.py).
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import processor_name
from run_tables import rows_of

ROOT = Path(__file__).resolve().parent.parent
PATH = Path(__file__).parent / "results" / "real_models.json"
sys.path.insert(0, str(ROOT))
# What a row keeps of a run's log.csv.
COLUMNS = (
    "step", "loss", "reward_mean", "mixed_fraction", "completion_tokens", "truncated_fraction",
    "validation_accuracy", "validation_accuracy_lenient", "learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of a table: what trains it (nothing for a base), and how it is asked.

    train: the script and its words; before: the row whose adapter it starts from. stage: base, sft
    or grpo of a run of train.py, whose command `train` is then and which measures all three.
    """

    name: str
    title: str
    train: str = ""
    before: str = ""
    ask: str = ""
    stage: str = ""


SMOLLM2 = "--config configs/addition_smollm2.yaml --dtype bfloat16"
WHOLE = f"train.py {SMOLLM2}"
WORKED = "--terse-fraction 0"
SEED = "--seed 7"  # rates are chosen by other questions than those of the tables
VALIDATION = f"{SEED} --split validation --eval-samples 100"
QWEN = "--model MODEL --task gsm8k --data DATA --dtype bfloat16 --max-tokens 300"
SFT = f"train_sft.py {QWEN} --backend own --eval-samples 16 --epochs 3"
PARTS: dict[str, list[Row]] = {
    "smollm2": [
        Row("smollm2/base", "the base", WHOLE, stage="base"),
        Row("smollm2/sft", "SFT by the recipe", WHOLE, "smollm2/base", stage="sft"),
        Row("smollm2/grpo", "GRPO by the recipe", WHOLE, "smollm2/sft", stage="grpo"),
        *(
            Row(f"smollm2/sft-{n}", f"SFT, {n:,} demonstrations, all worked out",
                f"train_sft.py {SMOLLM2} {WORKED} --num-samples {n}")
            for n in (100, 500, 1000)
        ),
        Row("smollm2/grpo-100", "GRPO after SFT on those 100", f"train_grpo.py {SMOLLM2}",
            before="smollm2/sft-100"),
    ],
    "rates": [
        *(
            Row(f"rates/sft-{rate}", f"SFT, 200 demonstrations, all worked out, {rate}",
                f"train_sft.py {SMOLLM2} {WORKED} {SEED} --num-samples 200 --learning-rate {rate}",
                ask=VALIDATION)
            for rate in ("2e-4", "7e-4", "2e-3")
        ),
        Row("rates/sft", "SFT, 200 demonstrations, three of five without working",
            f"train_sft.py {SMOLLM2} {SEED} --num-samples 200", ask=VALIDATION),
        *(
            Row(f"rates/grpo-{rate}", f"10 steps of GRPO from there, {rate}",
                f"train_grpo.py {SMOLLM2} {SEED} --learning-rate {rate} "
                "--max-steps 10 --eval-every 10 --probe 0", before="rates/sft", ask=VALIDATION)
            for rate in ("2e-5", "7e-5", "2e-4")
        ),
    ],
    "qwen": [
        *(
            Row(f"qwen/base-{form}", f"the base, {form}", ask=f"--format {form}")
            for form in ("think", "xml", "solution")
        ),
        Row("qwen/sft-human", "SFT, human demonstrations", f"{SFT} --num-samples 27"),
        # Twice, at two states of the code: what differs between them is within the interval.
        *(
            Row(f"qwen/{name}", title,
                f"{SFT} --num-samples 120 --demonstrations own --own-samples 2")
            for name, title in (("sft-own", "SFT, its own demonstrations"),
                                ("sft-own-again", "the same again, on a quiet machine"))
        ),
        Row("qwen/grpo", "12 steps of GRPO from there",
            f"train_grpo.py {QWEN} --questions-per-step 2 --group-size 4 --max-steps 12 "
            "--eval-every 12 --eval-samples 16", before="qwen/sft-own-again"),
    ],
}  # fmt: skip
ASK = {
    "smollm2": f"{SMOLLM2} --eval-samples 200",
    "rates": SMOLLM2,
    "qwen": f"{QWEN} --eval-samples 200",
}


def commands(part: str, row: Row) -> list[str]:
    """Return the commands of a row, as one would type them; MODEL and DATA stand for paths."""
    if row.stage:
        return [row.train]
    found, place = [], f"weights/real/{row.name}"
    if row.train:
        start = f" --adapter weights/real/{row.before}" if row.before else ""
        found.append(f"{row.train}{start} --run real/{row.name} --output {place} --overwrite")
    models = place if row.train else "base"
    found.append(
        f"evaluate.py {ASK[part]} {row.ask} --models {models} "
        f"--run real/{row.name} --output-file runs/real/{row.name}/test.csv"
    )
    return [" ".join(command.split()) for command in found]


def measure(part: str, row: Row, given: dict[str, str]) -> dict:
    """Run the commands of a row; return its summary, its log, its seconds."""
    run, seconds = ROOT / "runs/real" / row.name, []
    if row.stage:
        whole = ROOT / "runs/addition_smollm2"
        if row.stage == "base":
            seconds = [once(row.train, given)]
        run.mkdir(parents=True, exist_ok=True)
        for kind in ("csv", "json"):
            shutil.copy(whole / f"test-{row.stage}.{kind}", run / f"test.{kind}")
        name = {"sft": "sft_lora", "grpo": "final_rlm_lora"}.get(row.stage, "")
        log, weights = whole / row.stage / "log.csv", f"weights/addition_smollm2/{name}"
    else:
        log, weights = run / "log.csv", f"weights/real/{row.name}"
        seconds = [once(command, given) for command in commands(part, row)]
    kept: dict[str, Any] = {
        "title": row.title,
        "before": row.before,
        "commands": [f"python {command}" for command in commands(part, row)],
        "seconds": seconds,
        "test": json.loads((run / "test.json").read_text(encoding="utf-8")),
    }
    if row.train and row.stage != "base":
        kept["log"] = [{k: r[k] for k in COLUMNS if r.get(k)} for r in rows_of(log)]
        manifest = json.loads((ROOT / weights / "manifest.json").read_text("utf-8"))
        kept["demonstrations"] = manifest.get("demonstrations")
        kept["best_step"] = manifest.get("step")
    return kept


def once(command: str, given: dict[str, str]) -> float:
    """Run a command; return its seconds."""
    words = [given.get(word, word) for word in shlex.split(command)]
    began = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=environment)
    return round(time.perf_counter() - began, 1)


def change(before: str, after: str) -> dict:
    """Return what changed from one row's answers to another's, format and reasoning apart."""
    from rlm.evaluation.comparison import difference
    from rlm.evaluation.measure import Evaluation

    def answers(name: str) -> Evaluation:
        rows: list[dict] = rows_of(ROOT / f"runs/real/{name}/test.csv")
        return Evaluation(
            name, [row | {"last_number": row["last_number"] == "True"} for row in rows], {}
        )

    return difference(answers(before), answers(after), seed=0, resamples=10_000)


def read() -> dict:
    """Return what has been measured so far."""
    from rlm import files

    return files.read_object(PATH) if PATH.exists() else {"rows": {}, "differences": {}}


def machine() -> dict:
    """Return what the seconds were measured on."""
    import torch

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--rows", nargs="*", help="names of rows; else all of the part")
    parser.add_argument("--model", default="", help="of part qwen: a GGUF file, a name on the hub")
    parser.add_argument("--data", default="", help="of part qwen: the folder of GSM8K")
    options = parser.parse_args()
    if options.part == "qwen" and not (options.model and options.data):
        parser.error("--part qwen: give --model and --data")
    given = {"MODEL": options.model, "DATA": options.data}
    for row in PARTS[options.part]:
        if row.name in read()["rows"] or (options.rows and row.name not in options.rows):
            continue
        found = measure(options.part, row, given) | {"machine": machine()}
        kept = read()  # anew: another part may have been measured meanwhile
        kept["rows"][row.name] = found
        if row.before:
            kept["differences"][f"{row.before} > {row.name}"] = change(row.before, row.name)
        files.write_json(PATH, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
