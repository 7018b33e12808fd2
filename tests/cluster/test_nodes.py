"""A search on a cluster whose nodes differ, come late, lack what a search needs, or die."""

import json
import re
import shutil
import subprocess
import time
from itertools import pairwise

import pytest

TRIALS = ("--scheduler", "none", "--ray-address")


def nodes_of(scene):
    """The first digits of the node of each trial, as MLflow has them."""
    return {key[2:]: run.data.tags["dcml.node"][-7:-1] for key, run in scene.runs().items() if "/" in key}


def failures(scene):
    """What the sampler was told of failed trials."""
    return [trial for trial in scene.study().values() if trial.state.name == "FAIL"]


def test_what_a_trial_asks_for_fits_on_a_node(scene, cluster):
    """Of a node of 4 CPUs and one of 2 CPUs and a GPU: a GPU and 2 CPUs, and not the CPUs of both."""
    cluster.add(cpus=4)
    with_gpu = cluster.add(cpus=2, gpus=1, labels={"ray.io/accelerator-type": "T4"})
    status, said = scene.search("--num-samples", 2, *TRIALS, cluster.address)
    assert status == 0, said
    assert "1 at once (1 GPUs and 2 cores on 1 node, 1 and 2 for each trial)" in said
    scene.assert_sound(2)
    assert set(nodes_of(scene).values()) == {with_gpu[:6]}


def test_an_empty_cluster_is_waited_for(scene, cluster):
    """With a line, up to a limit. A node that joins later is used, too; one that lacks the package gets no trial."""
    node = cluster.add(cpus=2)
    short = ("--num-samples", 2, *TRIALS, cluster.address, "--wait-for-nodes", "2s")
    status, said = scene.search(*short, "--gpus-per-trial", 1)
    assert status == 3, said
    assert f"({node[:6]}) with 2 CPUs and 0 GPUs" in said
    assert "waiting up to 2 s for one" in said
    assert "no node that can hold a trial, which needs 1 GPU, came to the cluster" in said
    assert not (scene.output / "s" / "search.json").exists()
    cluster.remove_all()
    scene.environment["DCML_TEST_PAUSE"] = "2"
    process = scene.start("--num-samples", 6, *TRIALS, cluster.address, "--gpus-per-trial", 0)
    scene.wait_for("no node of the cluster can hold a trial", process)
    first = cluster.add()
    scene.wait_for("trial 000 epoch 1:", process)
    bad = cluster.add(env_vars={"DCML_TEST_NODE": "lacks the package"})
    late = cluster.add()
    status, said = process.wait(480), process.log.read_text()
    assert status == 0, said
    scene.assert_sound(6)
    assert set(nodes_of(scene).values()) == {first[:6], late[:6]}
    assert re.search(
        rf"node \S+ \({bad[:6]}\) is left out: Python finds no dcml_tune there; install dcml_tune there", said
    )
    assert f"({late[:6]}) can be used now" in said


def test_an_autoscaler_brings_nodes(scene, autoscaled):
    """To an empty cluster: the first for a request that waits, a second because more trials are sampled than fit."""
    scene.environment["DCML_TEST_PAUSE"] = "2"
    status, said = scene.search("--num-samples", 8, *TRIALS, autoscaled.address, "--gpus-per-trial", 0)
    assert status == 0, said
    assert "no node of the cluster can hold a trial, which needs 1 CPU" in said
    scene.assert_sound(8)
    spans = sorted((run.info.start_time, run.info.end_time) for key, run in scene.runs().items() if "/" in key)
    assert any(
        end > start for (_, end), (start, _) in pairwise(spans)
    )  # nodes have one CPU: two trials at once ran on two
    assert failures(scene) == []


def test_trials_of_a_killed_node_move(scene, cluster):
    """More often than a failed trial is tried again; the sampler is not told, and no reported epoch is lost."""
    scene.faults({"trial": "000", "epoch": 1, "kind": "hang", "times": 3})
    nodes = [cluster.add()]
    process = scene.start("--num-samples", 1, *TRIALS, cluster.address)
    for number in range(3):
        scene.wait_for_hang("000", process, number=number)
        nodes.append(cluster.add())
        cluster.kill(nodes[-2])
    status, said = process.wait(480), process.log.read_text()
    assert status == 0, said
    scene.assert_sound(1)
    assert scene.trained() == ["000 1", "000 2", "000 3", "000 4"]
    assert nodes_of(scene) == {"000": nodes[-1][:6]}
    moved = re.findall(r"trial 000 is tried again from its last epoch: (?:the connection to )?node (\w+) ", said)
    assert moved == [node[:6] for node in nodes[:3]]
    assert nodes[2][:6] in scene.runs()["s/000"].data.tags["dcml.tried_again"]
    assert f"({nodes[0][:6]}) has left the cluster" in said
    assert "state-dump" not in said


def test_a_node_that_breaks_is_left_out(scene, cluster):
    """It passes the check, and the trials that begin there fail: they move, are not counted, and the sampler is not told."""
    good = cluster.add()
    bad = cluster.add(env_vars={"DCML_TEST_NODE": "breaks"})
    status, said = scene.search("--num-samples", 4, *TRIALS, cluster.address)
    assert status == 0, said
    scene.assert_sound(4)
    assert (set(nodes_of(scene).values()), failures(scene)) == ({good[:6]}, [])
    assert said.count(f"({bad[:6]}) is left out: its images are gone") == 1


def test_without_a_fit_node_the_search_stops(scene, cluster):
    """At once, with the reasons in one line."""
    bad = cluster.add(env_vars={"DCML_TEST_NODE": "lacks the package"})
    status, said = scene.search("--num-samples", 2, *TRIALS, cluster.address)
    assert status == 2, said
    assert re.search(
        rf"no node of the cluster can run this search: node \S+ \({bad[:6]}\): Python finds no dcml_tune", said
    )


def may_make_namespaces():
    return (
        subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif("not may_make_namespaces()", reason="this user may not make mount namespaces (unshare --mount)")
@pytest.mark.parametrize("lacks", ["images", "the same images", "output"])
def test_a_node_with_another_file_system_is_left_out(scene, cluster, folder, lacks, tmp_path):
    """A real node whose images are missing or others, or whose output directory is empty: it is named by its host."""
    good = cluster.add()
    scene.output.mkdir()
    others = tmp_path / "others"  # the same names; two classes have the images of each other
    shutil.copytree(folder, others)
    for number, other in ((3, 4), (4, 3)):
        shutil.copytree(folder / f"class {number:02d}", others / f"class {other:02d}", dirs_exist_ok=True)
    mount = {
        "images": f"mount -t tmpfs none {folder}",
        "the same images": f"mount --bind {others} {folder}",
        "output": f"mount -t tmpfs none {scene.output}",
    }
    cluster.add_in_namespace(mount[lacks])
    process = scene.start("--num-samples", 4, *TRIALS, cluster.address)
    scene.wait_for("node othernode", process)
    status, said = process.wait(480), process.log.read_text()
    assert status == 0, said
    scene.assert_sound(4)
    assert (set(nodes_of(scene).values()), failures(scene)) == ({good[:6]}, [])
    reason = {
        "images": "the images cannot be used there",
        "the same images": "its images are not those that the search began with",
        "output": f"its {scene.output} is not the directory of the driver; --output-dir must be on storage that all nodes share",
    }[lacks]
    assert re.search(rf"node othernode \(\w+\) is left out: {re.escape(reason)}", said)


def may_make_links():
    """Whether this user may make a network namespace and a link to it."""
    link = ["ip", "link", "add", "dcml-here", "type", "veth", "peer", "name", "dcml-there"]
    try:
        if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
            return False
        if subprocess.run(link, capture_output=True).returncode:
            return False
    except FileNotFoundError:
        return False
    subprocess.run(["ip", "link", "delete", "dcml-here"], check=True)
    return True


@pytest.mark.skipif("not may_make_links()", reason="this user may not make network namespaces, or has no `ip`")
def test_the_trial_of_a_node_that_is_cut_off_moves(scene, linked, link):
    """Its process, which nobody can reach, ends by itself; no reported epoch is lost, and the sampler is not told."""
    scene.faults({"trial": "000", "epoch": 2, "kind": "hang"})
    there = linked.add_in_namespace("true", host="far", network=link)
    process = scene.start("--num-samples", 1, *TRIALS, linked.address)
    scene.wait_for_hang("000", process)
    near = linked.add(node_ip_address=link.here)
    link.cut()
    status, said = process.wait(480), process.log.read_text()
    assert status == 0, said
    scene.assert_sound(1)
    assert (nodes_of(scene), failures(scene), scene.lost()) == ({"000": near[:6]}, [], [])
    assert scene.trained() == ["000 1", "000 2", "000 3", "000 4"]
    assert "trial 000 is tried again from its last epoch" in said
    end = time.monotonic() + 300  # gRPC finds out after minutes that nothing comes from the head any longer
    while not linked.has_ended(there):
        assert time.monotonic() < end, "the node that was cut off runs on"
        time.sleep(0.2)


@pytest.mark.skipif("not may_make_namespaces()", reason="this user may not make mount namespaces (unshare --mount)")
def test_each_node_has_image_stores_of_its_own(scene, cluster, tmp_path):
    """With --scratch: in a directory of the same name on another disk. A node that cannot write there is left out."""
    del scene.environment["DCML_TEST_TRAINER"]  # trials open their images
    local, disk = tmp_path / "local", tmp_path / "disk"
    for directory in (scene.output, local, disk):
        directory.mkdir()
    cluster.add_in_namespace(f"mount --bind {disk} {local}")
    cluster.add_in_namespace(f"mount -t tmpfs -o ro none {local}", host="readonly")
    process = scene.start("--num-samples", 2, *TRIALS, cluster.address, "--scratch", local)
    scene.wait_for("node readonly", process)
    status, said = process.wait(480), process.log.read_text()
    assert status == 0, said
    scene.assert_sound(2)
    assert (
        failures(scene),
        {run.data.tags["dcml.node"][:9] for run in scene.runs().values() if "dcml.node" in run.data.tags},
    ) == (
        [],
        {"othernode"},
    )
    stores = [sorted(path.parent.name for path in directory.glob("*/pixels.npy")) for directory in (local, disk)]
    assert len(stores[0]) == 2
    assert stores[0] == stores[1]
    assert list(scene.output.glob("store/*/pixels.npy")) == []
    reason = f"--scratch {local}: it cannot be written (Read-only file system) there; all nodes need the same path"
    assert re.search(rf"node readonly \(\w+\) is left out: {re.escape(reason)}", said)
    assert re.search(rf"image stores: .* in {local} on each node", said)


def test_a_token_of_a_local_search_does_no_harm(scene, cluster, tmp_path):
    """On a cluster without authentication; an environment that asks for the other mode is refused by its name."""
    (tmp_path / ".ray").mkdir(mode=0o700)
    (tmp_path / ".ray" / "auth_token").write_text(json.dumps("0123456789abcdef" * 4))
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    cluster.add()
    status, said = scene.search("--num-samples", 1, *TRIALS, cluster.address)
    assert status == 0, said
    scene.assert_sound(1)
    scene.environment["RAY_AUTH_MODE"] = "token"
    status, said = scene.search("--num-samples", 1, *TRIALS, cluster.address, name="t")
    assert status == 2, said
    assert f"RAY_AUTH_MODE=token: the Ray cluster at {cluster.address} has no authentication" in said
