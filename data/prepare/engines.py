# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Where the expressions of `prepare` run: DuckDB inside the process, or Spark. Both read Parquet in a work folder, and
put there what is too large for memory."""

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

# Ibis would merge each select into the one before it, which takes longer than most queries do. An order counts only
# where it comes last.
ibis.options.sql.fuse_selects = False

ENGINES = ("duckdb", "pyspark")
BATCH_ROWS = 16_384
PYTHON_ERROR = re.compile(r"[\w.]*(Error|Exception): ")  # at the start of a line of a traceback


class Engine:
    """Runs Ibis expressions; what is too large for memory goes to files in the work folder.

    Args:
        name: `duckdb`, or `pyspark`: the running Spark session, else a new one of the settings in the environment
            (`SPARK_HOME`, `spark-submit`, ...), on this machine alone where there are none.
        work: an empty folder, which all machines of a Spark cluster must see under this name.
        memory_limit: most memory that DuckDB takes, such as `4GB`; 80 % of the machine's when not given.

    Raises:
        ValueError: there is no such engine, or the memory limit is not one.
        ImportError: PySpark is not installed.
    """

    def __init__(self, name: str, work: Path, memory_limit: str | None = None):
        if name not in ENGINES:
            raise ValueError(f"--engine must be one of {', '.join(ENGINES)}; got {name!r}.")
        self.name, self.work = name, work
        self._own_session = None
        if name == "duckdb":
            limits = {} if memory_limit is None else {"memory_limit": memory_limit}
            with engine_errors(f"--memory_limit {memory_limit}" if memory_limit else "starting DuckDB"):
                self.connection = connect_duckdb(temp_directory=str(work / "spill"), **limits)
        else:
            if memory_limit is not None:
                raise ValueError(
                    "--memory_limit is DuckDB's; Spark has settings of its own (spark.driver.memory, ...)."
                )
            self.spark = self._spark_session()
            self.connection = ibis.pyspark.connect(self.spark)

    def _spark_session(self):
        if importlib.util.find_spec("pyspark") is None:
            raise ImportError("--engine pyspark: PySpark is not installed (pip install 'flip-ctr[spark]').")
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        from pyspark.sql import SparkSession

        running = SparkSession.getActiveSession()
        if running is not None:
            return running
        builder = (
            SparkSession.builder.appName("flip-ctr prepare")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.log.level", "ERROR")
        )
        if not os.environ.get("MASTER") and "SPARK_CONNECT_MODE_ENABLED" not in os.environ:
            builder = builder.config("spark.ui.enabled", "false")
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # which has what a worker imports
        try:
            self._own_session = builder.getOrCreate()
        except Exception as error:  # of the Java gateway: no Java, or one that is too old
            raise OSError(f"--engine pyspark: Spark did not start ({error}); it needs Java 17 or newer.") from error
        return self._own_session

    def read(self, path: Path) -> ir.Table:
        """The table of a Parquet file; with Spark also of the folder that it has written."""
        with engine_errors(f"reading {path.name}"):
            return self.connection.read_parquet(str(path))

    def keep(self, table: ir.Table, name: str) -> ir.Table:
        """The table, computed once. DuckDB holds it in memory, and what has no room there in the work folder."""
        if self.name == "pyspark":
            return self.read(self._write(table, name))
        with engine_errors(f"writing {name}"):
            return self.connection.create_table(name, table, temp=True)

    def _write(self, table: ir.Table, name: str) -> Path:
        """The folder of Parquet files that Spark has written."""
        with engine_errors(f"writing {name}"):
            self.connection.to_parquet(table, str(self.work / name))
        return self.work / name

    def fetch(self, table: ir.Table) -> pa.Table:
        """A small result, whole in memory."""
        with engine_errors("computing"):
            return table.to_pyarrow()

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """The rows of an ordered table, never all in memory."""
        with engine_errors("reading the result"):
            if self.name == "duckdb":
                yield from self.connection.to_pyarrow_batches(table, chunk_size=BATCH_ROWS)
                return
            # through files, which Spark writes from all its machines: to fetch rows it would gather them in memory
            path = self._write(table, "ordered")
            for part in sorted(path.glob("part-*.parquet")):
                yield from pq.ParquetFile(part).iter_batches(BATCH_ROWS)
            shutil.rmtree(path)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error) -> None:
        if self.name == "duckdb":
            self.connection.disconnect()
        elif self._own_session is not None:
            self._own_session.stop()


def connect_duckdb(**settings: str):
    """A connection to a DuckDB in memory, without its progress bar."""
    connection = ibis.duckdb.connect(**settings)
    # it is on in a notebook with ipywidgets; in one without them DuckDB lets nobody set it
    if connection.raw_sql("SELECT current_setting('enable_progress_bar')").fetchone()[0]:
        connection.raw_sql("SET enable_progress_bar = false")
    return connection


@contextlib.contextmanager
def engine_errors(doing: str):
    """What an engine raises, a full disk or too little memory say, as an `OSError` of one line."""
    try:
        yield
    except Exception as error:
        module = type(error).__module__.split(".")[0]
        if module not in ("duckdb", "_duckdb", "pyspark", "py4j"):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # of an error in a worker's Python the last line says what it is
        lines = [line for line in lines[::-1] if PYTHON_ERROR.match(line)] or lines
        raise OSError(f"{doing}: {lines[0]}") from error
