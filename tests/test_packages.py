"""Commands in a working directory that holds directories named like packages of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        [sys.executable, "-m", *map(str, words)],
        cwd=there,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=300,
        check=False,
    )


def test_a_command_imports_the_installed_packages(there):
    """Whatever lies in the working directory."""
    done = run(there, "dcml_tune.search", "emoji", "--dry-run", "--output-dir", "runs")
    assert done.returncode == 0, done.stderr


def test_so_do_rays_processes(folder, tmp_path):
    """Ray puts the working directory first on the path of its processes."""
    for name in ("search_spaces", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(HOSTILE)
    words = ["folder", "--dataset-dir", folder, "--output-dir", "runs", "--name", "s", "--num-samples", 1]
    words += ["--confirm", 0, "--final", "none", "--final-seeds", 1, *SMALL]
    done = run(tmp_path, "dcml_tune.search", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(tmp_path / "runs" / "s" / "trials" / "000").is_dir()
