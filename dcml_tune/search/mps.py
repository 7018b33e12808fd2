"""NVIDIA's Multi-Process Service (MPS): trials that share a GPU go through it (`--mps on`), or what to say about it.

Without it the processes on a GPU take turns; with it their kernels run at the same time. Its control daemon serves the processes
that have its directory of pipes in their environment. A search that starts one has a directory of its own, and a guard ends
the daemon when the process of the search has ended, however that was. Sources: docs.nvidia.com/deploy/mps and the manual page
nvidia-cuda-mps-control(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from dcml_tune.cli.quantities import AUTO
from dcml_tune.config.errors import SettingError
from dcml_tune.utils.stored import printable

_CONTROL = "nvidia-cuda-mps-control"
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_DEFAULT = "/tmp/nvidia-mps"

_GUARD = f'cat > /dev/null; echo quit | {_CONTROL} 2> /dev/null; rm -rf -- "$1"'
"""Waits for the end of its standard input, which this process holds open, then ends the daemon and removes its directory."""

_START_S, _ANSWER_S, _END_S = 60.0, 10.0, 30.0

_guards: list[subprocess.Popen[bytes]] = []
"""The guard of the daemon that this process has started."""


def check_mps(gpus_per_trial: float | str | None, *, joins: bool) -> None:
    """Check that trials can go through MPS.

    Args:
        gpus_per_trial: as it was given.
        joins: the search joins a running cluster.

    Raises:
        SettingError: if they cannot.
    """
    if joins:
        raise SettingError(
            f"--mps on: starts MPS on this machine, and with --ray-address trials run on the cluster; start {_CONTROL} -d on "
            "each of its nodes before Ray, and leave the flag out"
        )
    if gpus_per_trial != AUTO and not (isinstance(gpus_per_trial, float | int) and 0 < gpus_per_trial < 1):
        raise SettingError(
            f"--mps on: is for trials that share a GPU; give --gpus-per-trial a number below 1, such as 0.5, or {AUTO}"
        )
    if shutil.which(_CONTROL) is None:
        raise SettingError(
            f"--mps on: the program {_CONTROL} is not on this machine; install it (it comes with NVIDIA's driver), or leave the "
            "flag out"
        )


def start_mps() -> None:
    """Start the daemon, unless one is running, and let processes that this one starts from now on find it.

    Trials of a local cluster inherit the environment of this process, so this comes before Ray and before all measurements.

    Raises:
        SettingError: if it does not start.
    """
    if _runs():
        return
    directory = Path(tempfile.mkdtemp(prefix="dcml-mps-"))
    os.environ |= {_PIPES: str(directory), _LOGS: str(directory)}
    words = ["sh", "-c", _GUARD, "sh", str(directory)]
    _guards.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True))
    failed = _start_daemon()
    if failed:
        stop_mps()
        said = printable(" ".join(failed.split()))
        raise SettingError(f"--mps on: {_CONTROL} -d failed ({said}); leave the flag out")


def _start_daemon() -> str:
    """Start the daemon; returns why that failed, empty if it did not."""
    # It numbers the GPUs that it sees anew, and trials name theirs by the numbers of the machine: it must see all.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with tempfile.TemporaryFile() as output:  # no pipe: the daemon may keep it open, and its end would be waited for
        try:
            done = subprocess.run(
                [_CONTROL, "-d"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=_START_S, check=False,
                env=environment,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        output.seek(0)
        return "" if done.returncode == 0 else output.read().decode(errors="replace") or f"status {done.returncode}"


def stop_mps() -> None:
    """End the daemon that this process has started, if it has; trials must have ended."""
    while _guards:
        guard = _guards.pop()
        assert guard.stdin is not None
        guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it waits for processes that still use the GPU, and ends after them
            guard.wait(_END_S)
        for name in (_PIPES, _LOGS):
            os.environ.pop(name, None)


def about_mps(share: float) -> str | None:
    """What to say about MPS of this machine, to a search whose trials get a share of a GPU each.

    Returns:
        A line; None if trials do not share a GPU, or this machine has no MPS.
    """
    if not 0 < share <= 0.5:
        return None
    if _runs():
        return f"MPS: trials that share a GPU go through it ({_pipes()})"
    if shutil.which(_CONTROL) is None:
        return None
    return "MPS is not running, so trials that share a GPU take turns; --mps on starts it for this search"


def _pipes() -> Path:
    return Path(os.environ.get(_PIPES, _DEFAULT))


def _runs() -> bool:
    """Whether a daemon answers: the file of one that was killed stays."""
    if not (_pipes() / "control").exists():
        return False
    if shutil.which(_CONTROL) is None:  # as in a container that has the pipes alone
        return True
    try:
        asked = subprocess.run(
            [_CONTROL], input=b"get_server_list\n", capture_output=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
