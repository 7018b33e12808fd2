"""How the threads of OpenMP wait for each other."""

from __future__ import annotations

import os

SPIN_COUNT = "3000"
"""Turns of the loop in which a thread waits before it sleeps, as in `GOMP_SPINCOUNT`; GNU OpenMP's default is 300,000."""

_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def let_threads_spin_briefly() -> None:
    """Make threads sleep soon while they wait, unless the environment says how they wait.

    By default GNU OpenMP, which torch's wheels for Linux contain, lets a thread spin for some milliseconds before it
    sleeps. Where other programs use the cores, a thread of a trial often waits for another one that is not running: it
    then takes the core that this one needs. Where nothing else runs, threads that sleep at once lose time to wake up.
    `benchmarks/busy.py` measures both.

    OpenMP reads the variables when it is loaded. So this must be called before the first import of torch or Faiss, in
    each process or in a parent of it.
    """
    if not any(name in os.environ for name in _VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
