"""The files of deploy/ have fields that exist, and commands that the search accepts."""

import contextlib
import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from dcml_tune.search.flags import read_command_line

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SCHEMAS = json.loads((Path(__file__).parent / "data" / "deploy-schemas.json").read_text())
KUBERAY = {path.name: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kuberay").glob("*.yaml"))}
SKYPILOT = yaml.safe_load((DEPLOY / "skypilot" / "search.yaml").read_text())
SBATCH = DEPLOY / "slurm" / "search.sbatch"
PLAIN = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def faults(value, kind, place=""):
    """What a value of a type of the schema has that it must not have, and what it lacks."""
    if kind == "any":
        return []
    if isinstance(kind, list) and kind[0] == "*":
        return [each for n, item in enumerate(value) for each in faults(item, kind[1], f"{place}[{n}]")]
    if isinstance(kind, list):
        return [] if value in kind else [f"{place}: {value!r} is none of {kind}"]
    if kind in PLAIN:
        is_right = isinstance(value, PLAIN[kind]) and (kind == "boolean" or not isinstance(value, bool))
        return [] if is_right else [f"{place}: {value!r} is no {kind}"]
    if kind in ("map", "quantities"):
        allowed = str if kind == "map" else (str, int)
        return [f"{place}.{name}: {each!r}" for name, each in value.items() if not isinstance(each, allowed)]
    fields = SCHEMAS["fields"][kind]
    found = [f"{place}.{name} is missing" for name in SCHEMAS["required"].get(kind, ()) if name not in value]
    for name, each in value.items():
        if name in fields:
            found += faults(each, fields[name], f"{place}.{name}")
        else:
            found.append(f"{place}.{name} is no field of {kind}")
    return found


@pytest.mark.parametrize("name", KUBERAY)
def test_each_field_of_a_manifest_exists(name):
    """In KubeRay's types and in those of Kubernetes, with a value of its type."""
    assert faults(KUBERAY[name], KUBERAY[name]["kind"]) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda spec: spec.update(backOffLimit=3), "spec.backOffLimit is no field of RayJobSpec"),
        (lambda spec: spec.update(backoffLimit="3"), "spec.backoffLimit: '3' is no integer"),
        (lambda spec: spec.update(submissionMode="Sidecar"), "spec.submissionMode: 'Sidecar' is none of"),
        (lambda spec: head(spec)["rayStartParams"].update({"num-cpus": 0}), "rayStartParams.num-cpus: 0"),
        (lambda spec: container(spec)["env"][0].update(value=0), ".env[0].value: 0 is no string"),
        (lambda spec: container(spec)["volumeMounts"][0].pop("mountPath"), ".mountPath is missing"),
        (lambda spec: head(spec)["template"]["spec"].update(restartpolicy="Never"), "restartpolicy is no field of PodSpec"),
    ],
)  # fmt: skip
def test_a_field_that_does_not_exist_is_found(change, expected):
    """The test above can fail."""
    manifest = copy.deepcopy(KUBERAY["rayjob.yaml"])
    change(manifest["spec"])
    assert any(expected in each for each in faults(manifest, "RayJob"))


def head(spec):
    return spec["rayClusterSpec"]["headGroupSpec"]


def container(spec):
    return head(spec)["template"]["spec"]["containers"][0]


def cluster_of(manifest):
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]


@pytest.mark.parametrize("name", KUBERAY)
def test_a_cluster_is_one_of_our_version_with_mounted_volumes(name):
    """Each mount has its volume; the shared directory is on every node; tokens are on; pods are not reused."""
    cluster = cluster_of(KUBERAY[name])
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # the autoscaler and SidecarMode require it
        volumes = {each["name"] for each in pod["volumes"]}
        mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
        assert mounts.keys() == volumes
        assert mounts["shared"] == "/shared"
        assert pod["containers"][0]["resources"]["requests"] == pod["containers"][0]["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_ray_job_keeps_the_rules_of_kuberay_and_kueue():
    """As their webhooks check them."""
    spec = KUBERAY["rayjob.yaml"]["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert not spec.keys() & {"submitterPodTemplate", "submitterConfig", "clusterSelector"}
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert "kueue.x-k8s.io/queue-name" in KUBERAY["rayjob.yaml"]["metadata"]["labels"]
    assert "enableInTreeAutoscaling" not in spec["rayClusterSpec"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_the_autoscaler_is_that_of_version_2():
    """With an idle time that is longer than the pause between two stages."""
    cluster = KUBERAY["raycluster.yaml"]["spec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"] == {"version": "v2", "idleTimeoutSeconds": 300}


def test_each_field_of_the_skypilot_task_exists():
    """In the schemas of SkyPilot; what has no default must be given, and is named at the head."""
    known = SCHEMAS["skypilot"]
    assert not SKYPILOT.keys() - set(known["task"])
    assert not SKYPILOT["resources"].keys() - set(known["resources"])
    assert not SKYPILOT["resources"]["job_recovery"].keys() - set(known["job_recovery"])
    assert SKYPILOT["resources"]["use_spot"]
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [3, 4]
    text = (DEPLOY / "skypilot" / "search.yaml").read_text()
    for kind in ("env", "secret"):
        for name, value in SKYPILOT[f"{kind}s"].items():
            assert value is not None or f"--{kind} {name}=" in text


def test_skypilots_own_cluster_is_left_alone():
    """Its ports are not used, and no command looks for any cluster or stops all."""
    commands = [line for line in SKYPILOT["run"].splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(commands)
    assert not re.search(r"\b(auto|6380|8266|52365)\b|ray stop", text)
    assert "unset RAY_ADDRESS" in text
    assert '--ray-address "$head:6379"' in text


def shell_words(text):
    """The words of the search in a shell script; variables stand for directories."""
    text = text.replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "-m dcml_tune.search" in line)
    return shlex.split(re.sub(r"\$\w+", "/shared", line.partition("-m dcml_tune.search")[2]))


COMMANDS = {
    "rayjob": shell_words(KUBERAY["rayjob.yaml"]["spec"]["entrypoint"]),
    "skypilot": shell_words(SKYPILOT["run"]),
}


def assert_is_resumed(words):
    """A command of a job names its search and the directories that all nodes share, and may be run again."""
    config = read_command_line(words).config
    assert config.start_or_resume == "cars-night"
    assert config.output_dir == "/shared/runs"
    assert config.quiet
    return config


@pytest.mark.parametrize("name", COMMANDS)
def test_the_entry_point_is_accepted_and_resumes(name):
    """By our own parser."""
    config = assert_is_resumed(COMMANDS[name])
    assert config.ray_address in (None, "/shared:6379")  # a job of Ray has it in its environment


@pytest.mark.parametrize("script", ["setup", "run"])
def test_the_scripts_of_skypilot_are_shell(script):
    """Without errors of syntax."""
    subprocess.run(["bash", "-n"], input=SKYPILOT[script], text=True, check=True)


SRUN = """#!/usr/bin/env bash
# Runs its command, as Slurm does on other nodes.
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
RAY = """#!/usr/bin/env bash
echo "$@" >> "$STUBS/ray.txt"
[[ $1 == start ]] && sleep 60
[[ $1 != health-check ]] || grep -q -- --head "$STUBS/ray.txt"
"""
PYTHON = f"""#!/usr/bin/env bash
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
printf '%s\\n' "$@" > "$STUBS/search.txt"
trap 'sleep 0.2; echo stopped >> "$STUBS/signal.txt"; exit 3' TERM
touch "$STUBS/begun"
if [[ -n ${{LASTS:-}} ]]; then sleep "$LASTS" & wait; fi
exit "$CODE"
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$STUBS/scontrol.txt"\n'


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm does, with stand-ins of Slurm, Ray and the search that write what they were asked."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    for name, text in {"srun": SRUN, "ray": RAY, "python": PYTHON, "scontrol": SCONTROL}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (binaries / "sleep").write_text('#!/bin/sh\n[ "$1" = 60 ] && [ -n "$QUICK" ] && exit 0\nexec /bin/sleep "$@"\n')
    (binaries / "sleep").chmod(0o755)
    processes = []

    def start(code=0, **environment):
        values = {"CODE": str(code), "STUBS": str(tmp_path), "VENV": str(binaries.parent), "SHARED": "/shared",
                  "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4",
                  "SLURMD_NODENAME": "localhost", **environment}  # fmt: skip
        words = ["bash", str(SBATCH)]
        processes.append(
            subprocess.Popen(
                words,
                cwd=tmp_path,
                env={**os.environ, **values},
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Slurm ends the steps of a job, too
        process.wait()


def test_the_job_of_slurm_starts_a_cluster_of_its_own(slurm, tmp_path):
    """With ports of this job, a token, and the search on its address; nothing is queued again when all is done."""
    process = slurm()
    assert process.wait(60) == 0, process.stderr.read()
    words = (tmp_path / "search.txt").read_text().splitlines()
    assert words[:2] == ["-m", "dcml_tune.search"]
    config = assert_is_resumed(words[2:])
    port = 20000 + 4711 * 4
    assert config.ray_address == f"127.0.0.1:{port}"
    started = [line for line in (tmp_path / "ray.txt").read_text().splitlines() if line.startswith("start")]
    (of_head,) = [line for line in started if "--head" in line]
    assert f"--port {port}" in of_head
    assert "--temp-dir /tmp/ray-4711" in of_head
    assert not (tmp_path / "scontrol.txt").exists()
    help_text = subprocess.run(
        [Path(sys.executable).parent / "ray", "start", "--help"], capture_output=True, text=True, check=True
    ).stdout
    flags = {flag for line in started for flag in re.findall(r"--[a-z-]+", line)}
    assert not flags - set(re.findall(r"--[a-z-]+", help_text))


@pytest.mark.parametrize(("code", "again"), [(1, True), (2, False), (3, True), (4, True), (137, True)])
def test_the_job_of_slurm_queues_itself_again(slurm, tmp_path, code, again):
    """If the search can go on; what is wrong would be wrong again. Not for ever."""
    process = slurm(code, QUICK="1")
    assert process.wait(60) == code, process.stderr.read()
    assert (tmp_path / "scontrol.txt").exists() == again
    if again:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
        (tmp_path / "scontrol.txt").unlink()
        process = slurm(code, QUICK="1", SLURM_RESTART_COUNT="50")
        assert process.wait(60) == code
        assert not (tmp_path / "scontrol.txt").exists()


def test_the_job_of_slurm_waits_for_the_search_to_stop(slurm, tmp_path):
    """The signal before the end of its time reaches the search, whose exit code counts."""
    process = slurm(LASTS="60")
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert (tmp_path / "signal.txt").read_text() == "stopped\n"
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"


def test_what_the_image_copies_is_there():
    """And not kept from the build; versions are taken from constraints.txt; another device is refused."""
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "dcml_tune", "search_spaces", "trainables"} <= set(copied)
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    constraints = (ROOT / "constraints.txt").read_text()
    for pattern in re.findall(r"grep '(\S+)' constraints.txt", text):
        assert len(re.findall(pattern, constraints, re.MULTILINE)) == 1
    (choice,) = re.findall(r"^RUN (case .*?esac)", text, re.MULTILINE | re.DOTALL)
    for device, code in (("cuda", 0), ("gpu", 2)):
        done = subprocess.run(
            ["sh", "-c", choice], env={"DEVICE": device, "PATH": os.defpath}, capture_output=True, check=False
        )
        assert done.returncode == code


def test_the_page_names_each_file_and_its_commands_are_accepted():
    """docs/cluster.md."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".dockerignore":
            assert f"deploy/{path.relative_to(DEPLOY)}" in page, path
    commands = re.findall(r"^ {4,}(?:\S+/)?python -m dcml_tune\.search ((?:.*\\\n)*.*)", page, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        read_command_line(shlex.split(command.replace("\\\n", " "), comments=True))
