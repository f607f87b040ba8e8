"""Experiments, hypotheses, published results and search spaces of the ePVS sequence study."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis, Published
from harness.core.space import Choice, Interval

__all__ = ["EXPERIMENTS", "HYPOTHESES", "PUBLISHED", "SPACES"]

# Table 1, in its order
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

# All 15 non-empty subsets of the four sequences, starting with the published ones
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

# Hypotheses of the paper, without regions whose rows seem to be permuted there (thalamus, occipital)
WITH_T2W = ABLATION[:5]
CHAIN = (WITH_T2W, ("T1w+FLAIR",), ("T1w",), ("FLAIR",))
CHAIN_TEXT = "every set with T2w > T1w+FLAIR > T1w > FLAIR"
OVER = "sequences"

HYPOTHESES = (
    Hypothesis("D1", CHAIN_TEXT, "sensitivity", CHAIN, OVER, support="strong"),
    Hypothesis(
        "D2", "every set with T2w > each set without", "precision",
        (WITH_T2W, ("T1w+FLAIR", "T1w", "FLAIR")), OVER, support="strong",
    ),
    Hypothesis(
        "D3", CHAIN_TEXT, "magnitude_accuracy", CHAIN, OVER, support="strong",
        caution="the middle gap is below one standard error in the paper",
    ),
    Hypothesis(
        "D4", "the five sets with T2w are equivalent", "sensitivity", (WITH_T2W,), OVER,
        relation="equivalent", margin=0.05, support="strong",
    ),
    Hypothesis(
        "D4", "the five sets with T2w are equivalent", "precision", (WITH_T2W,), OVER,
        relation="equivalent", margin=0.05, support="strong",
    ),
    Hypothesis("D5", CHAIN_TEXT, "volumetric_similarity", CHAIN, OVER, support="strong"),
    Hypothesis("D6", CHAIN_TEXT, "auc", CHAIN, OVER, support="strong", caution="middle gap: 1 to 2 standard errors"),
    Hypothesis("D7", CHAIN_TEXT, "average_hausdorff", CHAIN, OVER, support="strong", caution="the middle gap is weak"),
    Hypothesis(
        "D8", "every set with T2w > T1w+FLAIR and T1w > FLAIR", "mahalanobis",
        (WITH_T2W, ("T1w+FLAIR", "T1w"), ("FLAIR",)), OVER, support="moderate",
    ),
    Hypothesis("D9", CHAIN_TEXT, "icc_count", CHAIN, OVER, support="moderate"),
    Hypothesis(
        "D10", "T2w alone has the best agreement of counts", "icc_count", (("T2w",), ABLATION[1:]), OVER,
        support="weak", caution="inside the paper's sampling error",
    ),
    Hypothesis(
        "D11", "every set with T2w > each set without", "icc_volume",
        (WITH_T2W, ("T1w+FLAIR", "T1w", "FLAIR")), OVER, support="strong",
    ),
    Hypothesis(
        "D12", "FLAIR, then T1w, then SWI added to T2w each raise it", "icc_volume",
        (("T2w+FLAIR+T1w+SWI",), ("T2w+FLAIR+T1w",), ("T2w+FLAIR",), ("T2w",)), OVER,
        support="weak", caution="steps far below the paper's sampling error",
    ),
    Hypothesis(
        "D13", "all sets do well in the basal ganglia (at least 0.80)", "sensitivity", (ABLATION,), OVER,
        at={"region": "basal_ganglia"}, relation="reaches", margin=0.80, support="strong",
    ),
    Hypothesis(
        "D14", "T2w: basal ganglia > frontoparietal > temporal > insula", "sensitivity",
        (("basal_ganglia",), ("frontoparietal",), ("temporal",), ("insula",)), "region",
        at={"sequences": "T2w"}, support="moderate", caution="the paper's text calls temporal poor, its tables do not",
    ),
    Hypothesis(
        "D15", "T2w+FLAIR+T1w > T2w", "average_hausdorff", (("T2w+FLAIR+T1w",), ("T2w",)), OVER,
        support="weak", caution="about 1.3 unpaired standard errors in the paper",
    ),
)  # fmt: skip

PUBLISHED = Published(
    "Rashid et al. 2023, Table 1: mean ± standard error of 21 participants; ICC without one",
    OVER,
    ("sensitivity", "precision", "magnitude_accuracy", "volumetric_similarity", "auc", "average_hausdorff",
     "mahalanobis", "icc_count", "icc_volume"),
    {
        "T2w": (
            (0.81, 0.01), (0.83, 0.02), (1.16, 0.02), (0.81, 0.03), (0.72, 0.01), (1.41, 0.08), (0.17, 0.02),
            (0.83, None), (0.59, None),
        ),
        "T2w+FLAIR": (
            (0.82, 0.01), (0.82, 0.02), (1.16, 0.01), (0.81, 0.03), (0.73, 0.01), (1.38, 0.08), (0.16, 0.02),
            (0.77, None), (0.60, None),
        ),
        "T2w+FLAIR+T1w": (
            (0.82, 0.01), (0.83, 0.02), (1.17, 0.01), (0.82, 0.03), (0.74, 0.01), (1.27, 0.07), (0.17, 0.02),
            (0.70, None), (0.63, None),
        ),
        "T2w+FLAIR+T1w+SWI": (
            (0.82, 0.02), (0.83, 0.02), (1.17, 0.02), (0.82, 0.03), (0.74, 0.01), (1.28, 0.07), (0.16, 0.01),
            (0.77, None), (0.67, None),
        ),
        "T2w+T1w": (
            (0.80, 0.02), (0.84, 0.02), (1.16, 0.02), (0.78, 0.02), (0.71, 0.01), (1.40, 0.09), (0.18, 0.01),
            (0.79, None), (0.58, None),
        ),
        "T1w": (
            (0.63, 0.01), (0.77, 0.02), (1.00, 0.02), (0.66, 0.04), (0.59, 0.01), (2.49, 0.11), (0.24, 0.02),
            (0.30, None), (0.18, None),
        ),
        "FLAIR": (
            (0.47, 0.02), (0.73, 0.02), (0.88, 0.02), (0.48, 0.04), (0.53, 0.02), (3.59, 0.09), (0.35, 0.04),
            (0.24, None), (0.05, None),
        ),
        "T1w+FLAIR": (
            (0.68, 0.02), (0.75, 0.02), (1.02, 0.02), (0.71, 0.03), (0.61, 0.01), (2.30, 0.11), (0.23, 0.02),
            (0.50, None), (0.25, None),
        ),
    },
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-4, 1e-2, log=True),
        Choice("recipe.batch_size", (4, 8, 16)),
        Interval("recipe.lesion_weight", 1.0, 8.0, log=True),
    ),
}
