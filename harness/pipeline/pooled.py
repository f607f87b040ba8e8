"""Cache pooled values of metrics in the store, each under its own identity."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.core.identity import identify
from harness.core.types import JSON
from harness.pipeline.artifacts import read_values, write_values
from harness.storage.store import CellRecord, Store, write_record

__all__ = ["cached"]


def cached(
    store: Store,
    group: str,
    configuration: str,
    metrics: Sequence[tuple[str, str]],
    compute: Callable[[Sequence[str]], Mapping[str, JSON]],
    *,
    label: str = "",
) -> dict[str, JSON]:
    """Pooled values of metrics, from the store if available; new values are stored.

    Parameters
    ----------
    group : identity of the results that are pooled
    configuration, label : configuration and label, for the record
    metrics : (label, identity) of each metric
    compute : computes the values of some labels, as JSON

    Returns
    -------
    dict
        Values by label, in the order of ``metrics``
    """
    held: dict[str, JSON] = {}
    for record in store.evaluations("pool", group):
        held |= read_values(store, record)
    absent = [(name, identity) for name, identity in metrics if identity not in held]
    if absent:
        made = compute([name for name, _ in absent])
        values = {identity: made[name] for name, identity in absent}
        with tempfile.TemporaryDirectory(prefix="harness-pool-") as folder:
            write_values(Path(folder), values)
            record = CellRecord(
                identify({"group": group, "metrics": sorted(values)}),
                "pool",
                "done",
                configuration,
                -1,
                -1,
                label,
                group=group,
                metrics=dict(absent),
            )
            write_record(Path(folder), record)
            store.commit(Path(folder))
        # Convert to the form in which it will be read, since JSON has neither tuples nor NaN.
        held |= json.loads(json.dumps(values))
    return {name: held[identity] for name, identity in metrics}
