"""One of the processes of a probe: it trains as its standard input says, and answers in lines of JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.search.gpu_probe.trial import SyntheticTrial
from dcml_tune.training.devices import cap_gpu_memory, set_threads


def main() -> int:
    """Get ready, wait for the others, train; returns the exit status."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    try:
        order = json.loads(sys.stdin.readline())
        set_threads(order["threads"])
        cap_gpu_memory(order["share"])
        trial = SyntheticTrial(TrialConfig(**order["config"]), torch.device(order["device"]))
        trial.warm_up()
        say(ready=True)
        if not sys.stdin.readline():  # the process that asked is gone
            return 1
        say(**asdict(trial.measured(order["seconds"])))
    except Exception as error:  # whatever it is, it is the reason why sharing was not measured
        say(failed=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
