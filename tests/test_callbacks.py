from pathlib import Path

import pytest

from trainables.callbacks import Guard, Progress

SETTINGS = {"dataset": "emoji", "nb_epochs": 6, "force_full_embedding_epoch": 5, "nb_clusters": 2}


@pytest.fixture
def progress():
    """Of 40 trials, the best of which is 017, and of which two run."""
    guard = Guard(directory=Path(), need=0, trial_timeout=None)
    made = Progress(None, search="s", metric="val/recall_at_1", varied=["nb_clusters"], tags={}, planned=40, guard=guard,
                    quiet=True)  # fmt: skip
    for number in range(40):
        best = 0.9 if number == 17 else 0.5 + number / 1000
        state = "running" if number in (3, 39) else "done"
        made.rows[f"{number:03d}"] = {"settings": SETTINGS, "epoch": 6, "epochs": 6, "last": best, "best": best,
                                      "role": "trial", "reason": None, "state": state}  # fmt: skip
    return made


def names(table):
    return list(table.columns[0].cells)


def test_the_live_table_shows_what_the_screen_has_room_for(progress):
    """The trials that run, and the best of the others; the caption counts the rest."""
    table = progress.table(most=5)
    assert names(table) == ["003", "017", "037", "038", "039"]
    assert table.caption == "and 35 more trials"


def test_the_last_table_shows_all(progress):
    """As does one that has room for all."""
    assert names(progress.table()) == [f"{number:03d}" for number in range(40)]
    assert progress.table(most=40).caption is None
