"""Targets: functions that tell a cohort what is predicted of its samples.

A target component takes a cohort and the folder of prepared arrays, and gives the
cohort with one target or several added::

    @TARGETS.register("name", source="Authors year, doi:…")
    def name(cohort: Cohort, cache: Path, *, option: float = 1.0) -> Cohort: ...

It adds a :class:`~harness.core.targets.Target` to ``cohort.targets`` and, unless the
target is a mask, a value to the ``targets`` of every sample. Samples without a value
become ineligible.
"""
