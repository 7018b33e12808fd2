"""Flags from the settings of TrialConfig, and errors of one line. Imports no torch: `--help` must be quick."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from dcml_tune import __version__
from dcml_tune.cli.quantities import shown
from dcml_tune.cli.streams import make_lenient
from dcml_tune.config.errors import SettingError, broken_bound
from dcml_tune.config.trial import WORDS_FOR_WEIGHTS, TrialConfig
from dcml_tune.runs.paths import absolute
from dcml_tune.utils import tracebacks
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import is_shown, printable

BAD_INPUT = 2
"""Exit code for input that cannot work."""

UNEXPECTED = 1
"""Exit code for an error that nobody expected."""

_SIGINT = 130  # what shells say of a command that Ctrl-C has ended


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line with the nearest known flag, and status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)
        self.add_argument("--version", action="version", version=f"dcml_tune {__version__}")

    def parse_args(  # type: ignore[override] # argparse has overloads for namespaces of one's own
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; a word that cannot be shown, written to a file and pasted is refused before anything else."""
        for word in sys.argv[1:] if args is None else args:
            if not all(map(is_shown, word)):
                fail(
                    f"{word}: holds a control character or bytes that are not UTF-8; rename what it means, or give a link to it"
                )
        return super().parse_args(args, namespace)

    def given(self, argv: list[str]) -> dict[str, Any]:
        """The arguments that a command line gives, without defaults. The parser is spent then: make a new one."""
        for action in self._actions:
            action.default = argparse.SUPPRESS
        return vars(self.parse_args(argv))

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and stop."""
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            near = difflib.get_close_matches(unknown, list(self._option_string_actions), n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the known flags"
            message = f"setting {unknown} is not known; {hint}"
        # A number's refusal, as all other ones: the flag, its value, the rule.
        fail(re.sub(r"^argument (\S+?)(?:/\S+)?: (.*: )(?=must be|above)", r"\1 \2", message))


def fail(message: str) -> NoReturn:
    """Print one line, without passwords, and exit with the status of bad input."""
    line = re.sub(r"\s*[\r\n]\s*", " ", message.strip())  # only ends of lines: a name may hold two spaces
    print(f"error: {printable(redact(line))}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command, and exit with its code.

    Bad input ends it with one line and code 2, an error that nobody expected with one line and code 1; the traceback is in
    the file that the line names. What standard output or error do not take is dropped.
    """
    make_lenient()
    threading.excepthook = lambda hook: _say_unexpected(hook.exc_value)
    try:
        raise SystemExit(main(sys.argv[1:]))
    except SettingError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped (SIGINT)", file=sys.stderr)
        raise SystemExit(_SIGINT) from None
    except Exception as error:
        _say_unexpected(error)
        raise SystemExit(UNEXPECTED) from None


def _say_unexpected(error: BaseException | None) -> None:
    if error is not None:
        print(f"error: unexpected {tracebacks.one_line(error)}; {tracebacks.where(error)}", file=sys.stderr)


def add_settings(parser: argparse.ArgumentParser, *, exclude: Collection[str] = ()) -> None:
    """Add one flag for each setting of TrialConfig, `nb_clusters` as `--nb-clusters` (or `--nb_clusters`)."""
    group = parser.add_argument_group("settings of a trial", "each takes its default unless its flag is given")
    for name, field in TrialConfig.model_fields.items():
        if name in exclude:
            continue
        flags = list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))
        about = " ".join((field.description or "").split()).replace("%", "%%") + f" [{field.default}]"
        if field.annotation is bool:
            group.add_argument(
                *flags,
                dest=name,
                nargs="?",
                const=True,
                type=truth,
                metavar="0|1",
                default=argparse.SUPPRESS,
                help=about,
            )
        else:
            metavar = name.rsplit("_", 1)[-1].upper()
            group.add_argument(*flags, dest=name, metavar=metavar, default=argparse.SUPPRESS, help=about)


def truth(text: str) -> bool:
    """Read 0 and 1, and words for them."""
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings whose flags were given, checked one by one and turned into their types.

    A file of weights has its whole path: a trial of a search runs in another directory.
    """
    given = {name: value for name, value in vars(arguments).items() if name in TrialConfig.model_fields}
    given = {name: None if value in ("none", "None") and name != "weights" and name != "hierarchy_method" else value
             for name, value in given.items()}  # fmt: skip
    if given.get("weights", "") not in (*WORDS_FOR_WEIGHTS, ""):
        given["weights"] = str(absolute("--weights", given["weights"]))
    return {name: typed(name, value) for name, value in given.items()}


def typed(name: str, value: Any) -> Any:
    """The value of one setting in its type; rules between settings are checked when all are known."""
    from pydantic import ValidationError

    field = TrialConfig.model_fields[name]
    try:
        return _adapter(name).validate_python(value)
    except ValidationError as error:
        message = f"{name}={shown(str(value))}: {broken_bound(error)}; the default is {field.default!r}"
        raise SettingError(message) from None


@cache
def _adapter(name: str) -> Any:
    from typing import Annotated

    from pydantic import TypeAdapter

    field: Any = TrialConfig.model_fields[name]
    annotated: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(annotated)


def settings_to_flags(settings: dict[str, Any]) -> list[str]:
    """Flags that give these settings; None and truth values are written so that they are read back."""
    flags: list[str] = []
    for name, value in settings.items():
        text = "none" if value is None else str(int(value)) if isinstance(value, bool) else str(value)
        flags += [f"--{name.replace('_', '-')}", text]
    return flags


def command(module: str, *words: str) -> str:
    """A command to paste: this interpreter, a module, quoted words."""
    return shlex.join([sys.executable, "-m", module, *words])


def dashboard_command(study: str) -> str:
    """The command that opens a study in Optuna's dashboard.

    Args:
        study: its SQLAlchemy address.
    """
    return shlex.join([str(Path(sys.executable).parent / "optuna-dashboard"), study])
