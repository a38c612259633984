"""The MLflow store of a results folder: where it lies, who may write to it, and how runs get in and out.

MLflow takes seconds to import and more to create a database, so it is imported on first use and a store that has
everything already is recognised without it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlparse
from urllib.request import url2pathname

from bench.lease import Lease
from bench.tracking_record import RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

EXPERIMENT = "sam-peft"
VIEW = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on runs and curves, not on GenAI traces
ARTIFACT_FOLDER = "mlflow-artifacts"
SQLITE = "sqlite:///"
PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Problems are reported once, by the tracker; MLflow's own lines would tear the live table.
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A pooled connection would go on writing to a database file that somebody has deleted.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}
_LOGGED = """
    SELECT cell.value, runs.run_uuid, digest.value, runs.status FROM runs
    JOIN experiments USING (experiment_id)
    JOIN tags AS cell ON cell.run_uuid = runs.run_uuid AND cell.key = 'cell'
    JOIN tags AS digest ON digest.run_uuid = runs.run_uuid AND digest.key = 'digest'
    WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'
"""


class RefusedRun(RuntimeError):
    """MLflow does not take this run, while the store itself works."""


class LoggedRun(NamedTuple):
    """What MLflow has of a cell. A run still "RUNNING" was left half written by a writer that died."""

    id: str
    digest: str
    status: str


class Store:
    """The MLflow store that shows one results folder.

    Args:
        results: the results folder.
        uri: an MLflow tracking URI; by default MLFLOW_TRACKING_URI, else ``mlflow.db`` beside the project's (or
            the current folder's) ``results``, where a bare ``mlflow ui`` looks, or inside any other results folder.
    """

    def __init__(self, results: Path, uri: str | None = None) -> None:
        self.results = Path(os.path.abspath(results))
        beside = self.results in (Path.cwd() / "results", PROJECT / "results")
        default = (self.results.parent if beside else self.results) / "mlflow.db"
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{default}"
        self.database = Path(os.path.abspath(self.uri.removeprefix(SQLITE))) if self.uri.startswith(SQLITE) else None
        self.lease = Lease(Path(f"{self.database or self.results / 'mlflow'}.lease"))
        self._client: MlflowClient | None = None
        self._opened: tuple[int, int] | None = None
        self._experiment = ""
        self._logged: dict[str, list[LoggedRun]] | None = None

    @property
    def view_command(self) -> str:
        """What to type to look at the runs; for a server, its address."""
        if self.database == Path.cwd() / "mlflow.db":
            return "mlflow ui"
        if urlparse(self.uri).scheme.startswith("http"):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def logged(self) -> dict[str, list[LoggedRun]]:
        """The runs of each cell, read once until :meth:`forget`.

        A sqlite database is read directly: MLflow's search loads every metric, five seconds for 2,000 runs.
        """
        if self._logged is None:
            runs: dict[str, list[LoggedRun]] = {}
            rows = self._query_logged()
            for cell, *run in self._search_logged() if rows is None else rows:
                runs.setdefault(cell, []).append(LoggedRun(*run))
            self._logged = runs
        return self._logged

    def has(self, cell: str, digest: str) -> bool:
        """Whether the cell stands there once, complete and as it is now."""
        runs = self.logged().get(cell, [])
        return len(runs) == 1 and runs[0].digest == digest and runs[0].status != "RUNNING"

    def forget(self) -> None:
        """Look at the store anew: somebody may have changed or replaced it, or a write may have failed half way."""
        self._logged = None
        self._client = None

    def open(self) -> MlflowClient:
        """Import MLflow, create what is missing (database, experiment), and return a client.

        Called before every write: a database that was deleted meanwhile is created anew, without its runs.
        """
        if self._client is not None and self._opened == self._identity():
            return self._client
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        if self.database is not None:
            if not self.database.exists() or self.database.stat().st_size == 0:
                _create_database(self.database)
            # MLflow itself tries a broken file again for two minutes.
            _check_database(self.database)
        self.forget()
        self._client = MlflowClient(tracking_uri=self.uri)
        self._experiment = self._find_experiment(self._client)
        self._opened = self._identity()
        return self._client

    def write(self, record: RunRecord) -> None:
        """Log a cell as a new run, which then takes the place of its former ones.

        Raises:
            RefusedRun: MLflow has something against this run.
            mlflow.exceptions.MlflowException, OSError: the store does not work at the moment.
        """
        client = self.open()
        from mlflow.exceptions import MlflowException

        former = self.logged().get(record.cell, [])
        try:
            run = self._create_run(client, record)
        except MlflowException as error:
            if error.error_code == "TEMPORARILY_UNAVAILABLE":
                raise
            raise RefusedRun(str(error)) from error
        for old in former:
            self._delete_run(client, old)
        self.logged()[record.cell] = [LoggedRun(run.run_id, record.digest, record.status)]

    def clear(self) -> None:
        """Start the experiment anew; a broken database is set aside and a new one begun.

        The former experiment is renamed and marked deleted, in one step for any number of runs, and its artifacts
        are removed; ``mlflow gc`` frees its rows. The new one finds its artifacts also after a move of the folder.
        """
        if self.database is not None and self.database.exists():
            try:
                _check_database(self.database, thorough=True)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside()
        client = self.open()
        for run in [run for runs in self.logged().values() for run in runs]:
            shutil.rmtree(self.results / ARTIFACT_FOLDER / run.id, ignore_errors=True)
        client.rename_experiment(self._experiment, f"{EXPERIMENT} (replaced, {self._experiment})")
        client.delete_experiment(self._experiment)
        self._experiment = self._find_experiment(client)
        self.forget()

    def _identity(self) -> tuple[int, int] | None:
        """Which file the database is; None for a missing one and for servers."""
        if self.database is None or not self.database.exists():
            return None
        status = self.database.stat()
        return status.st_dev, status.st_ino

    def _set_aside(self) -> None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for suffix in ("", "-journal", "-wal", "-shm"):
            part = Path(f"{self.database}{suffix}")
            if part.exists():
                part.rename(f"{self.database}.broken-{stamp}{suffix}")

    def _find_experiment(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # A server keeps artifacts where it can serve them; our folders mean nothing to it.
            served = urlparse(self.uri).scheme.startswith("http")
            location = None if served else (self.results / ARTIFACT_FOLDER).as_uri()
            return client.create_experiment(EXPERIMENT, artifact_location=location, tags=VIEW)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _query_logged(self) -> list[tuple[str, str, str, str]] | None:
        """Cell, run, digest and status of every run; None where only MLflow can tell."""
        if self.database is None:
            return None
        if not self.database.exists():
            return []
        try:
            return _query(self.database, _LOGGED, (EXPERIMENT,))
        except sqlite3.OperationalError:
            # The tables are MLflow's own affair: should a release change them, its search still answers.
            return None

    def _search_logged(self) -> list[tuple[str, str, str, str]]:
        client, rows, token = self.open(), [], None
        while token != "":
            page = client.search_runs([self._experiment], "tags.cell != ''", max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                rows.append((tags["cell"], run.info.run_id, tags.get("digest", ""), run.info.status))
            token = page.token or ""
        return rows

    def _create_run(self, client: MlflowClient, record: RunRecord) -> RunInfo:
        from mlflow.entities import Metric, Param

        run = client.create_run(self._experiment, record.start, record.tags, run_name=record.cell).info
        self._store_artifacts(client, run, record.artifacts)
        metrics = [Metric(*point) for point in record.metrics]
        params = [Param(key, value) for key, value in record.params.items()]
        # The client splits this at MLflow's limits.
        client.log_batch(run.run_id, metrics=metrics, params=params)
        client.set_terminated(run.run_id, record.status, record.end)
        return run

    def _delete_run(self, client: MlflowClient, run: LoggedRun) -> None:
        client.delete_run(run.id)
        shutil.rmtree(self.results / ARTIFACT_FOLDER / run.id, ignore_errors=True)

    def _store_artifacts(self, client: MlflowClient, run: RunInfo, files: list[Path]) -> None:
        """Text is copied, since editing an artifact must not change the cell; adapters are linked, since copies of
        16 MB for each of thousands of cells would double the results folder, and are replaced whole, never edited.
        """
        location = urlparse(run.artifact_uri)
        if location.scheme not in ("", "file"):
            for file in files:
                client.log_artifact(run.run_id, str(file))
            return
        folder = Path(url2pathname(location.path))
        home = folder.parents[1]
        if not home.exists() and home != self.results / ARTIFACT_FOLDER:
            raise FileNotFoundError(f"the experiment keeps its artifacts in {home}, which is gone (a moved folder?)")
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.suffix == ".safetensors":
                _link_or_copy(file, folder / file.name)
            else:
                shutil.copyfile(file, folder / file.name)


def _query(database: Path, statement: str, values: tuple[str, ...] = ()) -> list[tuple]:
    # Reading only, sqlite could not roll back what a killed writer has begun.
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True)) as connection:
        return connection.execute(statement, values).fetchall()


def _check_database(database: Path, *, thorough: bool = False) -> None:
    """Raises sqlite3.DatabaseError for a file that is no sqlite database, or (``thorough``) a damaged one."""
    answer = _query(database, "PRAGMA quick_check(1)" if thorough else "PRAGMA schema_version")
    if thorough and answer != [("ok",)]:
        raise sqlite3.DatabaseError(f"{database} is damaged: {answer[0][0]}")


def _create_database(database: Path) -> None:
    """Create MLflow's tables under another name and move the finished file to its place.

    MLflow cannot go on with tables that a killed process left half made.
    """
    from mlflow import MlflowClient

    for leftover in database.parent.glob(f"{database.name}.new-*"):
        leftover.unlink()
    # MLflow remembers by address which databases it has prepared, so that no name may come twice.
    fresh = Path(f"{database}.new-{os.getpid()}-{datetime.now():%H%M%S%f}")
    fresh.touch(exist_ok=False)
    MlflowClient(tracking_uri=f"{SQLITE}{fresh}").search_experiments(max_results=1)
    fresh.rename(database)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)
