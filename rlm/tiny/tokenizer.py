"""The tiny base's tokenizer: byte-level pieces, digits one by one, each digit knowing its place.

A normaliser gives the tens, hundreds and thousands digits of a number symbols of their own (from
Unicode's private range), and the decoder turns them back: so `417` is hundreds 4, tens 1, ones 7,
and digits of one place look alike in all numbers. Text that holds these private characters
itself would come back with digits in their stead; nothing else is lost.

It loads with `AutoTokenizer`, without code of its own.
"""

from collections.abc import Iterable
from itertools import chain

from rlm.models.templates import UNINSTRUCTED

# (k, d): digit d with k digits behind it. Larger places share the plain digits.
PLACES = {(k, d): chr(0xE000 + 16 * k + d) for k in (3, 2, 1) for d in range(10)}
PRIVATE = "\ue010-\ue039"
# Words with the sign or blank before them; single digits; signs, with the blank before a digit
# that follows; line ends; blanks.
PIECES = (
    rf"[^\r\n\p{{L}}\p{{N}}{PRIVATE}]?\p{{L}}+"
    rf"|[\p{{N}}{PRIVATE}]"
    rf"| ?[^\s\p{{L}}\p{{N}}{PRIVATE}]+(?: (?=[\p{{N}}{PRIVATE}])|[\r\n]*)"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT = 1024


def build_tokenizer(texts: Iterable[str], vocabulary: int):
    """Return a tokenizer of at most `vocabulary` tokens with pieces learned from the texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(rf"{d}(?=\d{{{k}}}(?!\d))"), symbol)
        for (k, d), symbol in PLACES.items()
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel()]
        + [decoders.Replace(symbol, str(d)) for (_, d), symbol in PLACES.items()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    # Rare digits (thousands) shall be one token each, too.
    every_place = " ".join(str(d) * 4 for d in range(10))
    tokenizer.train_from_iterator(chain(texts, [every_place] * 2000), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = UNINSTRUCTED
    return wrapped
