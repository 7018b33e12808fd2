"""The searches that can be resumed, and the commands that resume them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from dcml_tune.cli.parser import command
from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import SPOOL
from dcml_tune.runs.record import Record, all_records
from dcml_tune.tracking import end_dead
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable

log = logging.getLogger(__name__)


def print_resumable(output: Path) -> None:
    """Print the searches that can be resumed, each with its command.

    Args:
        output: directory of all searches.
    """
    records, damaged = all_records(output)
    for line in damaged:
        print(printable(redact(line)))
    unfinished = [record for record in records if record.state.status != "finished"]
    for record in unfinished:
        try:
            _print_search(record)
        except Exception as error:  # an error in one search must not hide the others
            print(printable(redact(f"{record.name}: cannot be read ({type(error).__name__}: {error})")))
    if not unfinished:
        print(f"no search in {output} can be resumed; {len(records)} are finished")


def _print_search(record: Record) -> None:
    """Print the progress of an unfinished search and the command that resumes it."""
    state = record.state
    status = "running" if record.is_running() else "interrupted" if state.status == "running" else state.status
    if status == "interrupted":
        end_abandoned(record)
    best = "" if state.best is None else f", best {100 * state.best:.1f} %"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.changed))
    why = f" ({state.reason})" if state.reason else ""
    ended = f"{state.ended} of {state.planned} trials ended"
    print(printable(redact(f"{record.name}: {status}{why}, {ended}{best}, last seen {when}")))
    if status != "running":
        print("  " + printable(resume_command(record)))


def resume_command(record: Record) -> str:
    """Return the command that resumes a search."""
    words = ["--resume", record.name, "--output-dir", str(record.directory.parent)]
    if (storage := record.asked["flags"].get("storage")) is not None:
        words += ["--storage", storage]
    return command("dcml_tune.search", *words)


def end_abandoned(record: Record) -> None:
    """End the MLflow runs of a search whose process no longer exists; a resume reopens them.

    A search that another process runs is left alone, and one with --storage, which another machine may run. Errors are logged.
    """
    if record.asked["flags"].get("storage") is not None:
        return
    try:
        record.hold(waits=False)
    except SettingError:
        return
    try:
        if record.state.status == "running":
            end_dead(record.directory / SPOOL, reason="the process of the search is gone")
            record.update(status="interrupted", reason="its process is gone")
    except Exception as error:  # damaged files of one search must not end another
        log.warning("%s", printable(f"search {record.name}: its runs cannot be ended in MLflow ({error})"))
    finally:
        record.release()
