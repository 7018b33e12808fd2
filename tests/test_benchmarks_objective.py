"""objective.py and samplers.py: what they compute of a table whose truth is known, and one tiny training."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import optuna
import pytest
from scipy.stats import kendalltau, spearmanr

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig

TINY = {"dataset": "emoji", "ratio_classes": 0.02, "arch": "test_resnet", "weights": "none", "sz_resize": 32,
        "sz_crop": 32, "sz_embedding": 16, "nb_epochs": 2, "batch_size": 8, "num_samples_per_class": 2}  # fmt: skip


@pytest.fixture
def program(monkeypatch):
    """A program of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


def records(table, *, settings=12, seeds=(1, 2), noise=0.0):
    """Trainings whose held-out and test measures are the number of the setting, and an error of the held-out ones."""
    rng = np.random.default_rng(0)
    found = []
    for seed, number, part in itertools.product(seeds, range(settings), table.PARTS):
        sides = ["test"] if part == table.ALL else ["val", "test"]
        curves = {
            f"{side}/{name}": [
                0.01 * number + 0.1 * epoch + (side == "val") * noise * rng.normal() for epoch in range(6)
            ]
            for side in sides
            for name in table.TARGETS
        }
        chosen = {"base_lr": 1e-5 * (1 + number), "nb_clusters": 1}
        found.append(table.Record(number=number, name="drawn", settings=chosen, part=part, seed=seed, curves=curves,
                                  minutes=1.0, failed=""))  # fmt: skip
    return found


def test_rank_correlations_are_those_of_scipy(program):
    """Ties included; a constant has none."""
    table, rng = program("objective_table"), np.random.default_rng(0)
    x, y = rng.integers(0, 4, (3, 15)).astype(float), rng.integers(0, 9, (3, 15)).astype(float)
    assert table.spearman(x, y) == pytest.approx([spearmanr(*each).statistic for each in zip(x, y, strict=True)])
    assert table.kendall(x, y) == pytest.approx([kendalltau(*each).statistic for each in zip(x, y, strict=True)])
    assert np.isnan(table.spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(table.kendall(np.ones(5), np.arange(5.0)))


def test_objectives_are_taken_from_the_curves(program):
    """By measure, classes and epochs; the two fifths are two values, their mean is one."""
    table = program("objective_table")
    found = table.complete(records(table))
    curve = 0.01 * np.arange(12)[:, None] + np.zeros((12, 2))
    assert found.objective("recall@1", "0.33", "best") == pytest.approx(curve + 0.5)
    assert found.objective("mean of both", table.BOTH, "mean of last 3") == pytest.approx(curve + 0.4)
    assert found.objective("MAP@R", "0.2", "last") == pytest.approx(np.hstack([curve, curve]) + 0.5)
    assert found.target("map_at_r") == pytest.approx(curve + 0.5)


def test_the_table_is_of_settings_that_have_all_trainings(program, capsys):
    """Whatever is missing; a failed training is none. The output says that test classes were read."""
    table = program("objective_table")
    whole = records(table, noise=0.01)
    whole[3]["failed"] = "the loss of epoch 0 is not finite"  # setting 0, seed 1
    assert table.complete(whole).numbers == list(range(1, 12))
    cut = table.complete(whole[:60])  # seed 2 has begun
    assert (cut.numbers, cut.seeds) == (list(range(1, 12)), [1])
    assert table.complete([]).numbers == []
    table.show(whole, resamples=20)
    said = capsys.readouterr().out
    assert "reads the test classes" in said
    assert "96 trainings, 1.6 hours of one core; 11 settings are complete with 2 seeds; settings that failed: 0" in said
    assert said.count("\n| recall@1 |") == 3 * 9  # two measures, and the better half
    assert "at its last epoch" in said
    for each in whole[4:]:
        names = [name for name in each["curves"] if name.startswith("val") or each["part"] == table.ALL]
        each["curves"] = {name: each["curves"][name][-(6 if "val" in name else 1) :] for name in names}
    table.show(whole, resamples=20)
    assert capsys.readouterr().out == said[: said.index("\n## Test recall@1 of a training")]
    table.show(whole[:8], resamples=20)
    assert "too few settings" in capsys.readouterr().out


def test_a_better_objective_has_a_higher_correlation(program):
    """And loses fewer points; intervals hold the values, and the difference from today's objective has one."""
    table = program("objective_table")
    found = table.complete(records(table, noise=0.03))
    draws, target = table.Draws(12, 200), found.target("recall_at_1")
    noisy, mean = (draws.correlation(table.spearman, found.objective(*each, "best"), target)
                   for each in (("recall@1", "0.2"), ("mean of both", table.BOTH)))  # fmt: skip
    assert mean[0] > noisy[0]
    assert np.nanpercentile(mean - noisy, 2.5) < mean[0] - noisy[0] < np.nanpercentile(mean - noisy, 97.5)
    assert draws.lost(target, target).max() == pytest.approx(0)
    assert draws.lost(-target, target)[0] == pytest.approx(11)
    assert len(table.rows(found, "recall_at_1", draws)) == 2 + 27


def test_settings_are_valid_and_drawn_once(program, tmp_path):
    """The first are the published point and the plain recipe; a file that has settings is not drawn again."""
    module = program("objective_settings")
    file = tmp_path / "settings.jsonl"
    for each in itertools.islice(module.draws(module.wide(6)), 20):
        TrialConfig(**each)
    first = module.settings(file, 4, 6)
    assert [each.name for each in first] == ["published", "plain", "drawn", "drawn"]
    assert first[0].settings["nb_clusters"] == 4
    assert {**first[1].settings, **module.PLAIN} == first[1].settings
    more = module.settings(file, 6, 6)
    assert more[:4] == first
    assert module.settings(file, 3, 6) == first[:3]
    assert len({str(each.settings) for each in more}) == 6
    assert "masking_lambda" not in module.acting({"nb_clusters": 1})


def test_a_training_measures_held_out_and_test_classes_after_each_epoch(program, tmp_path, capsys):
    """It is a line of the file; one that is there is not run again, and a line that was cut off is none."""
    objective, drawn = program("objective"), program("objective_settings").Drawn(0, "drawn", TINY)
    first, *_, last = objective.trainings([drawn], 1)
    assert [each.part for each in (first, last)] == ["0.2, fold 0", "all classes"]
    file = tmp_path / "2-epochs.jsonl"
    for training in (first, last):
        objective.append(file, objective.train(training, tmp_path, tmp_path / "store"))
    held_out, everything = objective.read(file)
    assert {name: len(curve) for name, curve in held_out["curves"].items()} == dict.fromkeys(
        ("val/recall_at_1", "val/map_at_r", "test/recall_at_1", "test/map_at_r"), 2
    )
    assert set(everything["curves"]) == {"test/recall_at_1", "test/map_at_r"}
    assert len((tmp_path / "test-ledger.jsonl").read_text().splitlines()) == 4
    too_many = drawn._replace(settings={**TINY, "nb_clusters": 16, "mod_epoch": 1, "nb_epochs": 6})
    refused = objective.train(last._replace(setting=too_many), tmp_path, tmp_path / "store")
    assert "every cluster needs two classes" in refused["failed"]
    quick = objective.train(last, tmp_path, tmp_path / "store", quick=True)
    assert quick["curves"] == {name: curve[-1:] for name, curve in everything["curves"].items()}
    with file.open("a") as out:
        out.write('{"number": 1, "na')
    objective.append(file, held_out)
    assert objective.read(file) == [held_out, everything, held_out]
    objective.main(["--table", "--epochs", "2", "--output", str(tmp_path)])
    assert "too few settings" in capsys.readouterr().out


def test_missing_trainings_alone_are_run(program, tmp_path, monkeypatch):
    """After a stop, of all settings and seeds."""
    objective, ran = program("objective"), []

    def run(missing, jobs, output, quick):
        for setting, part, seed in missing[:5]:
            ran.append((setting.number, part, seed))
            yield objective.Record(number=setting.number, name=setting.name, settings=setting.settings, part=part,
                                   seed=seed, curves={}, minutes=0.1, failed="diverged")  # fmt: skip

    monkeypatch.setattr(objective, "run", run)
    for _ in range(4):
        objective.main(["--settings", "2", "--seeds", "2", "--output", str(tmp_path)])
    assert len(ran) == len(set(ran)) == 2 * 2 * 4


class _Line:
    """A space of one learning rate."""

    def __init__(self):
        self.published = {"dataset": "emoji"}

    def suggest(self, trial):
        chosen = {"base_lr": trial.suggest_float("base_lr", 1e-6, 1e-3, log=True)}
        if chosen["base_lr"] > 9e-4:
            raise SettingError("too high")
        return chosen

    def whole(self, chosen):
        return {**self.published, **chosen}


class _Fixed(optuna.samplers.RandomSampler):
    """Draws about one value: a sampler that is good or bad, as the value is."""

    def __init__(self, value):
        super().__init__(seed=0)
        self.value = value

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.value * (1 + 0.01 * trial.number)


def test_a_good_sampler_has_less_regret_than_a_bad_one(program):
    """One that knows the best less than random draws, TPE less than those, and one that knows the worst most."""
    samplers = program("samplers")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def truth(settings):
        return 0.7 - 0.02 * np.log10(settings["base_lr"] / 1e-4) ** 2

    def regret(sampler, trials=16):
        runs = [
            samplers.replay(sampler(seed, _Line()), _Line(), truth, noise=0.002, trials=trials, at_once=2, seed=seed)
            for seed in range(6)
        ]
        return np.mean([0.7 - samplers.chosen(*run, trials) for run in runs])

    kinds = samplers.SAMPLERS
    best, worst = (regret(lambda *_, value=value: _Fixed(value)) for value in (1e-4, 1e-6))
    random, tpe = regret(kinds["random"]), regret(kinds[samplers.TPE])
    assert best < random < worst
    assert tpe < random
    true, noisy = samplers.replay(kinds["random"](0, None), _Line(), truth, noise=0.0, trials=5, at_once=2, seed=0)
    assert true == pytest.approx(noisy)
    assert samplers.chosen(true, -noisy, 5) == true.min()


def test_gp_sampler_copes_with_settings_that_a_trial_lacks(program):
    """Two running trials, and settings of one branch alone."""
    samplers, settings = program("samplers"), program("objective_settings")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    true, _ = samplers.replay(samplers.SAMPLERS[samplers.GP](0, None), settings.wide(6), lambda each: each["base_lr"],
                              noise=0.0, trials=8, at_once=2, seed=0)  # fmt: skip
    assert len(true) == 8


def test_the_surrogate_knows_what_was_measured(program):
    """Numbers, other values and settings without effect; it follows what has an influence."""
    surrogate, settings = program("surrogate"), program("objective_settings")
    drawn = list(itertools.islice(settings.draws(settings.wide(6)), 24))
    values = np.array([np.log10(each["base_lr"]) for each in drawn])
    found = surrogate.Surrogate(drawn, values)
    assert [found(each) for each in drawn] == pytest.approx(list(values))
    high, low = ({**drawn[0], "base_lr": rate} for rate in (5e-4, 6e-6))
    assert found(high) > found(low)
    assert surrogate.leave_one_out(drawn[:8], values[:8]) <= 1


def test_the_table_of_samplers(program):
    """Regret by the true value of the setting with the best noisy one, and paired differences."""
    samplers, table = program("samplers"), program("objective_table")
    runs = {samplers.TPE: np.zeros((3, 2, 8)), "random": np.zeros((2, 2, 8))}
    runs[samplers.TPE][:, :, 4] = 0.02
    lines = samplers.lines(runs, 0.02)
    assert lines[0] == "| sampler | 8 trials |"
    assert lines[2:] == [f"| {samplers.TPE} | 0.00 ± 0.00 |", "| random | 2.00 ± 0.00 |",
                         f"| random, less {samplers.TPE} | +2.00 ± 0.00 |"]  # fmt: skip
    found = records(table, noise=0.01)
    settings, values, noise = samplers.measured(found, table.complete(found))
    assert (len(settings), len(values)) == (12, 12)
    assert 0.001 < noise < 0.02
