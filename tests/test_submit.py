"""--submit: the command line of the job, and what is refused before a cluster is asked."""

import http.server
import threading

import pytest

from dcml_tune.config.errors import SettingError
from dcml_tune.search.__main__ import main
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.submit import job_words

DASHBOARD = "http://127.0.0.1:8265"
WORDS = ["emoji", "--output-dir", "/shared/runs", "--num-samples", "3"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--name", "s"], ["--start-or-resume", "s"]),
        (["--name=s"], ["--start-or-resume", "s"]),
        (["--start-or-resume", "s"], ["--start-or-resume", "s"]),
        (["--start-or-resume=s"], ["--start-or-resume=s"]),
    ],
)
def test_a_new_search_becomes_one_that_can_be_submitted_again(given, expected):
    """Its other flags stay as they are; those of this process go."""
    for own in (["--submit", "--ray-address", DASHBOARD], [f"--ray-address={DASHBOARD}", "--submit"]):
        argv = [*own, *WORDS, *given, "--metric", "recall_at_1", "--base-lr=1e-4"]
        words = job_words(argv, read_command_line(argv))
        assert sorted(words) == sorted([*WORDS, "--metric", "recall_at_1", "--base-lr=1e-4", *expected])
        config = read_command_line(words).config
        assert (config.start_or_resume, config.name, config.submit, config.ray_address) == ("s", None, False, None)


def test_a_search_without_a_name_gets_one():
    """Which a second submission can name."""
    config = read_command_line(job_words([*WORDS, "--submit"], read_command_line([*WORDS, "--submit"]))).config
    assert config.start_or_resume.startswith("emoji-2")


@pytest.mark.parametrize("flag", ["--resume", "--extend"])
def test_a_resume_and_an_extension_stay_what_they_are(flag):
    """They name their search."""
    argv = ["--submit", flag, "s", "--output-dir", "/shared/runs"]
    assert job_words(argv, read_command_line(argv)) == [flag, "s", "--output-dir", "/shared/runs"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["emoji"], "--output-dir runs: the job runs in another directory"),
        (["emoji", "--output-dir", "runs"], "--output-dir runs: the job runs in another directory"),
        ([*WORDS, "--dataset-dir", "images"], "--dataset-dir images: the job runs"),
        ([*WORDS, "--space", "mine.py"], "--space mine.py: the job runs"),
        ([*WORDS, "--weights", "resnet.pth"], "--weights resnet.pth: the job runs"),
        ([*WORDS, "--scratch", "local"], "give the absolute path on the disk of each node"),
        ([*WORDS, "--tracking-uri", "sqlite:///mlflow.db"], "give sqlite:////FILE"),
        ([*WORDS, "--tracking-uri", "http://ann:geheim@host"], "the command of a job is shown"),
        ([*WORDS, "--study-uri", "postgresql://ann:geheim@host/db"], "the command of a job is shown"),
        (["--resume", "--output-dir", "/shared/runs"], "only a search can be a job"),
        (["--repeat-trial", "s/000", "--output-dir", "/shared/runs"], "only a search can be a job"),
    ],
)
def test_what_cannot_work_on_another_machine_is_refused(words, expected):
    """In one line, before the cluster is asked, and without the password."""
    with pytest.raises(SettingError) as refused:
        main([*words, "--submit", "--ray-address", DASHBOARD])
    assert expected in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_what_is_the_same_on_each_machine_is_taken():
    """Absolute paths, names of spaces and weights, servers without a password."""
    argv = [*WORDS, "--space", "wide", "--weights", "none", "--tracking-uri", "http://host", "--study-uri",
            "postgresql://ann@host/db", "--scratch", "~/local", "--submit"]  # fmt: skip
    assert job_words(argv, read_command_line(argv))[:-2] == argv[:-1]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:6379", "auto", "ray://host:10001", "http://", "http://ann:geheim@host:8265"]
)
def test_an_address_that_is_none_of_a_dashboard_is_refused(address):
    """With an example of one."""
    with pytest.raises(SettingError, match="must be the address of the cluster's dashboard") as refused:
        main([*WORDS, "--submit", "--ray-address", address])
    assert "geheim" not in str(refused.value)


def test_a_dashboard_without_submit_is_refused():
    """It is no cluster that a driver can join."""
    from trainables.resources import cluster_address

    with pytest.raises(SettingError, match="add --submit"):
        cluster_address(DASHBOARD)


def test_nothing_answers():
    """One line."""
    with pytest.raises(SettingError, match="nothing answers"):
        main([*WORDS, "--submit", "--ray-address", "http://127.0.0.1:9"])


@pytest.mark.parametrize(("status", "expected"), [(401, "asks for a token"), (404, "no dashboard of Ray")])
def test_another_server_is_refused(status, expected, monkeypatch, tmp_path):
    """And so is a cluster whose token is not here; none is sent before it is asked for."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(SettingError, match=expected):
            main([*WORDS, "--submit", "--ray-address", f"http://127.0.0.1:{server.server_port}"])
    finally:
        server.shutdown()
        server.server_close()
    assert set(seen) == {None}
