"""A child process of the GPU probe: it reads what to train from standard input and answers in lines of JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.gpu_probe.trial import SyntheticTrial
from dcml_tune.training.devices import cap_gpu_memory, set_arithmetic, set_threads


def main() -> int:
    """Warm up, wait until all children are ready, train; returns the exit code."""
    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not mix with the answers

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    try:
        order = json.loads(sys.stdin.readline())
        set_threads(order["threads"])
        config = TrialConfig(**order["config"])
        cap_gpu_memory(order["share"], config.backend)
        set_arithmetic(config)
        trial = SyntheticTrial(config, torch.device(order["device"]), compiled=order["compiled"])
        trial.warm_up(images=order["images"])
        say(ready=True)
        if not sys.stdin.readline():  # the parent process has ended
            return 1
        say(**asdict(trial.measured(order["seconds"])))
    except Exception as error:  # any failure is reported to the parent
        say(failed=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
