"""Checks of a new search that need neither torch nor Ray: common mistakes are refused in a fraction of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.paths import new_directory, output_directory
from dcml_tune.runs.record import refuse_existing
from dcml_tune.runs.storage import Storage
from dcml_tune.runs.storage_address import checked_address
from dcml_tune.runs.stored_record import refuse_stored

if TYPE_CHECKING:
    from dcml_tune.search.flags import CommandLine

# The settings that select the images: a data set that cannot be read is refused first of all.
OF_DATA = ("dataset_dir", "train_classes", "ratio_classes", "allow_partial", "strict")


def checked_settings(command_line: CommandLine) -> dict[str, Any]:
    """Return the settings that were given; name, output directory, settings and data set are checked.

    Raises:
        SettingError: if one of them cannot work.
    """
    config = command_line.config
    if config.dataset is None:
        raise SettingError("DATASET is not given; give one, such as emoji or folder, or --resume NAME")
    output = output_directory(config.output_dir)
    if config.name is not None:
        refuse_existing(new_directory(output, config.name))
    if config.storage is not None:
        address = checked_address(config.storage)
        if config.name is not None:
            refuse_stored(Storage(address), config.name)
    settings = command_line.checked_settings()
    of_data = {name: value for name, value in settings.items() if name in OF_DATA}
    data.load(TrialConfig(dataset=config.dataset, **of_data))
    return settings
