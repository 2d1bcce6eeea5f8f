"""The score of every example, beside the record of a run: runs are compared example by example.

This module imports neither torch nor the model, so that results can be read anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from elip.files import whole_file
from elip.old_record import RecordError

EXAMPLES_NAME = "examples.parquet"
"""Name of the file in a run's folder."""

SCHEMA = pa.schema(
    [
        pa.field("split", pa.dictionary(pa.int32(), pa.string())),
        pa.field("image", pa.int64()),
        pa.field("example", pa.int64()),
        pa.field("score", pa.float32()),
    ],
    metadata={"score": "main score of the example; in retrieval, of an image with its texts"},
)


def write_examples(folder: Path | str, outcomes: Mapping[str, NDArray[np.float64]]) -> None:
    """Write ``examples.parquet``, wholly or not at all; nothing where there is no example.

    Args:
        folder: Of the run.
        outcomes: By split, [N,3]: image number, example number, score.
    """
    rows = {split: values for split, values in outcomes.items() if len(values)}
    if not rows:
        return
    joined = np.concatenate(list(rows.values()))
    splits = np.repeat(list(rows), [len(values) for values in rows.values()])
    columns = [pa.array(splits).dictionary_encode(), joined[:, 0].astype(np.int64)]
    columns += [joined[:, 1].astype(np.int64), joined[:, 2].astype(np.float32)]
    with whole_file(Path(folder) / EXAMPLES_NAME) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), temporary, compression="zstd")


def read_examples(folder: Path | str) -> pa.Table | None:
    """Return the examples of a run, with the columns of `SCHEMA`; None where there are none.

    Raises:
        RecordError: The file is damaged or holds something else.
    """
    path = Path(folder) / EXAMPLES_NAME
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} holds no scores of examples ({error}).") from error
    if lacking := [name for name in SCHEMA.names if table[name].null_count]:
        raise RecordError(f"{path} holds no scores of examples (it lacks {', '.join(lacking)}).")
    return table
