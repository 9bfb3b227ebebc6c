"""A run's memory series for the page: read from the Parquet file beside the record, thinned without losing a peak."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.report.format import GIB
from bench.store import Loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LIMIT = 200
"""Points kept of a run."""
METERS = {"NVML process": "nvml_process_bytes", "NVML device": "nvml_device_bytes"}


def timeline_rows(loaded: Loaded, index: int) -> list[dict[str, Any]]:
    """Rows of record, seconds and GiB under each meter; none where the file is missing, unreadable or without a
    reading."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = loaded.record
    path = loaded.folder / record.timeline.file.path if record.timeline else None
    if path is None or not path.is_file():
        return []
    try:
        table = pq.read_table(path, columns=["t_s", *METERS.values()])
    except (pa.ArrowInvalid, OSError):
        return []
    series = {name: np.nan_to_num(table[at].to_numpy().astype(float), nan=-1.0) for name, at in METERS.items()}
    known = [values for values in series.values() if len(values) and values.max() > 0]
    if not known:
        return []
    time_s = table["t_s"].to_numpy()
    return [
        {"record": index, "t_s": round(float(time_s[i]), 2)}
        | {name: round(float(values[i]) / GIB, 2) if values[i] >= 0 else None for name, values in series.items()}
        for i in thin(time_s, known, [phase.start_s for phase in record.phases])
    ]


def thin(time_s: "Array", series: Sequence["Array"], starts_s: Sequence[float], limit: int = LIMIT) -> list[int]:
    """Indices of at most ``limit`` samples, in order: the ends, each series' peak in each phase, and the highest and
    lowest of the first series in equal stretches of each phase."""
    import numpy as np

    if len(time_s) <= limit:
        return list(range(len(time_s)))
    edges = [0, *np.searchsorted(time_s, sorted(starts_s)).tolist(), len(time_s)]
    parts = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    kept = {0, len(time_s) - 1} | {a + int(values[a:b].argmax()) for a, b in parts for values in series}
    stretches = (limit - len(kept)) // 2
    for a, b in parts:
        share = stretches * (b - a) // len(time_s)
        for piece in np.array_split(np.arange(a, b), share) if share else []:
            kept |= {int(piece[series[0][piece].argmax()]), int(piece[series[0][piece].argmin()])}
    return sorted(kept)
