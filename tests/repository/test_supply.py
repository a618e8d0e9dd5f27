"""Nothing that is loaded can run code: safetensors only, no pickle, no code of the hub's."""

import ast

import pytest

from tests.repository.test_tree import FILES, TREES, imported
from tests.support.running import ROOT, start

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Calls by the last two words of their name; torch's and numpy's own files are pickles.
CALLS = {
    ("torch", "load"), ("torch", "save"), ("jit", "load"), ("hub", "load"), ("torch", "package"),
    ("numpy", "load"), ("np", "load"), ("pandas", "read_pickle"), ("pd", "read_pickle"),
    ("yaml", "unsafe_load"), ("yaml", "full_load"), ("yaml", "load_all"),
}  # fmt: skip
# What a keyword may be where it is given: trust_remote_code=False is fine, True is not.
KEYWORDS = {
    "trust_remote_code": False,
    "use_safetensors": True,
    "safe_serialization": True,
    "weights_only": True,
    "allow_pickle": False,
}


def unsafe(tree: ast.AST) -> list[str]:
    """Return what in the source could make a loaded file run code, in words."""
    found = [f"imports {name}" for name in sorted(imported(tree) & PICKLES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
            found.append(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            found += [f"{owner}.{node.attr}"] if (owner, node.attr) in CALLS else []
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            given = node.value.value if isinstance(node.value, ast.Constant) else "?"
            found += [f"{node.arg}={given}"] if given is not KEYWORDS[node.arg] else []
        # Options that travel in a dictionary: {"trust_remote_code": True}
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                name = key.value if isinstance(key, ast.Constant) else None
                if name in KEYWORDS and isinstance(value, ast.Constant):
                    found += [f"{name}={value.value}"] if value.value is not KEYWORDS[name] else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += _loads(node, node.func)
    return found


def _loads(call: ast.Call, func: ast.Attribute) -> list[str]:
    """A model's from_pretrained that could fall back on a .bin; a yaml.load of any class."""
    owner = func.value.id if isinstance(func.value, ast.Name) else ""
    names = {keyword.arg for keyword in call.keywords}
    if func.attr == "from_pretrained" and "Model" in owner and owner != "PeftModel":
        # A GGUF file holds numbers and texts, and nothing that runs.
        return [] if names & {"use_safetensors", "gguf_file"} else [f"{owner}.from_pretrained"]
    if (owner, func.attr) == ("yaml", "load"):
        loader = [k.value for k in call.keywords if k.arg == "Loader"]
        ours = loader and isinstance(loader[0], ast.Name) and "Loader" in loader[0].id
        return [] if ours else ["yaml.load"]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_run_what_it_loads(path):
    found = unsafe(TREES[path])
    if path.is_relative_to(ROOT / "tests"):  # they load what they saved
        found = [what for what in found if what != "exec" and "from_pretrained" not in what]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "imports pickle"),
        ("def f():\n    from joblib import load", "imports joblib"),
        ("torch.load('x')", "torch.load"),
        ("import torch\nsave = torch.save", "torch.save"),
        ("torch.hub.load('a', 'b')", "hub.load"),
        ("np.load('x')", "np.load"),
        ("f(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("f(x, trust_remote_code=flag)", "trust_remote_code=?"),
        ("options = {'trust_remote_code': True}", "trust_remote_code=True"),
        ("m.save_pretrained(x, safe_serialization=False)", "safe_serialization=False"),
        ("AutoModelForCausalLM.from_pretrained(x)", "AutoModelForCausalLM.from_pretrained"),
        ("yaml.load(x)", "yaml.load"),
        ("yaml.load(x, Loader=yaml.Loader)", "yaml.load"),
        ("eval(x)", "eval"),
    ],
)
def test_what_could_run_code_is_seen(source, found):
    assert unsafe(ast.parse(source)) == [found]


def test_peft_loads_only_behind_the_check_of_its_folder():
    """PeftModel falls back on a .bin by itself: models/adapters.py looks for safetensors before."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "PeftModel.from_pretrained"
    ]
    assert [user for user in users if not user.startswith("tests/")] == ["rlm/models/adapters.py"]


# A pickle that makes a file where it is read.
TRAP = b"cos\nsystem\n(S'touch trap-has-run'\ntR."


@pytest.fixture
def pickled(tmp_path):
    """A model's folder and an adapter's, each with nothing but a pickle for weights."""
    for name, files in {
        "base": {"config.json": '{"model_type": "qwen2"}', "pytorch_model.bin": TRAP},
        "lora": {
            "adapter_config.json": '{"base_model_name_or_path": "weights/tiny_base"}',
            "adapter_model.bin": TRAP,
        },
    }.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name / file).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("inference.py", ["Calculate 1 + 2 + 3"]),
        ("evaluate.py", []),
        ("train_sft.py", []),
        ("train_grpo.py", []),
        ("train.py", []),
        ("serve.py", ["--port", "0"]),
    ],
)
def test_a_pickled_base_is_refused_in_one_line(pickled, script, words):
    done = start(script, *words, "--model", "base", cwd=pickled)
    assert done.returncode == 2 and done.stderr == (
        "error: --model base: the folder has no weights (*.safetensors; its .bin is a pickle and "
        "is not read); save or download them there\n"
    )
    assert not (pickled / "trap-has-run").exists()


@pytest.mark.parametrize(
    ("script", "flag"),
    [("inference.py", "--adapter"), ("train_grpo.py", "--adapter"), ("evaluate.py", "--models"),
     ("train_sft.py", "--base-adapter"), ("serve.py", "--adapter"), ("inference.py", "--model")],
)  # fmt: skip
def test_a_pickled_adapter_is_refused_in_one_line(pickled, script, flag):
    done = start(script, flag, "lora", cwd=pickled)
    assert done.returncode == 2, done.stderr
    assert "lora: the folder has no adapter_model.safetensors" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (pickled / "trap-has-run").exists()
