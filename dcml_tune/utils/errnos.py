"""Sets of errno values, by what they say about an OSError's cause."""

from __future__ import annotations

import errno

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk or the user's quota has no room."""

CANNOT_WRITE = DISK_FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
"""Nothing can be written in that place; the program is not at fault."""

SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""The machine is short of file descriptors or memory. This says nothing about the file that was opened."""

TRANSIENT = SHORTAGE | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}
"""Reading a file again may succeed."""

DELAYS_DELIVERY = DISK_FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE}
"""The disk or the machine has a problem, not the file that is delivered. Delivery waits until it passes."""

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""The system or the file system does not implement the call."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""The file system has no locks by `flock`."""
