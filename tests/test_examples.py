"""The scripts of examples/ run as they are, on the embedded data set."""

import ast
import contextlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.data.datasets.emoji import ARCHIVE
from dcml_tune.runs.study import read_study
from dcml_tune.search import __main__ as search

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    """The module of a script. Scripts that need no process of their own share this one: importing torch takes seconds."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory that the first example writes, and the lines that it prints."""
    directory = tmp_path_factory.mktemp("example")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert example("train_one_setting").main([str(directory)]) == 0
    return directory, said.getvalue().splitlines()


def test_train_one_setting(trained):
    """It prints a line for the untrained network and for each epoch, and writes the best model."""
    directory, lines = trained
    assert re.fullmatch(r"untrained: recall@1 \d+\.\d%", lines[0])
    found = [re.fullmatch(r"epoch (\d): learners (\d), loss \d\.\d{3}, recall@1 \d+\.\d%", line) for line in lines[1:]]
    assert [match.groups() for match in found] == [("1", "1"), ("2", "2"), ("3", "2")]
    assert list((directory / "model").glob("best-*/model.safetensors"))


def test_find_similar_images(trained, tmp_path, capsys):
    """The query's own copy comes first, then others, the most similar first; what is no image is passed over."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = [name for name in archive.namelist() if name.endswith(".webp")][-40:]
        archive.extractall(tmp_path / "folder", names)
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    query = shutil.copy(tmp_path / "folder" / names[7], tmp_path / "query.webp")
    words = [str(trained[0] / "model"), str(tmp_path / "folder"), str(query), "--count", "4"]
    assert example("find_similar_images").main(words) == 0
    found = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert found[0] == ["1.000", names[7]]
    similarities = [float(similarity) for similarity, _ in found]
    assert similarities == sorted(similarities, reverse=True)
    assert len({name for _, name in found} & set(names)) == 4


def test_find_similar_images_without_a_model(tmp_path):
    """One line that names the directory."""
    with pytest.raises(SettingError, match=re.escape(str(tmp_path / "nothing"))):
        example("find_similar_images").main([str(tmp_path / "nothing"), str(tmp_path), str(tmp_path / "query.png")])


def test_find_similar_images_in_an_empty_folder(trained, tmp_path, capsys):
    """Exit code 2, and the folder is named."""
    with pytest.raises(SystemExit, match="2"):
        example("find_similar_images").main([str(trained[0] / "model"), str(tmp_path), str(tmp_path / "query.png")])
    assert f"{tmp_path}: holds no image file" in capsys.readouterr().err


def test_the_space_of_one_s_own_can_be_searched(tmp_path, capsys):
    """A search takes the file, as it takes any `--space`, and says what varies; nothing is run."""
    space = str(EXAMPLES / "search_own_space.py")
    assert search.main(["emoji", "--space", space, "--output-dir", str(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "nb_clusters: 1, 2" in said
    assert "mask_lr_mult: 1 to 1000, log scale" in said


@pytest.mark.slow
def test_search_own_space(tmp_path):
    """It ends with exit code 0, and its last line is the best trial of the study."""
    script = str(EXAMPLES / "search_own_space.py")
    done = subprocess.run([sys.executable, script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    best = max(
        (trial for trial in read_study(tmp_path / "own-space") if trial.value is not None), key=lambda t: t.value
    )
    last = re.fullmatch(r"best of 3 trials: MAP@R (\d+\.\d)% with (.*)", done.stdout.splitlines()[-1])
    assert last[1] == f"{100 * best.value:.1f}"
    assert ast.literal_eval(last[2]) == best.params


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path):
    """About 50 lines; the docstring has the command."""
    text = path.read_text()
    assert len(text.splitlines()) <= 55
    assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text))
