"""Results in parquet: one tidy row per cell, seed and round, with where they come from in the file's metadata.

Equal curves give equal bytes: no clock, no host, one row group, fixed compression. A file appears under its name only
when it is complete. Parquet's own checksums keep damaged values from passing for results.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from krum.errors import InputError
from krum.simulation import datasets, recording
from krum.simulation.parameters import FIELDS, OPTIONS, Cell

METADATA_KEY = b"krum"
TRAINING = "training"  # the measurement of a row that is no probe's
FIRST = (  # the columns that stand first
    *("dataset", "model", "aggregator", "attack", "workers", "byzantine", "declared_f", "byzantine_fraction"),
    *("batch_size", "learning_rate", "seed", "round", "test_error", "test_loss", "byzantine_weight"),
)
TYPES: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}  # all others are texts
COLUMNS = {
    **{name: TYPES.get(field.type, pa.string()) for name, field in FIELDS.items()},
    **dict.fromkeys(recording.COLUMNS, pa.float64()),
    **dict.fromkeys(("seed", "round"), pa.int64()),
    **dict.fromkeys(("diverged", "outside_guarantee"), pa.bool_()),
    **dict.fromkeys(("cell", "measurement"), pa.string()),
}
CURVE = pa.schema([(name, COLUMNS[name]) for name in dict.fromkeys([*FIRST, *COLUMNS])])
NUMBERS = [field.name for field in CURVE if not pa.types.is_string(field.type)]


def constants(cell: Cell) -> dict[str, Any]:
    """The columns that are the same in every row of a cell."""
    return {
        **vars(cell),
        **{name: json.dumps(dict(getattr(cell, name)), sort_keys=True) for name in OPTIONS},
        "model": cell.model_label,
        "cell": cell.slug,
        "measurement": TRAINING,
        "outside_guarantee": cell.outside_guarantee,
    }


def write_curve(cell: Cell, columns: Mapping[str, np.ndarray], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the curves of one cell, `columns` as `krum.simulation.run.simulate` returns them."""
    rows, same = len(columns["seed"]), constants(cell)
    arrays = [pa.array(columns[f.name] if f.name in columns else [same[f.name]] * rows, f.type) for f in CURVE]
    write_table(pa.Table.from_arrays(arrays, schema=CURVE), path, {"cell": json.loads(cell.to_json()), **provenance})


def write_probe(name: str, rows: Sequence[Mapping[str, Any]], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write a probe's rows, with its name as the measurement; every row has the same columns."""
    write_table(pa.Table.from_pylist([{"measurement": name, **row} for row in rows]), path, provenance)


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


def write_table(table: pa.Table, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a table with its provenance, the same bytes for the same content."""
    table = table.combine_chunks().replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    options = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=max(1, len(table)), **options)


def read(path: Path | str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A results file and its metadata. Raises InputError where it is missing, damaged or not one of ours."""
    table, metadata = _read(Path(path))
    return table.to_pandas(), metadata


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    remedy = "delete it and build it again with snakemake"
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        metadata = json.loads((table.schema.metadata or {}).get(METADATA_KEY, "null"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; build it with snakemake") from None
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error!s:.120}); {remedy}") from None
    if metadata is None:
        raise InputError(f"{path}: holds no provenance, so it is not one of our results; {remedy}")
    return table, metadata


def file_digest(path: Path) -> str:
    """`sha256:hexadecimal digest` of a file."""
    return datasets.digest(Path(path).read_bytes(), "sha256")


def of_measurement(rows: pd.DataFrame, measurement: str = TRAINING) -> pd.DataFrame:
    """The rows of one measurement, with its columns only and in their own types."""
    chosen = rows[rows["measurement"] == measurement]
    known = {"experiment", *CURVE.names} if measurement == TRAINING else set()
    kept = chosen[[name for name in chosen.columns if name in known or chosen[name].notna().any()]].infer_objects()
    # Beside the nulls of other measurements, integers became floats.
    floats = [name for name in kept.select_dtypes("float64") if COLUMNS.get(name) != pa.float64()]
    return kept.astype({name: "int64" for name in floats if (kept[name] % 1 == 0).all()})


def check_writable(path: Path) -> None:
    """Raise InputError where no file can be written at a path, before any work is done for it."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file, so it is not replaced; give the name of a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: permission denied: {folder}; unlock it, or give another path")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Each process has a name of its own for it, so that several may write the same file at once: each finished one is
    whole. A killed process leaves its temporary file behind, hidden, until `make clean`. Raises InputError where there
    is no room or no permission.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's own words are long
        raise InputError(f"{path}: cannot be written ({reason}); free or unlock its folder") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
