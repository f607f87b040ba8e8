"""Target components: functions that add the targets of a study to a cohort.

A target component takes a cohort and the folder of prepared arrays, and returns the
cohort with one or several additional targets::

    @TARGETS.register("name", source="Authors year, doi:…")
    def name(cohort: Cohort, cache: Path, *, option: float = 1.0) -> Cohort: ...

It adds a :class:`~harness.core.targets.Target` to ``cohort.targets`` and, unless the
target is a mask, a value to the ``targets`` of each sample. Samples without a value become
ineligible.
"""
