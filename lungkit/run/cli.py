"""The command line every stage shares: option types, presets, exit statuses, signals.

Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lungkit.run import ranks
from lungkit.run.faults import (
    BAD_OPTIONS,
    COMPLETE,
    FAILED,
    STOPPED,
    BadOptions,
    Fault,
    Overtaken,
    Stopped,
    ToldByAnother,
    forget_signals,
    note_signal,
    one_line,
)


def main(parser: argparse.ArgumentParser, run: Callable, argv: list[str] | None) -> int:
    """Parse `argv`, call `run(**options)` and turn faults into one line and an exit status."""
    try:
        with ranks.first_speaks():
            options = vars(parser.parse_args(argv))
    except SystemExit as end:
        return int(end.code or 0)
    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        try:
            previous[number] = signal.signal(number, note_signal)
        except ValueError:  # not the main thread: the caller owns the signals
            break
    name = ranks.named(parser.prog)
    try:
        try:
            run(**options)
        except Overtaken:
            run(**options)
    except Fault as fault:
        print(f"{name}: error: {one_line(fault)}", file=sys.stderr)
        return BAD_OPTIONS if isinstance(fault, BadOptions) else FAILED
    except Stopped as stop:
        print(f"{name}: {one_line(stop)}", file=sys.stderr)
        return STOPPED
    except ToldByAnother as told:
        return told.status
    except (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        if error.filename is None:
            raise
        print(f"{name}: error: {error.strerror}: {one_line(repr(str(error.filename)))}: "
              "check that the path is there and readable", file=sys.stderr)
        return FAILED
    except OSError as error:
        import errno
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if error.filename is None:
                raise
            print(f"{name}: error: {error.strerror}: {one_line(repr(str(error.filename)))}: "
                  "look at this file or its disk", file=sys.stderr)  # a loop of links, a bad block
            return FAILED
        print(f"{name}: error: {error.strerror}: {error.filename or 'while writing'}: "
              "free some space or choose another --output", file=sys.stderr)
        return FAILED
    except Exception as error:
        if _tells_of_full_memory(error):
            print(f"{name}: error: out of memory ({one_line(str(error).partition('. ')[0])}): "
                  f"{_what_to_do(error, options)}", file=sys.stderr)
            return FAILED
        if not _tells_of_a_full_disk(error):
            raise
        print(f"{name}: error: no space left while a model was written ({one_line(error)}): "
              "free some space or choose another --output", file=sys.stderr)
        return FAILED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        forget_signals()  # they were meant for this run
    return COMPLETE


def _tells_of_a_full_disk(error: BaseException | None) -> bool:
    """Whether a library's own error, that has lost its errno, comes of a full disk or quota.

    safetensors' ends in the number; PyTorch's stream writer says only how far it came.
    """
    while error is not None:
        if any(words in str(error) for words in (
                "No space left on device", "quota exceeded", "os error 28)", "os error 122)",
                "PytorchStreamWriter failed", ". unexpected pos")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tells_of_full_memory(error: Exception) -> bool:
    """Whether it is Python's, numpy's or PyTorch's way to say so, of a GPU or of the host."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _what_to_do(error: Exception, options: dict) -> str:
    names = [f"--{name.replace('_', '-')}" for name in ("batch_size", "workers", "image_size")
             if name in options]
    remedy = getattr(error, "remedy", f"lower {' or '.join(names)}" if names else "")
    if not remedy:
        return "give this stage a machine with more"
    return f"{remedy}, or give it more (a GPU that nobody else uses, --mem)"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Show each option's default unless it is None or already stated."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = any(action.default is value for value in (None, argparse.SUPPRESS, False))
        if not unsaid and "default" not in text:  # 0 is a default like any other
            text += " (default: %(default)s)"
        return text


def stage_parser(prog: str, doc: str) -> argparse.ArgumentParser:
    """A parser whose --help is the module's docstring; a typo is never a guessed option."""
    return argparse.ArgumentParser(
        prog=prog, description=doc, allow_abbrev=False, formatter_class=_Formatter)


def add_common(parser: argparse.ArgumentParser, *, presets: dict | None = None,
               seed: bool = True, device: bool = True, overwrite: bool = True) -> None:
    """Add the options spelled alike in every stage."""
    if presets is not None:
        parser.add_argument("--preset", choices=sorted(presets), default="demo",
                            help="demo: two CPU cores, minutes; full: one modern GPU. "
                                 "Fills the options not given; an explicit option wins")
    if seed:
        parser.add_argument("--seed", type=non_negative_int, default=0, metavar="INT",
                            help="seed of every random draw")
    if device:
        group = parser.add_argument_group("Performance")
        group.add_argument("--device", default="auto", metavar="NAME",
                           help="auto, cpu, cuda or cuda:N (auto: cuda where there is one)")
    group = parser.add_argument_group("Run")
    if overwrite:
        group.add_argument("--overwrite", action="store_true",
                           help="discard what another set of options made here and start again")
    group.add_argument("--dry-run", action="store_true",
                       help="check everything, input data included, print the plan, write nothing")


def fill_preset(options: dict, presets: dict) -> dict:
    """Return `options` with every None that the chosen preset knows replaced by its value."""
    preset = presets[options["preset"]]
    return {name: preset.get(name) if value is None else value for name, value in options.items()}


# ------------------------------------------------------------------ option types

def positive_int(text: str) -> int:
    value = _number(int, text, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def non_negative_int(text: str) -> int:
    value = _number(int, text, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def positive_float(text: str) -> float:
    value = _number(float, text, "a number")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def non_negative_float(text: str) -> float:
    value = _number(float, text, "a number")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def fraction(text: str) -> float:
    value = _number(float, text, "a number")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def fold(text: str) -> tuple[int, int]:
    """`k/K` -> fold k of K, counted from 1."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not k/K, fold k of K, as 2/5")
    number, count = map(int, parts)
    if count < 3:
        raise argparse.ArgumentTypeError(f"{text}: at least 3 folds are needed, one each for test "
                                         "and val and the rest for train")
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text}: folds are counted from 1 to {count}")
    return number, count


def channel(text: str) -> int | str:
    """A channel's number, counted from 0, or its name."""
    if text.lstrip("-").isdigit():
        return non_negative_int(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty")
    return text


def repeat_range(text: str) -> range:
    """`N` -> repeats 0..N-1; `A-B` -> repeats A..B, both included."""
    first, dash, last = text.partition("-")
    if dash:
        low, high = non_negative_int(first), non_negative_int(last)
        if high < low:
            raise argparse.ArgumentTypeError(f"{text}: {high} comes before {low}")
        return range(low, high + 1)
    return range(positive_int(text))


def directory(text: str) -> Path:
    """A path that shall be a directory; whether it is one is the stage's question."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    if "\n" in text:
        raise argparse.ArgumentTypeError("holds a line break")
    return Path(text)


def file_sha256(path: Path | None, option: str) -> str | None:
    """SHA-256 of an option's file, which is what its value means; None of None. Raises Fault."""
    from lungkit.run.files import sha256_file

    if path is None:
        return None
    if not path.is_file():
        raise Fault(f"{option} {path} is not a file")
    return sha256_file(path)


def _number(kind: Callable, text: str, wanted: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
