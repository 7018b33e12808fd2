"""Flags of the original implementation that are not settings of a trial, and its defaults that differ from ours.

Settings have the original's names in `TrialConfig`, which also accepts its names of choices (`MarginLoss`). Source: the
flags of the original's script, which docs/settings.md lists.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from dcml_tune.cli.parser import truth
from dcml_tune.cli.quantities import whole
from dcml_tune.config.errors import SettingError

DEFAULTS: dict[str, Any] = {"dataset": "cub", "masks_freeze_one_cluster": False}
"""The original's defaults that differ from those of TrialConfig."""

DATA_PATH = "DataPath"
"""The folder of the working directory in which the original looks for data sets."""

_WITHOUT_MEANING = {
    "--init-clusters": "--hierarchy-method defines the number of clusters at the start",
    "--with-l1": "the original ignores it as well",
    "--is-debug": "the logs contain this information",
    "--verbose": "one line for each epoch is always printed",
    "--reset-learners-fix": "the optimiser state of the masks always starts anew at a division",
    "--save-masks": "every checkpoint contains the masks",
}


@dataclass(frozen=True, kw_only=True)
class ReferenceFlags:
    """The values of these flags, with those of the data set and of the run's name."""

    dataset: str | None
    """The data set that was named by position."""
    name: str | None
    """Value of --name."""
    dataset_flag: str | None
    experiment: str | None
    log_dir: str | None
    checkpoint: str | None
    restart_schedule: bool
    save_model: int
    wandb_enabled: bool
    cuda_device: int | None
    without_meaning: tuple[str, ...]
    """The given flags that have no meaning here."""

    @property
    def chosen_dataset(self) -> str:
        """The data set, named by position or by flag; by default the original's.

        Raises:
            SettingError: if both are given and differ.
        """
        by_place, by_flag = self.dataset, self.dataset_flag
        if by_place and by_flag and by_place != by_flag:
            raise SettingError(f"--dataset {by_flag}: data set {by_place} is named, too; name one of them")
        return by_place or by_flag or str(DEFAULTS["dataset"])

    @property
    def run_name(self) -> str | None:
        """The run's name: that of --name, or of --log-dir and --experiment-id; None if none of them is given."""
        if self.name is not None:
            return self.name
        return "-".join(part for part in (self.log_dir, self.experiment) if part) or None

    @property
    def device(self) -> str | None:
        """The device that --cuda-device names; None: the first GPU, or the CPU if there is no GPU.

        Raises:
            SettingError: if this machine has GPUs, but not this one.
        """
        import torch

        number, there = self.cuda_device, torch.cuda.device_count()
        if number is None or there == 0:
            return None
        if not 0 <= number < there:
            raise SettingError(f"--cuda-device {number}: there are {there} GPUs here; give 0 to {there - 1}")
        return f"cuda:{number}"

    def ignored(self) -> list[str]:
        """One line that names the given flags that have no meaning here; no line if there are none."""
        given = [f"{flag} ({_WITHOUT_MEANING[flag]})" for flag in self.without_meaning]
        return [f"ignored here: {'; '.join(given)}"] if given else []


def take_without_meaning(values: dict[str, Any]) -> tuple[str, ...]:
    """Remove the flags that have no meaning here from the values of a command line, and return those that were given."""
    missing = object()
    return tuple(
        flag for flag in _WITHOUT_MEANING if values.pop(flag.lstrip("-").replace("-", "_"), missing) is not missing
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the original's flags that are not settings, and its short names of settings."""
    group = parser.add_argument_group("flags of the original", "flags that are not settings of a trial")
    group.add_argument("--dataset", dest="dataset_flag", metavar="DATASET", help="the same as DATASET")
    group.add_argument("-i", "--experiment-id", "--experiment", dest="experiment", metavar="ID",
                       help="last part of the run's name if --name is not given")  # fmt: skip
    group.add_argument("--log-dir", metavar="NAME", help="first part of the run's name if --name is not given")
    group.add_argument("-seed", "--random-seed", dest="seed", default=argparse.SUPPRESS, help="the same as --seed")
    group.add_argument("-crs", dest="clustering_random_state", default=argparse.SUPPRESS,
                       help="the same as --clustering-random-state")  # fmt: skip
    group.add_argument(
        "--checkpoint", metavar="DIR", help="directory of a model; continue its training at its next epoch"
    )
    group.add_argument("--restart-schedule", action="store_true",
                       help="start at epoch 0, and use only the weights of --checkpoint")  # fmt: skip
    group.add_argument("--save-model", type=_every, metavar="N", default=1,
                       help="models to keep; 0: none; 1: the best one; N above 1: also that of every N-th epoch")  # fmt: skip
    group.add_argument("--wandb-enabled", nargs="?", type=truth, metavar="0|1", const=True, default=False,
                       help="also log to Weights & Biases (pip install 'dcml-tune[wandb]')")  # fmt: skip
    group.add_argument(
        "--cuda-device",
        type=whole(0, 1023),
        metavar="N",
        help="number of the GPU to train on; ignored on a machine without GPUs",
    )
    for flag, why in _WITHOUT_MEANING.items():
        group.add_argument(flag, nargs="?", const="", default=argparse.SUPPRESS, help=f"ignored here: {why}")


def _every(text: str) -> int:
    """Read N, or a truth value for 0 or 1."""
    return int(truth(text)) if text.lower() in ("true", "false", "yes", "no") else whole(0, 1_000_000)(text)
