"""`python -m dcml_tune.search DATASET`: search the settings of a data set and score the best one on the test classes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dcml_tune.cli.parser import run_command
from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import TRIALS, named_directory, output_directory
from dcml_tune.runs.storage import StorageError
from dcml_tune.search.flags import CommandLine, read_command_line
from dcml_tune.search.mps import stop_mps
from dcml_tune.search.outcome import EXIT_INCOMPLETE, EXIT_OK
from dcml_tune.search.request import SearchCompleteError
from dcml_tune.search.start_or_resume import new_or_resumed, refuse_other_commands
from dcml_tune.tracking.uris import tracking_uri
from dcml_tune.utils.signals import SearchStopped, signal_handled, stopped_by_signals
from dcml_tune.utils.stored import printable

if TYPE_CHECKING:
    from dcml_tune.search.plan import Plan
    from trainables import DivideAndConquer


def main(argv: list[str], trainable: type[DivideAndConquer] | None = None) -> int:
    """Check everything, search, score, and print the outcome.

    Args:
        argv: the command line.
        trainable: a subclass of DivideAndConquer to train instead.

    Returns:
        The exit code: 0 complete, 3 incomplete or interrupted.

    Raises:
        SettingError: for input that cannot work (exit code 2).
        SearchRunningError: if another process runs the search (exit code 4).
    """
    # Imported when needed, here and below: `--help` must not wait for torch and Ray.
    command_line = read_command_line(argv)
    config = command_line.config
    if config.start_or_resume is not None:
        refuse_other_commands(config)
    if config.resume == "" and not config.submit:
        from dcml_tune.search.resumable import print_resumable

        print_resumable(output_directory(config.output_dir))
        return EXIT_OK
    with stopped_by_signals():
        try:
            if config.submit:
                from dcml_tune.search.submit import submit

                return submit(argv, command_line)
            if config.repeat_trial is not None:
                return _repeat(command_line, config.repeat_trial)
            return _search(command_line, trainable)
        except (SearchStopped, StorageError) as stop:  # before the search began
            signal_handled()
            print(f"stopped ({stop})", file=sys.stderr)
            return EXIT_INCOMPLETE


def _search(command_line: CommandLine, trainable: type[DivideAndConquer] | None) -> int:
    """Check a search, print its plan and run it; returns the exit code."""
    try:
        plan = _checked(command_line)

        from dcml_tune.search.console import plan_text
        from dcml_tune.search.runner import SearchRunner

        print(plan_text(plan), flush=True)
        return EXIT_OK if command_line.config.dry_run else SearchRunner(plan, trainable).run()
    except SearchCompleteError as complete:
        if command_line.config.start_or_resume is None:
            raise
        print(printable(complete.line))
        return EXIT_OK
    finally:
        stop_mps()


def _repeat(command_line: CommandLine, name: str) -> int:
    """Repeat a trial, named by SEARCH/KEY, by a path or by the id of its MLflow run; returns the exit code."""
    from dcml_tune.search.repeat import repeat

    output, name = output_directory(command_line.config.output_dir), name.rstrip("/")
    search, _, key = name.rpartition("/")
    if search:  # otherwise the id of an MLflow run
        directory = named_directory("--repeat-trial", search.removesuffix(f"/{TRIALS}"), output)
        output, name = directory.parent, f"{directory.name}/{key}"
    uri = tracking_uri(command_line.config.tracking_uri, output)
    moved_to = command_line.settings.get("dataset_dir")
    return repeat(name, uri=uri, output=output, scratch=command_line.config.scratch, dataset_dir=moved_to)


def _checked(command_line: CommandLine) -> Plan:
    """Return the checked plan of a new, resumed or extended search."""
    config = command_line.config
    if config.start_or_resume is not None:
        command_line = new_or_resumed(command_line)
        config = command_line.config
    if config.resume is not None and config.extend is not None:
        raise SettingError("--resume and --extend: give only one of them; --extend resumes the search, too")
    if config.more_final_seeds is not None and config.extend is None:
        raise SettingError(
            f"--more-final-seeds {config.more_final_seeds}: adds seeds to a finished search; give --extend NAME with it, or "
            "--final-seeds for a new search"
        )
    if config.resume is not None or config.extend is not None:
        from dcml_tune.search.resume import resumed_plan

        return resumed_plan(command_line)
    from dcml_tune.search.early_checks import checked_settings

    settings = checked_settings(command_line)  # before the imports of torch and Ray, which take seconds

    from dcml_tune.search.plan import given_plan

    return given_plan(command_line, settings)


if __name__ == "__main__":
    run_command(main)
