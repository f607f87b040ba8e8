"""Experiments, presets, hypotheses and search spaces of the lesion-symptom mapping studies."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis
from harness.core.space import Choice, Interval

__all__ = ["EXPERIMENTS", "HYPOTHESES", "PRESETS", "SPACES"]

BOTH = ("cnn", "residual_cnn")
# Models that are fitted in seconds
FAST = ("lesion_field", "ridge", "sparse_linear", "svr_lsm", "mass_univariate", "total_volume")

# 17 configurations of the CNN study (85 trainings), and the four networks of the ResNet10 study
EXPERIMENTS = {
    "single": {"design": ("single",), "model": ("cnn",)},
    "multi": {"model": BOTH},
    "noise": {"noise": (0.1, 0.2, 0.3, 0.4, 0.5), "model": BOTH},
    "intercorrelation": {"design": ("intercorrelation",), "b": (0.9, 0.8, 0.7, 0.6), "model": ("cnn",)},
    # Not published: scores that violate the assumption of a linear load of one compact region
    "assumptions": {
        "design": ("single",),
        "nonlinearity": ("none", "log", "threshold", "disconnection"),
        "model": FAST,
    },
    "confounds": {"volume_effect": (0.0, 1.0), "age_effect": (0.0, 1.0), "noise": (0.2,), "model": FAST},
    "resnet10": {"scores": ("score_1", "score_2", "score_3", "score_1+score_2+score_3"), "model": ("resnet10",)},
}

# Numbers of epochs from Tables I to IV; lower without noise
PRESETS = {
    "profile=paper experiment=single": {"recipe.epochs": 60},
    "profile=paper experiment=multi model=cnn": {"recipe.epochs": 70},
    "profile=paper experiment=multi model=residual_cnn": {"recipe.epochs": 90},
    "profile=paper experiment=noise model=cnn": {"recipe.epochs": 90},
    "profile=paper experiment=noise model=residual_cnn": {"recipe.epochs": 110},
    "profile=paper experiment=intercorrelation": {"recipe.epochs": 70},
    # The ResNet10 study: 1.67 mm, regions and windows of 8³ voxels, one split, best validation loss
    "experiment=resnet10": {
        "split": "holdout", "recipe.select": "validation_loss",
        "attributions.integrated_gradients": "integrated_gradients",
    },
    "profile=paper experiment=resnet10": {
        "phantom_subjects": 822,
        "cohort.spacing_mm": [1.67, 1.67, 1.65], "targets.scores.size": 8,
        "attributions.occlusion.window": 8, "attributions.occlusion.stride": 4,
        "attributions.gradient_shap.samples": 5, "attributions.gradient_shap.noise": 0.0,
        "recipe.epochs": 200, "recipe.optimiser": "adam", "recipe.weight_decay": 0.0,
        "recipe.lr": 1e-5, "recipe.lr_drop_epoch": 100, "recipe.lr_drop_factor": 0.1,
    },
    # The published kernels, scaled to the 5 mm grid
    "profile=quick model=cnn": {"model.kernel": 4, "model.stride": 3},
    "profile=quick model=residual_cnn": {
        "model.kernel": 4, "model.stride": 3, "model.block_kernel": 3, "model.block_stride": 3,
    },
    "profile=quick model=resnet10": {"model.width": 16},
    # With batches of 16 and ten epochs, there are 50 steps, after which the output is still almost constant
    "profile=quick experiment=resnet10": {"recipe.epochs": 30, "recipe.batch_size": 4},
    # The baseline without location chooses, in the training patients, whether it uses age and sex
    "model=total_volume": {"adapter.covariates": "age+sex"},
}  # fmt: skip

HYPOTHESES = (
    Hypothesis(
        "A1", "noise-free loads are predictable by both models", "r2", (BOTH,), "model",
        at={"noise": "0.0"}, relation="reaches", margin=0.8, support="strong",
    ),
    Hypothesis("A2", "the CNN beats the residual CNN without noise", "r2", (("cnn",), ("residual_cnn",)), "model",
             at={"noise": "0.0"}, support="moderate", caution="one run; gaps .007 to .06"),
    Hypothesis("A3", "R² falls as noise grows", "r2", (("0.1",), ("0.2",), ("0.3",), ("0.4",), ("0.5",)), "noise",
             support="strong", caution="score 3 recovers at .4 in the paper"),
    Hypothesis("A4", "R² at a = .1 stays within .12 of a = 0", "r2", (("0.0", "0.1"),), "noise",
             relation="equivalent", margin=0.12, support="moderate", caution="epochs differ between the paper's rows"),
    Hypothesis("A5", "maps find less as noise grows", "relevance_ap", (("0.0",), ("0.5",)), "noise", support="strong"),
    Hypothesis("A7", "the residual CNN holds R² slightly better at a = .1", "r2", (("residual_cnn",), ("cnn",)),
             "model", at={"noise": "0.1"}, support="weak"),
    Hypothesis("A8", "occlusion ≥ GradientSHAP", "relevance_ap", (("occlusion",), ("gradient_shap",)), "attribution",
             support="strong", caution="for an exact linear model the order reverses"),
    Hypothesis("A15", "mixed scores stay predictable", "r2", (("0.9", "0.8", "0.7", "0.6"),), "b",
             at={"design": "intercorrelation"}, relation="reaches", margin=0.9, support="strong"),
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-4, 1e-2, log=True),
        Interval("recipe.weight_decay", 1e-4, 1e-1, log=True),
        Choice("recipe.batch_size", (4, 8, 16)),
    ),
}
