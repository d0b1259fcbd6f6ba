"""The whole path for real: embedded Redis, a worker, submit, status, results.

`make demo` runs it. It drives the same `tgp-jobs` that a user types, keeps its
state in a temporary folder, and ends every process it started.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parent
TGP_JOBS = Path(sys.executable).parent / "tgp-jobs"
START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30


def main() -> int:
    """Run the demo; the exit code is 0 if every prompt got a completion."""
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny-bloom"
    prompts = EXAMPLES / "prompts.jsonl"
    with tempfile.TemporaryDirectory(prefix="tgp-demo-") as folder:
        home = Path(folder) / "home"
        environment = {**os.environ, "TGP_HOME": str(home)}
        with running_worker(environment, Path(folder) / "worker.log"):
            submitted = tgp_jobs(
                environment, "submit", str(prompts), "--model", model, "--max-new-tokens", "24"
            )
            job_id = submitted.stdout.strip()
            print(job_id)
            tgp_jobs(environment, "status", job_id, "--watch", shown=True)
            tgp_jobs(environment, "results", job_id, "--format", "table", shown=True)
            status = json.loads(tgp_jobs(environment, "status", job_id, "--json").stdout)
    return summarise(status)


def summarise(status: dict[str, object]) -> int:
    """Print what was done and how fast, from `status --json`."""
    counts, tokens, state = status["counts"], status["tokens"], status["model_state"]
    assert isinstance(counts, dict)
    assert isinstance(tokens, dict)
    assert isinstance(state, dict)
    print()
    print(f"model         {status['model']}")
    print(f"prompts       {counts['completed']} completed, {counts['failed']} failed")
    print(f"tokens        {tokens['prompt']} read, {tokens['completion']} generated")
    speed = status["tokens_per_second"]
    print(f"tokens/s      {f'{speed:.1f}' if isinstance(speed, float) else '-'}")
    load_seconds = state.get("load_seconds")
    loaded = f"{load_seconds:.1f} s" if isinstance(load_seconds, float) else "-"
    print(f"model loaded  {loaded}")
    return 0 if counts["completed"] == counts["total"] else 1


@contextmanager
def running_worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    """A real worker process, ready for work; told to stop at the end."""
    command = [str(TGP_JOBS), "worker", "--model", "tiny-bloom"]
    if len(sys.argv) > 1:
        command[-1] = sys.argv[1]
    print(f"$ {shlex.join(['tgp-jobs', *command[1:]])} &", flush=True)
    with log.open("wb") as output:
        worker = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
        try:
            wait_until_ready(worker, log)
            yield
        except BaseException:
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            stop(worker)


def wait_until_ready(worker: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the line with which the worker says that it takes messages.

    Raises:
        RuntimeError: It ended, or said nothing in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while "worker_ready" not in log.read_text():
        if worker.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the worker did not start; its log follows")
        time.sleep(0.1)


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def tgp_jobs(
    environment: dict[str, str], *arguments: str, shown: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would; its output is shown or returned.

    Raises:
        CalledProcessError: It failed.
    """
    print(f"\n$ {shlex.join(['tgp-jobs', *arguments])}", flush=True)
    return subprocess.run(
        [str(TGP_JOBS), *arguments],
        env=environment,
        check=True,
        text=True,
        stdout=None if shown else subprocess.PIPE,
    )


if __name__ == "__main__":
    sys.exit(main())
