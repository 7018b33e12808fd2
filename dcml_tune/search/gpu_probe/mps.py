"""NVIDIA's Multi-Process Service (MPS): whether trials that share a GPU go through it.

Without it the processes on a GPU take turns; with it their kernels run at the same time. It is a daemon that serves all
processes of a user, so a search does not start it. Source: docs.nvidia.com/deploy/mps.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_CONTROL = "nvidia-cuda-mps-control"


def about_mps(share: float) -> str | None:
    """What to say about MPS of this machine, to a search whose trials get a share of a GPU each.

    Returns:
        A line; None if trials do not share a GPU, or this machine has no MPS.
    """
    if not 0 < share <= 0.5:
        return None
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if (pipes / "control").exists():
        return f"MPS: trials that share a GPU go through it ({pipes})"
    if shutil.which(_CONTROL) is None:
        return None
    return f"MPS is not running, so trials that share a GPU take turns; to start it: {_CONTROL} -d"
