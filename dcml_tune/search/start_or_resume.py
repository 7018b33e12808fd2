"""--start-or-resume: one command that starts a search, resumes it, or finds it complete."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.paths import new_directory, output_directory
from dcml_tune.runs.record import is_search
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.storage_address import checked_address
from dcml_tune.runs.stored_record import is_stored

if TYPE_CHECKING:
    from dcml_tune.config.search import SearchConfig
    from dcml_tune.search.flags import CommandLine

_FLAG = "--start-or-resume"
_OTHERS = ("resume", "extend", "more_final_seeds", "repeat_trial")


def refuse_other_commands(config: SearchConfig) -> None:
    """Refuse flags that say something else than --start-or-resume.

    Raises:
        SettingError: if there are any, or --name gives another name.
    """
    name = config.start_or_resume
    if also := [flag for flag in _OTHERS if getattr(config, flag) is not None]:
        raise SettingError(f"{_FLAG} {name}: does not go together with --{also[0].replace('_', '-')}; give one of them")
    if config.name not in (None, name):
        raise SettingError(f"{_FLAG} {name}: --name {config.name} is another name; leave --name out")


def new_or_resumed(command_line: CommandLine) -> CommandLine:
    """Return the command line with --name for a search that does not exist yet, or with --resume for one that does.

    Raises:
        SettingError: if the name is not valid for a search.
    """
    config = command_line.config
    name = config.start_or_resume or ""
    directory = new_directory(output_directory(config.output_dir), name, flag=_FLAG)
    is_known = is_search(directory)
    if not is_known and config.storage is not None:
        is_known = is_stored(Storage(checked_address(config.storage)), name)
    if is_known:
        return replace(command_line, config=config.model_copy(update={"resume": name}))
    with suppress(OSError):
        directory.rmdir()  # only if it is empty: then a process was killed right after it had created it
    return replace(command_line, config=config.model_copy(update={"name": name}))
