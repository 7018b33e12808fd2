import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from dcml_tune.search.flags import read_command_line

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ["--ratio-classes", "0.1"]


@pytest.fixture
def program(monkeypatch):
    """A program of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def by_part(rows):
    return {row["part"]: row for row in rows}


def test_start_compares_whole_processes(program):
    """The ratio is that of the sums of a process's parts."""
    start = program("start")
    laps = {start.REFERENCE: [{"torch": 1.0, "timm": 2.0}] * 2, start.TRIAL: [{"imports": 3.0, "setup": 0.6}] * 2}
    (row,) = start.lines(laps)
    assert (row["ours"], row["reference"], row["ratio"]) == pytest.approx((3.6, 3.0, 1.2))
    assert "a trial: imports 3.00 s, setup 0.60 s" in start.parts(laps)


@pytest.mark.slow
def test_a_trial_is_followed_to_its_first_step(program, tmp_path):
    """In a process of its own, which ends there."""
    laps = program("start").run("a trial", tmp_path / "store")
    assert list(laps) == ["imports", "setup", "first batch"]
    assert all(seconds > 0 for seconds in laps.values())


def test_overhead_tells_where_a_trial_s_time_goes(program):
    """What is not in its epochs, by both spans, and the parts of the longer one."""
    overhead = program("overhead")
    span = overhead.Span(key="s/000", drawn=0, started=5, reported=[10, 20], epochs=[4, 8], ended=22, told=24)
    rows = by_part(overhead.lines([span, span, span]))
    assert rows["not in epochs, by MLflow"]["ratio"] == pytest.approx(5 / 17)
    assert rows["not in epochs, by the study"]["ratio"] == pytest.approx(12 / 24)
    assert {part.strip(): row["ours"] for part, row in rows.items() if part.startswith(" ")} == {
        "start of its process": 5, "before the first epoch": 1, "between epochs": 2, "after the last": 4
    }  # fmt: skip


def test_a_driver_is_driven_without_ray(program, tmp_path):
    """All trials end, all is delivered, and the records of the search tell of it as those of any other."""
    trials, overhead = program("scaling_trials"), program("overhead")
    found = trials.driver(3, tmp_path, "--scheduler", "none", *SMALL)
    assert {"driver, ms a trial", "suggest, ms a trial", "report page, s", "mlflow.db, MB"} <= set(found)
    assert all(value >= 0 for value in found.values())
    spans = overhead.spans(tmp_path, "trials-3")
    assert [span.key for span in spans] == [f"trials-3/{number:03d}" for number in range(3)]
    assert all(span.epochs == [0.01] * 6 for span in spans)


@pytest.mark.slow
def test_tracking_is_compared_with_ray_alone(program, tmp_path, monkeypatch):
    """Both run the same trials; the rows are of the trials, and with the store that is made once."""
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        trials, with_store = program("tracking").measured(2, 2, 1, 2, tmp_path)
    finally:
        ray.shutdown()
    assert trials["part"] == "2 trials of 2 reports"
    assert with_store["ours"] > trials["ours"] > 0
    assert with_store["reference"] == trials["reference"] > 0


TAKES_MEMORY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from costs import watch_memory
held = np.ones(10_000_000)
grown = watch_memory()
del held
first = grown()
np.ones(20_000_000)
print(json.dumps([first, grown()]))
"""


def test_memory_is_what_is_taken_beside_the_start(program, tmp_path):
    """Never below 0: Linux tells a peak at the start of up to 0.2 MB less than what is held then."""
    (tmp_path / "takes_memory.py").write_text(TAKES_MEMORY)
    first, second = program("costs").child(str(tmp_path / "takes_memory.py"), BENCHMARKS)
    assert 0 <= first < 1
    assert second == pytest.approx(80, abs=5)


def test_a_store_is_counted_once(program, tmp_path):
    """However many processes have it open; and once in each that has its own."""
    memory = program("memory")
    rows = by_part(memory.lines(memory.measured(12, 2, 1, tmp_path)))
    assert rows["store, one store to one process"]["ratio"] == pytest.approx(1, abs=0.01)
    assert rows["store, own stores to one process"]["ratio"] == pytest.approx(2, abs=0.01)
    assert rows["files, one store to own stores"]["ratio"] < 1


def test_scaling_tells_values_and_exponents(program, tmp_path):
    """A row a value, with a column a size."""
    scaling = program("scaling")
    assert scaling.exponent([10, 100, 1000], [1, 100, 10_000]) == pytest.approx(2)
    found = scaling.measured(["building", "reading"], {"images": [16, 80], "trials": []}, tmp_path)
    assert found["building"][16]["bytes an image"] > 3 * 40 * 30
    seconds = scaling.grown("reading", found["reading"])[0]
    assert list(seconds) == ["reading", "16", "80", "exponent", "at 10,000,000"]
    assert seconds["80"] > 0


def test_scaling_measures_clustering_and_evaluation(program, tmp_path):
    """Each says its time, its memory and the size of its data."""
    scaling = program("scaling")
    for part, numbers in ((scaling.clustering, scaling.CLUSTERED), (scaling.evaluation, scaling.EMBEDDED)):
        found = part(1000, tmp_path)
        assert found["s"] > 0
        assert found["data, MB"] == pytest.approx(1000 * numbers * 4 / 1e6)


def test_fidelity_puts_back_what_version_0_1_did(program, monkeypatch):
    """Repeated batches in smaller clusters, and one triplet for each positive pair."""
    from dcml_tune.config.trial import TrialConfig
    from dcml_tune.data import samplers
    from dcml_tune.losses import miners

    fidelity = program("fidelity")
    monkeypatch.setattr(samplers, "_draw", samplers._draw)
    monkeypatch.setattr(miners, "_deal", miners._deal)
    labels, partition = np.arange(120) % 10, (np.arange(120) >= 90).astype(np.int64)
    config = TrialConfig(batch_size=16, num_samples_per_class=4)
    y = torch.tensor([0] * 5 + [1, 1, 2, 2])
    x = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1)

    def second_cluster():
        return [batch.tolist() for cluster, batch in samplers.epoch_batches(partition, labels, config, 0) if cluster]

    def anchors():
        return miners.mine("distanceweighted", x, y, generator=torch.Generator().manual_seed(0))[0].bincount().tolist()

    now = second_cluster()
    assert (len(now), anchors()) == (5, [3] * 9)
    fidelity.repeat_batches()
    fidelity.triplet_a_pair()
    assert (second_cluster(), anchors()) == ([now[0]] * 5, [4] * 5 + [1] * 4)


def test_flags_are_read_from_their_packages(program, tmp_path):
    """A country needs four drawings, and a territory that flies the flag of another one is left out."""
    flags = program("flags")
    listed = [{"code": code, "iso": code != "eu"} for code in ("fr", "re", "eu", "se")]
    icons = {"width": 30, "height": 20, "icons": {code: {"body": "<path/>"} for code in ("fr", "re", "eu", "un")}}
    for design in flags.DESIGNS:
        for code in ("fr", "re", "eu"):
            file = tmp_path / design.package / design.files.replace("*", code)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(icons) if file.suffix == ".json" else f"<svg>{code}</svg>")
    (tmp_path / "flag-icons" / "country.json").write_text(json.dumps(listed))
    (tmp_path / "circle-flags" / "flags" / "se.svg").write_text("<svg>se</svg>")
    found = flags.countries(tmp_path)
    assert list(found) == ["fr"]
    assert found["fr"].keys() == {design.name for design in flags.DESIGNS}
    assert found["fr"]["circle-flags"] == "<svg>fr</svg>"
    assert found["fr"]["cif"].startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 20"><path/>')


def _verdict(winner, published, low=None):
    tests = {"winner": winner} | ({} if published is None else {"published": published})
    differs = published is not None
    comparison = {"control": "published", "on": "test classes", "difference": winner - (published or 0), "low": low,
                  "high": None if low is None else low + 0.02, "found": "better"}  # fmt: skip
    return {
        "test_means": tests,
        "comparisons": [comparison] if differs else [],
    }


def test_searches_are_compared_by_their_final_stages(program):
    """Paired by seed; a search that chose the published setting has its value."""
    search = program("search")
    found = {
        ("wide", 1): _verdict(0.58, 0.52, low=0.05),
        ("wide", 2): _verdict(0.56, 0.52, low=0.03),
        ("four", 1): _verdict(0.53, 0.52),
        ("four", 2): _verdict(0.52, None),
    }
    assert search.answer(found["wide", 1]) == "+6.0 (+5.0 to +7.0): better"
    assert search.answer(found["four", 2]) == "the winner is the published setting"
    rows = dict(line.strip("| ").split(" | ") for line in search.table(found, ["wide", "four"], [1, 2])[2:])
    assert rows["wide"] == "57.0 ± 12.7"
    assert rows["published"] == "52.0 ± 0.0"
    assert rows["wide - four, paired by seed"].startswith("+4.5")


def test_a_verdict_that_is_there_is_not_searched_again(program, tmp_path, capsys, monkeypatch):
    """The files of finished searches are enough to print the tables."""
    search = program("search")
    monkeypatch.setattr(search.subprocess, "run", lambda *_, **__: pytest.fail("a search was run"))
    for seed, winner in ((1, 0.58), (2, 0.56)):
        (tmp_path / f"wide-{seed}.json").write_text(json.dumps(_verdict(winner, 0.52)))
    search.main(["--seeds", "2", "--kinds", "wide", "--output", str(tmp_path)])
    assert "| wide - published, paired by seed | +5.0 ± 12.7 |" in capsys.readouterr().out


def test_the_command_line_accepts_the_searches_that_are_compared(program):
    search = program("search")
    given = search._arguments(["--data-set", "folder", "--nb-epochs", "6", "--", "--sz-crop", "64"])
    for kind in search.KINDS:
        found = read_command_line(search.command(kind, 1, given))
        assert (found.config.confirm, found.config.epoch_budget) == (0, 64)
        assert (found.given()["force_full_embedding_epoch"], found.given()["sz_crop"]) == (5, 64)


def driven(cluster, seconds, cpu):
    """What a driver took whose results came one after the other."""
    ends = [sum(seconds[: count + 1]) for count in range(len(seconds))]
    return cluster.Driven(
        ends=ends,
        seconds=seconds,
        cpus=[cpu * count / (len(seconds) - 1) for count in range(len(seconds))],
        mains=[cpu / 2 * count / (len(seconds) - 1) for count in range(len(seconds))],
        memory=100.0,
        packages={"ray": 3.0, "optuna": 1.0},
        database=2.0,
    )


def test_cluster_compares_two_drivers(program):
    """A ratio for each value, of equally many first trials; quarters of the longer search; the shares of the packages."""
    cluster = program("cluster")
    one, two = driven(cluster, [0.01] * 40, 1.0), driven(cluster, [0.02] * 60 + [0.04] * 20, 4.0)
    found = {"one": one, "two": two, "fast": two, "bare": one, "profile": two}
    trials, quarters, reports, packages = cluster.tables(found, trials=20, alone=10).values()
    rows = {row[""].strip(): row for row in trials}
    assert rows["driver's time for a result, median, ms"]["ratio"] == pytest.approx(2)
    assert rows["CPU time of the driver for a trial, s"]["ratio"] == pytest.approx(4 * 39 / 79)
    medians = [row["driver's time for a result, median, ms"] for row in quarters]
    assert medians == pytest.approx([20, 20, 20, 40])
    values = {row[""]: row for row in reports}
    assert values["results a second"]["two nodes, PostgreSQL"] == pytest.approx(79 / 1.98)
    assert values["results a second"]["Ray Tune alone"] == pytest.approx(100)
    most = values["results a second at most, by this CPU time on one core"]
    assert (most["two nodes, PostgreSQL"], most["Ray Tune alone"]) == (pytest.approx(20), pytest.approx(40))
    assert [row["%"] for row in packages] == [75, 25]


@pytest.mark.slow
def test_cluster_measures_searches_on_two_nodes(program, tmp_path):
    """With a real PostgreSQL; each result of each search is counted."""
    cluster = program("cluster")
    asked = argparse.Namespace(trials=2, alone=2, epochs=4, reports=10, at_once=2, profile=True)
    found = cluster.measured(asked, tmp_path)
    counts = {name: len(each.ends) for name, each in found.items()}
    assert counts == {"one": 8, "two": 8, "fast": 10, "bare": 10, "profile": 10}
    assert found["profile"].packages["ray"] > 0
