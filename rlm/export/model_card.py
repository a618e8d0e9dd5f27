"""The model card of an exported model: what it is, how to load and serve it, where it ends.

Everything in it comes from the manifest; what the manifest does not know is not written.
"""

from pathlib import Path

import yaml

from rlm.answers.formats import FORMATS, get_format
from rlm.models.lookup import local_place, shots_of
from rlm.models.prompts import worked_turns
from rlm.models.templates import placed

QUESTION = "Calculate 23 + 15 + 8"
LIBRARIES = {"adapter": "peft", "gguf": "gguf", "lora-gguf": "gguf"}  # of the others: transformers
SCORES = {
    "questions": "held-out questions",
    "accuracy": "right answers, of all questions",
    "accuracy_lenient": "right by the last number, whatever the format, of all questions",
    "format_rate": "answers in exactly the format, of all",
    "cut_off": "answers cut off at the maximum of tokens, of all",
    "mean_tokens": "tokens of an answer, mean",
}


def write(
    manifest: dict, name: str, *, local: bool, licence: str | None = None, command: str = ""
) -> str:
    """Return the README.md of a folder called `name`, with its front matter.

    local: the base is a folder, not a model on the hub; it is named without the way to it.
    licence: of the base, where it is known. command: what wrote the folder.
    """
    export, base = manifest["export"], manifest["base"]
    merged = export["kind"] != "adapter"  # a model that stands for itself
    head = {
        "library_name": LIBRARIES.get(export["kind"], "transformers"),
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "grpo" if "step" in manifest else "sft"]
        + ([] if export["kind"] == "full" else ["lora"]),
    } | ({} if local else {"base_model": base})
    head |= {"license": licence} if licence else {}
    head |= _results(manifest, name)
    base = Path(base).name if local else base
    form = FORMATS.get(str(manifest.get("format"))) or get_format("think")
    worked = worked_turns(shots_of(manifest), form.name)
    role = str(manifest.get("instruction_role") or "system")
    chat = placed(form.instruction, [*worked, {"role": "user", "content": QUESTION}], role)
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---",
        f"# {name}",
        _what(export, base, merged),
        _form(form, role, "format" in manifest, worked),
        *(
            [_here(name, manifest["base_file"])]
            if "base_file" in manifest and not merged
            else [_run_gguf(name, export)]
            if export["kind"].endswith("gguf")
            else [
                "## Load it\n\n```python\n" + _code(name, base, chat, merged) + "\n```",
                "## Serve it\n\n```\n" + _serve(name, base, export, merged) + "\n```",
            ]
        ),
        _scores(manifest.get("scores", {}).get("validation", {})),
        _settings(manifest),
        f"## Made by\n\n```\n{command}\n```" if command else "",
        _limits(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(manifest: dict, name: str) -> dict:
    """Return datasets and model-index for the front matter: what the manifest knows of them."""
    data, task = manifest.get("data"), manifest.get("task")
    known = isinstance(data, str) and data.count("/") == 1 and not data.startswith((".", "/", "~"))
    found: dict = {"datasets": [data]} if known and local_place(str(data)) is None else {}
    scores = manifest.get("scores", {}).get("validation", {})
    metrics = [
        {"type": key, "name": text, "value": scores[key]}
        for key, text in SCORES.items()
        if key in scores and key != "questions"
    ]
    if not (task and metrics):
        return found
    questions = {"type": str(data) if "datasets" in found else str(task), "name": str(task),
                 "split": "validation"}  # fmt: skip
    result = {"task": {"type": "text-generation"}, "dataset": questions, "metrics": metrics}
    return found | {"model-index": [{"name": name, "results": [result]}]}


def summary(manifest: dict) -> str:
    """Return what the export says of itself at the end of its one line."""
    from rlm.export.proof import told

    export = manifest["export"]
    proof = export.get("proof", {})
    parts = [f"({export['dtype']})"] if "dtype" in export else []
    parts += [told(proof)] if "logit_difference" in proof else []
    parts += [in_llama_cpp(proof["llama_cpp"])] if "llama_cpp" in proof else []
    return " " + ", ".join(parts) if parts else ""


def _what(export: dict, base: str, merged: bool) -> str:
    if not merged:
        return f"A LoRA adapter of `{base}` that writes its reasoning before its answer."
    from rlm.export.proof import told

    if export["kind"] == "full":
        proof = export["proof"]
        proved = (
            f" Loaded afresh from this folder, it was compared with the model that was "
            f"trained: {told(proof)}."
            if "prompts" in proof
            else ""
        )
        return (
            f"`{base}`, all of whose weights were trained further, in {export['dtype']}; it writes "
            f"its reasoning before its answer.{proved}"
        )
    if export["kind"] == "gguf":
        return _what_gguf(export, base)
    if export["kind"] == "lora-gguf":
        asked = export["proof"].get("llama_cpp")
        return (
            f"A LoRA of `{base}` as the GGUF file `{export['file']}`, to be put on the base in a "
            f"GGUF file. It writes its reasoning before its answer."
            + (f" With both, {in_llama_cpp(asked)}." if asked else "")
        )
    kind = {"bfloat16": "rounded to bfloat16", "float32": "in float32"}[export["dtype"]]
    return (
        f"`{base}` with a LoRA merged into its weights, {kind}; it writes its reasoning before "
        f"its answer.\n\nLoaded afresh from this folder and computed in float32, it was compared "
        f"with the base and its adapter: {told(export['proof'])}."
    )


def _what_gguf(export: dict, base: str) -> str:
    from rlm.export.proof import told

    proof = export["proof"]
    text = (
        f"`{base}`, trained further, as the GGUF file `{export['file']}` in {export['dtype']}; it "
        f"writes its reasoning before its answer.\n\nComputed by torch in float32 with weights "
        f"rounded as in the file, it was compared with the model that was trained: {told(proof)}. "
        "Read back by transformers the file is that rounded model."
    )
    if found := proof.get("llama_cpp"):
        text += f" {in_llama_cpp(found)}."
    return text


def in_llama_cpp(found: dict) -> str:
    """Return the metrics of rlm.export.gguf_proof in words."""
    equal = f"{found['equal_answers_fraction']:.3g} of its greedy answers are those of torch"
    if found.get("largest_gap"):
        equal += f" (where one parts, torch's choice was better by {found['largest_gap']:.2g} nats)"
    texts = (
        f"renders {found['equal_prompts']} prompts and reads their tokens as the tokenizer does, "
        if "equal_prompts" in found
        else ""
    )
    return (
        f"llama.cpp ({found['runtime']}) {texts}stops at each end token; {equal}, and "
        f"log-probabilities behind the prompts differ by {found['logprob_difference']:.2g} nats at "
        "most"
    )


def _form(form, role: str, known: bool, worked: list[dict]) -> str:
    if not known:
        return ""
    where = {"system": "system message", "user": "text behind each question",
             "both": "system message, which also stands behind each question"}[role]  # fmt: skip
    told = f"## Format\n\nIt was trained with this {where}:\n\n```\n{form.instruction}\n```"
    if worked:
        turns = "\n\n".join(f"{turn['role']}:\n{turn['content']}" for turn in worked)
        told += f"\n\nand these worked examples as turns before the question:\n\n```\n{turns}\n```"
    return told


def _code(name: str, base: str, chat: list[dict], merged: bool) -> str:
    first = name if merged else base
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({first!r})",
        f'model = AutoModelForCausalLM.from_pretrained({first!r}, dtype="auto")',
    ]
    if not merged:
        lines.insert(0, "from peft import PeftModel")
        lines.append(f"model = PeftModel.from_pretrained(model, {name!r})")
    return "\n".join([
        *lines,
        f"chat = {chat!r}",
        "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, "
        'return_dict=True, return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=256, do_sample=False)[0]))",
    ])  # fmt: skip


def _here(name: str, file: dict) -> str:
    """Return how an adapter of a GGUF file is used: by what dequantises its base as here."""
    asked = f"--model {file['name']} --adapter {name}"
    return (
        f"## Load it\n\nIts base is the GGUF file `{file['name']}` of SHA-256 "
        f"`{file['sha256']}`, dequantised. With the scripts that trained it:\n\n```\n"
        f"python inference.py {asked} {QUESTION!r}\npython serve.py {asked}\n```\n\n"
        "Exported as `merged`, it needs nothing but transformers."
    )


def _run_gguf(name: str, export: dict) -> str:
    file = export["file"]
    if "base_file" in export:
        file = f"{export['base_file']} --lora {file}"
    if export.get("token_ids"):
        return (
            "## Run it\n\nllama.cpp cannot cut up a text as its tokenizer (`tokenizer.json`) does: "
            f"send token ids, and read them.\n\n```\nllama-server --model {file}\n```\n\n"
            "`POST /completion` takes a list of ids as `prompt`, and gives ids with "
            '`"return_tokens": true`.'
        )
    return (
        f"## Run it\n\n```\nollama create {name} -f Modelfile && ollama run {name}\n"
        f"llama-server --model {file} --jinja\n```\n\nThe Modelfile has the instruction, the "
        "template and the stops. Of llama.cpp's clients each sends the instruction itself."
    )


def _serve(name: str, base: str, export: dict, merged: bool) -> str:
    if merged:
        return f"vllm serve {name}"
    rank = export["lora"].get("r", 16)
    most = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
    return f"vllm serve {base} --enable-lora --lora-modules reasoning={name} --max-lora-rank {most}"


def _scores(scores: dict) -> str:
    rows = [(text, scores[key]) for key, text in SCORES.items() if key in scores]
    if not rows:
        return ""
    told = [f"| {text} | {value:.4g} |" for text, value in rows]
    spans = [
        f"{text}: {scores[f'{key}_low']:.3f} to {scores[f'{key}_high']:.3f}"
        for key, text in (("accuracy", "accuracy"), ("accuracy_lenient", "by the last number"))
        if f"{key}_low" in scores
    ]
    span = f"\n\n95 % intervals: {'; '.join(spans)}." if spans else ""
    return "## Scores\n\nGreedy, on the validation split.\n\n| | |\n| --- | --- |\n" + (
        "\n".join(told) + span
    )


def _settings(manifest: dict) -> str:
    known = ("task", "stage", "step", "data", "demonstrations")
    facts = {name: manifest[name] for name in known if name in manifest}
    shown = facts | manifest.get("settings", {}) | {"versions": manifest.get("versions")}
    shown = {key: value for key, value in shown.items() if value is not None}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return f"## Settings\n\n```yaml\n{text}```" if shown else ""


def _limits(manifest: dict) -> str:
    task = f"It was trained on the task `{manifest['task']}`" if manifest.get("task") else ""
    lines = [
        f"- {task}; on other questions it can be worse than its base." if task else "",
        "- Reasoning that reads well can be wrong, and so can the answer behind it.",
        "- Without the instruction above, an answer may not have the format.",
        "- The licence is that of its base.",
    ]
    return "## Limits\n\n" + "\n".join(line for line in lines if line)
