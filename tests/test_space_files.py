"""`--space FILE`: each fault of a file is one line that names the file and, where it is known, the line."""

import os
from pathlib import Path

import pytest
from commands import inside

from dcml_tune.config.errors import SettingError
from dcml_tune.search import __main__ as search
from dcml_tune.utils.signals import SearchStopped
from search_spaces import load_space

IMPORTS = "from search_spaces import *\nfrom search_spaces.emoji import SPACE as EMOJI\n"

FAULTS = {
    "a number": ("SPACE = 3", 1, "SPACE is of type int; write SPACE = SearchSpace"),
    "nothing": ("# a space is to come", None, "defines no SPACE; write SPACE = SearchSpace"),
    "an exception": ("\n1 / 0", 2, "cannot be run (ZeroDivisionError: division by zero)"),
    "an exception elsewhere": ("import json\n\njson.loads('{')", 3, "cannot be run (json.decoder.JSONDecodeError"),
    "an exception without text": ("class E(Exception):\n  def __str__(self): 1 / 0\n\nraise E", 4, "cannot be run"),
    "an exit": ("import sys\nsys.exit()", 2, "it ends the process"),
    "an exit with status 0": ("raise SystemExit(0)", 1, "it ends the process"),
    "a BaseException": ("\n\nraise BaseException('no\\nway')", 3, "cannot be run (BaseException: no way)"),
    "a KeyboardInterrupt": ("raise KeyboardInterrupt", 1, "cannot be run (KeyboardInterrupt)"),
    "a generator's exit": ("raise GeneratorExit", 1, "cannot be run (GeneratorExit)"),
    "a syntax error": ("x = 1\nSPACE = (", 2, "is not Python ('(' was never closed)"),
    "a list of users": ("root:x:0:0:root:/root:/bin/bash", 1, "is not Python (invalid syntax)"),
    "null bytes": ("x = '\0'", None, "is not Python"),
    "an unknown encoding": ("# coding: klingon\n", None, "is not Python"),
    "parentheses without end": ("(" * 1000 + ")" * 1000, None, "is not Python"),
    "recursion": ("def f(): f()\nf()", 1, "cannot be run (RecursionError"),
    "a missing module": ("import no_such_module", 1, "cannot be run (ModuleNotFoundError"),
    "ends the wrong way round": (IMPORTS + "Int(3, 2)", 3, "`low <= high` must hold"),
    "a scale of 0": (IMPORTS + "Float(0, 2, log=True)", 3, "on a log scale"),
    "no values": (IMPORTS + "Choice([])", 3, "a Choice must have values, but got none"),
    "values that are a text": (IMPORTS + "Choice('abc')", 3, "write Choice(['abc'])"),
    "an unknown setting": (IMPORTS + "SPACE = EMOJI.widened(\n  nb_cluster=Choice([2]),\n)", 4, "did you mean 'nb_clusters'?"),
    "a list": (IMPORTS + "SPACE = EMOJI.widened(\n  beta=Float(1, 2),\n  nb_clusters=[2, 4])", 5, "type list; write Choice"),
    "a text": (IMPORTS + "SPACE = EMOJI.widened(nb_clusters='2 to 4')", 3, "type str; write Choice"),
    "another type": (IMPORTS + "SPACE = EMOJI.widened(criterion=Int(1, 2))", 3, "criterion=1: must be"),
    "out of bounds": (IMPORTS + "SPACE = EMOJI.widened(base_lr=Float(1, 1e9))", 3, "less than or equal to 1000"),
    "the seal": (IMPORTS + "SPACE = EMOJI.widened(\n protocol=Choice(['held_out', 'paper']))", 4, "protocol may not vary"),
    "held-out classes": (IMPORTS + "SPACE = EMOJI.widened(val_share=Float(0.1, 0.5))", 3, "val_share may not vary"),
    "luck": (IMPORTS + "SPACE = EMOJI.widened(seed=Int(1, 9))", 3, "seed may not vary"),
    "another data set": ("from search_spaces.cub import SPACE", None, "of data set cub, and emoji is searched"),
    "a point of another data set": (
        IMPORTS + "SPACE = SearchSpace(name='emoji', published={'dataset': 'cub'}, domains={'margin': Float(0, 1)})",
        3,
        "of data set cub, and emoji is searched",
    ),
    "a point outside": (
        IMPORTS + "SPACE = SearchSpace(name='emoji',\n published={'margin': 2.5},\n domains={'margin': Float(0, 1)})",
        4,
        "published margin=2.5 is outside of its domain, 0 to 1",
    ),
    "weights by a relative path": (
        IMPORTS + "SPACE = EMOJI.widened(weights=Choice(['pretrained', 'mine.pth']))",
        3,
        "weights=mine.pth: trials run in other directories; give the whole path",
    ),
    "a point that is no value": (
        IMPORTS + "SPACE = SearchSpace(name='emoji', published={'margin': 'wide'}, domains={'beta': Float(1, 2)})",
        3,
        "margin=wide: must be a valid number",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_named_with_its_line(fault, tmp_path):
    """In one line, whatever the file is called."""
    text, line, words = FAULTS[fault]
    file = tmp_path / "space"  # without a suffix
    file.write_text(text)
    with pytest.raises(SettingError) as refused:
        load_space("emoji", file)
    place = f"--space {file}" + (f", line {line}: " if line is not None else "")
    said = str(refused.value)
    assert said.startswith(place), said
    assert words in said
    assert "\n" not in said


def test_what_is_no_file_is_refused(tmp_path):
    """Without being opened."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    for name, words in {
        "missing.py": "no such file",
        "": "is not a regular file",
        "pipe": "is not a regular file",
        "large": "has 1,000,001 bytes",
        "x" * 300: "cannot be read",
        "a\0b": "null byte",
    }.items():
        with pytest.raises(SettingError, match=words):
            load_space("emoji", f"{tmp_path}/{name}")
    with pytest.raises(SettingError, match="is not a regular file"):
        load_space("emoji", "/dev/zero")


def test_a_file_of_any_name_that_is_right_is_taken(tmp_path, capsys):
    """Without a suffix, with classes of its own; what it prints is no output of the command."""
    file = tmp_path / "my space"
    file.write_text(
        "from dataclasses import dataclass\n" + IMPORTS + "@dataclass\nclass Mine:\n    low: 'float' = 0.1\n"
        "print('hello')\nSPACE = EMOJI.widened(margin=Float(Mine().low, 1))\n"
    )
    space = load_space("emoji", file)
    assert list(space.domains)[-1] == "margin"
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "hello\n")
    assert (
        space.published_point()[0]["nb_clusters"] == 4
    )  # that of the shipped space, 32, lies outside, and is moved with a line


def test_the_example_of_the_page_is_a_space(tmp_path):
    """With its conditions, and its start as the trial after the published point."""
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    file = tmp_path / "space.py"
    file.write_text(page.split("```python\n")[1].split("```")[0])
    space = load_space("folder", file).restricted({})
    point, _ = space.published_point()
    (start,), lines = space.start_points(point)
    assert (point["criterion"], start["criterion"], start["ms_beta"]) == ("margin", "multi_similarity", 50.0)
    assert ("margin" in start, "ms_beta" in point, space.unused_settings()) == (False, False, [])
    assert lines == ["trial 1: multi-similarity (Wang et al., CVPR 2019)"]


def test_a_signal_passes_through_a_file_that_waits(tmp_path):
    """It is no fault of the file."""
    file = tmp_path / "space.py"
    file.write_text("from dcml_tune.utils.signals import SearchStopped\nraise SearchStopped('SIGINT')")
    with pytest.raises(SearchStopped):
        load_space("emoji", file)


def test_a_search_refuses_a_file_before_anything_runs(tmp_path):
    """As the command ends: one line, status 2."""
    for path, words in {
        "/etc/passwd": "/etc/passwd, line 1: is not Python",
        str(tmp_path): "is not a regular file",
    }.items():
        done = inside("emoji", "--space", path, "--output-dir", tmp_path / "runs")
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
        assert words in done.stderr


def test_a_short_search_of_a_folder_is_possible(folder, tmp_path, capsys):
    """A dry run: what can work is not refused, with the domain that is left and a trial 0 that works."""
    images = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), "--weights", "none", "--dry-run"]
    images += ["--sz-resize", "32", "--sz-crop", "32", "--train-classes", "20"]
    assert search.main([*images, "--nb-epochs", "8"]) == 0
    assert "nb_clusters: 2, 4, 8  (" in capsys.readouterr().out
    assert search.main([*images, "--mod-epoch-freeze", "4", "--nb-epochs", "9"]) == 0
    assert "mod_epoch from 2 to 5" in capsys.readouterr().out
    with pytest.raises(SettingError, match="it works with nb_epochs=3"):
        search.main([*images, "--nb-epochs", "2"])
