"""Intervals, paired comparisons and tests of published hypotheses."""
