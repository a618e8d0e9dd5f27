"""A trained model as a GGUF file that llama.cpp and Ollama run, with the proof that it is the same.

    manifest = write_gguf(adapter, base, folder, kind="F16", device="cpu", name="my_model")

The folder gets the file, a Modelfile for Ollama and manifest.json. Before it is put in place, three
things are proved: merged into its weights the adapter says what it said beside them; rounded to the
kind of the file the model moves no further than rounding explains; read back, by transformers and,
where it is installed, by llama.cpp itself, the file is that rounded model.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlm import files
from rlm.errors import InputError
from rlm.export import gguf_tokenizer, gguf_writer, llama_cpp, modelfile
from rlm.export.folders import base_folder, copy_tokenizer
from rlm.export.merging import round_weights, write_manifest
from rlm.models.lookup import gguf_of, is_whole

logger = logging.getLogger("rlm")

MODELFILE = "Modelfile"
CONTEXT = 4096  # tokens that Ollama is told to hold at most: more costs memory from the start on


@dataclass(frozen=True)
class Source:
    """A model that is to be written. network: with the adapter merged, in float32. live: what it
    said before that. texts: whether the file's tokenizer reads texts, or is for token ids alone.
    """

    network: Any
    tokenizer: Any
    vocabulary: Any
    questions: list
    live: Any
    texts: bool
    manifest: dict

    @property
    def form(self) -> str:
        return self.manifest.get("format", "think")


def write_gguf(
    adapter: Path | None, base: str, new: Path, *, kind: str, device: str, name: str,
    token_ids: bool = False,
) -> dict:  # fmt: skip
    """Write the folder of a GGUF file and prove it; return its manifest. ProofError if it fails.

    adapter: None for the base as it is. token_ids: the file is for programs that send and read
    token ids; the tokenizer lies beside it, and nothing is said of how it cuts up a text.
    """
    from rlm.export import gguf_proof, proof

    source = opened(adapter, base, device=device, token_ids=token_ids)
    network, vocabulary = source.network, source.vocabulary
    new.mkdir()
    file = new / f"{name}-{kind}.gguf"
    try:
        odd = gguf_writer.write(network, vocabulary, file, kind=kind, name=name)
        near = rounding(network, kind)
        looked = source.tokenizer, source.questions
        bound = round_weights(network, *looked, source.live, near)
        seen = proof.look(network, *looked, max_tokens=proof.LONG)
        tolerance = max(bound, proof.REORDERED)
        found = proof.compare(source.live, seen, tolerance=tolerance, same_answers=False)
        read_back(file, source, seen)
        if llama_cpp.installed():
            exact = kind in gguf_writer.EXACT_KINDS
            found["llama_cpp"] = gguf_proof.prove(file, seen, source, exact=exact)
        else:
            logger.warning("llama.cpp itself was not asked: pip install -e '.[llamacpp]' brings it")
    except proof.ProofError as error:
        raise proof.ProofError(
            f"the GGUF file is not the model {adapter or base}: {error}; nothing was written"
        ) from None
    export: dict = {"kind": "gguf", "dtype": kind, "file": file.name, "proof": found}
    if odd:
        export["other_dtypes"] = len(odd)
    if source.texts:
        ends = [vocabulary.tokens[i] for i in vocabulary.ends]
        told = modelfile.write(file.name, source.tokenizer, source.manifest, ends=ends,
                               add_bos=vocabulary.add_bos,
                               context_tokens=context_tokens(network.config))  # fmt: skip
        files.write_text(new / MODELFILE, told)
    else:
        export["token_ids"] = True
        _copy_tokenizers(adapter, base, source.tokenizer, new)
    return write_manifest(adapter, base, new, export)


def context_tokens(config) -> int:
    """Return for how many tokens Ollama is told to make room."""
    return min(config.max_position_embeddings, CONTEXT)


def opened(
    adapter: Path | None, base: str, *, device: str, token_ids: bool, merge: bool = True
) -> Source:
    """Return the model merged, and what it said before; InputError if GGUF cannot have it.

    merge: False leaves the adapter beside the weights.
    """
    if find_spec("gguf") is None:
        raise InputError(
            "GGUF files are written by the package gguf, which is not installed: "
            "pip install -e '.[gguf]'"
        )
    from rlm.export import proof
    from rlm.models.policy import open_policy
    from rlm.run.folder import start

    start(base, log_level="warning", threads=0, seed=0)
    whole = adapter is not None and is_whole(str(adapter))
    policy = open_policy(
        None if whole else base, str(adapter) if adapter else None, device=device, dtype="float32"
    )
    network, tokenizer = policy.model, policy.tokenizer
    config = network.config
    gguf_writer.check(config, f"--model {base}")
    read = gguf_tokenizer.pieces if token_ids else gguf_tokenizer.read
    vocabulary = read(tokenizer, network.generation_config, rows=config.vocab_size)
    questions = proof.prompts(tokenizer, policy.manifest.get("format", "think"))
    live = proof.look(network, tokenizer, questions, max_tokens=proof.LONG)
    if merge and hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()
    return Source(network, tokenizer, vocabulary, questions, live, not token_ids, policy.manifest)


def rounding(network, kind: str):
    """Return (name, weight) -> the weight as it comes out of a file of this kind."""
    import gguf

    config = network.config
    names = gguf.get_tensor_name_map(gguf_writer.architecture(config), config.num_hidden_layers)

    def near(name: str, weight):
        own = gguf_writer.kind_of(gguf_writer.file_name(names, name), weight.shape, kind)
        found = gguf_writer.rounded(weight.detach().float().cpu(), own, name)
        return found.to(weight.device)

    return near


def read_back(file: Path, source: Source, seen) -> None:
    """ProofError unless the file, read by transformers, is the rounded model that `seen` is of."""
    from rlm.export import proof
    from rlm.models.loading import load_base

    device = source.network.device
    network, tokenizer = load_base(str(file), device=device, dtype="float32")
    if source.texts and proof.prompts(tokenizer, source.form) != source.questions:
        raise proof.ProofError("its tokenizer makes other tokens of the same questions")
    again = proof.look(network, source.tokenizer, source.questions, max_tokens=proof.LONG)
    try:
        proof.compare(seen, again, tolerance=proof.REORDERED)
    except proof.ProofError as error:
        raise proof.ProofError(f"read by transformers it is another one: {error}") from None


def _copy_tokenizers(adapter: Path | None, base: str, tokenizer, new: Path) -> None:
    """Put the tokenizer's own files beside the GGUF file; an adapter's replaces the base's."""
    if gguf_of(base):
        tokenizer.save_pretrained(new)
    elif not (adapter and is_whole(str(adapter))):
        copy_tokenizer(base_folder(base), new)
    if adapter:
        copy_tokenizer(adapter, new)
