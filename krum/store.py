"""Curves in parquet: one tidy row per cell, seed and round, with where they come from in the file's metadata.

Equal curves give equal bytes: no clock, no host, one row group, fixed compression. A file appears under its name only
when it is complete.
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
from krum.experiment import Cell

METADATA_KEY = b"krum"

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
    ]
)


def write_curve(cell: Cell, columns: Mapping[str, np.ndarray], path: Path, provenance: Mapping[str, Any]) -> None:
    """Write the curves of one cell, `columns` as `krum.simulation.simulate` returns them."""
    rows = len(columns["seed"])
    constants = {
        **{name: getattr(cell, name) for name in CURVE.names if hasattr(cell, name)},
        "cell": cell.slug,
        "model": cell.model_label,
        "aggregator_options": json.dumps(dict(cell.aggregator_options), sort_keys=True),
        "attack_options": json.dumps(dict(cell.attack_options), sort_keys=True),
    }
    arrays = [pa.array(columns[f.name] if f.name in columns else [constants[f.name]] * rows, f.type) for f in CURVE]
    _write(pa.Table.from_arrays(arrays, schema=CURVE), path, {"cell": json.loads(cell.to_json()), **provenance})


def write_experiment(name: str, curves: Sequence[Path], path: Path, provenance: Mapping[str, Any]) -> None:
    """Join the curves of an experiment in the given order, with its name as the first column.

    The curves' own provenance (code digest, libraries, data checksums, device) is kept, by curve.
    """
    tables, sources = [], {}
    for curve in curves:
        table, metadata = _read(curve)
        tables.append(table.replace_schema_metadata(None))
        sources[Path(curve).stem] = metadata
    table = pa.concat_tables(tables)
    table = table.add_column(0, pa.field("experiment", pa.string()), pa.array([name] * len(table), pa.string()))
    _write(table, path, {**provenance, "curves": sources})


def read(path: Path | str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A results file and its metadata. Raises InputError where it is missing, truncated or not one of ours."""
    table, metadata = _read(Path(path))
    return table.to_pandas(), metadata


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    remedy = "delete it and build it again with snakemake"
    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
    except FileNotFoundError:
        raise InputError(f"{path}: not found; build it with snakemake") from None
    except KeyError:
        raise InputError(f"{path}: holds no provenance, so it is not one of our results; {remedy}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); {remedy}") from None
    return table, metadata


def _write(table: pa.Table, path: Path, metadata: Mapping[str, Any]) -> None:
    text = json.dumps(metadata, sort_keys=True)
    table = table.replace_schema_metadata({METADATA_KEY: text.encode()}).combine_chunks()
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=max(1, len(table)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Its name is always the same, so that what a killed process left behind is overwritten by the next one.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); free or unlock its folder") from None
