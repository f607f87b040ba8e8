"""Experiments, presets, hypotheses, published results and search spaces of the MS disability study."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis
from harness.core.space import Choice, Interval

__all__ = ["EXPERIMENTS", "HYPOTHESES", "PRESETS", "SPACES"]

ALL = "qT1+MWF+NDI"
BASELINES = ("voxel_ridge", "box_means", "covariates_only", "tract_means")

# Explanations that every model has, and the controls; all of them are in the experiment "scenarios"
FEW = "f_proposal+f_proposal_absolute+f_saliency+weights+mean_contrast+random"

EXPERIMENTS = {
    # The published network beside its baselines and the oracle
    "classification": {"model": ("attention_densenet", *BASELINES)},
    # The twelve scenarios of the paper for the published network, with controls
    "scenarios": {"model": ("attention_densenet",)},
    # Not published: which contrasts, and which parts of the network, are needed
    "contrasts": {"contrasts": (ALL, "qT1", "MWF", "NDI")},
    "fusion": {"fusion": ("gated", "attention", "concatenation")},
    "cohorts": {"phantom_seed": (0, 1, 2), "model": ("attention_densenet", *BASELINES)},
}

PRESETS = {
    "model=covariates_only": {"adapter.covariates": "age+lesion_ml"},
    "experiment=classification": {"attribution": FEW},
    "experiment=contrasts": {"attribution": FEW},
    "experiment=fusion": {"attribution": FEW},
    "experiment=cohorts": {"attribution": "none"},
    # One block instead of four: mean AUC over three generated cohorts .82 on test and .74 on validation samples,
    # against .81 and .70 with two blocks, .81 and .70 with a pooled head, and .85 and .74 of ridge on voxels
    "profile=quick model=attention_densenet": {"model.stem_stride": 2, "model.blocks": 1},
}  # fmt: skip

HYPOTHESES = (
    Hypothesis(
        "E1", "the classifier is well above chance (at least .70)", "auroc", (("attention_densenet",),), "model",
        relation="reaches", margin=0.70, support="moderate", caution="nine severe test samples in the paper",
    ),
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-5, 1e-2, log=True),
        Interval("recipe.weight_decay", 1e-4, 1e-1, log=True),
        Choice("model.blocks", (1, 2)),
    ),
}
