"""The numbers of a trial's starts: each process that Tune starts for a trial gets a higher one (`dcml_tune.runs.attempts`).

Tune of Ray 2.60 makes the arguments of a process in one function, for the first start and for each retry. Callbacks see a
start only when the process runs, so this function is wrapped while trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.execution import tune_controller

from dcml_tune.runs.attempts import next_attempt
from dcml_tune.utils.signals import SearchStopped
from trainables.run import run_of, with_attempt


@contextmanager
def numbered_starts(check: Callable[[], None]) -> Iterator[None]:
    """Number the starts of trials in this block.

    Args:
        check: called before each; raises if another driver runs the search now.
    """
    module: Any = tune_controller
    arguments_of = module._get_trainable_kwargs

    def numbered(trial: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = arguments_of(trial)
        directory = run_of(trial.config).directory
        if directory is not None:
            check()
            arguments["config"] = with_attempt(arguments["config"], _next(Path(directory)))
        return arguments

    module._get_trainable_kwargs = numbered
    try:
        yield
    finally:
        module._get_trainable_kwargs = arguments_of


def _next(directory: Path) -> int:
    try:
        return next_attempt(directory)
    except OSError as error:
        raise SearchStopped(f"{error.filename or directory} cannot be written ({error.strerror})") from None
