"""Wrong input, told in one line; everything else is a bug and keeps its traceback."""

import sys


class InputError(ValueError):
    """What the user gave cannot work: what was given, what is allowed, what to do."""


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
