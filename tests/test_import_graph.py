"""docs/import_graph.py counts what can be counted by hand in a tree of a few files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TREE = {
    "dcml_tune/__init__.py": "__version__ = '1'\n",
    "dcml_tune/config.py": "from dcml_tune import __version__\n",
    "dcml_tune/data/__init__.py": "from dcml_tune.data.store import read\n",
    "dcml_tune/data/store.py": "from dcml_tune import config\n\n\ndef read():\n    import json\n\n    return json\n",
    "dcml_tune/left.py": "from dcml_tune.data import read\n\n\nclass Left:\n    def go(self):\n        import dcml_tune.right\n",
    "dcml_tune/right.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from dcml_tune import left\n",
    "search_spaces/__init__.py": "import dcml_tune.config\n",
    "trainables/__init__.py": "import dcml_tune.left\nimport search_spaces\n",
    "pyproject.toml": "[[tool.importlinter.contracts]]\ntype = 'layers'\nlayers = ['trainables', 'dcml_tune']\n",
}

EXPECTED = """\
modules                          8
rooms                            6
arrows between rooms             7
circles of rooms                 1
circles of modules               1
layers                           4
layers of the contract           2
imports inside functions         2
lines                           23
files above 250, 400 lines       0, 0
functions above 40, 60           0, 0

circle of rooms: left, right

circle of modules: dcml_tune.left, dcml_tune.right

layers, top to bottom, and how many rooms each room imports:
   4  trainables 2
   3  left 2, right 1
   2  data 1, search_spaces 1
   1  config 0

longest files, lines:
     7  dcml_tune/data/store.py
     6  dcml_tune/left.py
     4  dcml_tune/right.py
     2  trainables/__init__.py
     1  dcml_tune/__init__.py
     1  dcml_tune/config.py
     1  dcml_tune/data/__init__.py
     1  search_spaces/__init__.py

longest functions, lines:
     4  dcml_tune/data/store.py: read
     2  dcml_tune/left.py: Left.go
"""


def picture(*words):
    command = [sys.executable, str(ROOT / "docs" / "import_graph.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_small_tree_is_counted(tree):
    """Rooms, arrows (hidden ones, too), circles, layers, lengths; nothing is written into the tree."""
    before = sorted(tree.rglob("*"))
    assert picture(tree) == EXPECTED
    assert sorted(tree.rglob("*")) == before


def test_the_output_is_the_same_each_time_and_no_modules_import_each_other():
    """Of this tree, which is the default; imports for type checkers and inside functions count as well."""
    found = picture()
    assert found == picture(ROOT)
    assert "circle of" not in found
