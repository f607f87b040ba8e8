"""Experiments and search spaces of the ePVS sequence study."""

from __future__ import annotations

from harness.space import Choice, Interval

__all__ = ["EXPERIMENTS", "SPACES"]

# Table 1, in its order.
ABLATION = (
    "T2w",
    "T2w+FLAIR",
    "T2w+FLAIR+T1w",
    "T2w+FLAIR+T1w+SWI",
    "T2w+T1w",
    "T1w",
    "FLAIR",
    "T1w+FLAIR",
)

# All 15 non-empty subsets of the four sequences, the published ones as published.
SHAPLEY = (
    *ABLATION,
    "SWI",
    "T2w+SWI",
    "T1w+SWI",
    "FLAIR+SWI",
    "T2w+FLAIR+SWI",
    "T2w+T1w+SWI",
    "T1w+FLAIR+SWI",
)

EXPERIMENTS = {
    "ablation": {"sequences": ABLATION},
    "shapley": {"sequences": SHAPLEY},
}

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-4, 1e-2, log=True),
        Choice("recipe.batch_size", (4, 8, 16)),
        Interval("recipe.lesion_weight", 1.0, 8.0, log=True),
    ),
}
