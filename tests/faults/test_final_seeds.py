"""Final seeds that are added to a finished search: only they run, once each, and the verdict is reached again."""

import json

from dcml_tune.utils.files import read_checksummed, write_checksummed

FLAGS = ["--num-samples", 2, "--controls", "published", "--final", "best", "--final-seeds", 2]


def final_runs(scene, name="s"):
    """Key -> epochs of the final runs that are there."""
    files = (scene.output / name / "trials").glob("final-*/result.json")
    return {file.parent.name: read_checksummed(file)["epoch"] for file in files}


def asked(scene, name="s"):
    return scene.output / name / "search.json"


def of_seed(scene, number):
    """The keys of the final runs with the seed of this number."""
    return {key for key in final_runs(scene) if key.endswith(f"-seed-{1_000_002 + number}")}


def test_seeds_are_added_to_a_finished_search(cheap):
    """Twice; the second time an interruption is resumed. Nothing else runs, and what is there is not run again."""
    cheap.environment["DCML_TEST_PAUSE"] = "0"
    status, said = cheap.search(*FLAGS)
    assert status == 0, said
    first, trained = final_runs(cheap), cheap.trained()
    assert len(first) in (2, 4)  # the winner may be the control
    assert len(of_seed(cheap, 1)) == len(first) / 2

    status, said = cheap.search("--extend", "s", "--more-final-seeds", 1, new=False)
    assert status == 0, said
    assert "get 1 further final seeds, 3 in all; nothing else runs" in said
    assert final_runs(cheap).keys() == first.keys() | of_seed(cheap, 2)
    assert {line.partition(" ")[0] for line in cheap.trained()[len(trained) :]} == of_seed(cheap, 2)
    known = json.loads(asked(cheap).read_text())
    assert known["flags"]["final_seeds"] == 2
    assert (known["later_seeds"]["count"], known["later_seeds"]["looks"]) == (1, [2])

    trained = cheap.trained()
    cheap.faults({"trial": "final-published-seed-1000005", "epoch": 1, "kind": "hang"})
    process = cheap.start("--extend", "s", "--more-final-seeds", 1, "--quiet", new=False)
    cheap.wait_for_hang("final-published-seed-1000005", process)
    process.terminate()
    process.wait(60)
    cheap.faults()
    status, said = cheap.search("--extend", "s", "--more-final-seeds", 1, new=False)
    assert (status, "s is not finished; first resume it:" in said) == (2, True), said
    status, said = cheap.resume()
    assert status == 0, said
    assert final_runs(cheap).keys() == first.keys() | of_seed(cheap, 2) | of_seed(cheap, 3)
    assert {line.partition(" ")[0] for line in cheap.trained()[len(trained) :]} == of_seed(cheap, 3)
    assert json.loads(asked(cheap).read_text())["later_seeds"]["looks"] == [2, 3]
    status, said = cheap.search("--resume", "s", "--more-final-seeds", 1, new=False)
    assert (status, "give --extend NAME with it" in said) == (2, True), said


def test_final_runs_of_an_earlier_version_keep_their_seeds(cheap):
    """They are read, never run again; seeds that are added are not those of any stage."""
    cheap.environment["DCML_TEST_PAUSE"] = "0"
    status, said = cheap.search(*FLAGS)
    assert status == 0, said
    known = read_checksummed(asked(cheap))
    assert known.pop("seeds_apart")
    write_checksummed(asked(cheap), known)
    for place in (cheap.output / "s" / "trials").glob("final-*-seed-*"):
        place.rename(place.with_name(place.name.replace("-seed-1000003", "-seed-2")))
    first, trained = final_runs(cheap), cheap.trained()
    status, said = cheap.search("--extend", "s", "--more-final-seeds", 1, new=False)
    assert status == 0, said
    assert final_runs(cheap).keys() == first.keys() | of_seed(cheap, 2)
    assert {line.partition(" ")[0] for line in cheap.trained()[len(trained) :]} == of_seed(cheap, 2)
    assert not json.loads(asked(cheap).read_text())["seeds_apart"]
