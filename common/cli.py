"""What the three command lines share: options made from dataclasses, and a user's mistake as one sentence."""

import argparse
import dataclasses
import signal
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
MISTAKE, INTERRUPTED = 2, 130


class UserError(ValueError):
    """Something only the user can put right. The message says what is wrong, where, and what would be right."""


class Interrupted(Exception):
    """Work was stopped on request, at a point from which it can go on. The message says how."""


def option(default: Any, help: str, **choices: Any) -> Any:
    """A dataclass field that `add_options` turns into a command line option with this help text."""
    return dataclasses.field(default=default, metadata={"help": help, **choices})


def add_options(parser: argparse.ArgumentParser, config_class: type, **defaults: Any) -> None:
    """Add one `--option` for each field of a configuration dataclass; `defaults` override the field's own."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if "help" not in field.metadata:
            continue
        kind = next((t for t in typing.get_args(hints[field.name]) if t is not type(None)), hints[field.name])
        default = defaults.get(field.name, field.default)
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=default,
            choices=field.metadata.get("choices"),
            metavar=None if "choices" in field.metadata else kind.__name__.upper(),
            help=field.metadata["help"] + shown,
        )


def config_from(arguments: argparse.Namespace, config_class: type) -> Any:
    """The configuration dataclass that the parsed options describe."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{name: value for name, value in vars(arguments).items() if name in names})


def names(text: str) -> list[str]:
    """The names in a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]


def refuse_several(arguments: argparse.Namespace, *options: str) -> None:
    """UserError where more than one of these options is given, each of which says what to start from."""
    given = [option for option in options if getattr(arguments, option.strip("-").replace("-", "_"))]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say what to start from: choose one")


def progress_bar(total: int | None, unit: str, description: str, done: int = 0) -> tqdm:
    """A bar with rate and time left on a terminal; a line now and then where the output goes to a file."""
    interval = 0.1 if sys.stderr.isatty() else 20
    return tqdm(total=total, initial=done, unit=unit, desc=description, dynamic_ncols=True, mininterval=interval)


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake said in one sentence rather than under a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[Sequence[str]], None], program: str) -> NoReturn:
    """Run a script's `main(arguments)` and leave with its exit code: 0, 2 for a user's mistake, 130 for a stop."""
    warnings.showwarning = lambda message, category, *_: print(
        f"{program}: {'note' if issubclass(category, UserWarning) else category.__name__}: {message}",
        file=sys.stderr,
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except Interrupted as stop:
        print(f"\n{program}: {stop}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print(f"\n{program}: stopped; nothing half-written was left behind", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: that is no error. Python would still flush at exit.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.stderr.close()
        sys.exit(0)
    sys.exit(0)
