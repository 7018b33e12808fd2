"""Final seeds that are added to a finished search: only they run, once each, and the verdict is reached again."""

import json
import shlex

import pytest

from dcml_tune.utils.files import read_checksummed, write_checksummed

FLAGS = ["--num-samples", 3, "--confirm", 2, "--folds", 2, "--final", "best", "--final-seeds", 2, "--nb-clusters", 2]


def final_runs(scene, name="s"):
    """Key -> epochs of the final runs that are there."""
    files = (scene.output / name / "trials").glob("final-*/result.json")
    return {file.parent.name: read_checksummed(file)["epoch"] for file in files}


def asked(scene, name="s"):
    return scene.output / name / "search.json"


@pytest.mark.fast
def test_seeds_are_added_to_a_finished_search(cheap):
    """Twice; the second time an interruption is resumed. Nothing else runs, and what is there is not run again."""
    status, said = cheap.search(*FLAGS)
    assert status == 0, said
    first = final_runs(cheap)
    settings = {key.partition("-seed-")[0] for key in first}
    assert {"final-published", "final-no-division"} < settings
    assert sorted(first) == sorted([*settings, *(f"{each}-seed-1000003" for each in settings)])
    trained = cheap.trained()

    status, said = cheap.search("--extend", "s", "--more-final-seeds", 1, new=False)
    assert status == 0, said
    assert "get 1 further final seeds, 3 in all; nothing else runs" in said
    new = {f"{each}-seed-1000004" for each in settings}
    assert final_runs(cheap).keys() == first.keys() | new
    assert {line.partition(" ")[0] for line in cheap.trained()[len(trained) :]} == new
    known = json.loads(asked(cheap).read_text())
    assert known["flags"]["final_seeds"] == 2
    assert (known["later_seeds"]["count"], known["later_seeds"]["looks"]) == (1, [2])

    trained = cheap.trained()
    cheap.faults({"trial": "final-published-seed-1000006", "epoch": 1, "kind": "hang"})
    process = cheap.start("--extend", "s", "--more-final-seeds", 2, "--quiet", new=False)
    cheap.wait_for_hang("final-published-seed-1000006", process)
    process.terminate()
    process.wait(60)
    cheap.faults()
    status, said = cheap.search("--extend", "s", "--more-final-seeds", 2, new=False)
    assert (status, "s is not finished; first go on with it by:" in said) == (2, True), said
    status, said = cheap.resume()
    assert status == 0, said
    assert final_runs(cheap).keys() == first.keys() | new | {f"{s}-seed-100000{n}" for s in settings for n in (5, 6)}
    assert {line.partition(" ")[0].partition("-seed-")[2] for line in cheap.trained()[len(trained) :]} <= {
        "1000005",
        "1000006",
    }
    assert len(set(final_runs(cheap).values())) == 1, "all seeds train as long as the first ones"
    assert json.loads(asked(cheap).read_text())["later_seeds"]["looks"] == [2, 3]

    refused = {
        ("--extend", "s", "--more-final-seeds", 1, "--num-samples", 4): "--num-samples adds trials",
        ("--resume", "s", "--more-final-seeds", 1): "give --extend NAME with it",
    }
    for words, expected in refused.items():
        status, said = cheap.search(*words, new=False)
        assert (status, expected in said) == (2, True), said


def test_final_runs_of_an_earlier_version_keep_their_seeds(cheap):
    """They are read, never run again; seeds that are added are not those of any stage."""
    status, said = cheap.search(*FLAGS)
    assert status == 0, said
    known = read_checksummed(asked(cheap))
    assert known.pop("seeds_apart")
    write_checksummed(asked(cheap), {name: value for name, value in known.items() if name != "seal"})
    for place in (cheap.output / "s" / "trials").glob("final-*-seed-*"):
        place.rename(place.with_name(place.name.replace("-seed-1000003", "-seed-2")))
    first, trained = final_runs(cheap), cheap.trained()
    status, said = cheap.search("--extend", "s", "--more-final-seeds", 1, new=False)
    assert status == 0, said
    assert {key.partition("-seed-")[2] for key in final_runs(cheap)} == {"", "2", "1000004"}
    assert {line.partition(" ")[0] for line in cheap.trained()[len(trained) :]} == final_runs(
        cheap
    ).keys() - first.keys()
    status, said = cheap.search("--extend", "s", "--num-samples", 1, new=False)
    assert status == 0, said
    assert {key.partition("-seed-")[2] for key in final_runs(cheap)} == {"", "2", "1000004"}
    assert not json.loads(asked(cheap).read_text())["seeds_apart"]
    for line in said.splitlines():
        if line.startswith("  python"):
            assert shlex.split(line)
