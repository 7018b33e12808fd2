from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch

from dcml_tune.config.trial import TrialConfig
from dcml_tune.tracking import Tracker
from dcml_tune.training.divisions import Division
from dcml_tune.utils.locks import LockLostError
from trainables.checkpoint_budget import CheckpointBudget, KeptModel
from trainables.live_table import LiveTable, TableOptions, TrialRow
from trainables.tracking_callback import Progress
from trainables.watchdog import TrialWatchdog

METRIC = "val/recall_at_1"
SETTINGS = {"dataset": "emoji", "nb_epochs": 6, "force_full_embedding_epoch": 5, "nb_clusters": 2}


@pytest.fixture
def progress():
    """Of 40 trials, the best of which is 017, and of which two run."""
    guard = TrialWatchdog(directory=Path(), need=0, trial_timeout=None)
    table = TableOptions(search="s", metric="val/recall_at_1", varied=("nb_clusters",), planned=40, quiet=True)
    made = Progress(None, guard, table, tags={})
    for number in range(40):
        best = 0.9 if number == 17 else 0.5 + number / 1000
        state = "running" if number in (3, 39) else "done"
        made.rows[f"{number:03d}"] = TrialRow(settings=SETTINGS, epoch=6, epochs=6, last=best, best=best, state=state)
    return made


def names(table):
    return list(table.columns[0].cells)


def test_the_live_table_shows_what_the_screen_has_room_for(progress):
    """The trials that run, and the best of the others; the caption counts the rest."""
    table = progress.live.table(most=5)
    assert names(table) == ["003", "017", "037", "038", "039"]
    assert table.caption == "and 35 more trials"


def test_the_last_table_shows_all(progress):
    """As does one that has room for all."""
    assert names(progress.live.table()) == [f"{number:03d}" for number in range(40)]
    assert progress.live.table(most=40).caption is None


def test_many_settings_share_a_column_of_those_that_differ():
    """Values equal to the published ones are left out."""
    varied = ("nb_clusters", "base_lr", "criterion", "margin", "beta", "mod_epoch", "batch_size")
    published = {"nb_clusters": 2, **{name: getattr(TrialConfig(), name) for name in varied[1:]}}
    options = TableOptions(search="s", metric="m", varied=varied, published=published, planned=1)
    table = LiveTable(options)
    table.rows["000"] = TrialRow(settings=SETTINGS, epochs=6)
    table.rows["001"] = TrialRow(settings={**SETTINGS, "criterion": "supcon", "base_lr": 3e-5}, epochs=6)
    assert list(table.table().columns[1].cells) == ["", "base_lr=3e-05 criterion=supcon"]


def test_control_characters_do_not_reach_the_terminal(progress):
    """They may stand in the reason of a failure, which is text of a library or of a file name."""
    progress.rows["003"].reason = "x\x1b[31m"
    assert next(iter(progress.live.table(most=5).columns[-1].cells)) == "running: x\\x1b[31m"


def test_the_best_value_of_the_search_is_a_point_when_it_changes_and_once_a_second(monkeypatch):
    """Many short epochs would fill MLflow with equal points."""
    now, points = [50.0], []
    tracker = SimpleNamespace(
        start=lambda *_, **__: None,
        metrics=lambda key, step, values, when=None: (
            points.append((step, values[f"{METRIC}_best"])) if key == "s" else None
        ),
    )
    table = TableOptions(search="s", metric=METRIC, varied=("nb_clusters",), planned=1, quiet=True)
    progress = Progress(tracker, TrialWatchdog(directory=Path(), need=0, trial_timeout=None), table, tags={})
    trial = SimpleNamespace(config={**SETTINGS, "run": {"key": "000"}}, trial_id="x")
    progress.on_trial_start(0, [], trial)
    monkeypatch.setattr("trainables.tracking_callback.time.monotonic", lambda: now[0])
    for epoch, (seconds, best) in enumerate(((0, 0.5), (0.1, 0.5), (0.1, 0.6), (0.5, 0.6), (0.5, 0.6), (2, 0.6)), 1):
        now[0] += seconds
        progress.on_trial_result(0, [], trial, {"epoch": epoch, METRIC: best, f"{METRIC}_best": best})
    assert points == [(1, 0.5), (3, 0.6), (5, 0.6), (6, 0.6)]


@pytest.mark.parametrize("hook", ["on_trial_recover", "on_trial_error"])
def test_a_driver_that_was_replaced_writes_nothing_of_trials_that_died(hook, progress, tmp_path):
    """Their processes end because another driver has started them again."""
    (tmp_path / "trial").mkdir()
    (tmp_path / "ray-error.txt").write_text("RayActorError: The actor died unexpectedly")

    def lost():
        raise LockLostError("another process runs it")

    progress.tracker = Tracker(
        f"sqlite:///{tmp_path / 'm.db'}", "e", directory=tmp_path / "spool", artifact_root=tmp_path / "a", check=lost
    )
    config = {"run": {"key": "003", "directory": str(tmp_path / "trial")}}
    trial = SimpleNamespace(config=config, trial_id="x", error_file=str(tmp_path / "ray-error.txt"))
    with pytest.raises(LockLostError):
        getattr(progress, hook)(0, [], trial)
    progress.tracker.close(1.0)
    assert list((tmp_path / "trial").iterdir()) == []


def test_each_reclustering_is_an_artifact(progress, tmp_path):
    """Its files are recorded with the result that names them; measures of masks are curves. A second report adds nothing."""
    division = Division.of(2, np.array([0, 1, 1]), np.array([5, 5, 6]), torch.ones(2, 4))
    division.save(tmp_path / "trial")
    progress.tracker = Tracker(
        f"sqlite:///{tmp_path / 'm.db'}", "e", directory=tmp_path / "spool", artifact_root=tmp_path / "artifacts"
    )
    progress.tracker.start("s/003", name="003", role="trial")
    trial = SimpleNamespace(config={"run": {"key": "003", "directory": str(tmp_path / "trial")}}, trial_id="x")
    result = {"epoch": 3, "val/recall_at_1": 0.4, "masks/overlap": 0.25, "division": division.name, "time_ms": 1}
    for _ in range(2):
        progress._result(trial, result)
    progress.tracker.close()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'm.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    found = [each.path for each in client.list_artifacts(run.info.run_id, "divisions")]
    assert sorted(found) == ["divisions/division-00002.json", "divisions/division-00002.safetensors"]
    assert run.data.metrics["masks/overlap"] == 0.25


def test_a_pause_of_the_driver_is_no_trials_fault(monkeypatch):
    """A study that was locked for minutes: clocks of trials go on where they were; one that hangs is ended all the same."""
    from trainables import watchdog

    now, ended = [1000.0], []
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    guard = TrialWatchdog(directory=Path(), need=0, trial_timeout=60.0)
    monkeypatch.setattr(guard, "_end", lambda trial: ended.append(trial.trial_id))
    trial = SimpleNamespace(trial_id="a", status="RUNNING")

    def step(seconds):
        now[0] += seconds
        guard.on_step_begin(0, [trial])

    step(0)
    guard.on_trial_start(0, [trial], trial)
    for _ in range(25):
        step(1)
    step(300)
    for _ in range(25):
        step(1)
    assert ended == []
    for _ in range(15):
        step(1)
    assert set(ended) == {"a"}


def test_the_budget_keeps_the_models_of_the_best_trials(tmp_path):
    """Of equal trials the first launched; a model that is removed is forgotten by MLflow, too."""
    forgotten = []
    budget = CheckpointBudget(2, lambda key, step: forgotten.append((key, step)))
    for key, value in [("003", 0.5), ("001", 0.5), ("000", None), ("002", 0.9)]:
        directory = tmp_path / key
        directory.mkdir()
        (directory / "model.json").touch()
        budget.add(key, KeptModel(directory=directory, step=4, value=value))
        budget.enforce()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["001", "002"]
    assert forgotten == [("000", 4), ("003", 4)]
