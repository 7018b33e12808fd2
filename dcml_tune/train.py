"""`python -m dcml_tune.train DATASET`: one setting, with the same trainer and tracking as a search, and no Ray."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dcml_tune.commandline import Parser, add_settings, given_settings, run_command
from dcml_tune.config import TrialConfig
from dcml_tune.plan import writable
from dcml_tune.record import refuse_existing


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m dcml_tune.train", description="Train one setting, and measure it every epoch.")
    made.add_argument("dataset", help="emoji (embedded) or folder; cub, cars, sop, inshop, vid come later")
    made.add_argument("--output-dir", default="runs", help="where everything is written")
    made.add_argument("--name", help="name of the run; default: data set and time")
    made.add_argument("--tracking-uri", help="MLflow server; default: OUTPUT/mlflow.db")
    made.add_argument("--score-test", action="store_true", help="score the test classes once, at the end")
    add_settings(made, exclude=("dataset",))
    return made


def main(argv: list[str]) -> int:
    """Train, track, and write the checkpoint."""
    arguments = parser().parse_args(argv)
    config = TrialConfig(**given_settings(arguments))
    output = writable(Path(arguments.output_dir))
    name = arguments.name or f"train-{arguments.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    refuse_existing(output / name)
    from dcml_tune.model import best_model
    from dcml_tune.tracking import Tracker, absolute_uri, environment_tags
    from dcml_tune.trainer import NonFiniteLossError, Trainer, TrialData

    uri = absolute_uri(arguments.tracking_uri or f"sqlite:///{output / 'mlflow.db'}")
    TrialData.open(config, output / "store", verify=True)
    trainer = Trainer(config, stores=output / "store")
    for line in [
        trainer.data.dataset.counts(),
        *trainer.data.dataset.notes,
        *trainer.data.notes(),
        *config.without_effect(),
    ]:
        print(line)
    tracker = Tracker.open(output, name, uri=uri)
    tags = environment_tags(trainer.data.dataset.fingerprint, ["python", "-m", "dcml_tune.train", *sys.argv[1:]])
    tracker.start(name, name=name, role="train", params=config.model_dump(), tags=tags)
    if trainer.data.validation is not None:
        tracker.metrics(name, 0, trainer.untrained())
    reason, measures = None, {}
    try:
        while trainer.epoch < config.nb_epochs:
            measures = trainer.run_epoch()
            tracker.metrics(name, trainer.epoch, measures)
            trainer.save(output / name / "checkpoint")
            print(f"epoch {trainer.epoch}/{config.nb_epochs}: {_line(measures)}", flush=True)
        if arguments.score_test:
            measures |= (test := trainer.test())
            tracker.metrics(name, trainer.epoch, test)
            print(_line(test))
        best = best_model(output / name / "checkpoint")
        assert best is not None
        tracker.model(name, best, name="train", step=trainer.epoch, metrics=measures)
        print(f"checkpoint: {best}")
    except NonFiniteLossError as error:
        reason = str(error)
        print(f"failed: {reason}", file=sys.stderr)
    tracker.end(name, "FAILED" if reason else "FINISHED", reason=reason)
    tracker.close()
    return 3 if reason else 0


def _line(measures: dict[str, Any]) -> str:
    shown = (
        "train/loss",
        "clusters/count",
        "val/recall_at_1",
        "val/map_at_r",
        "test/recall_at_1",
        "test/map_at_r",
        "time/epoch_s",
    )
    return ", ".join(f"{name} {measures[name]:.3f}" for name in shown if name in measures)


if __name__ == "__main__":
    run_command(main)
