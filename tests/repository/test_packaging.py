"""What is installed: pins that are exact and all there, files made from them, the wheel, uv."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.repository.test_tree import FILES, TREES, imported
from tests.support.running import ROOT

SPEC = importlib.util.spec_from_file_location("requirements", ROOT / ".ci" / "requirements.py")
requirements = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(requirements)

TOML = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [pin for extra in ("", *EXTRAS) for pin in requirements.pins(PROJECT, extra)]


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_requirements_are_as_pyproject_has_them(capsys):
    assert requirements.main(["--check"]) == 0, capsys.readouterr().out


def test_a_pin_that_moves_is_seen_and_written(tmp_path, capsys):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace("torch==2.13.0", "torch==2.99.0"))
    for name in requirements.FILES:
        shutil.copy(ROOT / name, tmp_path)
    assert requirements.main(["--check"], tmp_path) == 1
    said = capsys.readouterr().out
    # The comment that opens vLLM's file names torch too.
    assert "requirements.txt is not as" in said and "requirements-vllm.txt is not as" in said
    assert "requirements-dev.txt" not in said
    assert requirements.main([], tmp_path) == 0
    assert "\ntorch==2.99.0\n" in (tmp_path / "requirements.txt").read_text()
    assert requirements.main(["--check"], tmp_path) == 0


def test_extras_are_unfolded():
    assert EXTRAS.keys() >= {"dev", "vllm", "trackers", "plots", "quantize"}
    dev = requirements.pins(PROJECT, "dev")
    assert set(requirements.pins(PROJECT, "trackers")) < set(dev)
    assert set(requirements.pins(PROJECT, "plots")) < set(dev)
    # uv installs the group, pip the extra: one list.
    assert TOML["dependency-groups"] == {"dev": [f"{PROJECT['name']}[dev]"]}


def test_pins_are_exact_and_none_stands_twice():
    loose = [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.]+(; .+)?", pin)]
    assert not loose
    versions = {}
    for pin in PINS:
        name, _, version = pin.partition("==")
        assert versions.setdefault(plain(name), version) == version


def test_what_is_imported_is_pinned():
    """A package that only comes with another moves, or goes, with that one.

    What runs in the clients' own environment (tests/server/test_real_clients.py) is left out.
    """
    clients = ROOT / "tests/support/clients"
    trees = [tree for path, tree in TREES.items() if not path.is_relative_to(clients)]
    pinned = {plain(pin.partition("==")[0]) for pin in PINS}
    ours = {name for path in FILES for name in (path.stem, *path.relative_to(ROOT).parts)}
    names = set().union(*map(imported, trees)) - ours - set(sys.stdlib_module_names)
    installed = packages_distributions()
    # An extra that is not installed here is known by its own name.
    packages = {name: installed.get(name, [name]) for name in names}
    assert not {n: found for n, found in packages.items() if not set(map(plain, found)) & pinned}


def test_the_wheel_holds_the_library_and_its_files(tmp_path):
    listed = subprocess.run(
        ["git", "ls-files", "rlm"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("the files of the library are known by git, and this is no checkout")
    for name in ("pyproject.toml", "rlm"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    here = {name for name in listed if (ROOT / name).exists()}
    assert names == here and "rlm/server/page.html" in names


def wheel(folder: Path, name: str, version: str, tag: str):
    """Write a wheel that holds nothing but its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.skipif(
    sys.version_info >= (3, 14) or sys.platform != "linux" or os.uname().machine != "x86_64",
    reason="not on this Python, says pyproject.toml; the wheels of this test are for Linux",
)
def test_uv_takes_a_torch_wheel_at_hand(tmp_path):
    """As pip does; offline, in a project that has our [tool.uv] and some made-up wheels."""
    here = f"cp3{sys.version_info[1]}"
    wheel(tmp_path / "wheels", "torch", "2.13.0+cpu", f"{here}-{here}-manylinux_2_28_x86_64")
    index = tmp_path / "index"
    for python in ("cp311", "cp312", "cp313", "cp314"):
        for platform in ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "macosx_14_0_arm64"):
            wheel(index / "torch", "torch", "2.13.0", f"{python}-{python}-{platform}")
    for version in ("1.0", "2.0"):
        wheel(index / "numpy", "numpy", version, "py3-none-any")
    for folder in index.iterdir():
        links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in folder.iterdir())
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = re.search(r"^\[tool\.uv\]\n.*?\n\n", text, re.DOTALL | re.MULTILINE)[0]

    # uv resolves twice for such needs, which pandas has too, and prefers the second time what it
    # took the first.
    needs = ["torch==2.13.0", "numpy<2; python_version<'3.14'", "numpy>=2; python_version>='3.14'"]

    def taken(settings: str) -> str:
        (tmp_path / "pyproject.toml").write_text(
            f'[project]\nname = "x"\nversion = "1"\ndependencies = {needs}\n'
            f'requires-python = "{PROJECT["requires-python"]}"\n{settings}'
        )
        (tmp_path / "uv.lock").unlink(missing_ok=True)
        variables = {k: v for k, v in os.environ.items() if not k.startswith("UV_")}
        done = subprocess.run(
            [sys.executable, "-m", "uv", "sync", "--dry-run", "--offline",
             "--python", sys.executable], cwd=tmp_path, text=True, capture_output=True, check=False,
            env=variables | {"UV_FIND_LINKS": str(tmp_path / "wheels"),
                             "UV_DEFAULT_INDEX": index.as_uri()},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return re.search(r"\+ torch==(\S+)", done.stderr)[1]

    assert taken(settings) == "2.13.0+cpu"
    # What the settings are for: without them uv takes the other. Where it does not any more, they
    # can go.
    assert taken("") == "2.13.0"
