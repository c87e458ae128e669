"""Curves in parquet: one tidy row per cell, seed and round, with where they come from in the file's metadata.

Equal curves give equal bytes: no clock, no host, one row group, fixed compression. A file appears under its name only
when it is complete, and holds a digest of its own content, so that damage does not pass for a result.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.cell import Cell
from krum.suite.experiment import Probe

if TYPE_CHECKING:
    import pandas as pd

METADATA_KEY = b"krum"
DIGEST_KEY = b"krum-sha256"
TRAINING = "training"  # the measurement of a row that is no probe's

CURVE = pa.schema(
    [
        ("dataset", pa.string()),
        ("model", pa.string()),
        ("aggregator", pa.string()),
        ("attack", pa.string()),
        ("workers", pa.int64()),
        ("byzantine", pa.int64()),
        ("declared_f", pa.int64()),
        ("byzantine_fraction", pa.float64()),
        ("batch_size", pa.int64()),
        ("learning_rate", pa.float64()),
        ("seed", pa.int64()),
        ("round", pa.int64()),
        ("test_error", pa.float64()),
        ("test_loss", pa.float64()),
        ("byzantine_weight", pa.float64()),
        ("diverged", pa.bool_()),
        ("outside_guarantee", pa.bool_()),
        ("aggregator_options", pa.string()),
        ("attack_options", pa.string()),
        ("rounds", pa.int64()),
        ("seeds", pa.int64()),
        ("folds", pa.int64()),
        ("cell", pa.string()),
        ("evaluate_every", pa.int64()),
        ("majority_error", pa.float64()),
        ("differs", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("gradient_noise", pa.float64()),
        ("distance_to_target", pa.float64()),
        ("measurement", pa.string()),
        ("fault_rate", pa.float64()),
        ("worker_momentum", pa.float64()),
        ("points", pa.int64()),
        ("norm_ratio", pa.float64()),
    ]
)


def constants(cell: Cell) -> dict[str, Any]:
    """The columns that are the same in every row of a cell."""
    return {
        **{name: getattr(cell, name) for name in CURVE.names if hasattr(cell, name)},
        "cell": cell.slug,
        "measurement": TRAINING,
        "model": cell.model_label,
        "aggregator_options": json.dumps(dict(cell.aggregator_options), sort_keys=True),
        "attack_options": json.dumps(dict(cell.attack_options), sort_keys=True),
    }


def write_curve(cell: Cell, columns: Mapping[str, np.ndarray], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the curves of one cell, `columns` as `krum.simulation.simulate` returns them."""
    rows, same = len(columns["seed"]), constants(cell)
    arrays = [pa.array(columns[f.name] if f.name in columns else [same[f.name]] * rows, f.type) for f in CURVE]
    write_table(pa.Table.from_arrays(arrays, schema=CURVE), path, {"cell": json.loads(cell.to_json()), **provenance})


def write_probe(probe: Probe, rows: Sequence[Mapping[str, Any]], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a probe's rows, with its name as the measurement; every row has the same columns."""
    table = pa.Table.from_pylist([{"measurement": probe.name, **row} for row in rows])
    write_table(table, path, {"probe": json.loads(probe.to_json()), **provenance})


def write_experiment(name: str, curves: Sequence[Path], path: Path, provenance: Mapping[str, Any]) -> None:
    """Join the curves and probes of an experiment in the given order, with its name as the first column.

    A column that a row's measurement does not have is null there. The curves' own provenance (code digest, libraries,
    data checksums, device) is kept, by curve.
    """
    tables, sources = [], {}
    for curve in curves:
        table, metadata = _read(curve)
        tables.append(table.replace_schema_metadata(None))
        sources[Path(curve).stem] = metadata
    table = pa.concat_tables(tables, promote_options="default")
    table = table.add_column(0, pa.field("experiment", pa.string()), pa.array([name] * len(table), pa.string()))
    write_table(table, path, {**provenance, "curves": sources})


def read(path: Path | str) -> tuple["pd.DataFrame", dict[str, Any]]:
    """A results file and its metadata. Raises InputError where it is missing, truncated or not one of ours."""
    table, metadata = _read(Path(path))
    return table.to_pandas(), metadata


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    remedy = "delete it and build it again with snakemake"
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file; give a results file, such as results/figure4.parquet")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        text, digest = ((table.schema.metadata or {}).get(key) for key in (METADATA_KEY, DIGEST_KEY))
        if text is None or digest is None:
            raise InputError(f"{path}: holds no provenance, so it is not one of our results; {remedy}")
        if digest != _digest(table, text):
            raise InputError(f"{path}: damaged, since its content does not fit the digest in it; {remedy}")
        metadata = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: not found; build it with snakemake") from None
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); {remedy}") from None
    return table, metadata


def _digest(table: pa.Table, text: bytes) -> bytes:
    """sha256 over a table's provenance, names, types and values."""
    found = hashlib.sha256(text)
    for name, column in zip(table.column_names, table.columns, strict=True):
        found.update(f"\n{name}: {column.type}, {len(column)}\n".encode())
        found.update(np.packbits(np.asarray(column.is_null())).tobytes())
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            found.update(np.asarray(column.fill_null(0)).tobytes())
        else:
            found.update(repr(column.to_pylist()).encode())
    return found.hexdigest().encode()


def file_digest(path: Path) -> str:
    """`sha256:hexadecimal digest` of a file."""
    return datasets.digest(Path(path).read_bytes(), "sha256")


def write_table(table: pa.Table, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a table with its provenance, the same bytes for the same content."""
    text = json.dumps(metadata, sort_keys=True).encode()
    table = table.combine_chunks()
    table = table.replace_schema_metadata({METADATA_KEY: text, DIGEST_KEY: _digest(table, text)})
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=max(1, len(table)))


NUMBERS = [field.name for field in CURVE if not pa.types.is_string(field.type)]
_FLOATS = {field.name for field in CURVE if pa.types.is_floating(field.type)}


def of_measurement(rows: "pd.DataFrame", measurement: str = TRAINING) -> "pd.DataFrame":
    """The rows of one measurement, with its columns only and in their own types."""
    chosen = rows[rows["measurement"] == measurement]
    known = set(CURVE.names) | {"experiment"} if measurement == TRAINING else set()
    kept = chosen[[name for name in chosen.columns if name in known or chosen[name].notna().any()]].infer_objects()
    whole = {  # integers that became floats beside the nulls of other measurements
        name: "int64"
        for name in kept.columns
        if name not in _FLOATS
        and kept[name].dtype == "float64"
        and kept[name].notna().all()
        and (kept[name] % 1 == 0).all()
    }
    return kept.astype(whole)


def nearest_folder(folder: Path) -> Path:
    """A folder, or what there is of the way to it."""
    while not folder.exists():
        folder = folder.parent
    return folder


def lets_write(folder: Path) -> bool:
    """Files and folders can be made in it."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def check_place(path: Path) -> None:
    """Raise InputError where no file can be written at a path, before any work is done for it."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path}: is no file, so it is not replaced; give the name of a file")
        folder = nearest_folder(path.absolute().parent)
        writable = lets_write(folder)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r:.80}: no path for a file ({error}); give another one") from None
    if not writable:
        raise InputError(f"{path}: cannot be written, since {folder} does not let us; unlock it, or give another path")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Its name is always the same, so that what a killed process left behind is overwritten by the next one. A process
    whose workflow was killed may still be at work on the same file: whoever comes second waits for the first. Raises
    InputError where there is no room or no permission.
    """
    check_place(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(temporary):
            try:
                yield temporary
                os.replace(temporary, path)
            except BaseException:  # not after the move: the name may be the next writer's already
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"{path}: cannot be written ({reason}); free or unlock its folder") from None


@contextmanager
def _alone(temporary: Path) -> Iterator[None]:
    """Hold the lock of a temporary file, which ends with its process however that ends."""
    while True:
        with temporary.open("ab") as handle:
            if not _locked(handle):
                yield
                return
            try:
                same = os.fstat(handle.fileno()).st_ino == temporary.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:  # and not the file that another process has just finished under its final name
                yield
                return


def _locked(handle: IO[bytes]) -> bool:
    """Wait for the lock of an open file; False where the system has none, as some network file systems."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
