"""A tokenizer as a GGUF file has it: pieces, merges, special tokens, chat template.

    vocabulary = read(tokenizer, generation_config, rows=model.config.vocab_size)
    vocabulary.write(gguf_writer)

llama.cpp has a fixed list of ways to cut up a text (`tokenizer.ggml.pre`), no normalisers, and a
table with one row for each piece. A tokenizer that needs more than that would read other tokens
there than its model was trained on, so it is refused. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from dataclasses import dataclass

from rlm.errors import InputError
from rlm.models.gguf_file import CONTROL, LLAMA3_PATTERN, QWEN2_PATTERN, USER_DEFINED
from rlm.models.prompts import end_ids

NORMAL, UNUSED = 1, 5  # token types beside those of gguf_file
BY_GPT2 = ("ByteLevel", True)
BYTES = ("ByteLevel", False)
# How a text is cut up -> its name there, by whether whole pieces go before merges.
NAMES = {
    (BY_GPT2,): {False: "gpt-2"},
    (("Digits", True), BY_GPT2): {False: "smollm"},
    (("Split", QWEN2_PATTERN), BYTES): {False: "qwen2"},
    (("Split", LLAMA3_PATTERN), BYTES): {True: "llama-bpe", False: "dbrx"},
}
KNOWN = sorted(name for names in NAMES.values() for name in names.values())
# Of these llama.cpp knows by their text that they end an answer; the metadata has room for three.
ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
    "<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>",
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """tokens: a text for each row of the embedding. types: their token types. pre: how texts are
    cut up. ends: ids that end an answer, the trained one first. add_bos: whether a prompt begins
    with the token `bos`, which llama.cpp then writes itself, once.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    ends: list[int]
    bos: int | None
    pad: int | None
    unknown: int | None
    add_bos: bool
    template: str | None

    @property
    def stops(self) -> set[int]:
        """The ids at which llama.cpp ends an answer: `ends`, and what it knows by its text."""
        return {*self.ends, *(i for i, text in enumerate(self.tokens) if text in ENDS)}

    def write(self, writer) -> None:
        """Add all of it to a gguf.GGUFWriter."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        adds = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
        for add, end in zip(adds, self.ends, strict=False):
            add(end)
        named = (
            (writer.add_bos_token_id, self.bos),
            (writer.add_pad_token_id, self.pad),
            (writer.add_unk_token_id, self.unknown),
        )
        for add, number in named:
            if number is not None:
                add(number)
        writer.add_add_bos_token(self.add_bos)  # said always: for some names the default is yes
        writer.add_add_eos_token(False)
        if self.template:
            writer.add_chat_template(self.template)


def read(tokenizer, generation_config, *, rows: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer for an embedding of `rows` rows.

    InputError in one line for a tokenizer that a GGUF file cannot hold as it is.
    """
    parts = _parts(tokenizer)
    pre, merges = split_name(parts), parts["model"]["merges"]
    tokens, types = _pieces(parts, rows)
    ends = end_ids(tokenizer, generation_config)
    if lost := [tokens[i] for i in ends[3:] if tokens[i] not in ENDS]:
        raise refused(
            f"it has {len(ends)} tokens that end an answer, and {lost[0]} is one too many"
        )
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return Vocabulary(
        tokens,
        types,
        [" ".join(_merge(pair)) for pair in merges],
        pre,
        ends,
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        begins_with_bos(tokenizer),
        template,
    )


def pieces(tokenizer, generation_config, *, rows: int) -> Vocabulary:
    """Return the vocabulary for programs that send and read token ids: each piece has its text.

    How a text is cut up is not said rightly (the name is GPT-2's), and no chat template is there to
    be filled with texts. InputError for a tokenizer without merges.
    """
    parts = _parts(tokenizer)
    if parts["model"]["type"] != "BPE" or not parts["model"]["merges"]:
        raise InputError(
            f"--token-ids: the tokenizer is of the kind {parts['model']['type']}, and not a BPE "
            "with merges; use the kind merged"
        )
    tokens, types = _pieces(parts, rows)
    return Vocabulary(
        tokens, types, [" ".join(_merge(pair)) for pair in parts["model"]["merges"]], "gpt-2",
        end_ids(tokenizer, generation_config), tokenizer.bos_token_id, tokenizer.pad_token_id,
        tokenizer.unk_token_id, add_bos=False, template=None,
    )  # fmt: skip


def split_name(parts: dict) -> str:
    """Return the name that llama.cpp has for how a tokenizer.json cuts up a text.

    InputError where it has none, or where more happens to the text than it knows of. NFC is let
    pass, as it is for Qwen everywhere: it leaves text alone that is composed already.
    """
    model = parts["model"]
    if model["type"] != "BPE" or not model["merges"]:
        raise refused(f"it is of the kind {model['type']}, and not a BPE with merges")
    if model.get("byte_fallback") and "<0x00>" in model["vocab"]:
        raise refused("it is a BPE of SentencePiece, and not a byte-level one")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refused(f"its BPE has {name} {model[name]!r}")
    changed = [n["type"] for n in _flat(parts["normalizer"]) if n["type"] != "NFC"]
    if changed:
        raise refused(f"it changes the text before it cuts it up ({changed[0]})")
    steps = tuple(_step(each) for each in _flat(parts["pre_tokenizer"]))
    found = NAMES.get(steps, {}).get(bool(model.get("ignore_merges")))
    if found is None:
        shown = " then ".join(f"{kind} {value}" for kind, value in steps) or "not at all"
        raise refused(f"it cuts up a text in a way ({shown}) that is none of {', '.join(KNOWN)}")
    return found


def begins_with_bos(tokenizer) -> bool:
    """Return whether a prompt begins with the tokenizer's bos token: by the template, if any."""
    from rlm.models.prompts import token_ids
    from rlm.models.templates import chat_text

    if tokenizer.bos_token_id is None:
        return False
    if not tokenizer.chat_template:
        return tokenizer("?")["input_ids"][:1] == [tokenizer.bos_token_id]
    text = chat_text(tokenizer, "?", [{"role": "user", "content": "?"}])
    # One that opens every turn with its bos token begins with it, but not as a bos token.
    first = token_ids(tokenizer, text)
    return first[:1] == [tokenizer.bos_token_id] and first.count(tokenizer.bos_token_id) == 1


def refused(why: str) -> InputError:
    return InputError(
        f"the tokenizer cannot be written into a GGUF file: {why}, so llama.cpp would read other "
        "tokens than the model was trained on; use the kind merged, or --token-ids for "
        "programs that send and read token ids"
    )


def _parts(tokenizer) -> dict:
    """Return what a tokenizer.json of the tokenizer says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refused(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    return json.loads(backend.to_str())


def _pieces(parts: dict, rows: int) -> tuple[list[str], list[int]]:
    """Return (text, type) of each row; rows beyond the tokenizer's pieces are unused."""
    vocab, added = parts["model"]["vocab"], parts["added_tokens"]
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    most = max([*vocab.values(), *(token["id"] for token in added)])
    if most >= rows:
        raise refused(f"it has {most + 1} tokens and the model has embeddings for {rows}")
    for text, number in vocab.items():
        tokens[number], types[number] = text, NORMAL
    for token in added:
        for name in ("lstrip", "rstrip", "single_word"):
            if token[name]:
                raise refused(f"its token {token['content']} has {name}")
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens)) < rows:
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise refused(f"two of its tokens are {twice!r}")
    return tokens, types


def _merge(pair) -> list[str]:
    """Return the two halves of a merge, whose blanks are written as byte-level BPE has them."""
    halves = pair.split(" ") if isinstance(pair, str) else pair
    return [half.replace(" ", "Ġ") for half in halves]


def _flat(step: dict | None) -> list[dict]:
    """Return the steps of a normaliser or pre-tokenizer, those of sequences one by one."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [each for part in inner for each in _flat(part)]


def _step(step: dict) -> tuple:
    """Return (kind, what matters of it); None as the second where it is none that is known."""
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
        return kind, step["pattern"].get("Regex")
    return kind, None
