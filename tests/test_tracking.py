import base64
import itertools
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from dcml_tune.config.errors import SettingError
from dcml_tune.tracking import (
    Tracker,
    best_model,
    delivery_thread,
    end_dead,
    environment_tags,
    file_sender,
    flush,
    ui_command,
)
from dcml_tune.utils.redaction import redact, redact_command

RECALL = "val/recall_at_1"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One SQLite store for all tests, made by the first tracker: making its tables takes seconds."""
    directory = tmp_path_factory.mktemp("a store")
    uri = f"sqlite:///{directory / 'mlflow.db'}"
    Tracker(uri, "first", directory=directory / "spool").close()
    return uri


@pytest.fixture
def experiment(request):
    return request.node.name


@pytest.fixture(scope="module")
def running(tmp_path_factory, store):
    """One server for all tests that only need it to be there, on the store of the others."""
    made = Server(tmp_path_factory.mktemp("a server"), store)
    made.start()
    try:
        wait_until(made.answers)
        yield made
    finally:
        made.stop()


@pytest.fixture(params=["database", "server"])
def anywhere(request, store):
    """The address of a database, and that of a server."""
    return store if request.param == "database" else request.getfixturevalue("running").uri


def runs(uri, experiment):
    """The runs of an experiment by their key."""
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    keys = [run.data.tags["dcml.key"] for run in found]
    assert len(set(keys)) == len(keys), "a run is there twice"
    return dict(zip(keys, found, strict=True))


def points(uri, run, name=RECALL):
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def models(uri, experiment):
    """The logged models of an experiment that are not deleted."""
    client = MlflowClient(tracking_uri=uri)
    return list(client.search_logged_models([client.get_experiment_by_name(experiment).experiment_id]))


def kept_at(model, server=None):
    """The directory in which MLflow keeps the files of a model."""
    if model.artifact_location.startswith("mlflow-artifacts:/"):
        return server.directory / model.artifact_location.removeprefix("mlflow-artifacts:/")
    return Path(unquote(model.artifact_location.removeprefix("file://")))


def checkpoint(directory, text="weights"):
    directory.mkdir(parents=True)
    (directory / "model.json").write_text(text)
    return directory


def test_a_search_is_one_parent_with_children_and_all_its_facts(store, experiment, tmp_path):
    """Runs nest once; roles, settings, tags, points, files, status and reason arrive."""
    tracker = Tracker(store, experiment, directory=tmp_path / "spool")
    tracker.start("s", name="s", role="search", tags={"dcml.data": "f00"})
    tracker.start("s/0", name="000", role="trial", parent="s", params={"nb_clusters": 4, "album": None, "on": True})
    tracker.start("s/0/final", name="final", role="final", parent="s/0")
    tracker.start("s/1", name="001", role="trial", parent="s")
    tracker.start("s/2", name="002", role="trial", parent="s")
    for step in range(3):
        tracker.metrics("s/0", step, {RECALL: 0.1 * step, "recall@1": 0.5})
    tracker.metrics("s", 1, {f"{RECALL}_best": 0.2, "trials/done": 1.0})
    (tmp_path / "report.html").write_text("report")
    tracker.artifact("s", tmp_path / "report.html", "report")
    (tmp_path / "report.html").write_text("written over in place")
    tracker.end("s/0", "FINISHED")
    tracker.end("s/1", "PRUNED")
    tracker.end("s/2", "FAILED", reason="out of memory at http://ann:secret@host")
    assert tracker.close() == 0

    found = runs(store, experiment)
    parent = found["s"].info.run_id
    assert {key: run.data.tags["dcml.role"] for key, run in found.items()} == {
        "s": "search", "s/0": "trial", "s/0/final": "final", "s/1": "trial", "s/2": "trial"
    }  # fmt: skip
    assert all(run.data.tags.get("mlflow.parentRunId") == parent for key, run in found.items() if key != "s")
    assert "mlflow.parentRunId" not in found["s"].data.tags
    assert found["s/0"].data.params == {"nb_clusters": "4", "album": "None", "on": "True"}
    assert points(store, found["s/0"]) == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert found["s/0"].data.metrics["recall_at_1"] == 0.5
    assert found["s"].data.metrics == {f"{RECALL}_best": 0.2, "trials/done": 1.0}
    states = {key: (run.info.status, run.data.tags["dcml.state"]) for key, run in found.items()}
    assert states["s"] == ("RUNNING", "running")
    assert states["s/0"] == ("FINISHED", "done")
    assert states["s/1"] == ("FINISHED", "pruned")
    assert states["s/2"] == ("FAILED", "failed")
    assert found["s/2"].data.tags["dcml.reason"] == "out of memory at http://***@host"
    client = MlflowClient(tracking_uri=store)
    assert [file.path for file in client.list_artifacts(parent, "report")] == ["report/report.html"]
    assert Path(client.download_artifacts(parent, "report/report.html", str(tmp_path))).read_text() == "report"
    assert tracker.run_id("s/0") == found["s/0"].info.run_id
    assert list((tmp_path / "spool" / "files").iterdir()) == []


def test_a_state_that_the_caller_set_stays(store, experiment, tmp_path):
    """The tag of a pruned run is not replaced when it ends as FINISHED."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="trial")
    tracker.tags("t", {"dcml.state": "pruned"})
    tracker.end("t", "FINISHED")
    assert tracker.close() == 0
    assert runs(store, experiment)["t"].data.tags["dcml.state"] == "pruned"


def test_a_search_that_goes_on_keeps_its_runs_and_points(store, experiment, tmp_path):
    """A second tracker on the same spool opens no second run, and repeats no point of an epoch done again."""
    for values in ({RECALL: 0.5, "time/epoch_s": 1.0}, {RECALL: 0.5, "time/epoch_s": 2.0}):
        tracker = Tracker(store, experiment, directory=tmp_path)
        tracker.start("s", name="s", role="search")
        tracker.start("s/0", name="000", role="trial", parent="s", params={"seed": 1})
        tracker.metrics("s/0", 3, values)
        tracker.metrics("s/0", 4, {"train/loss": values["time/epoch_s"]}, timestamp=1_700_000_000_000)
        tracker.metrics("s", 3, {"trials/done": values["time/epoch_s"]})
        assert tracker.close() == 0
    found = runs(store, experiment)
    assert points(store, found["s/0"]) == [(3, 0.5)]
    assert points(store, found["s/0"], "time/epoch_s") == [(3, 1.0)]
    assert points(store, found["s/0"], "train/loss") == [(4, 1.0)]
    assert found["s/0"].info.status == "RUNNING"
    assert points(store, found["s"], "trials/done") == [(3, 1.0), (3, 2.0)]


def test_a_search_whose_spool_was_lost_doubles_nothing(anywhere, experiment, tmp_path):
    """The same points at the same times, models and runs into a new spool: MLflow has each once, and what is new."""
    best, measures = checkpoint(tmp_path / "best"), {RECALL: 0.1, "train/loss": 1 / 3}
    for epochs in (3, 5):
        tracker = Tracker(anywhere, experiment, directory=tmp_path / "spool")
        tracker.start("s", name="s", role="search")
        tracker.start("s/0", name="000", role="trial", parent="s", params={"seed": 1})
        for step in range(epochs):
            tracker.metrics("s/0", step, measures, timestamp=1_700_000_000_000 + step)
            tracker.metrics("s", step, {"trials/done": 1.0}, timestamp=1_700_000_000_000 + step)
        tracker.model("s/0", best, name="m", step=2, metrics=measures)
        assert tracker.close() == 0
        shutil.rmtree(tmp_path / "spool")
    found = runs(anywhere, experiment)
    assert set(found) == {"s", "s/0"}
    for name, value in measures.items():
        assert points(anywhere, found["s/0"], name) == [(step, value) for step in range(5)]
    assert points(anywhere, found["s"], "trials/done") == [(step, 1.0) for step in range(5)]
    assert len(models(anywhere, experiment)) == 1


def test_a_run_that_was_ended_can_go_on(anywhere, experiment, tmp_path):
    """An interrupted run is KILLED, started again RUNNING without the old reason, and ends as any other."""
    tracker = Tracker(anywhere, experiment, directory=tmp_path)

    def seen():
        wait_until(lambda: tracker._delivery.count_waiting() == 0)
        run = runs(anywhere, experiment)["t"]
        state = run.data.tags["dcml.state"]
        assert tracker.state("t") == state
        return run.info.status, state, run.data.tags.get("dcml.reason")

    assert tracker.state("t") is None
    tracker.start("t", name="t", role="trial")
    assert seen() == ("RUNNING", "running", None)
    tracker.end("t", "INTERRUPTED", reason="SIGTERM")
    assert seen() == ("KILLED", "interrupted", "SIGTERM")
    tracker.start("t", name="t", role="trial")
    assert seen() == ("RUNNING", "running", None)
    tracker.end("t", "INTERRUPTED", reason="SIGINT")
    assert tracker.close() == 0

    # A trial of which it turns out later that it had been done is ended without another start.
    tracker = Tracker(anywhere, experiment, directory=tmp_path)
    assert seen() == ("KILLED", "interrupted", "SIGINT")
    tracker.end("t", "FINISHED")
    assert seen() == ("FINISHED", "done", None)
    assert tracker.close() == 0


def test_runs_of_a_dead_process_are_ended_once(store, experiment, tmp_path):
    """From the spool alone, and where the server is away (or its password not known) when it comes back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://ann:s3cret@127.0.0.1:{free.getsockname()[1]}"
    assert end_dead(tmp_path / "never", reason="gone") == 0
    assert not (tmp_path / "never").exists()
    tracker = Tracker(away, experiment, directory=tmp_path)
    for key in ("s", "s/0", "s/1", "s/2"):
        tracker.start(key, name=key, role="trial" if "/" in key else "search", parent="s" if "/" in key else None)
    tracker.end("s/0", "PRUNED")
    tracker.end("s/1", "INTERRUPTED", reason="SIGTERM")
    tracker.start("s/1", name="s/1", role="trial", parent="s")
    tracker.close(timeout=0.1)

    assert end_dead(tmp_path, reason="gone") == 3  # without the password nothing can be delivered
    assert end_dead(tmp_path, away, reason="gone", timeout=0.5) == 0

    assert flush(tmp_path, store) == 0
    states = {
        key: (run.info.status, run.data.tags["dcml.state"], run.data.tags.get("dcml.reason"))
        for key, run in runs(store, experiment).items()
    }
    assert states.pop("s/0") == ("FINISHED", "pruned", None)
    assert set(states.values()) == {("KILLED", "interrupted", "gone")}

    # Delivered at once where it can be, and not again after the search went on and ended.
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("s", name="s", role="search")
    assert tracker.close() == 0
    assert end_dead(tmp_path, reason="gone again") == 1
    run = runs(store, experiment)["s"]
    assert (run.info.status, run.data.tags["dcml.reason"]) == ("KILLED", "gone again")
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("s", name="s", role="search")
    tracker.end("s", "FINISHED")
    assert tracker.close() == 0
    assert end_dead(tmp_path, reason="gone") == 0
    assert runs(store, experiment)["s"].info.status == "FINISHED"


KILLED = """
import sys, time
from pathlib import Path
from dcml_tune import tracking
from dcml_tune.tracking import delivery, delivery_thread
delivery._WINDOW, delivery_thread._LINGER_S = 7, 0.0
uri, experiment, directory = sys.argv[1:]
tracker = tracking.Tracker(uri, experiment, directory=Path(directory))
tracker.start("s", name="s", role="search")
for trial in range(4):
    tracker.start(f"s/{trial}", name=str(trial), role="trial", parent="s", params={"seed": trial})
    for step in range(40):
        tracker.metrics(f"s/{trial}", step, {"val/recall_at_1": step / 40, "train/loss": 1.0})
    tracker.model(f"s/{trial}", Path(directory) / "best", name="m", step=39, metrics={"val/recall_at_1": 39 / 40})
    tracker.end(f"s/{trial}", "FINISHED")
print("recorded", flush=True)
time.sleep(60)
"""


def test_nothing_is_lost_or_doubled_when_a_delivery_is_killed(store, experiment, tmp_path):
    """SIGKILL in the middle of a delivery, then flush from before the last mark: each run, point, model once."""
    checkpoint(tmp_path / "best")
    program = [sys.executable, "-c", KILLED, store, experiment, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "recorded\n"
        mark = tmp_path / "delivered.json"
        wait_until(lambda: mark.exists() and json.loads(mark.read_text())["n"] >= 60)
        process.send_signal(signal.SIGKILL)
    sent = json.loads(mark.read_text())
    total = len((tmp_path / "spool.jsonl").read_text().splitlines())
    assert 60 <= sent["n"] < total, "the delivery was over before the kill"
    # As if the kill had come right before the mark was renamed: the last records go out a second time.
    lines = (tmp_path / "spool.jsonl").read_bytes().splitlines(keepends=True)
    mark.write_text(json.dumps({"offset": sum(map(len, lines[:20])), "n": 20}))

    assert flush(tmp_path) == 0

    found = runs(store, experiment)
    assert len(found) == 5
    for trial in range(4):
        assert points(store, found[f"s/{trial}"]) == [(step, step / 40) for step in range(40)]
        assert found[f"s/{trial}"].info.status == "FINISHED"
    logged = models(store, experiment)
    assert sorted(model.tags["dcml.key"] for model in logged) == [f"s/{trial}" for trial in range(4)]
    assert {model.status for model in logged} == {"READY"}
    # The search itself was not ended: it is what the kill left running.
    assert found["s"].info.status == "RUNNING"
    assert end_dead(tmp_path, reason="killed") == 1
    assert runs(store, experiment)["s"].info.status == "KILLED"


def test_the_best_model_of_a_search_is_one_query_away(store, experiment, tmp_path):
    """The logged model with the highest measure, of equal ones the first trial's, of that search and role, with its files."""
    tracker = Tracker(store, experiment, directory=tmp_path / "spool")
    for search in ("a_b", "axb"):
        tracker.start(search, name=search, role="search")
        for trial, value in enumerate((0.3, 0.9 if search == "axb" else 0.7, 0.5, 0.7)):
            key, role = f"{search}/{trial}", "final" if trial == 2 else "trial"
            best = checkpoint(tmp_path / key, text=key)
            tracker.start(key, name=str(trial), role=role, parent=search)
            tracker.metrics(key, 4, {RECALL: value})
            tracker.model(
                key, best, name=f"{role}-{trial}: 1.0", step=4, metrics={RECALL: value}, params={"nb_clusters": trial}
            )
            (best / "model.json").unlink()
    tracker.start("none", name="none", role="search")
    assert tracker.close() == 0

    model = best_model(store, experiment, "a_b", RECALL)
    assert model.tags["dcml.key"] == "a_b/1"
    assert model.params == {"nb_clusters": "1"}
    assert model.source_run_id == tracker.run_id("a_b/1")
    assert [(point.key, point.value, point.step) for point in model.metrics] == [(RECALL, 0.7, 4)]
    assert (kept_at(model) / "model.json").read_text() == "a_b/1"
    # The measures of the model are those of the run: linking them adds no second point.
    found = runs(store, experiment)
    assert points(store, found["a_b/1"]) == [(4, 0.7)]
    outputs = MlflowClient(tracking_uri=store).get_run(tracker.run_id("a_b/1")).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    assert best_model(store, experiment, "a_b", RECALL, role="final").tags["dcml.key"] == "a_b/2"
    assert best_model(store, experiment, "none", RECALL) is None
    assert best_model(store, experiment, "a_b", "val/unknown") is None
    assert best_model(store, "no such experiment", "a_b") is None


def test_a_model_that_is_forgotten_leaves_mlflow_with_its_files(anywhere, experiment, tmp_path, request, caplog):
    """The others stay, the best of those is found; forgetting twice or what never was changes nothing."""
    server = request.getfixturevalue("running") if anywhere.startswith("http") else None
    tracker = Tracker(anywhere, experiment, directory=tmp_path / "spool")
    tracker.start("s", name="s", role="search")
    best = checkpoint(tmp_path / "best")
    checkpoint(best / "tokens", "more")
    for trial, value in enumerate((0.3, 0.9, 0.5)):
        tracker.start(f"s/{trial}", name=str(trial), role="trial", parent="s")
        tracker.model(f"s/{trial}", best, name=str(trial), step=4, metrics={RECALL: value})
    tracker.model("s/1", best, name="1", step=6, metrics={RECALL: 0.4})
    assert tracker.close() == 0
    first = best_model(anywhere, experiment, "s", RECALL)
    assert first.tags["dcml.key"] == "s/1"
    assert (kept_at(first, server) / "tokens" / "model.json").read_text() == "more"

    tracker = Tracker(anywhere, experiment, directory=tmp_path / "spool")
    for _ in range(2):
        tracker.forget_model("s/1", 4)
    tracker.forget_model("s/7", 4)
    assert tracker.close() == 0
    assert best_model(anywhere, experiment, "s", RECALL).tags["dcml.key"] == "s/2"
    assert {(model.tags["dcml.key"], model.tags["dcml.step"]) for model in models(anywhere, experiment)} == {
        ("s/0", "4"), ("s/1", "6"), ("s/2", "4")
    }  # fmt: skip
    assert not kept_at(first, server).exists()
    assert all((kept_at(model, server) / "model.json").exists() for model in models(anywhere, experiment))
    assert (best / "tokens" / "model.json").read_text() == "more"

    # One that is recorded again is a new model.
    tracker = Tracker(anywhere, experiment, directory=tmp_path / "spool")
    tracker.model("s/1", best, name="1", step=4, metrics={RECALL: 0.8})
    assert tracker.close() == 0
    again = best_model(anywhere, experiment, "s", RECALL)
    assert again.tags["dcml.key"] == "s/1"
    assert again.model_id != first.model_id
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    # It stays as it is when all is sent a second time, because nobody knows what was sent.
    (tmp_path / "spool" / "delivered.json").unlink()
    assert flush(tmp_path / "spool") == 0
    stays = best_model(anywhere, experiment, "s", RECALL)
    assert (stays.model_id, [point.value for point in stays.metrics]) == (again.model_id, [0.8])
    assert len(models(anywhere, experiment)) == 4


def test_a_model_that_is_forgotten_before_it_was_sent_takes_no_room(store, experiment, tmp_path, caplog):
    """Its files leave the spool at once, it never reaches MLflow, and nobody complains; a later one does."""
    spool = tmp_path / "spool"
    spool.mkdir()
    with FileLock(spool / "delivery.lock"):
        tracker = Tracker(store, experiment, directory=spool)
        for trial in range(3):
            tracker.start(f"s/{trial}", name=str(trial), role="trial")
            best = checkpoint(tmp_path / str(trial), text=f"first {trial}")
            tracker.model(f"s/{trial}", best, name="m", step=4, metrics={RECALL: 0.5})
        tracker.forget_model("s/0", 4)
        tracker.forget_model("s/1", 4)
        (tmp_path / "1" / "model.json").unlink()
        (tmp_path / "1" / "model.json").write_text("second 1")
        tracker.model("s/1", tmp_path / "1", name="m", step=4, metrics={RECALL: 0.5})
        kept = [path.read_text() for path in (spool / "files").rglob("*.json")]
        assert sorted(kept) == ["first 2", "second 1"]
        assert tracker.close(timeout=0) > 0
    # The next process, which tidies up first, delivers.
    assert Tracker(store, experiment, directory=spool).close() == 0
    files = {model.tags["dcml.key"]: (kept_at(model) / "model.json").read_text() for model in models(store, experiment)}
    assert files == {"s/1": "second 1", "s/2": "first 2"}
    assert list((spool / "files").iterdir()) == []
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_a_model_that_is_forgotten_while_it_is_sent_is_gone_in_the_end(
    store, experiment, tmp_path, monkeypatch, caplog
):
    """Whatever the moment: no model, no files, no complaint."""
    tracker = Tracker(store, experiment, directory=tmp_path / "spool")
    tracker.start("t", name="t", role="trial")
    link = file_sender.link_or_copy

    def slow(source, target):
        tracker.forget_model("t", 4)
        link(source, target)

    monkeypatch.setattr(file_sender, "link_or_copy", slow)
    tracker.model("t", checkpoint(tmp_path / "best"), name="m", step=4, metrics={RECALL: 0.5})
    assert tracker.close() == 0
    assert models(store, experiment) == []
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_a_checkpoint_is_on_the_disk_once(store, running, experiment, tmp_path, monkeypatch):
    """A store of local files takes hard links, also when it is sent twice; MLflow lists and serves them as its own."""
    finalize, tries = MlflowClient.finalize_logged_model, []

    def fails_first(*args):
        tries.append(args)
        if len(tries) == 1:
            raise ConnectionError("away for a moment")
        return finalize(*args)

    monkeypatch.setattr(MlflowClient, "finalize_logged_model", fails_first)
    best = checkpoint(tmp_path / "best")
    checkpoint(best / "tokens", "more")
    tracker = Tracker(store, experiment, directory=tmp_path / "spool")
    tracker.start("t", name="t", role="trial")
    tracker.model("t", best, name="m", step=4, metrics={RECALL: 0.5})
    assert tracker.close() == 0
    assert len(tries) == 2
    (model,) = models(store, experiment)
    for name in ("model.json", "tokens/model.json"):
        assert (kept_at(model) / name).samefile(best / name)
        assert (best / name).stat().st_nlink == 2
    client = MlflowClient(tracking_uri=store)
    assert sorted(file.path for file in client.list_logged_model_artifacts(model.model_id)) == ["model.json", "tokens"]
    shutil.rmtree(best)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    got = download_artifacts(artifact_uri=f"models:/{model.model_id}", dst_path=str(tmp_path / "downloaded"))
    assert (Path(got) / "tokens" / "model.json").read_text() == "more"
    # What the pages of MLflow ask for.
    api = f"{running.uri}/ajax-api/2.0/mlflow/logged-models/{model.model_id}/artifacts"
    with urlopen(f"{api}/directories") as answer:
        assert [file["path"] for file in json.load(answer)["files"]] == ["model.json", "tokens"]
    with urlopen(f"{api}/files?artifact_file_path=model.json") as answer:
        assert answer.read() == b"weights"


def test_values_that_are_no_finite_numbers_become_tags(store, experiment, tmp_path):
    """NaN, infinity and text cost their own point only."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    tracker.metrics("t", 2, {RECALL: 0.5, "train/loss": float("nan"), "a": float("-inf"), "b": "high"})
    tracker.metrics("t", 3, {"train/loss": 0.25})
    assert tracker.close() == 0
    run = runs(store, experiment)["t"]
    assert run.data.metrics == {RECALL: 0.5, "train/loss": 0.25}
    strange = {name: text for name, text in run.data.tags.items() if name.startswith("dcml.not_finite")}
    assert strange == {
        "dcml.not_finite/train/loss": "nan at step 2",
        "dcml.not_finite/a": "-inf at step 2",
        "dcml.not_finite/b": "high at step 2",
    }


def test_bad_records_hold_up_no_others(store, experiment, tmp_path, caplog, monkeypatch):
    """What MLflow refuses, a run never started, files missing or none: logged, left out, the rest arrives."""
    monkeypatch.setattr(delivery_thread, "BACK_OFF_S", (0.05, 0.1))
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train", params={"seed": 1})
    tracker.metrics("t", 0, {RECALL: 0.1})
    tracker.metrics("t", 1, {RECALL: 0.2}, timestamp=-5)
    tracker.metrics("unknown", 1, {RECALL: 0.2})
    tracker.model("t", tmp_path / "not there", name="m", step=1, metrics={})
    tracker.metrics("t", None, {RECALL: 0.2})
    (tmp_path / "report").mkdir()
    os.mkfifo(tmp_path / "report" / "a pipe")
    tracker.artifact("t", tmp_path / "report")
    tracker.start("t", name="t", role="train", params={"seed": 2})
    tracker.metrics("t", 2, {RECALL: 0.3})
    assert tracker.close() == 0
    run = runs(store, experiment)["t"]
    assert points(store, run) == [(0, 0.1), (2, 0.3)]
    assert run.data.params == {"seed": "1"}
    for text in (
        "metrics of t is left out",
        "metrics of unknown is left out",
        "model failed",
        "artifact of t is left out",
        "seed of t changed",
    ):
        assert text in caplog.text


def test_a_torn_last_line_is_skipped_with_a_line_in_the_log(store, experiment, tmp_path, caplog):
    """A record cut by a power failure costs itself only, also when the search goes on in the same spool."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    tracker.metrics("t", 1, {RECALL: 0.1})
    assert tracker.close() == 0
    with open(tmp_path / "spool.jsonl", "a") as file:
        file.write('{"n":3,"crc":12,"record":{"kind":"met')
    assert flush(tmp_path) == 0

    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.metrics("t", 2, {RECALL: 0.2})
    assert tracker.close() == 0
    assert points(store, runs(store, experiment)["t"]) == [(1, 0.1), (2, 0.2)]
    assert caplog.text.count("corrupt record") == 1


def test_a_spool_that_lost_its_end_loses_no_later_record(store, experiment, tmp_path):
    """A power cut may leave the spool shorter than the mark: what is recorded later is delivered all the same."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    for step in range(5):
        tracker.metrics("t", step, {RECALL: step / 8})
    assert tracker.close() == 0
    spool = tmp_path / "spool.jsonl"
    spool.write_bytes(b"".join(spool.read_bytes().splitlines(keepends=True)[:3]))

    tracker = Tracker(store, experiment, directory=tmp_path)
    for step in range(5, 12):
        tracker.metrics("t", step, {RECALL: step / 8})
    assert tracker.close() == 0
    assert points(store, runs(store, experiment)["t"]) == [(step, step / 8) for step in range(12)]


def test_only_one_process_delivers_a_spool(store, experiment, tmp_path):
    """While another holds the lock nothing is sent; afterwards all is."""
    directory = tmp_path / "spool"
    directory.mkdir()
    with FileLock(directory / "delivery.lock"):
        tracker = Tracker(store, experiment, directory=directory)
        tracker.start("t", name="t", role="train")
        assert tracker.close(timeout=1) == 1
        assert flush(directory, timeout=0) == 1
    assert flush(directory) == 0
    assert set(runs(store, experiment)) == {"t"}


def test_a_caller_never_talks_to_mlflow(store, experiment, tmp_path, monkeypatch):
    """Every measure is sent by the delivery thread; `benchmarks/tracking.py` measures what a call costs."""
    senders, log_batch = set(), MlflowClient.log_batch

    def recorded(*args, **kwargs):
        senders.add(threading.current_thread().name)
        return log_batch(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", recorded)
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    values = {f"val/measure_{number}": number / 7 for number in range(12)}
    for step in range(300):
        tracker.metrics("t", step, values)
    assert tracker.close() == 0
    assert senders == {"dcml-tracking"}
    assert len(points(store, runs(store, experiment)["t"], "val/measure_3")) == 300


def wait_until(holds, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Server:
    """A real `mlflow server` on a loopback port, to be stopped and started again."""

    def __init__(self, directory, store):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.directory, self.store, self.process = f"http://127.0.0.1:{self.port}", directory, store, None

    def start(self):
        command = ["-m", "mlflow", "server", "--backend-store-uri", self.store, "--port", str(self.port)]
        command += ["--artifacts-destination", str(self.directory), "--workers", "1"]
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.directory / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env=quiet, start_new_session=True
            )

    def answers(self):
        try:
            with urlopen(f"{self.uri}/health", timeout=5):
                return True
        except OSError:
            return False

    def stop(self):
        """SIGKILL: it has no time to say anything."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture
def server(tmp_path, store):
    made = Server(tmp_path, store)
    yield made
    made.stop()


def test_a_server_may_be_away_at_the_start_and_go_away_in_the_middle(server, experiment, tmp_path, caplog, monkeypatch):
    """All arrives once, files too; one line each time it goes, one when it is back; no password anywhere."""
    monkeypatch.setattr(delivery_thread, "BACK_OFF_S", (0.2, 0.5))  # up to 30 s otherwise
    caplog.set_level(logging.DEBUG)
    uri = server.uri.replace("http://", "http://ann:s3cret@")
    spool = tmp_path / "spool"
    tracker = Tracker(uri, experiment, directory=spool)
    tracker.start("s", name="s", role="search", tags={"dcml.command": f"search --tracking-uri {uri}"})
    tracker.start("s/0", name=uri, role="trial", parent="s", params={"tracking_uri": uri})
    for step in range(5):
        tracker.metrics("s/0", step, {RECALL: step / 10})
    wait_until(lambda: "takes no records" in caplog.text)
    assert tracker.run_id("s/0") is None

    server.start()
    wait_until(lambda: json.loads(read(spool / "delivered.json", "{}")).get("n") == 7)
    server.stop()
    for step in range(5, 10):
        tracker.metrics("s/0", step, {RECALL: step / 10, "strange": uri})
    tracker.metrics("s/0", uri, {RECALL: 1.0})
    tracker.model("s/0", checkpoint(tmp_path / "best"), name=uri, step=9, metrics={RECALL: 0.9}, params={"uri": uri})
    tracker.end("s/0", "FAILED", reason=f"{uri} is away")
    wait_until(lambda: caplog.text.count("takes no records") == 2)
    assert tracker._delivery.count_waiting() == 12

    server.start()
    wait_until(server.answers)
    assert tracker.close() == 0
    assert caplog.text.count("takes no records") == caplog.text.count("takes records again") == 2
    found = runs(server.uri, experiment)
    assert points(server.uri, found["s/0"]) == [(step, step / 10) for step in range(10)]
    assert found["s/0"].info.status == "FAILED"
    model = best_model(server.uri, experiment, "s", RECALL)
    assert (model.tags["dcml.key"], model.status) == ("s/0", "READY")
    stored = "".join(path.read_text() for path in spool.rglob("*.json*"))
    sent = str([(run.data, run.info) for run in found.values()]) + str(model)
    assert "ann:***" not in sent
    assert "http://***@" in sent
    assert "metrics failed" in caplog.text
    assert "s3cret" not in caplog.text + stored + sent


def test_a_server_that_stays_away_does_not_hold_up_the_end(server, experiment, tmp_path):
    """It gets a few seconds to come back, not the whole time that a delivery may take."""
    tracker = Tracker(server.uri, experiment, directory=tmp_path / "spool")
    tracker.start("s", name="s", role="search")
    assert tracker.close(10_000.0) == 1  # waiting for it would exceed the time limit of a test


def test_what_waits_is_delivered_to_an_address_with_a_password(running, store, experiment, tmp_path):
    """The password is not stored, so that a later flush must be given the whole address."""
    uri = running.uri.replace("http://", "http://ann:s3cret@")
    with FileLock(tmp_path / "delivery.lock"):
        tracker = Tracker(uri, experiment, directory=tmp_path)
        tracker.start("t", name="t", role="train")
        assert tracker.close(timeout=0.1) == 1
    assert "s3cret" not in (tmp_path / "target.json").read_text()
    with pytest.raises(SettingError, match="password is not stored"):
        flush(tmp_path)
    assert flush(tmp_path, uri) == 0
    assert set(runs(store, experiment)) == {"t"}


def test_a_server_that_never_answers_costs_neither_time_nor_memory(experiment, tmp_path):
    """It takes connections and says nothing: recording, closing and flushing go on as ever."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        tracker = Tracker(uri, experiment, directory=tmp_path)
        tracker.start("t", name="t", role="train")
        connection = listener.accept()[0]  # from here on the delivery waits for an answer
        values = {f"val/measure_{number}": number / 7 for number in range(12)}
        for step in range(1000):
            tracker.metrics("t", step, values)
        tracemalloc.start()
        for step in range(1000, 4000):
            tracker.metrics("t", step, {name: value + step for name, value in values.items()})
        # What must be remembered is that these points of this step are there, not the 700 bytes of the record.
        assert tracemalloc.get_traced_memory()[0] / 3000 < 300
        tracemalloc.stop()
        assert tracker.close(timeout=0.2) == 4001
        assert flush(tmp_path, timeout=0.2) == 4001
        waiting = [thread for thread in threading.enumerate() if thread.name == "dcml-tracking"]
        assert waiting, "the caller came back while the server had not answered yet"
        connection.close()


@pytest.fixture
def stub():
    """A server that answers every request with the same status, and writes down when it came and with which login."""
    requests = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((time.monotonic(), self.headers.get("Authorization")))
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    made.status, made.requests, made.uri = 503, requests, f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


class Deliveries:
    """A delivery that only counts: each attempt takes a tenth of a second and sends as many records as it was told."""

    def __init__(self, records):
        self.records, self.sent, self.failed_at, self.waiting = records, 0, -math.inf, 1
        self.attempts = []

    def attempt(self):
        begun = time.monotonic()
        time.sleep(0.1)
        self.sent += self.records
        self.attempts.append((begun, time.monotonic()))
        self.waiting = 0
        return True

    def count_waiting(self):
        return self.waiting


@pytest.mark.parametrize(("records", "times"), [(delivery_thread._MANY, 4), (delivery_thread._MANY - 1, 0)])
def test_a_busy_delivery_collects_more_records_for_the_next_one(records, times, monkeypatch):
    """After many records it lingers four times as long as they took."""
    monkeypatch.setattr(delivery_thread, "_LINGER_S", 0.0)
    made = Deliveries(records)
    thread = delivery_thread.DeliveryThread(made)
    while len(made.attempts) < 4:
        thread.wake()
        time.sleep(0.01)
    thread.close(timeout=10)
    took = made.attempts[0][1] - made.attempts[0][0]
    pauses = [after[0] - before[1] for before, after in itertools.pairwise(made.attempts[:4])]
    assert min(pauses) >= 0.9 * times * took if times else min(pauses) < 0.1


def test_who_waits_for_a_delivery_ends_its_lingering(monkeypatch):
    """Otherwise a report at the end of a stage would lack the last records."""
    monkeypatch.setattr(delivery_thread, "_TIMES", 1e6)
    monkeypatch.setattr(delivery_thread, "_LONGEST_LINGER_S", 1e3)
    made = Deliveries(delivery_thread._MANY)
    thread = delivery_thread.DeliveryThread(made)
    wait_until(lambda: len(made.attempts) == 1)
    made.waiting = 1
    thread.wake()
    thread.wait(60)
    assert len(made.attempts) == 2
    made.waiting = 1
    thread.wake()
    thread.close(60)
    assert made.waiting == 0


def test_the_wait_between_tries_grows_up_to_a_limit(stub, experiment, tmp_path, monkeypatch, caplog):
    """So that ten minutes of absence are few tries, and the return is noticed soon; here the limit is 0.4 s, not 30."""
    assert delivery_thread.BACK_OFF_S[1] <= 30
    monkeypatch.setattr(delivery_thread, "BACK_OFF_S", (0.05, 0.4))
    monkeypatch.setattr(delivery_thread, "_LINGER_S", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # one request a try
    tracker = Tracker(stub.uri, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    wait_until(lambda: len(stub.requests) == 10)
    assert tracker.close(timeout=0) == 1
    times = [when for when, _ in stub.requests]
    waits = [later - when for when, later in itertools.pairwise(times)]
    assert min(waits[:3]) < 0.4 <= min(waits[5:])
    assert max(waits[5:]) < 2, "doubled without a limit the last would be 12.8 s"
    assert caplog.text.count(f"{stub.uri} takes no records") == 1


@pytest.mark.parametrize(
    ("environment", "login", "sent"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s3cret"}, "", "Basic ann:s3cret"),
        ({"MLFLOW_TRACKING_TOKEN": "s3cret"}, "", "Bearer s3cret"),
        ({}, "ann:s3cret@", "Basic ann:s3cret"),
    ],
)
def test_a_login_reaches_the_server_and_nothing_else(stub, tmp_path, monkeypatch, caplog, environment, login, sent):
    """By MLflow's variables or in the address; refused, the records wait for a better one."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    stub.status = 401
    tracker = Tracker(stub.uri.replace("://", f"://{login}"), "x", directory=tmp_path)
    tracker.start("t", name="t", role="train")
    wait_until(lambda: "takes no records" in caplog.text)
    assert tracker.close(timeout=0) == 1
    kind, secret = sent.split()
    expected = f"{kind} {base64.b64encode(secret.encode()).decode() if kind == 'Basic' else secret}"
    assert {header for _, header in stub.requests} == {expected}
    assert {name: os.environ[name] for name in environment} == environment
    assert "s3cret" not in caplog.text + "".join(path.read_text() for path in tmp_path.glob("*.json*"))


@pytest.fixture
def proxy(running):
    """Passes requests on to a server, but for methods that it refuses with a status of its own."""

    class Pass(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = made.refused.get(self.command), b""
            if status is None:
                connection = HTTPConnection("127.0.0.1", running.port)
                kept = {name: value for name, value in self.headers.items() if name != "Accept-Encoding"}
                connection.request(self.command, self.path, body, kept)
                response = connection.getresponse()
                status, answer = response.status, response.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Pass)
    made.refused, made.uri = {}, f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_proxy_that_refuses_files_holds_up_no_records(proxy, running, experiment, tmp_path, caplog):
    """Too large to send, or not to be removed: logged, and everything else arrives."""
    tracker = Tracker(proxy.uri, experiment, directory=tmp_path / "spool")
    tracker.start("t", name="t", role="trial")
    best = checkpoint(tmp_path / "best")
    tracker.model("t", best, name="m", step=1, metrics={RECALL: 0.1})
    assert tracker.close() == 0
    (model,) = models(running.uri, experiment)

    proxy.refused = {"PUT": 413, "DELETE": 405}
    tracker = Tracker(proxy.uri, experiment, directory=tmp_path / "spool")
    tracker.model("t", best, name="m", step=2, metrics={RECALL: 0.2})
    tracker.forget_model("t", 1)
    tracker.metrics("t", 3, {RECALL: 0.3})
    assert tracker.close() == 0
    assert "model of t is left out: 413" in caplog.text
    assert "forget of t is left out" in caplog.text
    assert f"the files of model {model.model_id} are not removed: 405" in caplog.text
    assert best_model(running.uri, experiment, "t", RECALL) is None
    assert (kept_at(model, running) / "model.json").exists()
    assert (3, 0.3) in points(running.uri, runs(running.uri, experiment)["t"])


FULL = """
import logging, subprocess, sys, time
from pathlib import Path
from dcml_tune.tracking import Tracker, delivery_thread
logging.basicConfig(level=logging.WARNING, format="%(message)s")
delivery_thread.BACK_OFF_S = (0.1, 0.2)
uri, experiment, disk, best = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
size = lambda *options: subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "tmpfs", disk], check=True)
size("size=256k")
trackers = {key: Tracker(uri, experiment, directory=disk / key) for key in ("later", "closed", "never")}
for key, tracker in trackers.items():
    tracker.start(key, name=key, role="trial")
while not all(tracker.run_id(key) for key, tracker in trackers.items()):
    time.sleep(0.05)
with open(disk / "ballast", "wb", buffering=0) as ballast:
    for piece in (4096, 1):
        try:
            while True:
                ballast.write(bytes(piece))
        except OSError:
            pass
for step in range(100):
    for key, tracker in trackers.items():
        tracker.metrics(key, step, {"val/recall_at_1": step / 100})
later = trackers["later"]
for step in (40, 50):
    later.model("later", best, name="m", step=step, metrics={"val/recall_at_1": step / 100})
later.artifact("later", best / "model.json")
print("written", len((disk / "later" / "spool.jsonl").read_bytes().splitlines()))
trackers["never"].close(timeout=1)
size("remount,size=4m")
later.metrics("later", 100, {"val/recall_at_1": 1.0})
print("later", later.close())
print("closed", trackers["closed"].close())
"""


def test_a_full_disk_loses_no_record(store, experiment, tmp_path):
    """They wait in memory with one warning until there is room; files are sent from where they lie; nothing is torn."""
    alone = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]  # its mounts are its own, and go with it
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a small disk")
    best = checkpoint(tmp_path / "best")
    done = subprocess.run(
        [*alone, sys.executable, "-c", FULL, store, experiment, disk, best], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines())
    assert int(said.pop("written")) < 100, "the disk was not full"
    assert said == {"later": "0", "closed": "0"}
    for text in (
        "later/spool.jsonl cannot be written ([Errno 28] No space left on device); records are held in memory",
        "later/spool.jsonl can be written again",
        "closed/spool.jsonl can be written again",
        f"{best} cannot be kept",
        "records could not be written to",
    ):
        assert done.stderr.count(text) == 1, done.stderr
    assert "corrupt" not in done.stderr
    assert "left out" not in done.stderr
    found = runs(store, experiment)
    assert points(store, found["later"]) == [(step, step / 100) for step in range(101)]
    assert points(store, found["closed"]) == [(step, step / 100) for step in range(100)]
    assert [(kept_at(model) / "model.json").read_text() for model in models(store, experiment)] == ["weights"] * 2
    client = MlflowClient(tracking_uri=store)
    assert [file.path for file in client.list_artifacts(found["later"].info.run_id)] == ["model.json"]
    # What there was no room for when its tracker was closed is lost, as the log says; the rest of it arrived.
    assert 0 < len(points(store, found["never"])) < 100


def read(path, default):
    return path.read_text() if path.exists() else default


def test_the_flush_command_says_what_it_did(store, experiment, tmp_path):
    """It delivers what waits below OUTPUT/NAME; a name that is not there is refused in one line."""
    directory = tmp_path / "s" / "tracking"
    directory.mkdir(parents=True)
    with FileLock(directory / "delivery.lock"):
        tracker = Tracker(store, experiment, directory=directory)
        tracker.start("s", name="s", role="search")
        assert tracker.close(timeout=0.1) == 1
    module = [sys.executable, "-m", "dcml_tune.tracking", "flush"]
    done = subprocess.run([*module, "s", "--output-dir", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "everything is delivered\n"), done.stderr
    assert set(runs(store, experiment)) == {"s"}
    done = subprocess.run([*module, "t", "--output-dir", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "check NAME" in done.stderr


def test_importing_the_module_imports_neither_mlflow_nor_ray():
    """The command line must answer quickly."""
    code = "import sys, dcml_tune.tracking; print([m for m in ('mlflow', 'ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://ann:secret@host:5000/x", "http://***@host:5000/x"),
        ("http://ann:se@cret@host:5000", "http://***@host:5000"),
        ("http://ann:se/cret@host:5000", "http://***@host:5000"),
        ("postgresql://ann:secret@db/mlflow", "postgresql://***@db/mlflow"),
        ("http://ann:12/se'c r\"et@host:5000", "http://***@host:5000"),
        ("see http://host:5000/a@b", "see http://***@b"),  # a password may look like a path
        ("sqlite:////home/a@b:c/mlflow.db", "sqlite:////home/a@b:c/mlflow.db"),
        ("https://host/?token=abc&page=2", "https://host/?token=***&page=2"),
        ("HTTPSConnectionPool: https://t0ken@host failed", "HTTPSConnectionPool: https://***@host failed"),
    ],
)
def test_redact_hides_logins_and_tokens(text, expected):
    """Whatever stands before the @ of an address, and the value of anything called token or password."""
    assert redact(text) == expected


def test_redact_command_hides_the_values_of_secret_flags():
    """In both ways to give a flag; the rest can still be pasted."""
    words = [
        "search",
        "a b",
        "--tracking-uri",
        "http://u:pw1@h",
        "--api-token",
        "pw2",
        "--password=pw3",
        "MY_TOKEN=pw4",
    ]
    text = redact_command(words)
    assert not any(secret in text for secret in ("pw1", "pw2", "pw3", "pw4"))
    assert text.startswith("search 'a b' --tracking-uri ")


def test_environment_tags_name_versions_commit_and_command():
    """What is needed to run it again, without secrets."""
    tags = environment_tags("f00", ["search", "--tracking-uri", "http://u:pw@h"])
    assert tags["dcml.data"] == "f00"
    assert tags["dcml.version.mlflow"] == "3.17.2"
    assert {"dcml.version.python", "dcml.version.torch", "dcml.version.faiss-gpu", "dcml.command"} <= set(tags)
    assert "pw" not in str(tags)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if head.returncode == 0:
        assert tags["mlflow.source.git.commit"].removesuffix("+changed") == head.stdout.strip()


def test_compare_url_holds_the_runs(store, experiment, tmp_path):
    """The page's address holds the runs that exist as JSON lists, quoted."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    for key in ("a", "b"):
        tracker.start(key, name=key, role="train")
    assert tracker.close() == 0
    url = tracker.compare_url("http://ann:secret@host:5000/", ["a", "b", "never"])
    assert url.startswith("http://host:5000/#/compare-runs?runs=%5B%22")
    query = parse_qs(urlsplit(url.replace("/#/", "/")).query)
    assert json.loads(query["runs"][0]) == [tracker.run_id("a"), tracker.run_id("b")]
    assert json.loads(query["experiments"][0]) == [tracker.experiment_id]
    assert tracker.compare_url(store, ["a"]).startswith("http://127.0.0.1:5000/#/compare-runs?")
    assert tracker.compare_url(store, ["never"]) is None


def test_ui_command_can_be_pasted():
    """A database needs the command that serves it; a server has an address."""
    command = ui_command("sqlite:///a b.db")
    assert (
        command
        == f"{sys.executable} -m mlflow ui --backend-store-uri 'sqlite:///{Path('a b.db').resolve()}' --port 5000"
    )
    assert ui_command("http://ann:secret@host:5000") == "http://host:5000"


@pytest.mark.parametrize("uri", ["runs/mlruns", "file:///tmp/mlruns", "sqlite:////proc/no/mlflow.db"])
def test_an_address_that_cannot_work_is_refused_at_once(uri, tmp_path):
    """Before the search starts, with the name of the flag."""
    with pytest.raises(SettingError, match="tracking-uri="):
        Tracker(uri, "x", directory=tmp_path)
