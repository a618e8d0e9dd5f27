"""The documents tell the truth about the repository: links, paths, commands, flags, lengths."""

import ast
import hashlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import config
from rlm.cli.config_file import read_file
from rlm.cli.flags import make_parser, read_flags
from rlm.cli.layers import build
from rlm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, ROOT / "examples/README.md"]
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
BY_NAME = {"ids": lambda path: str(path.relative_to(ROOT))}

# Script -> section of its settings; the other scripts and modules read their flags by argparse.
SCRIPTS = {
    "train_sft.py": "sft", "train_grpo.py": "grpo", "train.py": "train",
    "evaluate.py": "evaluate", "inference.py": "inference", "serve.py": "serve",
}  # fmt: skip
# Where the columns of log.csv are made.
ROOMS = (
    "training", "rlm/answers", "rlm/evaluation", "rlm/learner", "rlm/rollouts", "rlm/run",
    "rlm/tools",
)  # fmt: skip
# Flags in running text that are other programs' own.
FOREIGN = {
    "--", "--enable-lora", "--max-num-seqs", "--hypothesis-profile", "--index-url",
    "--build-arg",
}  # fmt: skip
PROGRAMS = ("python", "python3", "uv", "make", "pip", "torchrun", "accelerate", "vllm", "curl")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"[\w/.-]+\.py\b|python3? -m |\bmake |configs/")
# A file of the repository, named in a text; what runs and trainings write is not there.
PATH = re.compile(
    r"(?<![\w./$<-])(?:rlm|settings|training|tests|configs|benchmarks|docs|examples|\.ci)/[\w./*-]*\w"
)


def blocks(text: str) -> list[str]:
    """Return the code blocks of a document."""
    return [body for _, body in FENCE.findall(text)]


def spans(text: str) -> list[str]:
    """Return the code that stands in running text."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(text: str) -> list[str]:
    """Return the command lines of a document that name something of ours, a line each."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    lines += [span for span in spans(text) if span.split()[0] in PROGRAMS]
    return [line.strip() for line in lines if OURS.search(line)]


def slugs(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    found: set[str] = set()
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        same = [slug, *(f"{slug}-{i}" for i in range(1, len(titles)))]
        found.add(next(name for name in same if name not in found))
    return found


def links(text: str) -> list[str]:
    """Return the targets of a document's links and images."""
    plain = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", plain)


def broken(path: Path, text: str) -> list[str]:
    """Return the links of a document, by its place, that lead nowhere in the repository."""
    found = []
    for link in links(text):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (path.parent / place).resolve() if place else path
        wrong = not target.is_relative_to(ROOT) or not target.exists()
        if wrong or (anchor and anchor not in slugs(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, **BY_NAME)
def test_links_lead_somewhere(path):
    assert broken(path, TEXTS[path]) == []


def test_a_broken_link_is_found():
    readme = ROOT / "README.md"
    text = "[a](docs/none.md) ![b](none.png) [c](docs/scale.md#none) [d](#none) [e](../x)"
    assert broken(readme, text) == re.findall(r"\((.*?)\)", text)
    assert broken(readme, "[a](docs/scale.md#what-is-counted) [b](https://example.org)") == []
    assert slugs("# log.csv\n## A's b\n## A's b\n```\n# no\n```\n") == {"logcsv", "as-b", "as-b-1"}


def test_every_file_of_docs_is_linked():
    linked = {
        (path.parent / link.partition("#")[0]).resolve()
        for path, text in TEXTS.items()
        for link in links(text)
        if "://" not in link and not link.startswith("#")
    }
    assert {path for path in (ROOT / "docs").iterdir() if path.is_file()} - linked == set()


def test_the_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 200


def begins_with_code(text: str) -> bool:
    """Return whether a page has, after its title and at most a sentence, a command or Python."""
    begin = r"# [^\n]+\n\n(?:([^\n`#|-][^#|]*?)\n\n)?```(\w*)\n(.*?)\n```"
    found = re.match(begin, text, re.DOTALL)
    if not found:
        return False
    sentence, language, body = found.groups()
    words = [word for word in body.split() if "=" not in word]
    one = len(re.findall(r"[.!?](?=\s|$)", sentence or "")) <= 1
    known = words[0].rpartition("/")[2] in PROGRAMS
    return one and "```" not in (sentence or "") and (known or language == "python")


@pytest.mark.parametrize("path", PAGES, **BY_NAME)
def test_a_page_begins_with_a_command(path):
    assert begins_with_code(TEXTS[path])


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("# A\n\n```\npython train.py\n```\n", True),
        ("# A\n\nDo this:\n\n```\nKEY=... python train.py\n```\n", True),
        ("# A\n\n```python\nimport rlm\n```\n", True),
        ("# A\n\nSome words. More words.\n\n```\npython train.py\n```\n", False),
        ("# A\n\n## B\n\n```\npython train.py\n```\n", False),
        ("# A\n\n```\n{}\n```\n", False),
        ("# A\n\nNo code.\n", False),
    ],
)
def test_what_a_beginning_is(text, does):
    assert begins_with_code(text) is does


# --- commands --------------------------------------------------------------------------------


@cache
def flags_of(files: tuple[Path, ...]) -> set[str]:
    """Return the flags that stand in source files; of a recipe of weights, its settings too."""
    found = set()
    for file in files:
        source = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and re.fullmatch(r"--[a-z][a-z-]*", str(node.value)):
                found.add(str(node.value))
            if isinstance(node, ast.AnnAssign) and "recipe_parser" in source:
                found.add("--" + ast.unparse(node.target).replace("_", "-"))
    return found


def files_of(module: str) -> list[Path]:
    """Return the source files of a module that `python -m` can run, none if there is no such."""
    place = ROOT / module.replace(".", "/")
    if (place / "__main__.py").is_file():
        return sorted(place.glob("*.py"))
    return [file for file in (place.with_suffix(".py"),) if file.is_file()]


def wrong_settings(script: str, words: list[str]) -> list[str]:
    """Return what one of our scripts would say to its flags, the file of --config included."""
    cls = config.SECTIONS[SCRIPTS[script]]
    try:
        values, origins = read_flags(cls, words, script)
        path = values.get("config", "...")
        if path.endswith(".yaml"):  # not a placeholder
            below, below_origins, names = read_file(str(ROOT / path), config.SECTIONS, cls.script)
            values = below | values | {"named_models": names, "config": path}
            origins = below_origins | origins
        if "..." not in words:
            build(cls, values, origins)
    except InputError as error:
        return [f"{script}: {error}"]
    return []


def wrong_call(program: str, words: list[str], files: list[Path]) -> list[str]:
    """Return what is wrong with the flags of a script or module that argparse reads."""
    if not files:
        return [f"{program}: there is no such script or module"]
    known = flags_of(tuple(files)) | {"--help"}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"{program}: no flag {flag}" for flag in given if flag not in known]


def wrong(line: str) -> list[str]:
    """Return what is wrong with a command line: scripts, modules, flags, targets, paths."""
    found = [f"no {path}" for path in PATH.findall(line) if not list(ROOT.glob(path))]
    words = shlex.split(line, comments=True)
    if words and words[0] == "make":
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        found += [f"make: no {t}" for t in targets if not re.search(rf"^{t}:", rules, re.MULTILINE)]
    for i, word in enumerate(words):
        after = words[i + 1 :]
        ends = [j for j, each in enumerate(after) if each in ("|", "&&", ";", "&", ">")]
        after = after[: ends[0]] if ends else after
        if " " in word and OURS.search(word):  # a command in quotes: bash -c '...'
            found += wrong(word)
        elif word == "-m" and words[i - 1].startswith(("python", ".venv")) and "rlm" in after[0]:
            found += wrong_call(after[0], after[1:], files_of(after[0]))
        elif word in SCRIPTS:
            found += wrong_settings(word, after)
        elif words[i - 1] in ("--reward-file", "--tool-file"):
            continue  # a file of the user's, which is no script
        elif word.endswith(".py") and not word.startswith("tests/"):
            found += wrong_call(word, after, [p for p in (ROOT / word,) if p.is_file()])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, **BY_NAME)
def test_commands_use_what_is_there(path):
    found = {line: wrong(line) for line in commands(TEXTS[path])}
    assert {line: what for line, what in found.items() if what} == {}


def test_the_commands_are_found():
    lines = [line for text in TEXTS.values() for line in commands(text)]
    for script in SCRIPTS:
        assert sum(script in line for line in lines) >= 3, script
    assert sum("python -m rlm." in line for line in lines) >= 4
    assert any(line.startswith("srun") and "train_grpo.py --config" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("python train_grpo.py --groupsize 4", "--groupsize: unknown flag"),
        ("uv run python train_grpo.py --group-size 1", "use 2 or more"),
        ("python train.py --config configs/none.yaml", "no configs/none.yaml"),
        ("torchrun --nproc_per_node 2 -- train_sft.py --packin", "--packin: unknown flag"),
        ("bash -c 'torchrun -- train_sft.py --packin'", "--packin: unknown flag"),
        ("python evaluate.py --compare a b | tee x && python serve.py --prot 1", "--prot"),
        ("python train_rl.py", "train_rl.py: there is no such script"),
        ("python benchmarks/none.py", "no benchmarks/none.py"),
        ("python benchmarks/scaling.py --drew", "benchmarks/scaling.py: no flag --drew"),
        ("python -m rlm.nothing", "rlm.nothing: there is no such"),
        ("python -m rlm.tiny.agents --stepz 3", "rlm.tiny.agents: no flag --stepz"),
        ("python -m pytest tests/none", "no tests/none"),
        ("make nothing", "make: no nothing"),
    ],
)
def test_a_wrong_command_is_found(line, what):
    assert OURS.search(line) or "bash" in line
    assert what in "\n".join(wrong(line))


def test_a_right_command_passes():
    assert wrong("python train_grpo.py --group-size 4 --config configs/tiny_demo.yaml  # so") == []
    assert wrong("python -m rlm.tiny.agents --steps 3 --output runs/x") == []
    assert wrong("python benchmarks/scaling.py --draw") == []


@pytest.mark.parametrize("path", DOCUMENTS, **BY_NAME)
def test_flags_and_paths_in_the_text_are_there(path):
    known = set(FOREIGN)
    for cls in config.SECTIONS.values():
        known.update(*(a.option_strings for a in make_parser(cls, "x")._actions))
    known |= flags_of(tuple((ROOT / "rlm/export").glob("*.py")))
    known |= flags_of(tuple((ROOT / "rlm/report").glob("*.py")))
    code = spans(TEXTS[path])
    given = {re.split(r"[ =]", span)[0] for span in code if span.startswith("--")}
    assert given - known == set()
    assert [p for span in code for p in PATH.findall(span) if not list(ROOT.glob(p))] == []


def test_the_columns_are_those_of_the_log():
    """Each has its name, or the stem that a share is named by, in the source of a run's figures."""
    table = TEXTS[ROOT / "docs/numbers.md"].partition("## The report")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = re.findall(r"`([\w<>]+)`", "".join(cells))
    files = [ROOT / "train_grpo.py", *(p for room in ROOMS for p in (ROOT / room).glob("*.py"))]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert len(names) > 30
    for name in names:
        stem = name.partition("<")[0].removeprefix("validation_").removesuffix("_fraction")
        assert re.search(rf'"{stem}|\b{stem}(_fraction)?=', source), name


# --- licence and citation --------------------------------------------------------------------


def test_the_licence_is_the_whole_text():
    """The checksum is that of LICENSE-2.0.txt as the Apache Software Foundation gives it out."""
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0" and cited["license"] == "Apache-2.0"
    assert cited["version"] == project["version"]
    assert cited["title"].lower().replace(" ", "-") == project["name"]
    assert cited["authors"] and cited["message"]
