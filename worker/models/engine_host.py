"""Holds the one loaded model of this process, until another one's turn comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from engine.interface import (
    Engine,
    LoadInterruptedError,
    LoadProgress,
    ModelDescription,
    ModelLoadError,
)
from jobs.catalogue import Catalogue, CatalogueModel
from jobs.database import Database
from jobs.errors import DatabaseUnavailableError, UnknownModelError
from jobs.settings import Settings
from jobs.store import leases, workers
from worker.log import Logger
from worker.models.engine_imports import EngineImports
from worker.models.model_source import source_of

# A load reports hundreds of tensors; people and the database want a few lines.
SECONDS_BETWEEN_REPORTS = 1.0


class EngineHost:
    """Loads lazily, keeps the model, and frees it before it loads another."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalogue: Catalogue,
        database: Database,
        worker_id: str,
        log: Logger,
        imports: EngineImports | None = None,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._database = database
        self._worker_id = worker_id
        self._log = log
        self._imports = imports or EngineImports()
        self._has_real_models = not all(map(_is_null, catalogue.values()))
        self._engine: Engine | None = None
        self._alias: str | None = None
        self._last_report = 0.0

    @property
    def models(self) -> frozenset[str]:
        """The aliases that it can load."""
        return frozenset(self._catalogue)

    def serves(self, alias: str) -> bool:
        return alias in self._catalogue

    def holds(self, alias: str) -> bool:
        """Whether engine_for would return without loading."""
        return self._engine is not None and self._alias == alias

    def import_for(self, shard_id: int) -> None:
        """Import what the shard's model needs to be loaded; says nothing if that fails.

        Raises:
            DatabaseUnavailableError: The ledger does not answer.
        """
        if not self._imports.are_done:
            alias = leases.model_of(self._database, shard_id) if self._has_real_models else None
            if alias is None or not self.serves(alias) or _is_null(self._catalogue[alias]):
                return
        self._imports.make(self._log)

    def engine_for(self, alias: str, should_stop: Callable[[], bool]) -> Engine:
        """The engine with this model loaded.

        Raises:
            UnknownModelError: The catalogue has no such model.
            ModelLoadError: It cannot be loaded.
            LoadInterruptedError: should_stop() turned true on the way.
        """
        if self._engine is not None and self._alias == alias:
            return self._engine
        model = self._catalogue.get(alias)
        if model is None:
            raise UnknownModelError(f"the worker's catalogue has no model {alias!r}")
        self.unload()
        self._log.info("model_loading", model=alias, location=model.location)
        started = time.monotonic()
        try:
            engine = self._load(model, should_stop)
        except BaseException as error:
            self._report(lambda: workers.worker_unloaded(self._database, self._worker_id))
            if not isinstance(error, Exception) or isinstance(
                error, ModelLoadError | LoadInterruptedError
            ):
                raise
            # Whatever a library raises here, no prompt is to blame for it.
            self._log.exception("model_load_crashed", model=alias)
            raise ModelLoadError(f"{type(error).__name__}: {error}") from error
        self._engine, self._alias = engine, alias
        self._loaded(engine.model, time.monotonic() - started)
        return engine

    def unload(self) -> None:
        """Free the model, if there is one; it is not used again even if that fails."""
        if self._engine is None:
            return
        self._log.info("model_unloading", model=self._alias)
        engine, self._engine, self._alias = self._engine, None, None
        try:
            engine.close()
        except Exception:
            # As after a CUDA error, when every call fails; what it held goes
            # with the references.
            self._log.exception("model_not_freed")
        self._report(lambda: workers.worker_unloaded(self._database, self._worker_id))

    def _load(self, model: CatalogueModel, should_stop: Callable[[], bool]) -> Engine:
        def on_progress(progress: LoadProgress) -> None:
            self._loading(model.alias, progress)

        source = source_of(model)
        if _is_null(model):
            from engine.null import NullBehaviour, NullEngineLoader

            behaviour = NullBehaviour(
                load_seconds=model.load_seconds,
                micro_batch_seconds=model.micro_batch_seconds,
                micro_batch_rows=self._settings.micro_batch_rows or NullBehaviour.micro_batch_rows,
                crash_on=model.crash_on,
            )
            return NullEngineLoader(behaviour=behaviour)(
                source, on_progress=on_progress, should_stop=should_stop
            )
        from engine.load import load_engine
        from engine.plan.on_this_machine import DEFAULT_WORKLOAD

        return load_engine(
            source,
            on_progress=on_progress,
            should_stop=should_stop,
            device=self._settings.device,
            stores=self._settings.stores_path,
            micro_batch_rows=self._settings.micro_batch_rows,
            compute_mode=self._settings.compute_mode,
            gpu_bytes=self._settings.gpu_memory,
            cpu_bytes=self._settings.cpu_memory,
            kv_cache=self._settings.kv_cache,
            disk_readers=self._settings.disk_readers,
            throughputs_cache=self._settings.throughputs_path,
            # As `tgp-jobs plan` shows it.
            workload=replace(DEFAULT_WORKLOAD, shard_rows=self._settings.shard_size),
        )

    def _loading(self, alias: str, progress: LoadProgress) -> None:
        now = time.monotonic()
        is_last = progress.done >= progress.total
        if now - self._last_report < SECONDS_BETWEEN_REPORTS and not is_last:
            return
        self._last_report = now
        self._log.info(
            "model_progress",
            model=alias,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
        )
        self._report(
            lambda: workers.worker_loading(
                self._database,
                self._worker_id,
                model=alias,
                stage=progress.stage,
                done=progress.done,
                total=progress.total,
                unit=progress.unit,
            )
        )

    def _loaded(self, model: ModelDescription, seconds: float) -> None:
        self._log.info(
            "model_loaded",
            model=model.alias,
            seconds=round(seconds, 2),
            device=model.device,
            architecture=model.architecture,
            parameters=model.parameter_count,
            weight_mib=round(model.weight_bytes / 2**20, 1),
            compute_mode=model.compute_mode,
            **_placement(model),
        )
        self._report(
            lambda: workers.worker_loaded(
                self._database,
                self._worker_id,
                model=model.alias,
                device=model.device,
                load_seconds=seconds,
            )
        )

    def _report(self, write: Callable[[], None]) -> None:
        """Tell the ledger, which is for people: a load must not fail over it."""
        try:
            write()
        except DatabaseUnavailableError as error:
            self._log.warning("worker_state_not_written", reason=error.message)


def _is_null(model: CatalogueModel) -> bool:
    return model.engine == "null"


def _placement(model: ModelDescription) -> dict[str, float]:
    """What the log tells of a model that was placed by a plan."""
    if model.row_capacity is None or model.predicted_tokens_per_second is None:
        return {}
    return {
        "streamed_from_ram_mib": round(model.ram_bytes / 2**20, 1),
        "streamed_from_disk_mib": round(model.disk_bytes / 2**20, 1),
        "row_capacity": model.row_capacity,
        "predicted_tokens_per_second": round(model.predicted_tokens_per_second, 1),
    }
