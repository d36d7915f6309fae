"""Reads Tandem's Parquet tables with pyarrow and DuckDB and compares every value with `expected.json`.

    parquet_reader.py FOLDER
"""

import json
import sys
from pathlib import Path

from client_env import enter

enter("pyarrow==26.0.1", "duckdb==2.0.0")

import duckdb  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

folder = Path(sys.argv[1])
expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
for table, rows in expected.items():
    path = str(folder / f"{table}.parquet")
    by_arrow = pq.read_table(path).to_pylist()
    relation = duckdb.sql(f"SELECT * FROM read_parquet('{path}')")
    by_duckdb = [dict(zip(relation.columns, row)) for row in relation.fetchall()]
    for reader, found in [("pyarrow", by_arrow), ("duckdb", by_duckdb)]:
        assert len(found) == len(rows), f"{reader} {table}: {len(found)} rows, not {len(rows)}"
        for i, (ours, wanted) in enumerate(zip(found, rows)):
            for name, value in wanted.items():
                assert ours[name] == value, f"{reader} {table} row {i} {name}: {ours[name]!r}, not {value!r}"
mean = duckdb.sql(f"SELECT avg(ttft_ms) FROM read_parquet('{folder}/requests.parquet') WHERE outcome = 'ok'").fetchall()[0][0]
assert mean == 1.0, mean
assert pq.read_table(str(folder / "empty.parquet")).num_rows == 0
print("both readers agree")
