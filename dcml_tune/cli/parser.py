"""Flags made from the settings of TrialConfig, exit codes, and errors of one line.

Imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from dcml_tune import __version__
from dcml_tune.cli.quantities import shown
from dcml_tune.cli.streams import make_lenient
from dcml_tune.config.errors import SettingError, broken_bound
from dcml_tune.config.trial import WORDS_FOR_WEIGHTS, TrialConfig
from dcml_tune.runs.paths import absolute
from dcml_tune.utils import tracebacks
from dcml_tune.utils.openmp import let_threads_spin_briefly
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import is_shown, printable

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

BAD_INPUT = 2
"""Exit code: the input is invalid."""

UNEXPECTED = 1
"""Exit code: an unexpected error."""

_SIGINT = 130  # the exit code of shells for a command that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """A parser whose errors have one line, suggest the most similar flag, and exit with code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)
        self.add_argument("--version", action="version", version=f"dcml_tune {__version__}")

    def parse_args(  # type: ignore[override] # argparse has overloads for custom namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments. One with control characters or invalid UTF-8 is refused first: it could not be shown or pasted."""
        for word in sys.argv[1:] if args is None else args:
            if not all(map(is_shown, word)):
                fail(
                    f"{word}: holds a control character or bytes that are not UTF-8; rename the file, or give a link to it"
                )
        return super().parse_args(args, namespace)

    def given(self, argv: list[str]) -> dict[str, Any]:
        """The arguments that a command line gives, without defaults. The parser cannot be used again afterwards."""
        for action in self._actions:
            action.default = argparse.SUPPRESS
        return vars(self.parse_args(argv))

    def flags_and_settings(self, argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parse a command line.

        Returns:
            The command's own flags with their defaults, the data set included, and the settings of a trial that were
            given, not yet checked.
        """
        values = vars(self.parse_args(argv))
        own = {name for name in values if name == "dataset" or name not in TrialConfig.model_fields}
        return {name: values[name] for name in own}, {name: values[name] for name in values.keys() - own}

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            near = difflib.get_close_matches(unknown, list(self._option_string_actions), n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the known flags"
            message = f"setting {unknown} is not known; {hint}"
        # Errors of numbers have the form of all others: flag, value, rule.
        fail(re.sub(r"^argument (\S+?)(?:/\S+)?: (.*: )(?=must be|above)", r"\1 \2", message))


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Print an error of one line, without passwords, and exit; by default with code 2."""
    line = re.sub(r"\s*[\r\n]\s*", " ", message.strip())  # only line ends: a name may hold two spaces
    print(f"error: {printable(redact(line))}", file=sys.stderr)
    raise SystemExit(code)


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command and exit with its code.

    Invalid input is reported in one line, with exit code 2 (or that of the error). An unexpected error is reported in one line, with exit code 1;
    the line names the file that holds the traceback. Output that cannot be written is dropped.
    """
    make_lenient()
    let_threads_spin_briefly()
    threading.excepthook = lambda hook: _say_unexpected(hook.exc_value)
    try:
        raise SystemExit(main(sys.argv[1:]))
    except SettingError as error:
        fail(str(error), error.exit_code)
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
    """Add a flag for each setting of TrialConfig: `--nb-clusters` and `--nb_clusters` for `nb_clusters`."""
    group = parser.add_argument_group("settings of a trial", "defaults in brackets")
    for name, field in TrialConfig.model_fields.items():
        if name in exclude:
            continue
        flags = list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))
        about = f"{_help_text(field)} [{field.default}]".replace("%", "%%")
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


def _help_text(field: FieldInfo) -> str:
    """The docstring of a setting, and its choices if the docstring does not name them."""
    text = " ".join((field.description or "").split())
    choices = _choices(field.annotation)
    if any(each not in text for each in choices):
        optional = ["none"] if field.default is None else []
        text += f" One of {', '.join([*choices, *optional])}."
    return text


def _choices(annotation: Any) -> list[str]:
    """The values of a `Literal`, also of one that is optional or annotated."""
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    return [value for each in get_args(annotation) for value in _choices(each)]


def truth(text: str) -> bool:
    """Read a truth value: 0, 1, true, false, yes or no."""
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")


def given_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among the values of a command line, each validated and converted to its type.

    The path of a file of weights becomes absolute, because the trials of a search run in other directories.
    """
    given = {name: value for name, value in values.items() if name in TrialConfig.model_fields}
    given = {name: None if value in ("none", "None") and name != "weights" and name != "hierarchy_method" else value
             for name, value in given.items()}  # fmt: skip
    if given.get("weights", "") not in (*WORDS_FOR_WEIGHTS, ""):
        given["weights"] = str(absolute("--weights", given["weights"]))
    return {name: typed(name, value) for name, value in given.items()}


def typed(name: str, value: Any) -> Any:
    """The value of one setting, validated and converted to its type. Rules between settings are not checked.

    Raises:
        SettingError: if the setting cannot have this value.
    """
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
    """The flags that give these settings, as a list of words. `given_settings` reads them back."""
    flags: list[str] = []
    for name, value in settings.items():
        text = "none" if value is None else str(int(value)) if isinstance(value, bool) else str(value)
        flags += [f"--{name.replace('_', '-')}", text]
    return flags


def command(module: str, *words: str) -> str:
    """A command that can be pasted into a shell: this interpreter, a module, quoted words."""
    return shlex.join([sys.executable, "-m", module, *words])


def dashboard_command(study: str) -> str:
    """The command that opens a study in Optuna's dashboard.

    Args:
        study: SQLAlchemy address of the study.
    """
    return shlex.join([str(Path(sys.executable).parent / "optuna-dashboard"), study])
