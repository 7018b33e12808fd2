"""The original's command line: the flags that are no settings of a trial, and the defaults that differ from ours.

Settings have the original's names already (`config.TrialConfig`), and its names for choices (`MarginLoss`) are known
there, too. Source: the flags of the original's script, as docs/settings.md lists them.
"""

from __future__ import annotations

import argparse
from typing import Any

from dcml_tune.cli.parser import truth
from dcml_tune.cli.quantities import whole
from dcml_tune.config.errors import SettingError

DEFAULTS: dict[str, Any] = {"dataset": "cub", "masks_freeze_one_cluster": False}
"""The original's defaults where those of TrialConfig are others."""

DATA_PATH = "DataPath"
"""Where the original looks for data sets: this folder of the working directory."""

_WITHOUT_MEANING = {
    "--init-clusters": "one way to begin is left, that of --hierarchy-method",
    "--with-l1": "the original reads it and does nothing with it",
    "--is-debug": "logs say what a debugger would be asked",
    "--verbose": "a line an epoch is always said",
    "--reset-learners-fix": "masks and their optimiser state follow the division, always",
    "--save-masks": "masks are part of every checkpoint",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the original's flags that are no settings, and its short names of those that are."""
    group = parser.add_argument_group("flags of the original", "those that are no settings of a trial")
    group.add_argument("--dataset", dest="dataset_flag", metavar="DATASET", help="the same as DATASET")
    group.add_argument("-i", "--experiment-id", "--experiment", dest="experiment", metavar="ID",
                       help="last part of the run's name, unless --name gives it")  # fmt: skip
    group.add_argument("--log-dir", metavar="NAME", help="first part of the run's name, unless --name gives it")
    group.add_argument("-seed", "--random-seed", dest="seed", default=argparse.SUPPRESS, help="the same as --seed")
    group.add_argument("-crs", dest="clustering_random_state", default=argparse.SUPPRESS,
                       help="the same as --clustering-random-state")  # fmt: skip
    group.add_argument("--checkpoint", metavar="DIR", help="go on with this trained model, at the epoch after its own")
    group.add_argument("--restart-schedule", action="store_true",
                       help="begin at epoch 0, with the weights of --checkpoint alone")  # fmt: skip
    group.add_argument("--save-model", type=_every, metavar="N", default=1,
                       help="0: no checkpoints; 1: the best model; 2 and more: that of every N-th epoch, too")  # fmt: skip
    group.add_argument("--wandb-enabled", nargs="?", type=truth, metavar="0|1", const=True, default=False,
                       help="log to Weights & Biases, too (pip install 'dcml-tune[wandb]')")  # fmt: skip
    group.add_argument(
        "--cuda-device", type=whole(0, 1023), metavar="N", help="train on the N-th GPU; none, without GPUs"
    )
    for flag, why in _WITHOUT_MEANING.items():
        group.add_argument(flag, nargs="?", const="", default=argparse.SUPPRESS, help=f"without meaning here: {why}")


def _every(text: str) -> int:
    """Read N, or a word for 0 or 1."""
    return int(truth(text)) if text.lower() in ("true", "false", "yes", "no") else whole(0, 1_000_000)(text)


def without_meaning(arguments: argparse.Namespace) -> list[str]:
    """One line for the flags that were given and mean nothing here; none if there are none."""
    names = {flag: flag.lstrip("-").replace("-", "_") for flag in _WITHOUT_MEANING}
    given = [f"{flag} ({_WITHOUT_MEANING[flag]})" for flag, name in names.items() if hasattr(arguments, name)]
    return [f"without meaning here: {'; '.join(given)}"] if given else []


def dataset_of(arguments: argparse.Namespace) -> str:
    """The data set that is named by position or by flag; the original's default where neither is.

    Raises:
        SettingError: if both are given and differ.
    """
    by_place, by_flag = arguments.dataset, arguments.dataset_flag
    if by_place and by_flag and by_place != by_flag:
        raise SettingError(f"--dataset {by_flag}: data set {by_place} is named, too; name one of them")
    return str(by_place or by_flag or DEFAULTS["dataset"])


def run_name(arguments: argparse.Namespace) -> str | None:
    """The run's name by --name, or by --log-dir and --experiment-id; None if none of them is given."""
    if arguments.name is not None:
        return str(arguments.name)
    return "-".join(part for part in (arguments.log_dir, arguments.experiment) if part) or None


def device_of(arguments: argparse.Namespace) -> str | None:
    """The device that --cuda-device names; None: the first GPU, or the CPU where there is none.

    Raises:
        SettingError: if there are GPUs, and not this one.
    """
    import torch

    number, there = arguments.cuda_device, torch.cuda.device_count()
    if number is None or there == 0:
        return None
    if not 0 <= number < there:
        raise SettingError(f"--cuda-device {number}: there are {there} GPUs here; give 0 to {there - 1}")
    return f"cuda:{number}"
