"""The files around the code: licence, citation, version, hooks, CI. They name the same things, and the tools read them."""

import ast
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser as MetadataParser
from pathlib import Path

import pytest
import yaml

from dcml_tune import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = ["search.__main__", "train", "evaluate", "browse", "report.__main__", "data.__main__", "tracking.__main__"]
"""The modules of the commands, below dcml_tune."""
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_prints_its_version(command, capsys):
    """`--version` prints one line and exits with 0."""
    main = importlib.import_module(f"dcml_tune.{command}").main
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"dcml_tune {__version__}\n"


def test_every_command_is_listed_here():
    """A module that is run as a command is in COMMANDS, but for the processes that a command starts itself."""
    package = ROOT / "dcml_tune"
    found = [path for path in package.rglob("*.py") if re.search(r"^    run_command\(", path.read_text(), re.MULTILINE)]
    assert {".".join(path.relative_to(package).with_suffix("").parts) for path in found} == set(COMMANDS)


def test_version_needs_no_installation(tmp_path):
    """A copy of the package alone, run from another directory, knows its version; no library is imported for it."""
    shutil.copytree(
        ROOT / "dcml_tune", tmp_path / "dcml_tune", ignore=shutil.ignore_patterns("__pycache__", "embedded")
    )
    code = (
        "import sys; import dcml_tune; print(dcml_tune.__version__, dcml_tune.__file__); "
        "assert not {'torch', 'pydantic', 'importlib.metadata'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [__version__, str(tmp_path / "dcml_tune" / "__init__.py")]


def test_the_citation_names_the_version():
    """It is that of the code."""
    assert read_yaml("CITATION.cff")["version"] == __version__


def test_licence_is_the_official_text():
    """Byte for byte."""
    assert PROJECT["license"] == read_yaml("CITATION.cff")["license"] == "Apache-2.0"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel, built by setuptools from a copy of the tree."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("dcml_tune", "search_spaces", "trainables"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    subprocess.run([sys.executable, "-c", code, dist], cwd=tree, check=True, capture_output=True, text=True)
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


def test_distributions_hold_licence_and_version(built):
    """Both hold LICENSE and the embedded images; the metadata names licence, version and the papers."""
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert {f"dcml_tune-{__version__}/LICENSE", f"dcml_tune-{__version__}/dcml_tune/py.typed"} <= set(names)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"dcml_tune-{__version__}.dist-info"
        metadata = MetadataParser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert hashlib.sha256(archive.read(f"{info}/licenses/LICENSE")).hexdigest() == APACHE_2
    assert any(name.startswith("dcml_tune/data/embedded/") for name in names)
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert any("ieeexplore.ieee.org/document/9540303" in url for url in metadata.get_all("Project-URL"))


def test_citation_has_what_the_format_requires():
    """CFF 1.2.0: the required keys, a known type, people or entities as authors, both papers."""
    cff = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert (cff["cff-version"], cff["type"]) == ("1.2.0", "software")
    for work in (cff, *cff["references"]):
        assert work["authors"]
        assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in work["authors"])
    assert all({"type", "title", "authors", "year", "url"} <= paper.keys() for paper in cff["references"])
    journal, conference = cff["references"]
    assert (journal["type"], journal["url"][-8:], len(journal["authors"])) == ("article", "/9540303", 4)
    assert (conference["type"], conference["conference"]["name"][-6:]) == ("conference-paper", "(CVPR)")
    assert [author["family-names"] for author in conference["authors"]] == [
        "Sanakoyeu",
        "Tschernezki",
        "Büchler",
        "Ommer",
    ]


def test_hooks_run_what_make_lint_runs():
    """Before a commit the commands of `make lint` are run, from the environment and without a network."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [each["repo"] for each in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_ci_runs_its_script_and_nothing_else():
    """What CI does is in .ci/run, where a developer can run it, too."""
    steps = [step for job in read_yaml(".github/workflows/ci.yml")["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == ["actions/checkout"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_issue_forms_can_be_shown():
    """Each has a name, a description, and fields with an id of their own and a label."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert form["name"]
        assert form["description"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)


def test_architecture_names_every_module():
    """The layout in docs/architecture.md names each module of the three packages once, in its package, and nothing else."""
    layout = re.search(r"^    dcml_tune/\n(?:    .*\n)+", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    named, packages = [], {}
    for line in layout[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parent = packages.get(depth - 1, Path())
        for name in re.split(r"  +", line.strip())[0].split(", "):
            if name.endswith("/"):
                packages = {each: path for each, path in packages.items() if each < depth} | {depth: parent / name}
            else:
                named.append((parent / name).as_posix())
    files = [
        path for package in ("dcml_tune", "search_spaces", "trainables") for path in (ROOT / package).rglob("*.py")
    ]
    modules = [path.relative_to(ROOT).with_suffix("").as_posix() for path in files if not path.stem.startswith("__")]
    assert sorted(named) == sorted(modules)


def test_files_of_tests_have_names_of_their_own():
    """Pytest cannot collect two of one name from directories that are no packages."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []


def test_long_modules_say_why():
    """No module has more than 400 lines; one of more than 250 gives the reason in its first docstring."""
    for package in ("dcml_tune", "search_spaces", "trainables"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            length = len(text.splitlines())
            assert length <= 400, path
            assert length <= 250 or "250 lines" in (ast.get_docstring(ast.parse(text)) or ""), path
