"""Which explanation shows where a network finds tumour in a histological patch?

A network classifies patches of lymph node tissue by whether tumour touches their centre
(PatchCamelyon), and true positives are explained by LIME with superpixels on one and on
several scales, with square grids, and by other methods. The study judges explanations by
what the network still recognises if only they are shown (ea). Here, the truth is known,
and a table says whether ea agrees with it.

Deviations from the paper
    The default patches are generated, so that the tumour is known; `data=` reads PatchCamelyon
    files or an image folder. The published network was trained on the test set; here,
    slides are split. Five chosen patches are replaced by all true positives up to
    `at_most`. Square grids have true squares (the notebook: superpixels of high
    compactness). With black fill, networks may call an empty patch tumour, so that ea is high
    for any map; the fill is an option, and the probability of the empty patch stands beside.
    `profile=quick` has a small network and four scales; `profile=paper` has VGG19 and 4² to
    20² superpixels.
"""

from functools import partial

from harness.search_spaces.histopathology import (
    EXPERIMENTS,
    FILLS,
    HYPOTHESES,
    LIME,
    LIME_FILLS,
    MULTISCALE_FILLS,
    PRESETS,
    SPACES,
)

from harness.adapters.pixels import pixels
from harness.attribution.activations import gradcam
from harness.attribution.controls import centre_square, constant, edge, random_map
from harness.attribution.gradients import gradient_shap, integrated_gradients
from harness.attribution.kernel_shap import kernel_shap
from harness.attribution.lime import lime, multiscale_lime
from harness.attribution.lrp import lrp
from harness.attribution.occlusion import occlusion
from harness.core.explanations import Explanation
from harness.core.task import Task
from harness.core.types import Source
from harness.data.pictures import pictures
from harness.data.splits import holdout
from harness.data.targets.column import binary_column
from harness.metrics import centre, classification, diagnostic, exposed, localisation
from harness.metrics import explanation_accuracy as shown
from harness.models.picture_networks import small_cnn
from harness.recipes.stained import stained_pictures
from harness.simulation.histology import histology_phantom

# True positives, the most certain first; maps of three colours are added
EXPLAINED = partial(Explanation, combine="sum", samples="true_positive", at_most=100)

TASK = Task(
    name="histopathology",
    version=1,
    question="Which explanation shows where a network finds tumour in a histological patch?",
    source=Source("the multi-scale LIME study", 2021, "Multi-scale visual explanation of LIME in histopathology"),
    phantom=partial(histology_phantom),
    phantom_subjects=40,
    cohort=partial(pictures),
    targets={"tumour": partial(binary_column, column="label", name="tumour", positive="1")},
    adapter=partial(pixels),
    split=partial(holdout, test=0.25),
    model=partial(small_cnn),
    recipe=partial(stained_pictures),
    explanations={
        "lime": EXPLAINED(partial(lime, response="probability")),
        "lime_quickshift": EXPLAINED(partial(lime, segmentation="quickshift", response="probability")),
        "multiscale_w1": EXPLAINED(partial(multiscale_lime, response="probability")),
        "multiscale_w2": EXPLAINED(partial(multiscale_lime, scheme="inverse", response="probability")),
        "squares_w1": EXPLAINED(partial(multiscale_lime, segmentation="squares", response="probability")),
        "squares_w2": EXPLAINED(
            partial(multiscale_lime, segmentation="squares", scheme="inverse", response="probability")
        ),
        # not published: LIME whose hidden superpixels have another colour, for experiment=fills
        **{
            f"{label}_{fill}": EXPLAINED(partial(method, response="probability", fill=fill))
            for fill in FILLS[1:]
            for label, method in (("lime", lime), ("multiscale_w1", multiscale_lime))
        },
        # methods that the study does not compare
        "kernel_shap": EXPLAINED(partial(kernel_shap)),
        "occlusion": EXPLAINED(partial(occlusion, window=12, stride=6, per_channel=False)),
        "integrated_gradients": EXPLAINED(partial(integrated_gradients)),
        "gradient_shap": EXPLAINED(partial(gradient_shap)),
        "gradcam": EXPLAINED(partial(gradcam)),
        "lrp": EXPLAINED(partial(lrp)),
        # controls: chance level, edges, the centre that decides the label, and the whole patch
        "random": EXPLAINED(partial(random_map)),
        "edge": EXPLAINED(partial(edge)),
        "centre_square": EXPLAINED(partial(centre_square)),
        "whole_patch": EXPLAINED(partial(constant)),
    },
    metrics={
        "target_label": partial(classification.target_label),
        "predicted_logit": partial(classification.predicted_logit),
        "predicted_probability": partial(classification.predicted_probability),
        "auroc": partial(classification.auroc),
        "accuracy": partial(classification.binary_accuracy),
        "balanced_accuracy": partial(diagnostic.binary_balanced_accuracy),
        "brier": partial(classification.brier),
        "calibration_error": partial(diagnostic.calibration_error),
        # metrics of explanations: the truth
        "relevance_ap": partial(localisation.relevance_ap),
        "centre_ap": partial(centre.centre_ap),
        # and what the network recognises, by the colour of what is hidden
        **{
            f"{name}_{fill}": partial(metric, fill=fill)
            for fill in FILLS
            for name, metric in (
                ("ea", shown.explanation_accuracy),
                ("ea_kept", shown.kept_accuracy),
                ("same_label", shown.keeps_label),
                ("deletion", shown.deletion_area),
                ("insertion", shown.insertion_area),
                ("blank", shown.blank_probability),
            )
        },
        "share_shown": partial(shown.share_shown),
        "weighted_r2": partial(exposed.reported_number, name="weighted_r2"),
        "repeat_sd": partial(exposed.reported_number, name="repeat_sd"),
    },
    objective="auroc",
    explanation_objective="relevance_ap",
    axes={
        "width": "model.width", "stain": "recipe.stain", "stain_shift": "phantom.stain_shift",
        "patches": "phantom.patches",
    },
    problem=("stain_shift", "phantom_seed"),
    columns=("model",),
    shown=("auroc", "accuracy", "balanced_accuracy", "brier"),
    profiles={
        # minutes on two cores: fewer scales and images
        "quick": {
            "recipe.epochs": 12, "recipe.lr": 2e-3, "recipe.batch_size": 32,
            **{
                f"attributions.{name}.levels": [16, 36, 64]
                for name in ("multiscale_w1", "multiscale_w2", "squares_w1", "squares_w2", *MULTISCALE_FILLS)
            },
            **{
                f"attributions.{name}.per_segment": 4
                for name in (*LIME, *LIME_FILLS, *MULTISCALE_FILLS)
            },
            "attributions.kernel_shap.per_segment": 5,
            "attributions.integrated_gradients.steps": 16,
            **{f"metrics.{what}_{fill}.steps": 5 for what in ("deletion", "insertion") for fill in FILLS},
        },
        "paper": {"phantom_subjects": 200, "model": "vgg19"},
    },
    # Without masks, maps have no truth. In generated patches, the order of explanations by deletion with the mean
    # colour agrees best with that by the truth
    data_profiles={name: {"explanation_objective": "deletion_mean"} for name in ("quick", "paper")},
    presets=PRESETS,
    experiments=EXPERIMENTS,
    experiment="explanations",
    spaces=SPACES,
    hypotheses=HYPOTHESES,
)  # fmt: skip
