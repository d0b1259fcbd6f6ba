"""What `tgp-jobs submit` costs: prompts a second, peak memory, CPU to start.

    python -m benchmarks.submit [--prompts 100000] [--runs 5]

Each figure is that of a whole `tgp-jobs` process, from the operating system's
own account of it: wall seconds, user plus system CPU seconds, peak resident
memory. SQLite in a fresh state directory; where a line says
Redis, a real one answers and the messages are sent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.queue import TGP_JOBS, write_prompts
from tests.services import own_redis


@dataclass(frozen=True, kw_only=True)
class Usage:
    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description="What `tgp-jobs submit` costs.")
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tgp-bench-") as name, own_redis() as server:
        folder = Path(name)
        with_redis = {"TGP_REDIS_URL": server.url}
        print(f"{'command':44} {'prompts/s':>10} {'CPU s':>7} {'peak MiB':>9}")
        for count in (arguments.prompts // 10, arguments.prompts):
            usage = submit(folder, count, with_redis, runs=1)
            rate = count / usage.wall_seconds
            show(f"submit {count} prompts, Redis", usage, f"{rate:10.0f}")
        show("submit 2 prompts, Redis", submit(folder, 2, with_redis, arguments.runs))
        show("submit 2 prompts, no worker yet", submit(folder, 2, {}, arguments.runs))
        show("--help", measure(["--help"], os.environ.copy(), arguments.runs))
        show("(python -c pass)", measure(None, os.environ.copy(), arguments.runs))


def submit(folder: Path, count: int, settings: dict[str, str], runs: int) -> Usage:
    home = folder / f"home-{count}-{len(settings)}"
    home.mkdir()
    (home / "catalogue.toml").write_text('[models.null]\nengine = "null"\n')
    file = folder / "prompts.jsonl"
    write_prompts(file, count)
    environment = {**os.environ, "TGP_HOME": str(home), **settings}
    # The first command of a state directory makes the database.
    subprocess.run([str(TGP_JOBS), "list"], env=environment, check=True, capture_output=True)
    return measure(["submit", str(file), "--model", "null"], environment, runs)


def measure(arguments: list[str] | None, environment: dict[str, str], runs: int) -> Usage:
    """The medians of a command's runs."""
    command = [sys.executable, "-c", "pass"] if arguments is None else [str(TGP_JOBS), *arguments]
    usages = [run_once(command, environment) for _ in range(runs)]
    return Usage(
        wall_seconds=statistics.median(usage.wall_seconds for usage in usages),
        cpu_seconds=statistics.median(usage.cpu_seconds for usage in usages),
        peak_mib=statistics.median(usage.peak_mib for usage in usages),
    )


def run_once(command: list[str], environment: dict[str, str]) -> Usage:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak_kib = 0
    # The kernel's ru_maxrss would include this process, of which it is a fork.
    while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        peak_kib = max(peak_kib, high_water_kib(process.pid))
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    _pid, status, usage = waited
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command} exited with {process.returncode}")
    return Usage(
        wall_seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=peak_kib / 1024,
    )


def high_water_kib(pid: int) -> int:
    """The most resident memory the process has had so far; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def show(name: str, usage: Usage, rate: str = " " * 10) -> None:
    print(f"{name:44} {rate} {usage.cpu_seconds:7.3f} {usage.peak_mib:9.1f}", flush=True)


if __name__ == "__main__":
    main()
