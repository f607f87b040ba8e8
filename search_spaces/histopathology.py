"""Experiments, presets, hypotheses and search spaces of the multi-scale LIME study."""

from __future__ import annotations

from harness.core.hypotheses import Hypothesis
from harness.core.space import Choice, Interval

__all__ = ["EXPERIMENTS", "FILLS", "HYPOTHESES", "LIME", "LIME_FILLS", "MULTISCALE_FILLS", "PRESETS", "SPACES"]

FILLS = ("black", "white", "mean", "blur", "background")

LIME = ("lime", "lime_quickshift", "multiscale_w1", "multiscale_w2", "squares_w1", "squares_w2")
OTHERS = ("kernel_shap", "occlusion", "integrated_gradients", "gradient_shap", "gradcam", "lrp")
CONTROLS = ("random", "edge", "centre_square", "whole_patch")
LIME_FILLS = tuple(f"lime_{fill}" for fill in FILLS[1:])
MULTISCALE_FILLS = tuple(f"multiscale_w1_{fill}" for fill in FILLS[1:])

EXPERIMENTS = {
    # All explanations of one network, beside what colours alone tell
    "explanations": {"model": ("small_cnn", "colour_histogram")},
    # Not published: LIME with five colours of hidden superpixels
    "fills": {"model": ("small_cnn",)},
    # Maps of LIME as means of five repeats, whose spread is a column
    "stability": {"model": ("small_cnn",)},
    "networks": {"model": ("small_cnn", "resnet18", "vgg19", "colour_histogram")},
    # Not published: slides that differ in stain, and augmentation against it
    "stains": {"stain_shift": (0.0, 1.0), "stain": (0.0, 0.05)},
}

PRESETS = {
    "experiment=explanations": {"attribution": "+".join((*LIME, *OTHERS, *CONTROLS))},
    "experiment=fills": {
        "attribution": "+".join(
            ("lime", *LIME_FILLS, "multiscale_w1", *MULTISCALE_FILLS, "occlusion", "random", "whole_patch")
        )
    },
    "experiment=stability": {
        "attribution": "+".join((*LIME, "random")),
        **{f"attributions.{name}.repeats": 5 for name in LIME},
    },
    "cohort=patchcamelyon": {"split": "by_column"},
    # The gradient of a histogram is no explanation; the row shows what a shortcut reaches
    "model=colour_histogram": {"attribution": "random"},
    "experiment=networks": {"attribution": "none"},
    "experiment=stains": {"attribution": "none"},
    "profile=quick model=small_cnn": {"model.width": 8},
    "profile=quick model=resnet18": {"model.width": 16},
    "profile=quick model=vgg19": {"model.width": 8},
}

HYPOTHESES = (
    *(
        Hypothesis("C1", f"multi-scale LIME shows more of what the network uses than LIME ({fill} fill)", f"ea_{fill}",
                   (("multiscale_w1", "multiscale_w2"), ("lime",)), "attribution", support="weak",
                   caution="five chosen images; with black fill an empty patch may be called tumour")
        for fill in FILLS
    ),
    *(
        Hypothesis("C2", f"superpixels show more of what the network uses than squares ({fill} fill)", f"ea_{fill}",
                   (("multiscale_w1", "multiscale_w2"), ("squares_w1", "squares_w2")), "attribution", support="weak",
                   caution="the authors' notebook shows the reverse for one image")
        for fill in FILLS
    ),
    Hypothesis("C1", "multi-scale LIME finds the tumour better than LIME", "relevance_ap",
               (("multiscale_w1", "multiscale_w2"), ("lime",)), "attribution", support="weak",
               caution="not measured in the paper"),
    Hypothesis("C2", "superpixels find the tumour better than squares", "relevance_ap",
               (("multiscale_w1", "multiscale_w2"), ("squares_w1", "squares_w2")), "attribution", support="weak",
               caution="not measured in the paper"),
    *(
        Hypothesis("C3", f"explanations keep the label in nearly all patches ({fill} fill)", f"same_label_{fill}",
                   (("multiscale_w1", "multiscale_w2"),), "attribution", relation="reaches", margin=0.9, support="weak",
                   caution="stated as the criterion")
        for fill in FILLS
    ),
)  # fmt: skip

SPACES = {
    "recipe": (
        Interval("recipe.lr", 1e-4, 1e-2, log=True),
        Interval("recipe.weight_decay", 1e-5, 1e-1, log=True),
        Choice("recipe.batch_size", (16, 32, 64)),
    ),
}
