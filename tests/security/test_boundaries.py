"""What a client, a file or a neighbour on the machine may not make the program do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from jobs.catalogue import load_catalogue
from jobs.database import open_database
from jobs.dispatch import Dispatcher
from jobs.errors import CatalogueError, QueueUnavailableError
from jobs.settings import Settings
from tests.acceptance.box import TGP_JOBS, Box, wait_until
from tests.ledger import submit
from tests.services import RealRedis
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.test_doctor import _no_torch_is_imported
from worker.log import get_logger
from worker.queue.embedded_redis import EmbeddedRedis

__all__ = ["_no_torch_is_imported"]

pytestmark = pytest.mark.integration
NULL = '[models.null]\nengine = "null"\n'
PATHS = ["../../x", "..", "/etc/passwd", "a/../../x", "x\0y", "", ".", "-x", "a/b", "\ud800"]


class TestModels:
    def test_a_worker_refuses_a_model_that_its_catalogue_lacks(
        self, short_folder: Path, real_redis: RealRedis
    ) -> None:
        """Though the ledger names it, and a message for it lies in the worker's own queue."""
        box = Box(short_folder, {"TGP_REDIS_URL": real_redis.url})
        box.catalogue(NULL)
        settings = Settings(home=box.home, redis_url=real_redis.url)
        database = open_database(settings)
        folder = box.home / "other"
        folder.mkdir()
        # given a job for a folder that exists, by path, and a message where it is heard
        job_id = submit(database, 2, model=str(folder))
        dispatcher = Dispatcher(settings)
        try:
            assert dispatcher.publish_unpublished(database, job_id) == 1
            with real_redis.client() as client:
                queue = f"tgp.{folder}\x06\x165"
                (message,) = client.lrange(queue, 0, -1)
                client.lpush("tgp.null", message)
            # when a worker hears it
            worker = box.worker("--model", "null")
            worker.wait_for("shard_refused")
            # then it has loaded nothing and given the shard back
            assert "model_loading" not in worker.log
            assert box.status(job_id)["status"] in ("queued", "running")
            assert box.status(job_id)["counts"]["pending"] == 2
        finally:
            dispatcher.close()
            database.close()
            box.close()

    @pytest.mark.parametrize("alias", PATHS)
    def test_no_path_is_a_model_s_name(self, home: Path, alias: str) -> None:
        if "\ud800" in alias:
            pytest.skip("TOML is UTF-8 and cannot spell it")
        home.mkdir()
        (home / "catalogue.toml").write_text(f'[models.{json.dumps(alias)}]\nhub_id = "a/b"\n')
        with pytest.raises(CatalogueError, match="an alias has letters"):
            load_catalogue(Settings(home=home))

    @pytest.mark.parametrize("model", PATHS)
    def test_no_path_is_taken_for_a_model(self, tgp: Tgp, tmp_path: Path, model: str) -> None:
        (tmp_path / "p.txt").write_text("a\n")
        for command in (("submit", tmp_path / "p.txt", "--model", model), ("prepare", "--", model)):
            result = tgp(*command)
            assert result.exit_code == 2
            assert "Traceback" not in result.output
        assert json.loads(tgp("list", "--json").stdout) == []

    @pytest.mark.parametrize("packaged", ["../../x", "/etc", ".."])
    def test_no_path_is_a_packaged_checkpoint(self, home: Path, packaged: str) -> None:
        home.mkdir()
        (home / "catalogue.toml").write_text(f'[models.a]\npackaged = "{packaged}"\n')
        with pytest.raises(CatalogueError, match="packaged"):
            load_catalogue(Settings(home=home))


class TestPaths:
    @pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "~", "a b; rm -rf"])
    def test_a_job_s_name_is_a_name_and_nothing_else(
        self, tgp: Tgp, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "p.txt").write_text("a\n")
        before = sorted(tmp_path.rglob("*"))
        tgp("submit", tmp_path / "p.txt", "--model", "tiny-bloom", "--name", name)
        (job,) = json.loads(tgp("list", "--json").stdout)
        assert job["name"] == name
        new = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
        assert {each.removesuffix("-wal").removesuffix("-shm") for each in new} <= {
            "home",
            "tgp-jobs.db",
        }

    @pytest.mark.parametrize("job", ["../../x", "%", "_" * 8, "' OR 1=1 --", "\0", ""])
    def test_a_job_s_id_is_looked_up_as_it_is(self, tgp: Tgp, tmp_path: Path, job: str) -> None:
        (tmp_path / "p.txt").write_text("a\n")
        tgp("submit", tmp_path / "p.txt", "--model", "tiny-bloom")
        for command in ("status", "results", "cancel", "retry"):
            result = tgp(command, "--", job)
            assert result.exit_code == 2
            assert "no job has" in result.stderr

    def test_results_follow_no_link_but_the_one_that_was_named(
        self, tgp: Tgp, tmp_path: Path
    ) -> None:
        (tmp_path / "p.txt").write_text("a\n")
        job = tgp("submit", tmp_path / "p.txt", "--model", "tiny-bloom").stdout.strip()
        target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
        target.write_text("old")
        link.symlink_to(target)
        assert tgp("results", job, "-o", link).exit_code == 0
        assert (link.is_symlink(), target.read_text()) == (True, "")
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]

    @pytest.mark.parametrize("output", ["no/such/folder.jsonl", ".", "/"])
    def test_a_path_that_cannot_be_written_is_refused(
        self, tgp: Tgp, tmp_path: Path, output: str
    ) -> None:
        (tmp_path / "p.txt").write_text("a\n")
        job = tgp("submit", tmp_path / "p.txt", "--model", "tiny-bloom").stdout.strip()
        result = tgp("results", job, "-o", output)
        assert result.exit_code == 2
        assert "Error: " in result.stderr

    def test_repair_deletes_nothing_through_a_link(self, tgp: Tgp, home: Path) -> None:
        precious = home.parent / "precious"
        precious.mkdir(parents=True)
        (precious / "file").write_text("x")
        (home / "stores").mkdir(parents=True)
        (home / "stores" / "a-0123456789.partial").symlink_to(precious)
        tgp("repair", "--stores")
        assert (precious / "file").exists()


class TestPrivacy:
    def test_what_is_made_is_its_owner_s_alone(self, short_folder: Path) -> None:
        home = short_folder / "home"
        box = Box(short_folder / "other", {"TGP_HOME": str(home)})
        (short_folder / "other" / "catalogue.toml").write_text(NULL)
        box.environment["TGP_CATALOGUE"] = str(short_folder / "other" / "catalogue.toml")
        # as most machines have it: files that everybody may read
        before = os.umask(0o022)
        try:
            worker = box.worker("--model", "null")
            job = box.submit(box.prompts(["a"]), "null")
            box.wait_for_end(job)
            modes = {
                path.relative_to(home): path.stat().st_mode & 0o777
                for path in (home, home / "redis", *home.glob("tgp-jobs.db*"))
            }
            assert {mode & 0o077 for mode in modes.values()} == {0}
            assert {"tgp-jobs.db", "redis"} <= {str(each) for each in modes}
            # Redis: a socket for its owner, and no port
            redis = home / "redis" / "redis.sock"
            assert redis.stat().st_mode & 0o077 == 0
            assert ports_of(worker_redis(worker.log)) == []
        finally:
            os.umask(before)
            box.close()

    def test_a_ledger_in_an_open_folder_is_private_all_the_same(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            open_database(Settings(home=tmp_path)).close()
        finally:
            os.umask(before)
        assert (tmp_path / "tgp-jobs.db").stat().st_mode & 0o077 == 0

    def test_doctor_tells_of_an_open_state_directory(self, tgp: Tgp, home: Path) -> None:
        home.mkdir()
        home.chmod(0o755)
        checks = {
            each["name"]: each for each in json.loads(tgp("doctor", "--json").stdout)["checks"]
        }
        assert checks["privacy"]["status"] == "warn"
        assert checks["privacy"]["mend"] == f"chmod go= {home}"

    def test_a_folder_that_another_user_made_for_the_socket_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = Settings(home=tmp_path / ("long" * 30))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        folder = settings.redis_socket.parent
        assert folder.parent == tmp_path
        folder.mkdir(mode=0o755)
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, 12345, 12345)
        with pytest.raises(QueueUnavailableError, match="another user's"):
            EmbeddedRedis(settings, get_logger()).start()

    def test_a_link_in_the_place_of_the_socket_s_folder_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = Settings(home=tmp_path / ("long" * 30))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        settings.redis_socket.parent.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(QueueUnavailableError, match="another user's"):
            EmbeddedRedis(settings, get_logger()).start()


def worker_redis(log: str) -> int:
    (line,) = [line for line in log.splitlines() if "embedded_redis_started" in line]
    return int(line.rpartition("process=")[2])


def ports_of(process: int) -> list[str]:
    """The TCP sockets that a process listens at, by the kernel's tables."""
    files = Path(f"/proc/{process}/fd").iterdir()
    own = {str(path.readlink()) for path in files if path.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                listening.append(words[1])
    return listening


def test_the_search_for_ports_finds_one() -> None:
    # So that the test above can fail.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert [each.endswith(f":{port:04X}") for each in ports_of(os.getpid())] == [True]


class TestPasswords:
    URLS = (
        "redis://:hunter2@127.0.0.1:1/0",
        "redis://user:hun%74er2%40@127.0.0.1:1/0",
        "rediss://:hunter2@127.0.0.1:1/0?ssl_cert_reqs=none",
    )
    REFUSED = (
        "redis://127.0.0.1:1/0?password=hunter2",
        "redis://127.0.0.1:1/0?pass%77ord=hunter2",
        "redis://:hunter2;x@127.0.0.1:1/0",
        "redis://user:hunter2",
    )
    DATABASES = (
        "postgresql://u:hunter2@127.0.0.1:1/db",
        "postgresql://u:hun%74er2%40@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=u&password=hunter2",
        "postgresql://u:hunter2@127.0.0.1:1/db?unknown=1",
        "postgresql://u:p@hunter2@127.0.0.1:1/db",
        "postgresql://u:hunter2",
    )

    @pytest.mark.parametrize("url", URLS)
    def test_a_worker_s_log_has_none(self, short_folder: Path, url: str) -> None:
        box = Box(short_folder, {"TGP_REDIS_URL": url})
        box.catalogue(NULL)
        worker = box.worker("--model", "null", wait=False)
        try:
            wait_until(lambda: "Cannot connect" in worker.log, "a line about Redis")
            box.run("submit", box.prompts(["a"]), "--model", "null")
        finally:
            box.close()
        for leak in ("hunter2", "hun%74er2", "Traceback"):
            assert leak not in worker.log

    @pytest.mark.parametrize("url", REFUSED)
    def test_a_worker_that_refuses_a_url_shows_none(self, short_folder: Path, url: str) -> None:
        box = Box(short_folder, {"TGP_REDIS_URL": url})
        done = box.run("worker", exit_code=2)
        assert "hunter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("url", DATABASES)
    @pytest.mark.parametrize(
        "command", ["doctor", "repair", "list", "status x", "db current", "db upgrade", "models"]
    )
    def test_no_command_shows_the_database_s(self, tgp: Tgp, url: str, command: str) -> None:
        for options in ([], ["--json"]):
            result = tgp(*command.split(), "--database-url", url, *options)
            assert "hunter2" not in result.output
            assert "hun%74er2" not in result.output

    def test_a_traceback_has_none(self) -> None:
        """A mistake of ours, with a URL and escapes in its words."""
        program = (
            "import sys; from cli.failures import show_unexpected\n"
            "sys.excepthook = show_unexpected\n"
            "raise RuntimeError("
            "'at redis://u:hunter2@h/0 \\x1b]0;owned\\x07 ?password=hunter2&x')\n"
        )
        python = str(TGP_JOBS.with_name("python"))
        # By -c, so that the traceback has no source lines of its own
        done = subprocess.run(
            [python, "-c", f"exec(compile({program!r}, 'x', 'exec'))"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "RuntimeError: at redis://u:***@h/0 \\x1b]0;owned\\x07" in done.stderr
        last = done.stderr.splitlines()[-1]
        assert "hunter2" not in last
        assert "\x1b" not in done.stderr
