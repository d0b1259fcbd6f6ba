"""The coverage-guided fuzzer: `python -m tests.fuzz.fuzz SECONDS [TARGET ...]`.

It runs each target over mutations of its seeds, and keeps those that reach
lines which none before has reached. At the first exception it prints that with
its input and exits with 1. Wants the extra `fuzz`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ONE = "--one"


def run_all(seconds: str, names: list[str]) -> None:
    """Each target in a process of its own, since the fuzzer ends the one it runs in."""
    from tests.fuzz.targets import TARGETS

    for name in names or TARGETS:
        command = [sys.executable, "-m", "tests.fuzz.fuzz", ONE, seconds, name]
        with tempfile.TemporaryFile() as output:  # some targets log a line per input
            done = subprocess.run(command, stdout=output, stderr=output, check=False)
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        if done.returncode:
            sys.exit("\n".join([name, *lines[-40:]]))
        words = [line.split() for line in lines if line.startswith("stat::")]
        facts = {each[0].removeprefix("stat::").rstrip(":"): each[1] for each in words}
        runs, kept = facts["number_of_executed_units"], facts["new_units_added"]
        print(f"{name}: {runs} inputs in {seconds} s, {kept} reached new lines, no exception")


def run_one(seconds: str, name: str) -> None:
    """A target until its time is over; ends the process."""
    import atheris

    # Branches are counted in what is imported here, and in these packages only.
    with atheris.instrument_imports(
        include=["engine", "jobs", "worker", "tests.fuzz", "json", "tomllib"]
    ):
        from tests.fuzz.seeds import SEEDS, WORDS
        from tests.fuzz.targets import TARGETS

        # Once, so that what it imports on first use is instrumented too.
        TARGETS[name](SEEDS[name][0])
    folder = Path(tempfile.mkdtemp(prefix=f"tgp-fuzz-{name}-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = folder / "words"
    quoted = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS)
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    options = [f"-max_total_time={seconds}", "-max_len=2048", "-timeout=20", "-rss_limit_mb=4096"]
    options += [f"-dict={words}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1] == ONE:
        run_one(*sys.argv[2:])
    else:
        run_all(sys.argv[1], sys.argv[2:])
