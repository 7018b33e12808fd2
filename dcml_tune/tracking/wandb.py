"""Optional logging to Weights & Biases in addition to MLflow. No other module imports wandb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcml_tune.config.errors import SettingError


class WandbRun:
    """A run of wandb in the project `dcml_tune`.

    wandb's environment variables apply: `WANDB_MODE=offline` writes below the output directory, `WANDB_PROJECT` names
    another project.
    """

    def __init__(self, name: str, output: Path, params: Mapping[str, Any]) -> None:
        """Start a run.

        Raises:
            SettingError: if wandb is not installed, or the user is not logged in.
        """
        try:
            import wandb  # an optional dependency
        except ImportError:
            raise SettingError(
                "--wandb-enabled: wandb is not installed; pip install 'dcml-tune[wandb]', or leave the flag out"
            ) from None
        # Without a terminal wandb raises if the login is missing. With one it would prompt, so the prompt times out.
        settings = wandb.Settings(silent=True, login_timeout=10)
        project = os.environ.get("WANDB_PROJECT", "dcml_tune")
        try:
            self._run = wandb.init(project=project, name=name, dir=str(output), config=dict(params), settings=settings)
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())[:200]
            raise SettingError(
                f"--wandb-enabled: {reason}; run `wandb login`, or set WANDB_MODE=offline, or leave the flag out"
            ) from None

    def metrics(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch."""
        self._run.log(dict(values), step=epoch)

    def end(self, *, failed: bool) -> None:
        """End the run, and the process that writes its file: `finish` alone can return before the file is whole."""
        import wandb

        self._run.finish(exit_code=int(failed))
        wandb.teardown(exit_code=int(failed))
