"""Ask the model and watch it reason.

    python inference.py "Calculate 23 + 15 + 8"        # one question
    echo "Calculate 23 + 15 + 8" | python inference.py # the same from a pipe
    python inference.py                                # a short demonstration
    python inference.py --interactive                  # ask again and again
    python inference.py --batch --num-samples 10       # held-out questions of a task, judged
    python inference.py --checkpoint weights/sft_lora "Calculate 23 + 15 + 8" --json
    python inference.py --config configs/orchestrator.yaml     # the graph and its agents' words

The adapter's manifest names its base model and its format, so neither has to be given.
"""

import json
import sys
from functools import partial

import config
import data
from rlm.agents.graph import read_graph
from rlm.answers import formats
from rlm.answers.kinds import is_right_leniently, judge, stated
from rlm.errors import InputError, run_main
from rlm.server.splitter import ANSWER, REASONING, Placed, Splitter
from training import tasks

DEMONSTRATION = ("Calculate 23 + 15 + 8", "Calculate 417 + 85 + 9", "Calculate 999 + 999 + 999")
TOOL = "tool"  # the channel of calls
DIM, BOLD, PLAIN = "\033[2m", "\033[1m", "\033[0m"


class Reasoner:
    """A model with its adapter, format and limits: what a question needs to be answered."""

    def __init__(self, settings):
        from rlm.engine.engine import Engine, Sampling
        from rlm.export.at_load import merged_at_load
        from rlm.models.lookup import adapter_kind
        from rlm.models.policy import open_policy

        again = partial(open_policy, settings.model, settings.adapter, **settings.loading())
        opened = again()
        if not settings.unmerged:
            opened = merged_at_load(opened, settings.format, again)
        self.opened, self.tokenizer = opened, opened.tokenizer
        self.format = formats.get_format(settings.format)
        self.engine = Engine(opened.model, opened.tokenizer, **settings.engine_options())
        known = adapter_kind(settings.adapter) if settings.adapter else None
        self.seed, self.kind = settings.seed, settings.answers or known or "number"
        shots = data.worked_examples(settings, [settings.adapter])
        self.task = tasks.task_of(settings, opened, shots)
        self.sampling = Sampling(
            settings.max_tokens, temperature=settings.temperature, tools=self.task.toolbox
        )
        limits = settings.max_tokens, self.engine.context_tokens
        tasks.check_shots(settings, self.task, *limits)

    def ask(self, question: str, show=None, *, kind: str | None = None, choices=()) -> dict:
        """Return reasoning, answer, text and calls of tools.

        show: `show(channel, delta)` sees the texts as they arrive, without the results of tools;
        these come as `show(TOOL, line)`. kind: of the answer that is asked for, by default that of
        the settings. own_text: the text without results, from which the answer is read.
        """
        kind = kind or self.kind
        prompt = self.task.prompt(question, kind)
        splitter, shown, calls = Splitter(self.format), {REASONING: "", ANSWER: ""}, []
        show = show or (lambda channel, delta: None)

        def take(deltas, seen=True):
            for channel, delta in deltas:
                shown[channel] += delta
                if seen:
                    show(channel, delta)

        take(splitter.feed(prompt.prefill))
        rollout = None
        for event in self.engine.events(prompt, self.sampling, seed=self.seed):
            call, rollout = event.call, event.rollout or rollout
            result = call.end - call.written if call else 0
            own = len(event.text) - result
            take(splitter.feed(event.text[:own]))
            if call:
                take(splitter.feed(event.text[own:]), seen=False)
                calls.append(call)
                failure = f" ({call.failure})" if call.failure else ""
                show(TOOL, f"{call.name or 'a call'}: {call.result}{failure}")
        take(splitter.finish())
        assert rollout is not None
        # What a tool wrote is no answer.
        own_text, finish = rollout.own_text, rollout.finish
        answer, reason = stated(own_text, self.format.name, kind, choices, finish=finish)
        return {
            "question": question,
            "reasoning": shown[REASONING],
            "answer": answer,
            "reason": reason,
            "text": rollout.text,
            "own_text": own_text,
            "tool_calls": [
                placed.told() for placed in map(splitter.place, calls) if isinstance(placed, Placed)
            ],
            "finish": finish,
        }


class Composer(Reasoner):
    """An orchestrator with its agents: writes a graph for each question, and runs it."""

    def __init__(self, settings):
        super().__init__(settings)
        self.format = formats.get_format(self.task.runner.format_name)

    def ask(self, question: str, show=None, *, kind: str | None = None, choices=()) -> dict:
        """Return graph, agents, answer and text; a graph that needs repairs is run and marked."""
        show = show or (lambda channel, text: None)
        prompt = self.task.prompt(question, kind or "number")
        ((rollout,),) = self.engine.generate([prompt], 1, self.sampling, seed=self.seed)
        reading, run, told = read_graph(rollout.text, self.task.limits), None, []
        repairs = f" (repaired: {', '.join(reading.repairs)})" if reading.repairs else ""
        show(f"Graph{repairs}", rollout.text)
        if reading.graph:
            (run,) = self.task.runner.run([(question, reading.graph)], seed=self.seed)
            for words in run.words:
                heard = f" reads {', '.join(words.agent.reads)}" if words.agent.reads else ""
                told.append((f"Agent {words.agent.id}{heard}: {words.agent.prompt}", words.output))
                show(*told[-1])
        text = run.text if run else ""
        finish = run.finish if run else "stop"
        answer, reason = stated(text, self.format.name, finish=finish)
        show(ANSWER, answer or "none")
        return {
            "question": question,
            "graph": reading.graph.model_dump() if reading.graph else None,
            "repairs": list(reading.repairs),
            "agents": run.records() if run else [],
            "reasoning": "\n".join(f"{title}\n{words}" for title, words in told),
            "answer": answer,
            "reason": reason if run else f"graph_{reading.reason}",
            "text": text,
            "finish": finish,
        }


def show_stream(channel_styles: bool):
    """Return a printer of deltas that sets the reasoning apart from the answer."""
    dim, bold, plain = (DIM, BOLD, PLAIN) if channel_styles else ("", "", "")
    state: dict[str, str | None] = {"channel": None, "line": None}

    def show(channel: str, delta: str) -> None:
        if channel == TOOL:  # a line of its own, inside whatever is shown
            delta = delta.replace("\x1b", "?").replace("\n", " ")
            print(f"{plain}\n  -> {delta}{dim}", end="", flush=True)
            state["line"] = TOOL
            return
        if state["line"] and channel == state["channel"] and not delta.startswith("\n"):
            print()
        state["line"] = None
        if channel != state["channel"]:
            state["channel"] = channel
            title = channel.capitalize() if channel in (REASONING, ANSWER) else channel
            title = title.replace("\x1b", "?")
            print(f"{plain}\n{bold}{title}{plain}\n{bold if channel == ANSWER else dim}", end="")
        print(delta.replace("\x1b", "?"), end="", flush=True)

    def end() -> None:
        print(f"{plain}\n", flush=True)
        state["channel"] = None

    return show, end


def answer_one(reasoner: Reasoner, question: str, as_json: bool) -> dict:
    """Ask one question and print it: as a stream for a person, as one line of JSON otherwise."""
    if as_json:
        result = reasoner.ask(question)
        print(json.dumps(result, ensure_ascii=False), flush=True)
        return result
    show, end = show_stream(sys.stdout.isatty())
    print(f"Question: {question}")
    result = reasoner.ask(question, show)
    end()
    if result["answer"] is None:
        print(f"(no answer could be read: {result['reason']})\n")
    return result


def interactive(reasoner: Reasoner, as_json: bool) -> None:
    """Ask until an empty line, "exit" or the end of the input; a bad question is no end."""
    while True:
        try:
            question = input("Question (empty line to end): " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if question.lower() in ("", "exit", "quit"):
            return
        try:
            answer_one(reasoner, question, as_json)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def batch(reasoner: Reasoner, settings) -> None:
    """Answer held-out questions of the task and judge them against their known answers.

    By both readings: right is the answer that stands where the format has it, right_lenient the
    last number of the text.
    """
    examples = data.examples_for(settings, "test", settings.num_samples)
    examples, _ = data.without(examples, reasoner.task.shots)
    right = lenient = 0
    for example in examples:
        result = reasoner.ask(example.question, kind=example.kind, choices=example.choices)
        finish = result["finish"]
        own = result.get("own_text", result["text"])  # what a tool wrote is not judged
        verdict = judge(example, own, reasoner.format.name, finish=finish)
        last = is_right_leniently(example, own)
        right, lenient = right + bool(verdict.right), lenient + last
        result |= {"gold": example.gold, "right": verdict.right, "right_lenient": last}
        if settings.json_output:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        else:
            mark = "right" if verdict.right else f"wrong, it is {example.gold}"
            print(f"{example.question}\n{result['reasoning']}\n-> {result['answer']} ({mark})\n")
    if not settings.json_output:
        print(f"{right} of {len(examples)} right, {lenient} by the last number")


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.InferenceSettings, argv)
    question = settings.prompt
    if question is None and not (settings.interactive or settings.batch) and not sys.stdin.isatty():
        question = sys.stdin.read().strip() or None
    if question is not None and not question.strip():
        raise InputError("the prompt is blank: give a question, e.g. 'Calculate 23 + 15 + 8'")
    from rlm.run.folder import start

    start(settings.model, **settings.process())
    reasoner = (Composer if settings.task == "orchestrator" else Reasoner)(settings)
    if settings.interactive:
        interactive(reasoner, settings.json_output)
    elif settings.batch:
        batch(reasoner, settings)
    else:
        for each in [question] if question else DEMONSTRATION:
            answer_one(reasoner, each, settings.json_output)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
