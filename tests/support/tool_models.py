"""Calls that a random model makes: one ends at every few characters that it writes."""

from rlm.tools.forms import Found
from rlm.tools.tool import Parameter, Tool
from rlm.tools.toolbox import Toolbox
from rlm.tools.workers import Job, Outcome

PRINTABLE = 94  # the first ids of the byte tokenizer are ! to ~


def backwards(text: str) -> str:
    return text[::-1] * 2


BACKWARDS = Tool(
    "backwards", "Says it twice, backwards.", (Parameter("text", str),), "b", function=backwards
)


class Often:
    """A form whose calls end at characters whose code leaves 3 divided by `every`."""

    before, after, at_stop, quoted = "<result>", "</result>", False, False

    def __init__(self, tool=BACKWARDS, every=8):
        self.tool, self.every = tool, every

    def find(self, text, start, seen):
        for at in range(max(start, seen), len(text)):
            if ord(text[at]) % self.every == 3:
                return Found(max(start, at - 3), at + 1, text[max(start, at - 3) : at + 1])
        return None

    def read(self, call):
        return self.tool, {"text": call.inside}


def often(tokenizer, *, box=Toolbox, every=8, **options):
    """Return a toolbox whose calls a random model makes."""
    made = box([BACKWARDS], **{"max_calls": 3, "result_tokens": 9} | options)
    made.bound(tokenizer).form = Often(every=every)
    return made


class SlowBox(Toolbox):
    """Its tools answer when they were asked after some times: `polls`, later ones sooner."""

    polls = 5

    def begin(self, tool, arguments):
        self.jobs = [*getattr(self, "jobs", []), (Job(), Outcome(tool.function(**arguments)))]
        self.left = [*getattr(self, "left", []), 1 + self.polls - len(self.jobs) % 3]
        return self.jobs[-1][0]

    def poll(self):
        for place, (job, outcome) in enumerate(self.jobs):
            self.left[place] -= 1
            if self.left[place] <= 0:
                job.outcome = outcome

    def wait(self, seconds):
        self.poll()
