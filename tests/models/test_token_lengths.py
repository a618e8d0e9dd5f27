"""A token's characters in the text: they join to it, whatever the tokenizer splits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.models.text_stream import decode
from rlm.models.token_lengths import TokenLengths
from tests.support.running import ROOT


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "weights" / "tiny_base")


class Bytes:
    """A tokenizer of single bytes: a character of several is never a token's alone."""

    def decode(self, ids, **options):
        return bytes(id for id in ids if id < 256).decode("utf-8", "replace") + "<end>" * (
            256 in ids
        )


def test_lengths_by_hand():
    lengths = TokenLengths(Bytes())
    assert lengths("ab", [97, 98, 256]) == [1, 1, 0], "the end token has no text"
    assert lengths("<think>ab", [97, 98, 256], "<think>") == [1, 1, 0]
    # "é" is two bytes: the character belongs to the second.
    assert lengths("aé", [97, *"é".encode(), 256]) == [1, 0, 1, 0]
    # A stop text was cut off: what follows it has no room.
    assert lengths("a", [97, 98, 99]) == [1, 0, 0]
    assert lengths("", [256]) == [0]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_lengths_join_to_the_text_of_bytes(text):
    text = text.encode("utf-8", "ignore").decode()
    ids = [*text.encode(), 256]
    assert sum(TokenLengths(Bytes())(text, ids)) == len(text)


def test_lengths_of_the_tiny_base_are_its_tokens(tokenizer):
    ids = tokenizer("<think>\n1. 23 + 15 = 38\n</think>\n38", add_special_tokens=False)["input_ids"]
    text, end = decode(tokenizer, ids), tokenizer.eos_token_id
    lengths = TokenLengths(tokenizer)(text, [*ids, end])
    assert sum(lengths) == len(text) and lengths[-1] == 0
    assert lengths[:-1] == [len(decode(tokenizer, [id])) for id in ids]
