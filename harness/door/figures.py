"""The report's figures, drawn from the store."""

from __future__ import annotations

from harness.door import plots
from harness.door.report import Figure
from harness.sweep import Plan, Tables

__all__ = ["figures_of"]


def figures_of(plan: Plan, tables: Tables) -> list[Figure]:
    """Every figure that the rows allow, in order."""
    return [
        Figure("Ranking", "Each configuration with its 95 % interval.", plots.objective_intervals(tables.prediction))
    ]
