"""The public names of the package, the import paths that others rely on, and the examples in docstrings."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dcml_tune

ROOT = Path(dcml_tune.__file__).parent.parent
PATHS = {
    "dcml_tune.config": ["TrialConfig"],
    "dcml_tune.config.schedule": ["EpochPlan"],
    "dcml_tune.clustering": ["divide", "kmeans", "match"],
    "dcml_tune.losses": [
        "arcface_loss",
        "contrastive_loss",
        "kantorov_margin_loss",
        "margin_loss",
        "mask_overlap",
        "multi_similarity_loss",
        "normalized_softmax_loss",
        "npairs_loss",
        "proxy_anchor_loss",
        "supcon_loss",
        "triplet_all_loss",
        "triplet_loss",
        "triplet_semihard_loss",
    ],
    "dcml_tune.losses.miners": ["distance_weights", "mine"],
    "dcml_tune.metrics": ["ami", "map_at_r", "marp", "nmi", "recall_at_k"],
    "dcml_tune.data.samplers": ["round_robin"],
    "dcml_tune.models": ["load"],
    "dcml_tune.training": ["Trainer"],
    "trainables": ["DivideAndConquer"],
    **{f"search_spaces.{name}": ["SPACE"] for name in ("cars", "cub", "emoji", "folder", "inshop", "sop", "vid")},
}
COMMANDS = ("train", "evaluate", "browse", "search", "report", "data", "tracking")


def modules_with_examples():
    """Names of the modules whose docstrings have examples."""
    files = (path for name in ("dcml_tune", "search_spaces", "trainables") for path in (ROOT / name).rglob("*.py"))
    found = sorted(path.relative_to(ROOT) for path in files if ">>> " in path.read_text())
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found]


def failures(test):
    """What doctest prints about the examples of a docstring that fail."""
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", [name for name in dcml_tune.__all__ if name != "__version__"])
def test_each_public_name_has_an_example_that_runs(name):
    """Copied into a fresh interpreter: the example imports all that it uses."""
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(dcml_tune, name), name, globs={})
    assert test.examples
    assert failures(test) == ""


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name):
    """Those of all other docstrings, with the names of their module."""
    module = importlib.import_module(name)
    found = doctest.DocTestFinder().find(module, name)
    public = {getattr(dcml_tune, each).__doc__ for each in dcml_tune.__all__ if each != "__version__"}
    assert "".join(failures(test) for test in found if test.docstring not in public) == ""


@pytest.mark.parametrize(("module", "names"), PATHS.items())
def test_import_paths_that_others_rely_on(module, names):
    """They are the same objects wherever a package re-exports them."""
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


def test_public_names_are_those_of_their_modules():
    """And are listed by `dir` before they are imported."""
    from dcml_tune.clustering.kmeans import kmeans
    from dcml_tune.models.embedder import load

    assert dcml_tune.kmeans is kmeans
    assert dcml_tune.load_model is load
    assert set(dcml_tune.__all__) <= set(dir(dcml_tune))
    with pytest.raises(AttributeError, match="no_such_name"):
        dcml_tune.no_such_name  # noqa: B018


def test_packages_export_what_they_have():
    """Each name of `__all__` is there."""
    for name in ("dcml_tune", *{module for module in PATHS if module.count(".") < 2}):
        module = importlib.import_module(name)
        assert [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)] == []


@pytest.mark.parametrize("words", [["-c", "import dcml_tune"], *(["-m", f"dcml_tune.{name}"] for name in COMMANDS)])
def test_help_imports_no_torch(words):
    """It takes seconds, so neither the package nor the help of a command imports it."""
    code = "import runpy, sys\n"
    if words[0] == "-m":
        code += f"sys.argv = ['x', '--help']\ntry: runpy.run_module({words[1]!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    else:
        code += f"{words[1]}\n"
    code += "assert 'torch' not in sys.modules, 'torch is imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
