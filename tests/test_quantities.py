"""Every number of the command line and of a trial has bounds: a new one without them fails here."""

import argparse
import math

import pytest

from dcml_tune import browse, evaluate, train
from dcml_tune.cli.parser import run_command, truth, typed
from dcml_tune.cli.quantities import QuantityError, seconds, size
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import SEEDS, TrialConfig
from dcml_tune.data import __main__ as data_command
from dcml_tune.report import __main__ as report_command
from dcml_tune.search import __main__ as search
from dcml_tune.search import flags as search_flags
from dcml_tune.search.confirmation import units
from dcml_tune.tracking import __main__ as tracking_command

PARSERS = {
    "search": search_flags.parser,
    "train": train.parser,
    "evaluate": evaluate.parser,
    "data": data_command.parser,
    "report": report_command.parser,
    "browse": browse.parser,
    "tracking": tracking_command.parser,
}

# What takes any text: names, paths, addresses, measures, conditions. Everything else that takes a value is a number.
TEXTS = {
    "dataset", "dataset_flag", "models", "name", "search", "action", "output_dir", "tracking_uri", "ray_address", "space",
    "warm_start", "resume", "start_or_resume", "extend", "repeat_trial", "metric", "filter", "sort", "columns", "experiment", "log_dir",
    "checkpoint", "device", "study_uri", "scratch", "storage",
}  # fmt: skip
TEXT_SETTINGS = {"dataset", "dataset_dir", "arch", "weights", "init_method"}
NEVER = {"force_full_embedding_epoch", "clustering_random_state", "lr_step"}  # `inf` is the original's word for never
BAD = ["inf", "nan", "-inf", "1" + "0" * 30, "-1", "", " ", "many", "1e999", "9" * 5000]


def choices(name):
    """The words that a setting takes, if it takes words alone."""
    return "enum" in str(TrialConfig.model_json_schema()["properties"][name]) or "const" in str(
        TrialConfig.model_json_schema()["properties"][name]
    )


NUMBERS = [
    name
    for name, field in TrialConfig.model_fields.items()
    if name not in TEXT_SETTINGS and field.annotation is not bool and not choices(name)
]


def refusal(command, words, capsys):
    """What a command says of a command line that it refuses."""
    with pytest.raises(SystemExit) as stop:
        PARSERS[command]().parse_args(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2, (words, said)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) < 300
    return said


@pytest.mark.parametrize("command", PARSERS)
def test_every_number_of_a_command_line_is_bounded(command, capsys):
    """One line that names the flag, the value and the rule; status 2."""
    numbers = 0
    for action in PARSERS[command]()._actions:
        takes_text = action.dest in TEXTS or action.choices or action.nargs == 0 or action.type is truth
        if (
            takes_text
            or action.help.startswith("ignored")
            or isinstance(action, argparse._HelpAction)
            or action.dest in TrialConfig.model_fields
        ):
            continue
        numbers += 1
        flag = action.option_strings[0]
        positional = [a.dest for a in PARSERS[command]()._actions if not a.option_strings and a.nargs != "?"]
        words = ["flush" if dest == "action" else "x" for dest in positional]
        for bad in BAD:
            said = refusal(command, [*words, f"{flag}={bad}"], capsys)
            assert said.startswith(f"error: {flag} "), said
            assert "must be" in said, said
    assert numbers >= {"search": 12, "train": 1, "evaluate": 1, "browse": 1, "tracking": 1}.get(command, 0)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_a_trial_is_bounded(name):
    """From the command line and from Python: one line with the setting, its value and the rule."""
    facts = TrialConfig.model_json_schema()["properties"][name]
    (facts,) = [each for each in facts.get("anyOf", [facts]) if each["type"] != "null"]
    ends = {"minimum", "exclusiveMinimum"} & facts.keys(), {"maximum", "exclusiveMaximum"} & facts.keys()
    assert all(map(len, ends)), f"{name} needs a lower and an upper bound: Field(ge=..., le=...)"
    assert all(math.isfinite(facts[end]) for each in ends for end in each)
    values = [each for each in BAD if not (each == "inf" and name in NEVER)]
    for bad in [*values, 10**30, -1, math.nan, -math.inf, [], {}]:
        with pytest.raises(SettingError) as refused:
            typed(name, bad)
        assert f"{name}=" in str(refused.value)
        assert "\n" not in str(refused.value)
        with pytest.raises(SettingError, match=f"{name}="):
            TrialConfig(**{name: bad})


def test_the_numbers_are_the_ones_that_are_meant():
    """A guard against a list that is empty because pydantic describes its models otherwise."""
    assert {"seed", "nb_epochs", "base_lr", "margin", "batch_size", "sz_crop", "lr_step", "val_share"} <= set(NUMBERS)
    assert not {"criterion", "amp", "arch", "album", "backend"} & set(NUMBERS)


@pytest.mark.parametrize("gain", ["inf", "nan", "0", "-1", "1e300", ""])
def test_a_gain_is_bounded(gain):
    """It is the number within the name of an initialisation."""
    with pytest.raises(SettingError, match="GAIN a number above 0"):
        TrialConfig(init_method=f"xavier_uniform_{gain}")


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["emoji", "--seed", str(SEEDS)], f"seed={SEEDS}: must be less than {SEEDS}"),
        (["emoji", "--seeds", "1000000000"], "--seeds 1000000000: must be a whole number from 1 to 1,000"),
        (["emoji", "--base-lr", "inf"], "base_lr=inf: must be less than or equal to 1000"),
        (["emoji", "--masking-lambda", "nan"], "masking_lambda=nan: must be less than or equal to"),
        (["emoji", "--checkpoint-budget", ""], "--checkpoint-budget '': must be a number and a unit"),
        (["emoji", "--time-budget", "1e300h"], "--time-budget 1e300h: must be a number and a unit"),
        (
            ["emoji", "--gpus-per-trial", "nan"],
            "--gpus-per-trial nan: must be a fraction up to 1, or a whole number up to 8",
        ),
        (
            ["emoji", "--gpus-per-trial", "1.5"],
            "--gpus-per-trial 1.5: must be a fraction up to 1, or a whole number up to 8",
        ),
        (
            ["emoji", "--gpus-per-trial", "9"],
            "--gpus-per-trial 9: must be a fraction up to 1, or a whole number up to 8",
        ),
        (["emoji", "--max-concurrent", "0"], "--max-concurrent 0: must be a whole number from 1 to 10,000"),
    ],
)
def test_a_search_refuses_a_number_before_anything_runs(words, rule, capsys, monkeypatch):
    """As the command ends: one line, status 2."""
    monkeypatch.setattr("sys.argv", ["search", *words])
    with pytest.raises(SystemExit) as stop:
        run_command(search.main)
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {rule}"), said


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (seconds, "90s", 90), (seconds, "30m", 1800), (seconds, "1.5h", 5400), (seconds, "2d", 172800),
        (size, "500MB", 5e8), (size, "20GB", 2e10), (size, "1.5g", 1.5e9), (size, "10K", 1e4),
    ],
)  # fmt: skip
def test_durations_and_sizes_are_read_as_people_write_them(read, text, expected):
    """A number and its unit; sizes are decimal, with or without the B."""
    assert read(text) == expected


@pytest.mark.parametrize(
    "text", ["90", "h", "GB", "-1h", "-1GB", "0m", "0MB", "soon", "nanh", "infh", "infGB", "1e300h"]
)
@pytest.mark.parametrize("read", [seconds, size])
def test_what_is_no_duration_and_no_size_is_refused(read, text):
    """With the value and the rule."""
    with pytest.raises(QuantityError, match=f"{text}: must be a number and a unit"):
        read(text)


def test_seeds_of_runs_stay_within_bounds():
    """The units of a race take the seeds after that of the search, which may be the last one."""
    assert [unit.seed for unit in units(2, 2, SEEDS - 3)] == [SEEDS - 2, SEEDS - 1, 0, 1]
