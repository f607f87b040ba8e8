"""Scalars that a network exposes."""

from __future__ import annotations

import math

from harness.metrics.exposed import exposed_scalar


def test_exposed_scalars_of_correct_samples() -> None:
    """The value is that of the network; samples that are classified wrongly are left out unless asked."""
    exposed = {"attention:qT1": 0.5}
    assert exposed_scalar(1.0, 0.9, exposed, name="attention:qT1") == 0.5
    assert math.isnan(exposed_scalar(1.0, 0.4, exposed, name="attention:qT1"))
    assert exposed_scalar(1.0, 0.4, exposed, name="attention:qT1", correct_only=False) == 0.5
    assert math.isnan(exposed_scalar(0.0, 0.4, exposed, name="attention:NDI"))
    assert math.isnan(exposed_scalar(0.0, 0.4, name="attention:NDI"))
