"""The notebook: nothing of a run is kept in it, its cells are short, and it runs to its end.

It is run by a real kernel in a folder of its own, which has what a copy of the repository has and
keeps what the notebook writes. Colab's own modules are made up; on a Colab machine it was not run.
"""

import ast
import json
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.repository.test_documents import commands, wrong
from tests.support.running import ROOT, rows

PATH = ROOT / "examples" / "colab.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TEXT = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
# What the notebook takes from a copy of the repository.
PARTS = ("config.py", "data.py", "rewards.py", "train_sft.py", "train_grpo.py", "evaluate.py",
         "inference.py", "serve.py", "settings", "training", "rlm", "weights")  # fmt: skip
COLAB = """
import importlib.util
import sys


class drive:
    def mount(place):
        print("mounted", place)


class userdata:
    class SecretNotFoundError(Exception):
        pass

    def get(name):
        raise userdata.SecretNotFoundError(name)


for name in ("google", "google.colab"):
    spec = importlib.util.spec_from_loader(name, None)
    sys.modules[name] = importlib.util.module_from_spec(spec)
sys.modules["google"].colab = sys.modules["google.colab"]
sys.modules["google.colab"].__dict__.update(drive=drive, userdata=userdata)
"""
SMALL = "DEMONSTRATIONS, STEPS, QUESTIONS = 64, 3, 4\n"


def kept(cells: list[dict]) -> list[str]:
    """Return what a run has left in the cells, in words."""
    found = []
    for cell in cells:
        left = [name for name in ("outputs", "execution_count") if cell.get(name)]
        found += [f"{cell['id']}: {name}" for name in left]
        found += [f"{cell['id']}: {name}" for name in cell["metadata"] if name != "tags"]
    return found


def test_nothing_of_a_run_is_kept():
    nbformat.validate(nbformat.read(PATH, as_version=4))
    assert kept(CELLS) == []


def test_what_a_run_leaves_is_found():
    cell = {"id": "a", "outputs": [{}], "execution_count": 3, "metadata": {"executionInfo": {}}}
    assert kept([cell]) == ["a: outputs", "a: execution_count", "a: executionInfo"]


def test_cells_are_short_and_told():
    assert len(CODE) > 15
    assert [source for source in CODE if len(source.splitlines()) > 18] == []
    kinds = [cell["cell_type"] for cell in CELLS]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= kinds.count("code") * 2 / 3


def test_it_uses_the_functions_of_the_scripts():
    called = {
        ast.unparse(node.func)
        for source in CODE
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    }
    assert called >= {"train_sft.train", "train_grpo.train", "evaluate.main", "inference.main"}
    assert not any("torch" in name and name != "torch.cuda.is_available" for name in called)


def test_what_its_text_names_is_there():
    assert [wrong(line) for line in commands(TEXT)] == [[]] * len(commands(TEXT))
    for name in re.findall(r"`([\w/]+\.py)`", TEXT):
        assert (ROOT / name).is_file()


def run(folder, parameters: str, monkeypatch):
    """Execute the notebook in a folder that looks like a copy of the repository; return it."""
    for name in PARTS:
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    for name in ("NGROK_AUTHTOKEN", "RLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    book = nbformat.read(PATH, as_version=4)
    [place] = [
        i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    source = f"{COLAB}DRIVE = {str(folder / 'drive')!r}\n{SMALL}{parameters}"
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return book


def said(book) -> str:
    outputs = [each for cell in book.cells for each in cell.get("outputs", [])]
    return "".join(each.get("text", "") for each in outputs)


@pytest.mark.slow
@pytest.mark.ci
def test_it_runs_on_the_tiny_base(tmp_path, monkeypatch):
    book = run(tmp_path, "", monkeypatch)
    told = said(book)
    assert "mounted" in told and "stopped, and saved" in told
    assert re.search(r"goes on after step [12], from \S*runs/notebook/grpo/checkpoints", told)
    drive = tmp_path / "drive" / "runs" / "notebook"
    assert [row["step"] for row in rows(drive / "grpo" / "log.csv")] == ["0", "1", "2", "3"]
    assert (drive / "weights" / "final_rlm_lora" / "adapter_model.safetensors").is_file()
    assert (drive / "grpo" / "report.html").is_file()
    assert "left out: there is no GPU" in told and "public address" in told
    assert not list(drive.glob("*_large"))
    assert re.search(r"^local: http://127\.0\.0\.1:\d+$", told, re.MULTILINE)
    images = [o for cell in book.cells for o in cell.get("outputs", []) if "data" in o]
    assert any("image/png" in output["data"] for output in images)


@pytest.mark.slow
def test_the_cells_for_a_gpu_run_with_a_small_qwen3_too(tmp_path, monkeypatch):
    from tests.support.tiny_families import save, tiny_family

    model = save(tiny_family("qwen3", max_position_embeddings=1024), tmp_path / "qwen3")
    (tmp_path / "rewards.yaml").write_text("grpo: {rewards: 'repetition=1,length=1', probe: 2}\n")
    parameters = f"""
LARGE, LARGE_MODEL, LARGE_DTYPE = True, {model!r}, "float32"
LARGE_DATA = ["--task", "addition", "--max-tokens", "16"]
LARGE_SFT = ["--num-samples", "16"]
LARGE_GRPO = ["--questions-per-step", "2", "--group-size", "2", "--max-steps", "2"]
LARGE_GRPO += ["--config", "rewards.yaml"]
"""
    book = run(tmp_path, parameters, monkeypatch)
    told = said(book)
    folder = tmp_path / "drive" / "runs" / "notebook"
    assert (folder / "weights_large" / "final_rlm_lora" / "adapter_model.safetensors").is_file()
    assert [row["step"] for row in rows(folder / "grpo_large" / "log.csv")][-1] == "2"
    assert (folder / "evaluation_large").is_dir() and "NO-GO" in told
