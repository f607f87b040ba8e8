"""Experiments, presets, hypotheses and search spaces of the faces study."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis
from harness.core.space import Choice, Interval

__all__ = ["EXPERIMENTS", "HYPOTHESES", "PRESETS", "SPACES"]

TOGETHER = "age+sex+ethnicity"
SINGLE_AND_MULTI = ("age", "sex", "ethnicity", TOGETHER)

EXPERIMENTS = {
    # Published: three networks with one output each, and one with all three
    "single_multi": {"predicted": SINGLE_AND_MULTI},
    # Not published: the scale of the age, which the squared error depends on; 100 is the published one
    "age_scale": {"age_scale": ("standardised", 100.0, 1.0), "predicted": ("age", TOGETHER)},
    "loss_weights": {"age_weight": (0.1, 1.0, 10.0), "predicted": (TOGETHER,)},
    # Not published: glasses that follow the sex in a share of the faces, which a network can use as a shortcut
    "shortcut": {"correlation": (0.0, 0.5, 0.9), "predicted": ("sex", TOGETHER)},
}

PRESETS = {
    "experiment=age_scale": {"attribution": "none"},
    "experiment=loss_weights": {"attribution": "none"},
    "profile=quick model=resnet18": {"model.width": 16},
}

HYPOTHESES = (
    Hypothesis("B10a", "the network with three outputs recognises sex better", "accuracy", ((TOGETHER,), ("sex",)),
               "predicted", support="weak", caution="94 against 78 % in the paper, whose single networks look "
               "undertrained"),
    Hypothesis("B10b", "the network with three outputs recognises ethnicity better", "balanced_accuracy",
               ((TOGETHER,), ("ethnicity",)), "predicted", support="weak", caution="87 against 57 % in the paper"),
    Hypothesis("B10c", "the network with three outputs predicts age worse", "mse", (("age",), (TOGETHER,)),
               "predicted", support="weak", caution="237 against 100 years² in the paper"),
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-5, 1e-2, log=True),
        Interval("recipe.weight_decay", 1e-5, 1e-1, log=True),
        Choice("recipe.batch_size", (8, 16, 32)),
    ),
}
