import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from dcml_tune import tracking
from dcml_tune.config import SettingError
from dcml_tune.tracking import Tracker, best_model, flush, redact, redact_command

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
    (tmp_path / "report.html").unlink()
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
        tracker.metrics("s", 3, {"trials/done": values["time/epoch_s"]})
        assert tracker.close() == 0
    found = runs(store, experiment)
    assert points(store, found["s/0"]) == [(3, 0.5)]
    assert points(store, found["s/0"], "time/epoch_s") == [(3, 1.0)]
    assert found["s/0"].info.status == "RUNNING"
    assert points(store, found["s"], "trials/done") == [(3, 1.0), (3, 2.0)]


KILLED = """
import sys, time
from pathlib import Path
from dcml_tune import tracking
tracking._WINDOW, tracking._LINGER_S = 7, 0.0
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
    models = MlflowClient(tracking_uri=store).search_logged_models([found["s"].info.experiment_id])
    assert sorted(model.tags["dcml.key"] for model in models) == [f"s/{trial}" for trial in range(4)]
    assert {model.status for model in models} == {"READY"}


def test_the_best_model_of_a_search_is_one_query_away(store, experiment, tmp_path):
    """The logged model with the highest measure, of that search and role, with its files."""
    tracker = Tracker(store, experiment, directory=tmp_path / "spool")
    for search in ("a_b", "axb"):
        tracker.start(search, name=search, role="search")
        for trial, value in enumerate((0.3, 0.9 if search == "axb" else 0.7, 0.5)):
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
    files = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    assert (files / "model.json").read_text() == "a_b/1"
    # The measures of the model are those of the run: linking them adds no second point.
    found = runs(store, experiment)
    assert points(store, found["a_b/1"]) == [(4, 0.7)]
    outputs = MlflowClient(tracking_uri=store).get_run(tracker.run_id("a_b/1")).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    assert best_model(store, experiment, "a_b", RECALL, role="final").tags["dcml.key"] == "a_b/2"
    assert best_model(store, experiment, "none", RECALL) is None
    assert best_model(store, experiment, "a_b", "val/unknown") is None
    assert best_model(store, "no such experiment", "a_b") is None


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


def test_bad_records_hold_up_no_others(store, experiment, tmp_path, caplog):
    """A point that MLflow refuses, a run never started, a missing checkpoint: logged, left out, the rest arrives."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train", params={"seed": 1})
    tracker.metrics("t", 0, {RECALL: 0.1})
    tracker.metrics("t", 1, {RECALL: 0.2}, timestamp=-5)
    tracker.metrics("unknown", 1, {RECALL: 0.2})
    tracker.model("t", tmp_path / "not there", name="m", step=1, metrics={})
    tracker.metrics("t", None, {RECALL: 0.2})
    tracker.start("t", name="t", role="train", params={"seed": 2})
    tracker.metrics("t", 2, {RECALL: 0.3})
    assert tracker.close() == 0
    run = runs(store, experiment)["t"]
    assert points(store, run) == [(0, 0.1), (2, 0.3)]
    assert run.data.params == {"seed": "1"}
    for text in ("metrics of t is left out", "metrics of unknown is left out", "model failed", "seed of t changed"):
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
    assert caplog.text.count("torn record") == 1


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
    with tracking.FileLock(directory / "delivery.lock"):
        tracker = Tracker(store, experiment, directory=directory)
        tracker.start("t", name="t", role="train")
        assert tracker.close(timeout=1) == 1
        assert flush(directory, timeout=0) == 1
    assert flush(directory) == 0
    assert set(runs(store, experiment)) == {"t"}


def test_a_call_costs_the_caller_next_to_nothing(store, experiment, tmp_path):
    """Recording an epoch takes far less than a millisecond, whatever MLflow does."""
    tracker = Tracker(store, experiment, directory=tmp_path)
    tracker.start("t", name="t", role="train")
    values = {f"val/measure_{number}": number / 7 for number in range(12)}
    costs = []
    for step in range(300):
        before = time.perf_counter()
        tracker.metrics("t", step, values)
        costs.append(time.perf_counter() - before)
    assert sorted(costs)[150] < 5e-4
    assert tracker.close() == 0
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

    def stop(self):
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
    """All arrives once, files too; one line when the server goes, one when it is back; no password anywhere."""
    monkeypatch.setattr(tracking, "_BACK_OFF_S", (0.2, 0.5))
    caplog.set_level(logging.WARNING)
    uri = server.uri.replace("http://", "http://ann:s3cret@")
    spool = tmp_path / "spool"
    before = time.monotonic()
    tracker = Tracker(uri, experiment, directory=spool)
    tracker.start("s", name="s", role="search", tags={"dcml.command": f"search --tracking-uri {uri}"})
    tracker.start("s/0", name="000", role="trial", parent="s", params={"tracking_uri": uri})
    for step in range(5):
        tracker.metrics("s/0", step, {RECALL: step / 10})
    assert time.monotonic() - before < 2, "a server that is away held the caller up"
    wait_until(lambda: "takes no records" in caplog.text)
    assert tracker.run_id("s/0") is None

    server.start()
    wait_until(lambda: json.loads(read(spool / "delivered.json", "{}")).get("n") == 7)
    server.stop()
    for step in range(5, 10):
        tracker.metrics("s/0", step, {RECALL: step / 10})
    tracker.model("s/0", checkpoint(tmp_path / "best"), name="m", step=9, metrics={RECALL: 0.9})
    tracker.end("s/0", "FINISHED")
    wait_until(lambda: caplog.text.count("takes no records") == 2)
    assert tracker.close(timeout=0.1) == 7
    with pytest.raises(SettingError, match="password is not stored"):
        flush(spool)
    assert caplog.text.count("takes records again") == 1

    server.start()
    assert flush(spool, uri) == 0
    found = runs(server.uri, experiment)
    assert points(server.uri, found["s/0"]) == [(step, step / 10) for step in range(10)]
    assert found["s/0"].info.status == "FINISHED"
    model = best_model(server.uri, experiment, "s", RECALL)
    assert (model.tags["dcml.key"], model.status) == ("s/0", "READY")
    stored = "".join(path.read_text() for path in spool.rglob("*.json*"))
    assert "s3cret" not in caplog.text + stored + str([run.data for run in found.values()])


def read(path, default):
    return path.read_text() if path.exists() else default


def test_the_flush_command_says_what_it_did(store, experiment, tmp_path):
    """It delivers what waits below OUTPUT/NAME; a name that is not there is refused in one line."""
    directory = tmp_path / "s" / "tracking"
    directory.mkdir(parents=True)
    with tracking.FileLock(directory / "delivery.lock"):
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
        ("see http://host:5000/a@b", "see http://host:5000/a@b"),
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
    tags = tracking.environment_tags("f00", ["search", "--tracking-uri", "http://u:pw@h"])
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
    command = tracking.ui_command("sqlite:///a b.db")
    assert (
        command
        == f"{sys.executable} -m mlflow ui --backend-store-uri 'sqlite:///{Path('a b.db').resolve()}' --port 5000"
    )
    assert tracking.ui_command("http://ann:secret@host:5000") == "http://host:5000"


@pytest.mark.parametrize("uri", ["runs/mlruns", "file:///tmp/mlruns", "sqlite:////proc/no/mlflow.db"])
def test_an_address_that_cannot_work_is_refused_at_once(uri, tmp_path):
    """Before the search starts, with the name of the flag."""
    with pytest.raises(SettingError, match="tracking-uri="):
        Tracker(uri, "x", directory=tmp_path)
