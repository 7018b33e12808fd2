"""File systems on which `flock` works, is refused, or acts on one machine only; and machines with other names.

In a test's own process a monkeypatch replaces `fcntl.flock`. For whole processes a sitecustomize.py in a directory of the test,
which PYTHONPATH names, does the same for files below that directory: so no code of dcml_tune knows of it.
"""

import errno
import fcntl
import os
import socket

KINDS = {"works": None, "ENOLCK": errno.ENOLCK, "ENOTSUP": errno.ENOTSUP, "ENOSYS": errno.ENOSYS, "silent": 0}
"""Name -> the errno that flock raises; None: it works; 0: it succeeds for everyone."""

SITE = """
import fcntl, os, socket
code, real = {code!r}, fcntl.flock
def flock(file, operation):
    if not os.readlink(f"/proc/self/fd/{{file}}").startswith({root!r}):
        return real(file, operation)
    if code:
        raise OSError(code, os.strerror(code))
if code is not None:
    fcntl.flock = flock
if {host!r}:
    socket.gethostname = lambda: {host!r}
"""


def on(directory, kind, host=None):
    """Return the environment of a process for which a directory is on such a file system, on a machine of that name."""
    place = directory / f"site-{kind}-{host}"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(SITE.format(code=KINDS[kind], host=host, root=f"{directory}/"))
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def replace_flock(monkeypatch, kind, host=None):
    """Put this process on such a file system, and on a machine of that name."""
    code = KINDS[kind]

    def flock(file, operation):
        if code:
            raise OSError(code, os.strerror(code))

    if code is not None:
        monkeypatch.setattr(fcntl, "flock", flock)
    if host:
        monkeypatch.setattr(socket, "gethostname", lambda: host)
