"""Options with which slow methods take less than a second on the images of the tests."""

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "kernel_shap": {"segments": 9},
    "multiscale_lime": {"levels": (4, 9), "per_segment": 6},
}
