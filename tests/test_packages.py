"""Commands in a working directory that holds directories named like packages of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dcml_tune

HOSTILE = "raise RuntimeError('the package of the working directory was imported')\n"
SMALL = [
    "--train-classes", "16", "--weights", "none", "--arch", "test_resnet", "--sz-resize", "32", "--sz-crop", "32",
    "--sz-embedding", "16", "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "2",
    "--nb-clusters", "2", "--mod-epoch", "1", "--mod-epoch-freeze", "0", "--force-full-embedding-epoch", "none",
]  # fmt: skip


@pytest.fixture(params=["packages", "directories", "modules"])
def there(request, tmp_path):
    """A working directory with both names, as packages, as directories without `__init__.py`, and as modules."""
    for name in ("search_spaces", "trainables"):
        if request.param == "modules":
            (tmp_path / f"{name}.py").write_text(HOSTILE)
            continue
        (tmp_path / name).mkdir()
        (tmp_path / name / ("__init__.py" if request.param == "packages" else "cub.py")).write_text(HOSTILE)
    return tmp_path


def run(there, *words):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=there,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=400,
        check=False,
    )


def test_the_installed_packages_are_imported(there):
    """Whatever lies in the working directory, which Python looks into first."""
    code = "import dcml_tune, search_spaces; from importlib.util import find_spec; "
    code += "print(search_spaces.__file__, find_spec('trainables').origin, find_spec('search_spaces.cub').origin)"
    done = run(there, "-c", code)
    assert done.returncode == 0, done.stderr
    root = Path(dcml_tune.__file__).parent.parent
    expected = [
        root / "search_spaces" / "__init__.py",
        root / "trainables" / "__init__.py",
        root / "search_spaces" / "cub.py",
    ]
    assert done.stdout.split() == [str(path) for path in expected]


def test_a_search_imports_them_too(folder, tmp_path):
    """Its own process, and those of Ray: Ray puts the working directory first on the path of its processes."""
    for name in ("search_spaces", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(HOSTILE)
    words = ["folder", "--dataset-dir", folder, "--output-dir", "runs", "--name", "s", "--num-samples", 1]
    words += ["--confirm", 0, "--final", "none", "--final-seeds", 1, *SMALL]
    done = run(tmp_path, "-m", "dcml_tune.search", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(tmp_path / "runs" / "s" / "trials" / "000").is_dir()
