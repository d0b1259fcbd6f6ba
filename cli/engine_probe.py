"""What torch and bitsandbytes can do here, asked in a process of their own.

Importing them takes seconds, gigabytes of address space and, when the build
does not fit the driver, the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

TIMEOUT_SECONDS = 120.0

PROGRAM = """
import json, torch
found = {"torch_version": torch.__version__, "gpu": None,
         "bitsandbytes_version": None, "bitsandbytes_problem": None}
device = "cpu"
if torch.cuda.is_available():
    device = "cuda"
    card = torch.cuda.get_device_properties(0)
    found["gpu"] = f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
try:
    import bitsandbytes
    from bitsandbytes.functional import int8_vectorwise_quant
    found["bitsandbytes_version"] = bitsandbytes.__version__
    int8_vectorwise_quant(torch.ones(8, 64, dtype=torch.float16, device=device))
except Exception as error:
    found["bitsandbytes_problem"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


class ProbeError(Exception):
    """torch cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True)
class EngineProbe:
    """What was found; gpu is the first card's name and memory."""

    torch_version: str
    gpu: str | None
    bitsandbytes_version: str | None
    bitsandbytes_problem: str | None


def probe_engine() -> EngineProbe:
    """Import torch and bitsandbytes elsewhere and quantise a few numbers.

    Raises:
        ProbeError: The process died or took too long.
    """
    try:
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"import torch took more than {TIMEOUT_SECONDS:g} s") from None
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines()
        raise ProbeError(lines[-1] if lines else f"import torch ended with code {run.returncode}")
    return EngineProbe(**json.loads(run.stdout.splitlines()[-1]))
