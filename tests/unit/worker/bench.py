"""A runner on the real ledger, with an engine that a test scripts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jobs.database import Database
from jobs.settings import Settings
from jobs.store.results import result_rows
from tests.ledger import shard_ids
from tests.unit.worker.scripted_engine import ScriptedEngine, ScriptedLoader
from worker.log import get_logger
from worker.models.engine_host import EngineHost
from worker.shards.run_shard import ShardRunner


@dataclass
class Bench:
    """A runner on the real ledger, with an engine that a test scripts."""

    database: Database
    settings: Settings
    engine: ScriptedEngine
    loader: ScriptedLoader
    host: EngineHost
    stopping: bool = False

    def runner(self, **settings: Any) -> ShardRunner:
        return ShardRunner(
            database=self.database,
            engines=self.host,
            settings=replace(self.settings, **settings),
            worker_id="w",
            log=get_logger(),
            should_stop=lambda: self.stopping,
        )

    def stop(self) -> None:
        self.stopping = True

    def run(self, job_id: str) -> str:
        """Run the job's first shard."""
        return self.runner().run(shard_ids(self.database, job_id)[0])

    def texts(self, job_id: str) -> list[str | None]:
        return [row.text for row in result_rows(self.database, job_id)]
