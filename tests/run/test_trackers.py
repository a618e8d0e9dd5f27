"""W&B, trackio and TensorBoard hold what log.csv holds, offline; a missing one is told at once."""

import json
import os
import socket
import threading

import pytest

from rlm.errors import InputError
from rlm.run import log as log_module
from rlm.run.log import Trackers
from tests.support import tracker_files as files
from tests.support.running import ROOT, start, succeed

ROWS = [
    {"step": 0, "validation_accuracy": 0.25},
    {"step": 1, "reward_mean": 0.1 + 0.2, "loss": 1e-9, "note": "x"},
    {"step": 2, "reward_mean": 1 / 3, "loss": float("nan"), "kl": float("inf")},
    {"step": 2, "validation_accuracy": 1.0},
]
# What is finite and a number, by hand:
FIGURES = {
    ("validation_accuracy", 0): 0.25,
    ("reward_mean", 1): 0.30000000000000004,
    ("loss", 1): 1e-9,
    ("reward_mean", 2): 0.3333333333333333,
    ("validation_accuracy", 2): 1.0,
}
TABLE = [{"question": "1 + 2?", "text": "<b>3</b> | x\ny", "reason": None, "reward": 1.0}]
SETTINGS = {"seed": 3, "adapter": None, "rewards": {"correctness": 1.0}, "digits": [1, 3]}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    # What the code sets is taken back after the test.
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("TRACKIO_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logged(kind: str, folder):
    """Return the run's folder, in which one tracker was given ROWS and TABLE."""
    pytest.importorskip(kind, reason=f"not tested: pip install {kind}")
    run = folder / "runs" / "demo" / "grpo"
    run.mkdir(parents=True)
    made = Trackers([kind], run, project="mine", settings=SETTINGS)
    for row in ROWS:
        made.log(row)
    made.table("samples", TABLE, step=2)
    made.close()
    made.close()  # a second time
    return run


def test_tensorboard_reads_back_the_same(tmp_path):
    run = logged("tensorboard", tmp_path)
    assert files.tensorboard_figures(run) == pytest.approx(FIGURES, rel=1e-7)
    assert "&lt;b&gt;3&lt;/b&gt; &#124; x<br>y" in files.tensorboard_texts(run)
    (hyper,) = run.glob("tensorboard/*/hparams.yml")
    assert "seed: 3" in hyper.read_text()


def test_trackio_reads_back_the_same(tmp_path, capfd):
    run = logged("trackio", tmp_path)
    assert files.trackio_figures(run) == FIGURES
    assert files.trackio_settings(run).items() >= SETTINGS.items()
    (table,) = [row["samples"] for _, row in files.trackio_rows(run) if "samples" in row]
    assert table["_value"][0]["text"] == "<b>3</b> | x\ny"
    assert capfd.readouterr().out == "", "stdout is for results"


def test_a_second_trackio_run_of_a_process_goes_into_its_own_folder(tmp_path):
    first, second = logged("trackio", tmp_path / "one"), logged("trackio", tmp_path / "two")
    assert files.trackio_figures(first) == files.trackio_figures(second) == FIGURES


@pytest.mark.slow
@pytest.mark.ci
def test_wandb_reads_back_the_same(tmp_path):
    run = logged("wandb", tmp_path)
    found = files.wandb_figures(run)
    assert {k: v for k, v in found.items() if not k[0].startswith("samples/")} == FIGURES
    assert files.wandb_settings(run).items() >= SETTINGS.items()
    (table,) = files.wandb_tables(run)
    assert table["columns"] == ["question", "text", "reason", "reward"]
    assert table["data"] == [["1 + 2?", "<b>3</b> | x\ny", "null", 1.0]]


@pytest.mark.parametrize("name", log_module.TRACKERS)
def test_one_that_is_not_installed_is_told_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(log_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{name} is not installed; `pip install {name}`, or leav"):
        Trackers([name], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "variables, mode",
    [
        ({}, "offline"),
        ({"WANDB_MODE": "online"}, None),
        ({"WANDB_MODE": "disabled"}, None),
        ({"WANDB_API_KEY": "x" * 40}, None),
        ({"NETRC": "netrc"}, None),
    ],
    ids=str,
)
def test_wandb_is_offline_unless_the_user_said_otherwise(tmp_path, monkeypatch, variables, mode):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netrc").touch()
    if "NETRC" in variables:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "x" * 40)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    opened = []

    class Fake:
        def __init__(self, *given, **options):
            opened.append((given, options))

        def start(self):
            pass

        def store_init_configuration(self, values):
            pass

    monkeypatch.setattr(log_module, "_accelerate", lambda name: Fake)
    Trackers(["wandb"], tmp_path / "runs" / "a" / "b")
    ((given, options),) = opened
    assert (given, options["name"]) == (("reasoning-toolkit",), "a-b")
    assert options.get("mode") == mode
    assert options["dir"] == str(tmp_path / "runs" / "a" / "b")


GUARD = """
import os, socket
plain = socket.socket.connect
def connect(self, address):
    network = self.family in (socket.AF_INET, socket.AF_INET6)
    local = not network or address[0] in ("127.0.0.1", "::1")
    with open(os.environ["GUARD"], "a") as file:
        file.write("" if local else f"{address}\\n")
    return plain(self, address)
socket.socket.connect = connect
"""


class Proxy(threading.Thread):
    """Takes connections that a program would send to the network, and counts them."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.asked = []
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.asked.append(client.recv(100))
            client.close()


@pytest.mark.slow
def test_the_stages_of_a_run_are_tracked_as_in_log_csv_and_nothing_leaves_the_machine(tmp_path):
    for name in log_module.TRACKERS:
        pytest.importorskip(name)
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    proxy, place = Proxy(), tmp_path / "place"
    place.mkdir()
    quiet = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy.url)
    quiet |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    quiet |= {"PYTHONPATH": str(tmp_path / "guard"), "GUARD": str(tmp_path / "asked")}
    small = "--num-samples 16 --max-tokens 32 --sft-max-steps 2 --grpo-max-steps 2"
    small += " --grpo-group-size 2"
    words = [*small.split(), "--output-dir", "out", "--model", ROOT / "weights" / "tiny_base"]
    named = ["--tracker", "wandb,tensorboard", "--tracker", "trackio", "--wandb-project", "mine"]
    quiet |= {"EVAL_SAMPLES": "2"}
    done = succeed("train.py", *words, *named, "--quiet", cwd=place, forked=False, **quiet)
    proxy.socket.close()
    assert proxy.asked == [] and (tmp_path / "asked").read_text() == ""
    assert done.stderr == "" and done.stdout.lstrip().startswith("Question:"), "--quiet"

    for stage in ("sft", "grpo"):
        run = place / "runs" / "train" / stage
        log = files.log_figures(run)
        wanted = {"validation_accuracy", "validation_format_rate", "learning_rate"}
        assert {name for name, _ in log} >= wanted
        settings = json.loads((run / "settings.json").read_text())
        found = files.wandb_figures(run)
        assert {key: found[key] for key in log} == log
        assert files.trackio_figures(run) == log
        assert files.tensorboard_figures(run) == pytest.approx(log, rel=1e-6)
        assert files.wandb_settings(run).items() >= settings.items()
        assert files.trackio_settings(run).items() >= settings.items()
        tables = ["prompt", "reasoning", "answer", "gold", "verdict", "reason", "last_number"]
        assert tables in [table["columns"] for table in files.wandb_tables(run)]
    assert {p.name for p in place.iterdir()} == {"out", "runs"}, "nothing lies about"
    assert not list((tmp_path / "home").rglob("*wandb*")), "not at home either"
    page = (place / "runs" / "train" / "report.html").read_text(encoding="utf-8")
    assert page.index("Training: sft") < page.index("Training: grpo")
    rewards = {name for name, _ in log if name.startswith("reward_")}
    assert rewards == {"reward_mean", "reward_spread", "reward_correctness"}


@pytest.mark.slow
@pytest.mark.ci
def test_a_missing_tracker_ends_a_script_before_training(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'trackio' else find(name, *more)\n"
    )
    done = start("train_grpo.py", "--tracker", "trackio", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "runs").exists()
    assert done.stderr == (
        "error: --tracker trackio: trackio is not installed; `pip install trackio`, or leave it "
        "out\n"
    )
