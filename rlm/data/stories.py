"""What can happen in a word problem, as data: sentences, the sums behind them, how one words them.

Pure tables and number rules; the stories are put together in rlm/data/problems.py, and the
tiny base's plain text in rlm/tiny/corpus.py. In the texts {N} and {F} are two names, {He} the
pronoun of {N}, {it} the things, {x} {y} {k} numbers that `draw` gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Draw = Callable[[Random, int], dict | None]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens.

    kind: its name. domain: "items" or "money", what is counted.
    draw: (random numbers, value so far) -> the numbers of the event, None where it does not fit.
    sentences: how a problem tells it.
    work: the sums, (left, sign, right) each: names of drawn numbers, "v" the value before the
        event, "w" the result of the sum before.
    labels: for each sum its wordings; the first is the one of demonstrations.
    questions: what is asked if the story ends here and only can end here, else empty.
    """

    kind: str
    domain: str
    draw: Draw
    sentences: tuple[str, ...]
    work: tuple[tuple[str, str, str], ...]
    labels: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...] = ()


def between(**ranges: tuple[int, int]) -> Draw:
    """Numbers out of ranges, whatever the value so far."""
    return lambda rng, v: {name: rng.randint(*ends) for name, ends in ranges.items()}


def less(rng: Random, v: int) -> dict | None:
    """x that leaves at least 2."""
    return {"x": rng.randint(2, min(v - 2, 60))} if v >= 6 else None


def divisor(choices: tuple[int, ...]) -> Draw:
    """k that divides the value, with a quotient of 2 to 99."""

    def draw(rng: Random, v: int) -> dict | None:
        fits = [k for k in choices if v % k == 0 and 2 <= v // k <= 99]
        return {"k": rng.choice(fits)} if fits else None

    return draw


def factor(low: int, high: int) -> Draw:
    """k to multiply a value of at most 99 with."""
    return lambda rng, v: {"k": rng.randint(low, high)} if 2 <= v <= 99 else None


def percent(rng: Random, v: int) -> dict | None:
    """p percent that is one k-th of the value."""
    drawn = divisor((10, 5, 4))(rng, v)
    return drawn and drawn | {"p": 100 // drawn["k"]}


def purchase(rng: Random, v: int) -> dict | None:
    """x things at y each that the value pays for."""
    x, y = rng.randint(2, 9), rng.randint(2, 12)
    return {"x": x, "y": y} if x * y <= v - 2 else None


def above(rng: Random, v: int) -> dict:
    """x that is more than the value."""
    return {"x": v + rng.randint(5, 99)}


def pages(rng: Random, v: int) -> dict:
    """x a day for y days, out of z."""
    x, y = rng.randint(5, 30), rng.randint(2, 9)
    return {"x": x, "y": y, "z": x * y + rng.randint(10, 99)}


STARTS = (
    Event("has", "items", between(x=(5, 90)),
          ("{N} has {x} {it}.", "{N} starts with {x} {it}.", "{N} owns {x} {it}."), (), ()),
    Event("boxes", "items", between(x=(2, 12), y=(2, 12)),
          ("{N} has {x} {box} with {y} {it} each.", "{N} buys {x} {box} of {it}. "
           "Each of them holds {y} {it}.", "{N} fills {x} {box} with {y} {it} each."),
          (("x", "*", "y"),),
          (("{x} {box} with {y} each", "{x} {box} of {y}", "In the {box}"),)),
    Event("colours", "items", between(x=(2, 60), y=(2, 60)),
          ("{N} has {x} red {it} and {y} blue {it}.", "{N} has {x} old {it} and {y} new {it}.",
           "{N} has {x} big {it} and {y} small {it}."),
          (("x", "+", "y"),), (("{x} and {y} together", "Both kinds", "All the {it}"),)),
    Event("daily", "items", between(x=(3, 20), y=(2, 7)),
          ("{N} collects {x} {it} a day for {y} days.", "{N} gets {x} {it} every day for {y} days.",
           "For {y} days, {N} gets {x} {it} a day."),
          (("x", "*", "y"),), (("{x} a day for {y} days", "In {y} days", "After {y} days"),)),
    Event("multiple", "items", between(x=(3, 40), k=(2, 5)),
          ("{F} has {x} {it}. {N} has {k} times as many.",
           "{F} has {x} {it} and {N} has {k} times as many {it}."),
          (("x", "*", "k"),), (("{k} times as many as {x}", "{N} has {k} times {x}", "{N} has"),)),
    Event("difference", "items", between(x=(5, 60), y=(2, 40)),
          ("{F} has {x} {it}. {N} has {y} more than {F}.",
           "{F} has {x} {it} and {N} has {y} more than that."),
          (("x", "+", "y"),), (("{y} more than {x}", "{N} has {y} more", "{N} has"),)),
    Event("money", "money", between(x=(10, 99)),
          ("{N} has ${x}.", "{N} has ${x} in a money box.", "{N} saved ${x}."), (), ()),
    Event("wages", "money", between(x=(5, 20), y=(2, 9)),
          ("{N} works {y} hours for ${x} an hour.", "{N} earns ${x} an hour and works {y} hours.",
           "{N} gets ${x} for an hour of work and works for {y} hours."),
          (("x", "*", "y"),), (("${x} an hour for {y} hours", "In {y} hours", "The pay"),)),
    Event("sales", "money", between(x=(3, 30), y=(2, 9)),
          ("{N} sells {x} {it} for ${y} each.", "{N} makes {x} {it} and sells each of them for "
           "${y}.", "{N} sells {x} {it} at ${y} each."),
          (("x", "*", "y"),), (("{x} {it} at ${y} each", "{x} sold for ${y}", "The sale"),)),
    Event("reading", "pages", pages,
          ("A book has {z} pages. {N} reads {x} pages a day for {y} days.",
           "{N} has a book of {z} pages and reads {x} pages a day for {y} days."),
          (("x", "*", "y"), ("z", "-", "w")),
          (("{x} pages a day for {y} days", "In {y} days", "Pages that {N} reads"),
           ("Out of {z} pages", "Still to read", "Pages left of {z}"))),
)  # fmt: skip

EVENTS = (
    Event("buy", "items", between(x=(2, 60)),
          ("Then {N} buys {x} more.", "{He} buys {x} more {it}.", "{N} buys another {x} {it}."),
          (("v", "+", "x"),), (("After buying {x} more", "With {x} more", "{N} then has"),)),
    Event("receive", "items", between(x=(2, 60)),
          ("{F} gives {N} {x} more.", "{He} gets {x} {it} from {F}.",
           "Then {F} brings {x} more {it}."),
          (("v", "+", "x"),), (("With {x} from {F}", "{F} gives {x}", "Together with {x}"),)),
    Event("find", "items", between(x=(2, 60)),
          ("{N} finds {x} {it} at home.", "Then {He2} finds {x} more.",
           "{He} finds another {x} {it} in the garden."),
          (("v", "+", "x"),), (("Finding {x} more", "With the {x} found", "{N} finds {x}"),)),
    Event("give", "items", less,
          ("{N} gives {x} {it} to {F}.", "Then {He2} gives {x} of them away.",
           "{He} gives {F} {x} of the {it}."),
          (("v", "-", "x"),), (("After giving {x} away", "Without {x}", "{x} go to {F}"),)),
    Event("sell", "items", less,
          ("{N} sells {x} of them.", "Then {He2} sells {x} {it}.", "{F} buys {x} {it} from {N}."),
          (("v", "-", "x"),), (("After selling {x}", "{x} are sold", "{N} keeps"),)),
    Event("lose", "items", less,
          ("{N} loses {x} {it}.", "Then {x} {it} get lost.", "{He} loses {x} of them."),
          (("v", "-", "x"),), (("After losing {x}", "{x} are lost", "Still there"),)),
    Event("crates", "items", between(x=(2, 9), y=(2, 12)),
          ("Then {N} buys {x} {box} with {y} {it} each.",
           "{F} brings {x} {box} with {y} {it} in each."),
          (("x", "*", "y"), ("v", "+", "w")),
          (("{x} {box} with {y} each", "{x} times {y} new ones", "New {it}"),
           ("With the new ones", "All {it}", "{N} then has"))),
    Event("half", "items", divisor((2,)),
          ("{N} gives half of them to {F}.", "Then {He2} sells half of the {it}.",
           "{He} keeps only half of them."),
          (("v", "/", "k"),), (("Half of them are left", "Half", "One half"),)),
    Event("double", "items", lambda rng, v: {"k": 2} if v <= 99 else None,
          ("Then the number of {it} doubles.", "{F} brings as many again, which doubles them.",
           "{He} doubles the number of {it}."),
          (("v", "*", "k"),), (("Twice as many", "Doubled", "Doubling"),)),
    Event("percent", "items", percent,
          ("{N} gives {p} percent of them to {F}.", "{He} loses {p}% of them.",
           "Then {p} percent of the {it} break."),
          (("v", "/", "k"), ("v", "-", "w")),
          (("{p} percent of them", "{p}%", "The {p} percent"),
           ("The rest", "What is left", "{N} keeps"))),
    Event("third", "items", divisor((3,)),
          ("{N} gives a third of them to {F}.", "{He} sells one third of the {it}."),
          (("v", "/", "k"), ("v", "-", "w")),
          (("A third of them", "One third", "The third"),
           ("The rest", "What is left", "{N} keeps"))),
    Event("gift", "money", between(x=(5, 60)),
          ("{F} gives {N} ${x}.", "{He} gets ${x} from {F}.", "Then {N} finds ${x}."),
          (("v", "+", "x"),), (("With ${x} more", "${x} are added", "{N} then has"),)),
    Event("spend", "money", less,
          ("{N} spends ${x} on a toy.", "{He} pays ${x} for lunch.", "Then {He2} gives {F} ${x}."),
          (("v", "-", "x"),), (("After spending ${x}", "${x} are gone", "Without ${x}"),)),
    Event("shop", "money", purchase,
          ("{N} buys {x} {it} for ${y} each.", "Then {He2} buys {x} books at ${y} each."),
          (("x", "*", "y"), ("v", "-", "w")),
          (("{x} at ${y} each", "{x} for ${y} each", "The price of {x}"),
           ("The money left", "{N} still has", "What is left"))),
    Event("halve", "money", divisor((2,)),
          ("{N} gives half of the money to {F}.", "{He} puts half of it in the bank.",
           "{He} spends half of it."),
          (("v", "/", "k"),), (("Half of it is left", "Half", "One half"),)),
    Event("tax", "money", percent,
          ("{He} spends {p}% of it.", "{N} gives {p} percent of the money to {F}."),
          (("v", "/", "k"), ("v", "-", "w")),
          (("{p} percent of it", "{p}%", "The {p} percent"),
           ("The rest", "What is left", "{N} keeps"))),
)  # fmt: skip

ENDINGS = (
    Event("share", "items", divisor((2, 3, 4, 5, 6, 7, 8, 9, 10)),
          ("{N} shares them equally among {k} friends.",
           "{He} gives them to {k} children, the same number to each."),
          (("v", "/", "k"),), (("Shared among {k}", "Each of {k} gets", "Divided by {k}"),),
          ("How many {it} does each of them get?", "How many does each get?")),
    Event("pack", "items", divisor((2, 3, 4, 5, 6, 7, 8, 9, 10)),
          ("{N} packs them into {box}, {k} in each.", "{He} puts {k} of them into each box."),
          (("v", "/", "k"),), (("Packed by {k}", "{k} in each", "In lots of {k}"),),
          ("How many {box} are there?", "How many are filled?")),
    Event("times", "items", factor(2, 5),
          ("{F} has {k} times as many {it} as {N} now.", "{F} has {k} times that number."),
          (("v", "*", "k"),), (("{k} times as many", "{F} has {k} times", "{F} has"),),
          ("How many {it} does {F} have?", "How many does {F} have?")),
    Event("fewer", "items", less,
          ("{F} has {x} fewer {it} than {N} now.", "{F} has {x} less than {N}."),
          (("v", "-", "x"),), (("{x} fewer", "{F} has {x} less", "{F} has"),),
          ("How many {it} does {F} have?", "How many does {F} have?")),
    Event("together", "items", between(x=(2, 40)),
          ("{F} has {x} more {it} than {N} now.", "{F} has {x} more than {N}."),
          (("v", "+", "x"), ("v", "+", "w")),
          (("{x} more", "{F} has {x} more", "{F} has"),
           ("Both together", "Together", "{N} and {F}")),
          ("How many {it} do they have together?", "How many do both have in all?")),
    Event("proceeds", "items", factor(2, 9),
          ("{N} sells all of them for ${k} each.", "{He} sells each of them for ${k}."),
          (("v", "*", "k"),), (("Sold for ${k} each", "At ${k} each", "The money"),),
          ("How much money does {N} get?", "How many dollars does {N} get?")),
    Event("wish", "money", above,
          ("{He} wants a bike for ${x}.", "{N} wants to buy a coat that costs ${x}."),
          (("x", "-", "v"),), (("Missing from ${x}", "To reach ${x}", "Still missing"),),
          ("How much money is missing?", "How many more dollars does {N} need?")),
    Event("split", "money", divisor((2, 3, 4, 5, 6, 7, 8, 9, 10)),
          ("{He} shares it equally among {k} children.",
           "{N} divides the money into {k} equal parts."),
          (("v", "/", "k"),), (("Shared among {k}", "Each of {k} gets", "Divided by {k}"),),
          ("How many dollars are in each part?", "How much is each part?")),
    Event("days", "pages", divisor((2, 3, 4, 5, 6, 7, 8, 9, 10)),
          ("{He} reads the rest in {k} days.", "{N} reads the other pages in {k} days."),
          (("v", "/", "k"),), (("Spread over {k} days", "In {k} days", "Divided by {k}"),),
          ("How many pages is that a day?", "How many pages a day does {N} read then?")),
)  # fmt: skip

# What is asked where no ending of its own asks.
QUESTIONS = {
    "items": ("How many {it} does {N} have now?", "How many {it} does {N} have in the end?",
              "How many {it} are there now?"),
    "money": ("How much money does {N} have now?", "How many dollars does {N} have in the end?"),
    "pages": ("How many pages are left?", "How many pages does {N} still have to read?"),
}  # fmt: skip

NAMES = {
    "Tom": "He", "Ben": "He", "Max": "He", "Paul": "He", "Sam": "He", "Leo": "He", "Jack": "He",
    "Omar": "He", "Ivan": "He", "Carl": "He", "Anna": "She", "Lisa": "She", "Emma": "She",
    "Nina": "She", "Julia": "She", "Maria": "She", "Sara": "She", "Mia": "She", "Lena": "She",
    "Ruth": "She",
}  # fmt: skip
ITEMS = (
    "apples", "pens", "cards", "coins", "stickers", "eggs", "marbles", "cookies", "flowers",
    "stamps", "shells", "balls", "beads", "pears", "nuts",
)  # fmt: skip
BOXES = ("boxes", "bags", "packs", "baskets", "jars")
