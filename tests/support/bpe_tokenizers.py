"""Byte-level BPE tokenizers of a few hundred pieces, as families cut up texts."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as steps
from transformers import PreTrainedTokenizerFast

from rlm.data import problems
from rlm.models.gguf_file import LLAMA3_PATTERN, QWEN2_PATTERN
from tests.support.tiny_gguf import SPECIAL, TEMPLATE

# Every turn is framed; what is asked first begins with the token that begins a text.
BOS_TEMPLATE = "{{ bos_token }}" + TEMPLATE
# Leaves the reasoning of earlier turns out, as Qwen3's does.
FORGETFUL = TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1]")


def cut_up(name: str):
    """Return the pre-tokenizer that llama.cpp knows by this name."""
    by_gpt2 = steps.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "gpt-2":
        return by_gpt2
    if name == "smollm":
        return steps.Sequence([steps.Digits(individual_digits=True), by_gpt2])
    pattern = {"qwen2": QWEN2_PATTERN, "llama-bpe": LLAMA3_PATTERN, "dbrx": LLAMA3_PATTERN}[name]
    bytes_alone = steps.ByteLevel(add_prefix_space=False, use_regex=False)
    return steps.Sequence([steps.Split(Regex(pattern), behavior="isolated"), bytes_alone])


def bpe_tokenizer(
    name: str = "qwen2", *, template: str | None = TEMPLATE, bos: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 300 pieces with ChatML's three special tokens as ids 0 to 2.

    <think> and </think> are added tokens behind the pieces, 300 and 301, not special, as Qwen3's.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = cut_up(name)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(steps.ByteLevel.alphabet()),
    )  # fmt: skip
    texts = [f"{e.question} {e.solution} 1234 {e.gold}" for e in problems.additions(0, 200)]
    tokenizer.train_from_iterator([*texts, "It's what they'll say: I'm sure, you're not."], trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0], bos_token=bos,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    found.chat_template = template
    return found
