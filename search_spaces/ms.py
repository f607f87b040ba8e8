"""Experiments, presets, hypotheses, published results and search spaces of the MS disability study."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis, Published
from harness.core.space import Choice, Experiment, Interval

__all__ = ["EXPERIMENTS", "HYPOTHESES", "PRESETS", "PUBLISHED", "SPACES"]

ALL = "qT1+MWF+NDI"
BASELINES = ("voxel_ridge", "box_means", "covariates_only", "tract_means")

# Scenario 3 of the paper, and the eleven others
THIRD = "aw_proposal_combined"
OTHERS = (
    "aw_proposal", "aw_all", "aw_all_combined", "f_proposal", "f_all", "f_proposal_combined", "f_all_combined",
    "aw_saliency", "aw_ig", "f_saliency", "f_ig",
)  # fmt: skip

# Explanations that every model has, and controls; the experiment "scenarios" has all of them
FEW = "f_proposal+f_proposal_absolute+f_saliency+weights+mean_contrast+lesions+random"

NETWORK = ("attention_densenet",)

EXPERIMENTS: dict[str, Experiment] = {
    # The published network beside its baselines and the oracle, and without parts of it: single contrasts, no gate,
    # and no weights of contrasts at all
    "classification": (
        {"model": (*NETWORK, *BASELINES)},
        {"model": NETWORK, "contrasts": ("qT1", "MWF", "NDI")},
        {"model": NETWORK, "fusion": ("attention", "concatenation")},
    ),
    # The twelve scenarios of the paper for the published network, with controls, one of them a network that was
    # trained on labels of other patients
    "scenarios": {"model": NETWORK, "shuffled": (False, True)},
    # Not published: which contrasts, and which parts of the network, are needed
    "contrasts": {"contrasts": (ALL, "qT1", "MWF", "NDI")},
    "fusion": {"fusion": ("gated", "attention", "concatenation")},
    # Not published: the EDSS itself
    "regression": {"model": ("attention_densenet", *BASELINES)},
    "cohorts": {"phantom_seed": (0, 1, 2), "model": ("attention_densenet", *BASELINES)},
}

PRESETS = {
    "experiment=classification": {"attribution": FEW},
    "subjects=generated model=covariates_only": {"adapter.covariates": "age+lesion_ml"},
    # Six minutes on two cores: no maps of a model that reads no image, the oracle's own map, and no maps of networks
    # that lack a part, which experiment=contrasts and experiment=fusion have
    "experiment=classification model=covariates_only": {"attribution": "none"},
    "experiment=classification model=tract_means": {"attribution": "weights"},
    **{
        f"experiment=classification model=attention_densenet {part}": {"attribution": "none"}
        for part in ("contrasts=qT1", "contrasts=MWF", "contrasts=NDI", "fusion=attention", "fusion=concatenation")
    },
    # The other controls do not depend on the labels
    "experiment=scenarios shuffled=true": {"attribution": "+".join((THIRD, *OTHERS, "f_proposal_absolute"))},
    "experiment=contrasts": {"attribution": FEW},
    "experiment=fusion": {"attribution": FEW},
    "experiment=cohorts": {"attribution": "none"},
    "experiment=regression": {
        "targets.severe": "number_column", "targets.severe.column": "edss", "recipe.balance": "",
        "recipe.select": "validation_loss", "split.by": "", "objective": "r2", "attribution": FEW,
    },
    # One block instead of four: mean AUC over three generated cohorts .82 on test and .74 on validation samples,
    # against .81 and .70 with two blocks, .81 and .70 with a pooled head, and .85 and .74 of ridge on voxels
    "profile=quick model=attention_densenet": {"model.stem_stride": 2, "model.blocks": 1},
}  # fmt: skip

GRADIENTS = ("aw_saliency", "aw_ig", "f_saliency", "f_ig")

# The published network, where rows without a part of it are in the same table
WHOLE = {"contrasts": ALL, "fusion": "gated"}
PUBLISHED_NETWORK = {**WHOLE, "threshold": "5", "shuffled": "False"}

HYPOTHESES = (
    Hypothesis(
        "E1", "the classifier is well above chance (at least .70)", "auroc", (("attention_densenet",),), "model",
        at=WHOLE, relation="reaches", margin=0.70, support="moderate", caution="nine severe test samples in the paper",
    ),
    Hypothesis(
        "E2", "attention: qT1 > NDI > MWF", "attention_qT1",
        (("attention_qT1",), ("attention_NDI",), ("attention_MWF",)), "metric",
        at={"model": "attention_densenet", **WHOLE}, support="strong",
        caution="in generated data the damage is clearest in qT1, then NDI, then MWF",
    ),
    *(
        Hypothesis(
            "E3", f"masks of scenario 3 lower the AUC most ({what})", metric, ((THIRD,), (*OTHERS, "random")),
            "attribution", support="strong", caution="in a figure only",
        )
        for what, metric in (("at 40 %", "inverted_auroc_40"), ("over all sizes", "inversion_area"))
    ),
    Hypothesis("E4", "maps from attention weights lower the AUC more than maps from the output", "inversion_area",
               ((THIRD,), ("f_proposal_combined",)), "attribution", support="moderate"),
    Hypothesis("E4", "the proposed rule lowers the AUC more than LRP-all", "inversion_area",
               ((THIRD,), ("aw_all_combined",)), "attribution", support="moderate"),
    Hypothesis("E4", "combined masks lower the AUC more than individual ones", "inversion_area",
               ((THIRD,), ("aw_proposal",)), "attribution", support="moderate"),
    Hypothesis("E5", "LRP lowers the AUC more than saliency and integrated gradients", "inversion_area",
               ((THIRD,), GRADIENTS), "attribution", support="moderate",
               caution="gradients have no combined map in the paper"),
    *(
        Hypothesis("E6", f"|ρ| of {name} with EDSS at {percent} % is higher for the proposed rule than for LRP-all",
                   f"rho_{name}_{percent}", ((THIRD,), ("aw_all_combined",)), "attribution", magnitude=True,
                   support="strong", caution="gaps .09")
        for name in ("qT1", "NDI") for percent in (30, 40, 50)
    ),
    Hypothesis("E7", "|ρ|: NDI > qT1 > MWF", "rho_NDI_40", (("rho_NDI_40",), ("rho_qT1_40",), ("rho_MWF_40",)),
               "metric", at={"attribution": THIRD}, magnitude=True, support="moderate",
               caution="the sign in the paper is opposite to the expected biology"),
    *(
        Hypothesis("E8", f"|ρ| of {name} is largest at 40 %", f"rho_{name}_40",
                   ((f"rho_{name}_40",), (f"rho_{name}_30", f"rho_{name}_50")), "metric", at={"attribution": THIRD},
                   magnitude=True, support="weak", caution=".362, .371, .366: chosen on the same data")
        for name in ("qT1", "NDI")
    ),
    *(
        Hypothesis("E9", f"the correlation of {name} with EDSS is significant (p < .05)", f"p_{name}_40", ((THIRD,),),
                   "attribution", relation="below", margin=0.05, support="moderate",
                   caution="the scenario was selected on the same data")
        for name in ("qT1", "NDI", "MWF")
    ),
    Hypothesis("E10", "masks cover the motor pathway better than random masks", "mask_recall",
               ((THIRD,), ("random",)), "attribution", support="moderate", caution="qualitative in the paper"),
    Hypothesis("E11", "the proposed rule covers more of it than LRP-all", "mask_recall",
               ((THIRD,), ("aw_all_combined",)), "attribution", support="weak", caution="one figure"),
)  # fmt: skip

PUBLISHED = (
    Published(
        "the paper, Table II; validation: mean of three folds, test: 41 samples, 9 of them severe", "model",
        (
            "auroc_validation", "accuracy_validation", "sensitivity_validation", "specificity_validation",
            "attention_qT1_validation", "attention_NDI_validation", "attention_MWF_validation",
            "auroc", "accuracy", "sensitivity", "specificity", "attention_qT1", "attention_NDI", "attention_MWF",
        ),
        {
            "attention_densenet": tuple(
                (value, None)
                for value in (
                    .864, .809, .718, .839, .503, .309, .188, .885, .854, .889, .844, .467, .369, .164,
                )
            )
        },
        "classification", at=PUBLISHED_NETWORK,
    ),
    Published(
        "the paper, Table III (ρ); in its Table IV, the values of 40 % equal those of 30 % here", "attribution",
        ("rho_qT1_30", "rho_NDI_30", "rho_qT1_40", "rho_NDI_40", "rho_qT1_50", "rho_NDI_50"),
        {
            THIRD: tuple((value, None) for value in (-.362, .429, -.371, .440, -.366, .431)),
            "aw_all_combined": tuple((value, None) for value in (-.269, .337, -.281, .348, -.277, .345)),
        },
        "correlation with EDSS", at={"model": "attention_densenet", **PUBLISHED_NETWORK},
    ),
    Published(
        "the paper, Table IV (ρ of MWF, and p by 20,000 permutations); its row says 40 %, but its ρ of qT1 and NDI are "
        "those of 30 % in Table III", "attribution",
        ("rho_MWF_40", "p_qT1_40", "p_NDI_40", "p_MWF_40"),
        {THIRD: tuple((value, None) for value in (.298, .001, .0001, .01))},
        "significance of the correlations", at={"model": "attention_densenet", **PUBLISHED_NETWORK},
    ),
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-5, 1e-2, log=True),
        Interval("recipe.weight_decay", 1e-4, 1e-1, log=True),
        Choice("model.blocks", (1, 2)),
    ),
}
