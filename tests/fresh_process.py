"""A command in a process of its own, and what it imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run_in_fresh_process(home: Path, *arguments: str) -> tuple[str, set[str]]:
    """What a command printed, and the modules it had imported at its end."""
    program = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from cli.main import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "TGP_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout, set(json.loads(run.stderr.splitlines()[-1]))
