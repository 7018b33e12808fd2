"""The page about a search: what it shows, what it says where something is missing, and that it only reads."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import trees
from PIL import Image
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import PAPER_LABEL, TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder, best_model
from dcml_tune.report import write_report
from dcml_tune.report.__main__ import main
from dcml_tune.report.sections import pictures
from dcml_tune.runs import ledger
from dcml_tune.runs.record import Record
from dcml_tune.tracking import Tracker
from dcml_tune.training.trainer import Trainer
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils import checkpoint
from dcml_tune.utils.files import write_checksummed

DOMAINS = {
    "nb_clusters": optuna.distributions.CategoricalDistribution([2, 4]),
    "masking_lambda": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True),
}
TRIALS = [  # key, settings, best values so far, state
    ("000", {"nb_clusters": 4, "masking_lambda": 0.01}, [0.40, 0.50], "PRUNED"),
    ("001", {"nb_clusters": 2, "masking_lambda": 0.50}, [0.40, 0.55, 0.60], "COMPLETE"),
    ("002", {"nb_clusters": 2, "masking_lambda": 0.10}, [0.45, 0.65, 0.70], "COMPLETE"),
    ("003", {"nb_clusters": 4, "masking_lambda": 0.20}, [], "FAIL"),
]
VERDICT = {
    "metric": "test/recall_at_1",
    "winner": "002",
    "lines": ["trial 002 is better than the published setting", "<b>it is</b>"],
    "comparisons": [
        {"control": "published", "on": "held-out classes", "pairs": 5, "difference": 0.031, "low": 0.012, "high": 0.05,
         "needed": None, "found": "better"},
        {"control": "no division", "on": "test classes", "pairs": 1, "difference": -0.004, "low": None, "high": None,
         "needed": 23, "found": "one pair: no interval"},
    ],
    "gap": [
        {"setting": "winner", "validation": 0.713, "test": 0.509},
        {"setting": "untrained", "validation": None, "test": 0.412},
    ],
    "ablation": {
        "order": "difference of means of 3 trials", "winner": "002", "lines": [],
        "settings": [
            {"setting": "nb_clusters", "change": "nb_clusters 2 -> 4", "importance": 0.1, "pairs": 3,
             "changes": [{"setting": "nb_clusters", "from": 2, "to": 4}, {"setting": "mod_epoch", "from": 3, "to": 2}],
             "difference": -0.021, "low": -0.03, "high": -0.012},
            {"setting": "init_method", "change": "init_method pca -> none", "importance": 0.0, "pairs": 1,
             "changes": [{"setting": "init_method", "from": "pca", "to": None}],
             "difference": -0.04, "low": None, "high": None},
        ],
    },
}  # fmt: skip
ALWAYS = {"best-over-trials", "best-over-time", "learning-curves", "importance", "slices", "parallel"}


@pytest.fixture(scope="module")
def published(folder):
    """The settings that all trials share."""
    return {
        "dataset": "folder", "dataset_dir": str(folder), "train_classes": 16, "weights": "none", "sz_resize": 32,
        "sz_crop": 32, "sz_embedding": 16, "batch_size": 8, "num_samples_per_class": 2, "val_share": 0.25,
        "batch_sampler": "adaptbalanced", "nb_epochs": 3, "nb_clusters": 4, "mod_epoch": 1, "mod_epoch_freeze": 0,
        "masking_lambda": 0.01, "base_lr": 1e-3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def searched(published, tmp_path_factory):
    """An output directory with a search `s`: its record, study, MLflow runs, and a model that was trained."""
    output = tmp_path_factory.mktemp("runs")
    begin(output / "s", published)
    add_study(output / "s")
    add_runs(output)
    add_model(output / "s" / "trials" / "002", {**published, **TRIALS[2][1]}, output / "store")
    return output


def begin(directory, published):
    """The record of a search that has ended."""
    flags = {"num_samples": 4, "searcher": "optuna", "metric": None, "name": "s", "tracking_uri": None}
    settings = {name: published[name] for name in ("dataset", "dataset_dir", "weights")}
    metrics = ["paper/recall_at_1" if published.get("protocol") == "paper" else "val/recall_at_1"]
    space = {**SMALLEST["space"], "published": published}
    asked = {**SMALLEST, "flags": flags, "settings": settings, "space": space, "metrics": metrics}
    record = Record.create(directory, asked)
    record.begin(planned=4)
    record.update(status="finished", ended=4, best=0.7, untrained=0.30, elapsed_s=600.0)
    record.release()


def add_study(directory):
    """The study, with a draw that was refused and so has no key."""
    study = optuna.create_study(
        storage=f"sqlite:///{directory / 'optuna.db'}", study_name=directory.name, direction="maximize"
    )
    start = datetime(2026, 1, 1, 12)
    for number, (key, settings, curve, state) in enumerate([*TRIALS, (None, TRIALS[0][1], [], "FAIL")]):
        study.add_trial(
            optuna.trial.FrozenTrial(
                number=-1,
                trial_id=-1,
                state=optuna.trial.TrialState[state],
                value=curve[-1] if curve else None,
                datetime_start=start + timedelta(minutes=number),
                datetime_complete=start + timedelta(minutes=number + 2),
                params=settings,
                distributions=DOMAINS,
                user_attrs={} if key is None else {"dcml.key": key},
                system_attrs={},
                intermediate_values=dict(enumerate(curve, 1)),
            )
        )


def add_runs(output):
    """Runs of trials with numbers of their division, two confirming pairs, and two that scored the test classes."""
    tracker = Tracker.open(output, "s")
    tracker.start("s", name="s", role="search", params={}, tags={})
    for key, _, curve, _ in TRIALS:
        tracker.start(f"s/{key}", name=key, role="trial", parent="s", params={}, tags={})
        for epoch in range(1, len(curve) + 1):
            clusters = {"nmi_previous": 0.2 * epoch, "left_out": 0.01 * epoch, "largest": 40.0, "smallest": 30.0}
            values = {f"clusters/{name}": value for name, value in clusters.items()}
            tracker.metrics(f"s/{key}", epoch, {**values, "time/epoch_s": 60.0})
        tracker.end(f"s/{key}", "FINISHED")
    for setting in ("winner", "published"):
        for fold in (0, 1):
            name = f"s/confirm-{setting}-{fold}"
            params = {"split_seed": 0, "fold": fold, "seed": 1}
            tracker.start(name, name=name, role="confirm", parent="s", params=params, tags={"dcml.setting": setting})
            tracker.metrics(name, 3, {"val/recall_at_1_best": 0.5 + 0.1 * fold})
            tracker.end(name, "FINISHED")
    for role, value in (("final", 0.509), ("no division", 0.487)):
        name = f"s/{role}"
        tracker.start(name, name=role, role=role, parent="s", params={}, tags={})
        tracker.metrics(name, 3, {"test/recall_at_1": value})
        tracker.end(name, "FINISHED")
    assert tracker.close(60) == 0


def add_model(directory, settings, stores):
    """A model after two epochs with its division, one image of which is in no cluster."""
    trainer = Trainer(TrialConfig(**settings), stores=stores, device="cpu")
    for _ in range(2):
        trainer.run_epoch()
    trainer.best = replace(trainer.best, epoch=2, value=0.7, weights=trainer.model.state_dict())
    trainer.save(directory)
    rows = trainer.data.train
    partition = np.arange(len(rows)) % 2
    partition[0] = -1
    tensors = {"partition": torch.from_numpy(partition), "rows": torch.from_numpy(rows)}
    checkpoint.write(best_model(directory), "division", tensors, {"nb_clusters": 2})


@pytest.fixture(scope="module")
def whole(searched):
    """The text of the page of a search that has everything, and its directory."""
    write_checksummed(searched / "s" / "verdict.json", VERDICT)
    line = {"when": "2026-01-01T13:00:00", "run": "s/final", "dataset": "folder", "test_set": "a", "before": 2}
    (searched / "test-ledger.jsonl").write_text(
        json.dumps({**line, "previous": hashlib.sha256(b"").hexdigest()}) + "\n{torn"
    )
    before = digests(searched / "s")
    page = write_report(searched / "s", uri=f"sqlite:///{searched / 'mlflow.db'}")
    assert digests(searched / "s") == before, "a report changes nothing of the search"
    return text_of(page), page.parent


def digests(directory):
    """The content of all files of a search but its report."""
    files = (file for file in directory.rglob("*") if file.is_file() and "report" not in file.parts)
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def text_of(page):
    """The page without its images."""
    return re.sub(r'src="data:[^"]*"', "", page.read_text())


@pytest.fixture
def copy(searched, tmp_path):
    """The record alone of the search, in a directory of its own: nothing else is there."""
    (tmp_path / "s").mkdir()
    for name in ("search.json", "state.json"):
        shutil.copy(searched / "s" / name, tmp_path / "s" / name)
    return tmp_path


def report(output, *words):
    """The text of the page that the command writes."""
    assert main(["s", "--output-dir", str(output), *words]) == 0
    return text_of(output / "s" / "report" / "index.html")


def test_all_figures_are_files_too(whole):
    """Each is a PNG that has more than one colour, and the page has as many images."""
    _, place = whole
    names = {file.stem for file in place.glob("*.png")}
    assert names == ALWAYS | {
        "forest", "nmi", "left-out", "largest-smallest", "cluster-sizes", "mask-overlap", "masks", "neighbours", "clusters",
        "confirmation", "ablation",
    }  # fmt: skip
    for name in names:
        assert len(np.unique(np.asarray(Image.open(place / f"{name}.png").convert("L")))) > 10
    page = (place / "index.html").read_text()
    assert page.count("<img") == page.count("<figcaption>Look for") == len(names)
    assert page.count('src="data:image/') == len(names)
    assert len(page) < 8e6


def test_the_ledger_shows_its_last_lines_and_where_it_was_changed(copy):
    """Its lines are those of the whole output directory."""
    file = copy / ledger.NAME
    for number in range(130):
        ledger.enter(file, run=f"other/{number}", dataset="folder", test_set="a")
    text = report(copy)
    assert "The test classes were scored 130 times; the last 100 are shown." in text
    assert ("other/129" in text, "other/29<" in text) == (True, False)
    assert "The ledger was changed" not in text
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:50] + lines[51:]) + "\n")
    assert "The ledger was changed: line 51 of" in report(copy)


def test_the_page_needs_no_network(whole):
    """Nothing is loaded, and no script is run."""
    text, _ = whole
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    "said",
    [
        "val/recall_at_1 70.0 % after epoch 3 of 3",  # the winner
        "4 of 4 have ended (1 pruned, 1 failed, 0 running)",
        "<td>published</td><td>held-out classes</td><td>5</td><td>+3.1</td><td>+1.2 to +5.0</td>",
        "<td>no division</td><td>test classes</td><td>1</td><td>-0.4</td><td>\N{EN DASH}</td><td>23</td>",
        "<td>nb_clusters 2 -&gt; 4</td><td>mod_epoch 3 -&gt; 2</td><td>3</td><td>-2.1</td><td>-3.0 to -1.2</td>",
        "<td>init_method pca -&gt; none</td><td>\N{EN DASH}</td><td>1</td><td>-4.0</td><td>\N{EN DASH}</td>",
        "<td>winner</td><td>71.3 %</td><td>50.9 %</td><td>+20.4</td>",
        "&lt;b&gt;it is&lt;/b&gt;",  # what others wrote is not HTML
        "<td>000 (published)</td>",
        "<td>8 of 9 planned (88.9 %)</td>",
        "<td>1 (11.1 %)</td>",
        "<td>8.0 minutes</td>",
        "0.003 trial hours for each point of val/recall_at_1 over the untrained network: 0.13 for 40.0 points",
        "1 (1.4 %) belong to no cluster",
        "Searched were 24 held-out images of 4 classes (all of them)",
        "<td>final</td><td>50.9 %</td>",
        "<td>no division</td><td>48.7 %</td>",
        "<td>2026-01-01T13:00:00</td><td>s/final</td><td>folder</td><td>2</td>",
        "<td>{torn</td>",
        "dcml_tune.search folder --num-samples 4 --searcher optuna --name s --dataset-dir",
        "dcml_tune.report s --output-dir",
        "mlflow ui --backend-store-uri",
        "optuna-dashboard sqlite:///",
    ],
)
def test_numbers_of_the_page(whole, said):
    """What stands in its tables, captions and commands."""
    assert said in whole[0]


def test_a_search_without_anything_else(copy):
    """Each section that lacks its data says why."""
    text = report(copy)
    for said in (
        "The Optuna study cannot be read: is not there yet",
        "MLflow cannot be read",
        "Nothing was confirmed yet",
        "there is no best so far",
        "there are no learning curves",
        "0 have ended",
        "there is nothing to count",
        "no numbers of the division",
        "The division of the best trial was not kept",
        "its masks cannot be shown",
        "nothing can be embedded",
        "no confirming runs",
        "No run of this search has scored the test classes",
        "The test classes were never scored",
    ):
        assert said in text
    assert not list((copy / "s" / "report").glob("*.png"))


def test_a_damaged_study_and_verdict(copy, searched):
    """The copy of the study takes its place; a verdict that was changed is not believed."""
    (copy / "s" / "optuna.db").write_bytes(b"damaged" * 1000)
    shutil.copy(searched / "s" / "optuna.db", copy / "s" / "optuna.db.copy")
    (copy / "s" / "verdict.json").write_text(json.dumps(VERDICT))
    text = report(copy, "--no-pictures")
    assert "The verdict cannot be read" in text
    assert "002: val/recall_at_1 70.0 %" in text
    assert {file.stem for file in (copy / "s" / "report").glob("*.png")} == ALWAYS
    assert "Pictures" not in text


def test_a_study_below_any_path(copy, searched):
    """Characters that mean something in an address are part of its path."""
    directory = copy / "50%23 #1?" / "s"
    directory.mkdir(parents=True)
    for name in ("search.json", "state.json", "optuna.db"):
        shutil.copy(searched / "s" / name, directory / name)
    assert "002: val/recall_at_1 70.0 %" in report(directory.parent, "--no-pictures")
    assert [each.name for each in copy.glob("50*")] == ["50%23 #1?"]


def test_trials_that_are_all_alike(copy):
    """Where no setting made a difference there is no importance."""
    study = optuna.create_study(storage=f"sqlite:///{copy / 's' / 'optuna.db'}", study_name="s", direction="maximize")
    trial = study.ask(DOMAINS)
    trial.set_user_attr("dcml.key", "000")
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    text = report(copy)
    assert "at least two trials that ended with different values and settings; 1 have ended" in text
    assert "000: val/recall_at_1 50.0 % after epoch 1 of 3" in text


@pytest.mark.parametrize("name", ["running", "interrupted"])
def test_a_search_that_has_not_ended(copy, name):
    """The page says so, and how to go on; the lock stays with the process that runs it."""
    record = Record.open(copy / "s")
    record.hold()
    study = optuna.create_study(storage=f"sqlite:///{copy / 's' / 'optuna.db'}", study_name="s", direction="maximize")
    trial = study.ask(DOMAINS)
    trial.set_user_attr("dcml.key", "000")
    trial.report(0.5, 1)
    record.begin()
    if name == "interrupted":  # by a kill: its record still says that it runs
        record.update(owner=re.sub(r"\d+", str(2**22 + 1), record.state.owner, count=1))
    text = report(copy)
    assert ("still running" in text) == (name == "running")
    assert ("resume it by" in text) == (name == "interrupted")
    assert "000: val/recall_at_1 50.0 % after epoch 1 of 3" in text
    assert study.trials[0].state.name == "RUNNING"
    assert record.is_running()
    record.release()


def test_the_paper_protocol_is_labelled(published, tmp_path):
    """Wherever its numbers are."""
    begin(tmp_path / "s", {**published, "protocol": "paper"})
    text = report(tmp_path)
    assert f"paper/recall_at_1, on {PAPER_LABEL}" in text
    assert f'<p class="banner">{PAPER_LABEL}.' in text


def test_figures_of_an_earlier_page_are_removed(copy):
    """What the page does not show is not beside it."""
    (copy / "s" / "report").mkdir()
    (copy / "s" / "report" / "neighbours.png").touch()
    report(copy)
    assert not list((copy / "s" / "report").glob("*.png"))


def test_bad_input_is_one_line(copy):
    """A name that is no search, and a record that was changed."""
    with pytest.raises(SettingError, match="search 't' is not known; known are: s in "):
        main(["t", "--output-dir", str(copy)])
    with pytest.raises(SettingError, match="holds no search; give --output-dir"):
        main(["s", "--output-dir", str(copy / "s")])
    (copy / "s" / "search.json").write_text("{}")
    with pytest.raises(SettingError, match=r"^s: .*cannot be read"):
        main(["s", "--output-dir", str(copy)])


def test_neighbours_within_a_gallery(tmp_path, monkeypatch):
    """Where queries have a gallery (In-Shop) they are searched in it; of many classes some are taken, each whole."""
    settings = {"weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 16, "arch": "tf_efficientnet_lite0"}
    directory = trees.make_inshop(tmp_path, train=16)
    config = TrialConfig(dataset="inshop", dataset_dir=str(directory), val_share=0.25, allow_partial=True, **settings)
    opened = TrialData.open(config, tmp_path / "store")
    queries, gallery = pictures._shown_rows(opened)
    assert (len(queries), len(gallery)) == (12, 12)
    found = pictures._find_neighbours(MaskedEmbedder(config), opened, queries, gallery, penultimate=True)
    assert np.isin(found.neighbours, gallery).all()
    assert (found.right == (opened.labels[found.neighbours] == opened.labels[queries][:, None])).all()
    monkeypatch.setattr(pictures, "_MOST_IMAGES", 14)
    queries, gallery = pictures._shown_rows(opened)
    counts = np.unique(opened.labels[np.concatenate([queries, gallery])], return_counts=True)[1]
    assert counts.tolist() == [trees.NB_IMAGES] * 2


def test_half_of_the_queries_tell_the_networks_apart():
    """As far as there are as many; a query without another image of its class is never taken."""
    differ, answerable = np.arange(100) % 4 == 0, np.arange(100) % 2 == 0
    chosen = pictures._choose(differ, answerable)
    assert len(set(chosen.tolist())) == 12
    assert answerable[chosen].all()
    assert differ[chosen[6:]].all()
    assert sum(pictures._choose(np.arange(100) == 50, answerable) == 50) == 1


def chromium(profile):
    """A browser without a screen; skipped where there is none, unless the machine is that of continuous integration."""
    missing = None if shutil.which("chromium") and shutil.which("chromedriver") else "chromium and its driver"
    try:
        from selenium import webdriver
    except ImportError:
        missing = "selenium"
    if missing and os.environ.get("DCML_CI") == "1":
        pytest.fail(f"{missing} is not installed")
    if missing:
        pytest.skip(f"{missing} is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1200,900", f"user-data-dir={profile}",
    )  # fmt: skip
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def test_a_browser_shows_the_page(whole, tmp_path):
    """Chromium, offline, finds nothing to complain about, and shows every image, in the light and in the dark."""
    browser = chromium(tmp_path)
    try:
        browser.set_network_conditions(offline=True, latency=0, throughput=0)
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            browser.get(Path(whole[1] / "index.html").as_uri())
            images = browser.execute_script(
                "return [...document.images].map(i => [i.complete, i.naturalWidth, i.width])"
            )
            assert len(images) == whole[0].count("<img ") >= 16
            assert all(complete and natural > 0 and shown > 100 for complete, natural, shown in images)
            colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
            sideways = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert browser.execute_script(sideways) <= 0
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
