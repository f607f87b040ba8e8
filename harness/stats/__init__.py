"""Confidence intervals, paired comparisons and tests of published hypotheses."""
