"""How a script ends: wrong input, a full disk or a stop in one line; a bug keeps its traceback."""

import errno
import os
import shlex
import sys

# What the machine refuses and no line of ours can mend.
DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
}  # fmt: skip
LONGEST = 1000  # characters of a message; what was given may have a million


class InputError(ValueError):
    r"""What the user gave cannot work: what was given, what is allowed, what to do.

    Always one line: what does not print (a line break, an escape, half a character) is spelled
    out, and a text of more than `longest` characters loses its middle.

    >>> print(InputError("--task a\nb: unknown; use addition"))
    --task a\nb: unknown; use addition
    """

    def __init__(self, message: str, *, longest: int = LONGEST):
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
        if len(text) > longest:
            text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
        super().__init__(text)


class Stopped(Exception):
    """A run that was asked to end and has saved itself; the message says how to go on."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code  # the exit code: 130 after Ctrl-C, 143 after SIGTERM


class RunError(RuntimeError):
    """A run that cannot go on through no fault of the input; the message says what to do."""


def command(argv: list[str]) -> str:
    """Return the command line of a Python script, ready to be pasted.

    Where torchrun has started several processes, it does so again; on several machines each
    needs its own line, so only the script's is told.

    >>> command(["train.py", "--run", "my run"])
    "python train.py --run 'my run'"
    """
    script = argv[0] and min(argv[0], os.path.relpath(argv[0]), key=len)
    count = os.environ.get("WORLD_SIZE", "1")
    start = ["python"]
    if count != "1" and os.environ.get("LOCAL_WORLD_SIZE") == count:
        start = ["torchrun", "--standalone", "--nproc_per_node", count, "--"]
    return shlex.join([*start, script, *argv[1:]])


def run_main(main) -> int:
    """Return the exit code of a script.

    2 for an InputError, 1 for a RunError or a disk that refuses, each told in one line; 130 or
    143 for a run that was stopped, 130 after Ctrl-C elsewhere.
    """
    try:
        return main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except BrokenPipeError:
        # The reader of our output has gone (as with `| head`): nothing is left to say.
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(
            f"error: {error.filename or 'a file'}: {error.strerror}; what was saved before is "
            f"whole. Make room or give another folder, then go on with: {command(sys.argv)}",
            file=sys.stderr,
        )
        return 1
