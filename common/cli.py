"""A command line made from frozen dataclasses: one a command, each field an option with its help and its check."""

import argparse
import dataclasses
import inspect
import math
import os
import signal
import sys
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from common.errors import Interrupted, ProcessLost, UserError

ROOT = Path(__file__).resolve().parent.parent
MISTAKE, INTERRUPTED = 2, 130
OTHERS_WAIT = 30  # seconds

Check = Callable[[Any, str], None]


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    check: Check | None = None,
    positional: bool = False,
    compared: bool = True,
    **argparse_options: Any,
) -> Any:
    """A dataclass field that is also an option of the command line; without a default it must be given.

    Args:
        check: called with a value that is not None and the field's name; raises UserError.
        positional: given by its place, not by its name.
        compared: a resumed run must share it with the run it goes on from.
        argparse_options: passed to `add_argument`.
    """
    how = {"help": help, "check": check, "positional": positional, "compared": compared, "argparse": argparse_options}
    return dataclasses.field(default=default, metadata=how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A dataclass of options that checks each of them, from the command line and from Python alike."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), field.metadata.get("check")
            choices = field.metadata.get("argparse", {}).get("choices")
            if choices and value is not None and value not in choices:
                raise UserError(f"must be one of {', '.join(choices)}, not {value}", field.name)
            if check and value is not None:
                check(value, field.name)

    def compared(self) -> dict[str, Any]:
        """The options that a resumed run must share with the run it goes on from."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("compared", True)}


def at_least(lowest: float) -> Check:
    """A check that a value is `lowest` or more, and finite."""
    return _checked(lambda value: lowest <= value < math.inf, f"{lowest} or more")


def above(lowest: float) -> Check:
    """A check that a value is above `lowest`, and finite."""
    return _checked(lambda value: lowest < value < math.inf, f"above {lowest}")


def between(lowest: float, highest: float) -> Check:
    """A check that a value is from `lowest` to `highest`."""
    return _checked(lambda value: lowest <= value <= highest, f"from {lowest} to {highest}")


def within(lowest: float, highest: float) -> Check:
    """A check that a value is from `lowest` to below `highest`."""
    return _checked(lambda value: lowest <= value < highest, f"from {lowest} to below {highest}")


def _checked(holds: Callable[[float], bool], words: str) -> Check:
    def check(value: float, name: str) -> None:
        if not holds(value):
            raise UserError(f"must be {words}, not {value}", name)

    return check


def names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated option."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise UserError(f'"{text}" names none')
    return found


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake said in one sentence rather than under a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(command: type, arguments: Sequence[str], program: str, description: str) -> Any:
    """The instance of a command's dataclass that the arguments describe."""
    described = inspect.cleandoc(description)
    parser = Parser(program, description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, owners = typing.get_type_hints(command), {}
    for owner in command.__mro__:  # an option belongs to the class that first had it
        owners |= dict.fromkeys(vars(owner).get("__annotations__", {}), owner)
    for owner in dict.fromkeys([command, *command.__mro__]):  # a command's own options come first
        own = [f for f in dataclasses.fields(command) if owners[f.name] is owner and "help" in f.metadata]
        group = parser if owner is command or not own else parser.add_argument_group(owner.__doc__.splitlines()[0][:-1])
        for field in own:
            _add_option(group, field, hints[field.name])
    values = vars(parser.parse_args(arguments))
    return command(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _add_option(group: Any, field: dataclasses.Field, hint: Any) -> None:
    """One argparse argument from a field: its name, type and default, and what its `option` says."""
    how = dict(field.metadata["argparse"])
    kind = next((t for t in typing.get_args(hint) if t not in (type(None), ...)), hint)
    required = field.default is dataclasses.MISSING
    shown = how.pop("shown", None if required or field.default in (None, False, ()) else field.default)
    help_text = field.metadata["help"] + (f" (default: {shown})" if shown is not None else "")
    if hint is bool:
        how["action"] = "store_true"
    elif kind is not str or "type" in how:
        how["type"] = _converter(how.get("type", kind))
    if hint is not bool and "choices" not in how:
        how.setdefault("metavar", field.name.upper() if kind is str else kind.__name__.upper())
    if field.metadata["positional"]:
        group.add_argument(field.name, help=help_text, **how)
        return
    if required:
        how["required"] = True
    else:
        how["default"] = list(field.default) if how.get("action") == "append" else field.default
    group.add_argument("--" + field.name.replace("_", "-"), help=help_text, **how)


def _converter(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """`convert` with its UserError in the form that argparse passes on."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(error.message) from None

    converted.__name__ = convert.__name__
    return converted


def run_command(arguments: Sequence[str], program: str, show: type, commands: Mapping[str, type], help: str) -> None:
    """Run the command that the first argument names; without one, `show`."""
    named = bool(arguments) and not arguments[0].startswith("-")
    if named and arguments[0] not in commands:
        raise UserError(f'no command "{arguments[0]}" (there are: {", ".join(commands)}; see {program} --help)')
    if named:
        command = commands[arguments[0]]
        parse(command, arguments[1:], f"{program} {arguments[0]}", command.__doc__).run()
    else:
        parse(show, arguments, program, help).run()


def only_help(module: str) -> bool:
    """Whether a module is the program, and was asked for nothing but help: that needs no library that loads slowly."""
    words = sys.argv[1:]
    options = words[: words.index("--")] if "--" in words else words
    return module == "__main__" and ("-h" in options or "--help" in options)


@contextmanager
def interrupted_hint(hint: str) -> Iterator[None]:
    """Add to the message of an Interrupted how the user goes on."""
    try:
        yield
    except Interrupted as stop:
        raise type(stop)(f"{stop}; {hint}") from stop


def is_main_process() -> bool:
    """Whether this process speaks and writes for all: the first of those that torchrun or accelerate launched."""
    return int(os.environ.get("RANK", "0")) == 0


def progress_bar(total: int | None, unit: str, description: str, done: int = 0) -> tqdm:
    """A bar with rate and time left on a terminal; a line now and then where the output goes to a file."""
    shown = {"dynamic_ncols": True, "mininterval": 0.1 if sys.stderr.isatty() else 20}
    return tqdm(total=total, initial=done, unit=unit, desc=description, disable=not is_main_process(), **shown)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or a termination signal asks for a stop; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may handle signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main: Callable[[Sequence[str]], None], program: str) -> NoReturn:
    """Run a script's `main(arguments)` and leave with its exit code: 0, 2 for a user's mistake, 130 for a stop."""

    def say(message: object) -> None:
        if is_main_process():
            print(message, file=sys.stderr)

    def say_first(message: str) -> None:
        """Let the main process speak first: the launcher then ends the others. Speak where it has not."""
        if not is_main_process():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            time.sleep(OTHERS_WAIT)
        print(message, file=sys.stderr)

    warnings.showwarning = lambda message, category, *_: say(
        f"{program}: {'note' if issubclass(category, UserWarning) else category.__name__}: {message}"
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The number of unique classes is greater")  # scikit-learn's guess
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
    if not is_main_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (open to the end)
    elif not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # as all files are, whatever the system writes otherwise
    try:
        main(sys.argv[1:])
    except UserError as error:
        option = f"--{error.argument.replace('_', '-')}: " if error.argument else ""
        say_first(f"{program}: {option}{error.message}")
        sys.exit(MISTAKE)
    except ProcessLost as stop:
        say_first(f"\n{program}: {stop}")
        sys.exit(INTERRUPTED)
    except Interrupted as stop:
        say(f"\n{program}: {stop}")
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        say(f"\n{program}: stopped; nothing half-written was left behind")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: that is no error. Python would still flush at exit.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)
