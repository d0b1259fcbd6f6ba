"""The name under which one start of a worker holds its leases."""

from __future__ import annotations

import os
import secrets
import socket


def new_worker_id() -> str:
    """Unique for every start of a worker, and telling where it runs."""
    return f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(3)}"
