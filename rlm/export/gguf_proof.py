"""Whether a GGUF file says what the model says that was written to it, in llama.cpp itself.

    found = prove(file, seen, source, exact=True)

The model is torch's, with its weights already rounded as the file has them, so what is left is how
llama.cpp computes: it rounds what goes into each product to the kind of the weights. How that
moves log-probabilities is measured at the likeliest tokens behind each prompt; a greedy answer may
part from torch's only where torch's own choice was closer than that.
"""

from pathlib import Path

import torch

from rlm.answers.formats import get_format
from rlm.data import problems
from rlm.export import llama_cpp
from rlm.export.proof import PROMPTS, SEED, ProofError, Seen
from rlm.models.templates import chat_turns

ROWS = 8  # answers at a time
LIMIT = {True: 0.25, False: 2.0}  # nats that a log-probability may move, by whether it is exact
# Numbers, blanks, line ends, contractions, other scripts, code: where tokenizers differ.
TEXTS = (
    "Calculate 12345 + 678 = ?", " two  blanks\n\n\n\tand a tab ", "It's what we'll say, I'M sure",
    "naïve café 東京 🚀", "3.14 and -7 and 1,000,000", "```python\nprint('x')\n```\r\n",
    "<think>\n1 + 2 = 3\n</think>\n<answer>3</answer>",
)  # fmt: skip


def prove(file: Path, seen: Seen, source, *, exact: bool, lora: Path | None = None) -> dict:
    """Return what llama.cpp says of a file beside `seen`; ProofError if it is another model.

    source: of rlm.export.gguf; `seen` is what its network says of its questions. exact: every
    answer has to be equal, or to part where two tokens were as good as equal; else the share that
    is equal is told. lora: a GGUF file of an adapter on top of it.
    """
    prompts, vocabulary = source.questions, source.vocabulary
    room = max(len(prompt.ids) for prompt in prompts) + seen.max_tokens
    threads = torch.get_num_threads()
    with llama_cpp.Server(file, rows=ROWS, room=room, threads=threads, lora=lora) as server:
        texts = _compare_texts(server, source) if source.texts else {}
        for end in vocabulary.ends:
            if not server.stops_at(prompts[0].ids, end):
                raise ProofError(f"llama.cpp does not stop at {vocabulary.tokens[end]}")
        said = server.answers([prompt.ids for prompt in prompts], max_tokens=seen.max_tokens)
    found = _compare_answers(said, seen, source.network, prompts, vocabulary.stops, exact)
    return {"runtime": llama_cpp.installed(), **texts, **found}


def conversations(tokenizer, form: str) -> list[tuple[list[dict], str]]:
    """Return (turns, the prompt's text) of the proof's questions, and of one with earlier turns."""
    fmt = get_format(form)
    asked = [
        [{"role": "user", "content": each.question}] for each in problems.additions(SEED, PROMPTS)
    ]
    answered = [*asked[0], {"role": "assistant", "content": "One moment."}, *asked[1]]
    return [
        chat_turns(tokenizer, fmt.instruction_for("number"), turns, fmt.instruction_role)
        for turns in [*asked, answered]
    ]


def _compare_texts(server, source) -> dict:
    """Return how many prompts and texts were compared; ProofError at the first that differs."""
    tokenizer, vocabulary = source.tokenizer, source.vocabulary
    chats = conversations(tokenizer, source.form) if tokenizer.chat_template else []
    for messages, text in chats:
        theirs = server.rendered(messages)
        if vocabulary.add_bos:  # llama.cpp leaves it out of the text and puts it in as a token
            theirs = tokenizer.bos_token + theirs
        if theirs != text:
            raise ProofError(
                f"llama.cpp renders the chat template otherwise: {_parting(theirs, text)}"
            )
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = text.removeprefix(tokenizer.bos_token) if vocabulary.add_bos else text
        if server.tokens(written, begin=True) != list(ours):
            raise ProofError("llama.cpp reads other tokens in the rendered prompt")
    for text in TEXTS:
        ours, theirs = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"]), server.tokens(text)
        )  # fmt: skip
        if ours != theirs:
            raise ProofError(f"llama.cpp reads other tokens in {text!r}: {_parting(theirs, ours)}")
    return {"equal_prompts": len(chats), "equal_texts": len(TEXTS)}


def _parting(one, other) -> str:
    """Return what two texts or lists have from the first place on where they differ."""
    at = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
              min(len(one), len(other)))  # fmt: skip
    return f"{one[at : at + 40]!r} where here is {other[at : at + 40]!r}"


def _compare_answers(said, seen: Seen, network, prompts, stops: set[int], exact: bool) -> dict:
    logprobs = seen.logits.log_softmax(-1)
    pairs = [(each.logprobs, row) for each, row in zip(said, logprobs, strict=True)]
    moves = [abs(p - float(row[i])) for known, row in pairs for i, p in known.items()]
    moved = max(moves, default=0.0)  # none is told: then the answers alone have to be equal
    if not moved <= LIMIT[exact]:
        raise ProofError(
            f"in llama.cpp log-probabilities differ by up to {moved:.3g} nats "
            f"({LIMIT[exact]} is allowed)"
        )
    gaps = []
    for theirs, answer, prompt in zip(said, seen.answers, prompts, strict=True):
        ours, other = _until(answer, stops), _until(theirs.ids, stops)
        if ours != other or theirs.ended != (len(ours) < len(answer)):
            gaps.append(_gap(network, prompt.ids, answer, other, stops))
    # Each of the two tokens may have moved, and later ones as far again as the first.
    if exact and gaps and not max(gaps) <= 4 * moved:
        raise ProofError(
            f"{len(gaps)} of {len(said)} greedy answers of llama.cpp are others, where torch's "
            f"choice was better by up to {max(gaps):.3g} nats"
        )
    found = {
        "equal_answers_fraction": 1 - len(gaps) / len(said), "logprob_difference": moved,
        "ended_answers": sum(each.ended for each in said),
    }  # fmt: skip
    return found | ({"largest_gap": max(gaps)} if gaps else {})


def _until(ids: list[int], stops: set[int]) -> list[int]:
    """Return an answer up to the token that ends it."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def _gap(
    network, prompt: list[int], answer: list[int], theirs: list[int], stops: set[int]
) -> float:
    """Return by how much torch liked its own token better where two answers part, in nats.

    An answer that ended in one of them and not in the other parts at the end token.
    """
    pairs = zip(answer, theirs, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), len(theirs))
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer[:at]]], device=network.device)
        logits = network(ids).logits[0, -1].float()
    other = [theirs[at]] if at < len(theirs) else sorted(stops)
    return float(logits.max() - logits[other].max())
