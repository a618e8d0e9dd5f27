"""Wrong input, told in one line; everything else is a bug and keeps its traceback."""

import sys

LONGEST = 1000  # characters of a message; what was given may have a million


class InputError(ValueError):
    r"""What the user gave cannot work: what was given, what is allowed, what to do.

    Always one line: what does not print (a line break, an escape, half a character) is spelled
    out, and a text that is too long loses its middle.

    >>> print(InputError("--task a\nb: unknown; use addition"))
    --task a\nb: unknown; use addition
    """

    def __init__(self, message: str):
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        super().__init__(text)


def run(main) -> int:
    """Return the exit code of a script: 2 for an InputError (one line), 130 after Ctrl-C."""
    try:
        return main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (as with `| head`): nothing is left to say.
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
