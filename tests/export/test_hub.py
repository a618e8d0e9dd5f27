"""An export on the hub: a stand-in of its HTTP interface gets what was shown, and nothing else."""

import pytest
import yaml

from rlm.errors import InputError, RunError
from rlm.export import export, hub, model_card
from tests.support.hub_stub import TOKEN, Hub

PLAIN = {"format": "think", "base": "me/base", "export": {"kind": "adapter", "lora": {"r": 4}}}
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture
def stub(monkeypatch):
    """A hub that all of the hub's client asks, on a machine where somebody logged in earlier."""
    from huggingface_hub import constants

    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it would ask another server
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: "hf_login")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def export_adapter(output, *more) -> int:
    return export.main(["adapter", "--output", str(output), *map(str, more)])


def test_a_push_uploads_what_it_shows_and_is_private(stub, tmp_path, capsys):
    assert export_adapter(tmp_path / "mine", "--push-to-hub", "mine") == 0
    ((name, found),) = stub.repositories.items()
    assert name == "me/mine" and found["private"]
    here = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert found["files"] == here and stub.large, "the weights as a large file"
    said = capsys.readouterr()
    shown = said.out.partition("uploads 4 files")[2].partition("pushed:")[0].splitlines()[1:]
    assert [line.split()[1] for line in shown] == sorted(here)
    assert said.out.rstrip().endswith(f"pushed: {stub.url}/me/mine")
    assert stub.tokens - {""} == {TOKEN}, "the one of the environment alone"
    assert TOKEN not in said.out + said.err
    card = here["README.md"].decode()
    assert "python -m rlm.export adapter --adapter weights/final_rlm_lora --output mine" in card
    # Again, into what is there by now; and public where that is asked for.
    assert export_adapter(tmp_path / "mine", "--push-to-hub", "me/mine", "--overwrite") == 0
    assert export_adapter(tmp_path / "open", "--push-to-hub", "me/open", "--public") == 0
    assert {k: v["private"] for k, v in stub.repositories.items()} == {
        "me/mine": True, "me/open": False}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "token", "told"),
    [
        (["--push-to-hub", "me/mine"], None, "no token; put one that may write into HF_TOKEN"),
        (["--push-to-hub", "me/mine"], " ", "no token; put one"),
        (["--push-to-hub", "a/b/c"], TOKEN, "no name of the hub; give NAME or OWNER/NAME"),
        (["--push-to-hub", "me/open"], TOKEN, "is there and public; use --public, or give another"),
        (["--push-to-hub", "mine"], "hf_wrong", "the hub refused"),
        (["--public"], TOKEN, "use it with --push-to-hub NAME"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_any_work(
    stub, tmp_path, monkeypatch, arguments, token, told
):
    stub.repositories["me/open"] = {"private": False, "files": {}}
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises((InputError, RunError), match=told) as caught:
        export_adapter(tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not any(found["files"] for found in stub.repositories.values())


def test_a_hub_that_does_not_answer_and_a_forbidden_network_are_told(stub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids the network"):
        hub.check("me/mine", public=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"the hub at http://127.0.0.1:9 does not answer"):
        hub.check("me/mine", public=False)


def test_the_hub_is_asked_for_the_licence_of_a_base(stub):
    stub.repositories["you/base"] = {"private": False, "files": {}, "license": "mit"}
    assert export.licence_of("you/base", ask=True) == "mit"
    assert export.licence_of("you/none", ask=True) is None
    assert export.licence_of("you/base", ask=False) is None


def test_neither_hidden_files_nor_links_are_uploaded(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt", ".env", "in/c.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    assert [p.as_posix() for p in hub.files_of(tmp_path)] == ["a.txt", "b.txt", "in/c.txt"]


def front(manifest: dict, **more) -> dict:
    return yaml.safe_load(model_card.write(manifest, "mine", local=False, **more).split("---")[1])


def test_the_front_matter_has_base_licence_data_and_results():
    scores = {"questions": 50, "accuracy": 0.5, "format_rate": 1.0}
    manifest = PLAIN | {"task": "jsonl", "data": "me/sums", "scores": {"validation": scores}}
    head = front(manifest, licence="mit")
    assert head["base_model"] == "me/base" and head["license"] == "mit"
    assert head["datasets"] == ["me/sums"]
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert model["name"] == "mine" and result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"type": "me/sums", "name": "jsonl", "split": "validation"}
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        ("accuracy", 0.5), ("format_rate", 1.0)]  # fmt: skip
    for data in ("/home/me/sums.jsonl", "tests/fixtures", None):
        assert "datasets" not in front(manifest | {"data": data}), "no place of this machine"
    assert not {"license", "model-index"} & front(PLAIN).keys()


def test_the_licence_is_the_one_that_the_base_names(tmp_path):
    assert export.licence_of(str(tmp_path), ask=False) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model")
    assert export.licence_of(str(tmp_path), ask=False) == "apache-2.0"
