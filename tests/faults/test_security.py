"""What a search shows to others: open ports, and passwords."""

import re
import signal
import socket

import psutil

# What Ray binds to all interfaces, whatever it is told; docs/security.md says what protects each.
OPEN_IN_RAY = {"gcs_server", "raylet", "python", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"}


def listening(process):
    """Name and address of each listening socket of a process tree; a worker's name is that of its class."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        try:
            name = "ray::IDLE" if each.name().startswith("ray::Divide") else each.name()
            found |= {(name, c.laddr.ip) for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return found


def test_only_what_the_document_names_listens_beyond_loopback(cheap):
    """The dashboard does not; what does is Ray's own, and asks for a token."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "hang"})
    process = cheap.start("--num-samples", 2)
    cheap.wait_for("001 epoch 1", process)
    found = listening(psutil.Process(process.pid))
    beyond = {name.split("-")[0] for name, address in found if address not in ("127.0.0.1", "::1")}
    assert beyond <= OPEN_IN_RAY, found
    port = re.search(r"Ray dashboard: http://127.0.0.1:(\d+) ", process.log.read_text())[1]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as dashboard:
        dashboard.sendall(b"GET /api/v0/actors HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 401 " in dashboard.recv(200)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def test_a_password_is_written_nowhere(cheap):
    """Not into a file of the search, not into its output; a resume asks for the address again, and takes it."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "hang"})
    address = "http://ann:geheim7@127.0.0.1:9"
    process = cheap.start("--num-samples", 2, "--tracking-uri", address)
    cheap.wait_for("001 epoch 1", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 3
    status, said = cheap.resume()
    assert (status, "its password is not stored" in said) == (2, True), said
    status, said = cheap.resume("--tracking-uri", address)
    assert status == 0, said
    assert "records for MLflow wait" in said
    files = [path for path in cheap.directory.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"geheim7" in path.read_bytes()] == []
