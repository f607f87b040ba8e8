"""Which tissue damage goes with severe disability in multiple sclerosis (MS)?

A network with one 3D DenseNet per quantitative contrast and gated attention over contrasts
classifies patients with an EDSS of 5 or more, and is explained from its output and from its
attention weights. A held-out test set is predicted by the networks of three stratified
folds; both visits of a patient are in the same subset.

Deviations from the paper
    The images are private, so the default cohort is generated: disability follows from
    damage of the corticospinal tract, which is the truth of every map. profile=quick
    has images of 24×28×24 voxels, a stem with stride 2, two blocks and a higher learning
    rate, so that it runs in minutes on two cores; profile=paper has 96×112×96 voxels and
    the published network and recipe.
"""

from functools import partial

from harness.search_spaces.ms import EXPERIMENTS, HYPOTHESES, PRESETS, SPACES

from harness.adapters.volumes import volumes
from harness.attribution.controls import input_itself, random_map
from harness.attribution.gradients import integrated_gradients, saliency
from harness.core.explanations import Explanation
from harness.core.task import Task
from harness.core.types import Source
from harness.data.cohort import bids
from harness.data.splits import stratified_k_fold
from harness.data.targets.column import binary_column
from harness.metrics import classification, diagnostic, localisation
from harness.models.attention import attention_densenet
from harness.recipes.volumes import volume_recipe
from harness.simulation.ms import ms_phantom

TASK = Task(
    name="ms",
    version=1,
    question="Which contrasts and which tissue go with severe disability in multiple sclerosis?",
    source=Source("the MS disability study", 2023, "Gated-attention networks and layer-wise relevance propagation"),
    phantom=partial(ms_phantom),
    phantom_subjects=166,
    cohort=partial(bids, label="tract", session="all", normalise="none"),
    targets={"severe": partial(binary_column, column="edss", name="severe", at_least=5.0, weight_span=5.0)},
    adapter=partial(volumes, channels="qT1+MWF+NDI", covariates="age", covariate_scale=100.0, scale="qT1:2500+MWF:0.3"),
    split=partial(stratified_k_fold, by="severe", folds=3, test=0.2),
    model=partial(attention_densenet),
    recipe=partial(volume_recipe, balance="severe"),
    explanations={
        "saliency": Explanation(partial(saliency)),
        "integrated_gradients": Explanation(partial(integrated_gradients, steps=50)),
        "contrast": Explanation(partial(input_itself)),
        "random": Explanation(partial(random_map)),
    },
    metrics={
        "target_label": partial(classification.target_label),
        "predicted_logit": partial(classification.predicted_logit),
        "predicted_probability": partial(classification.predicted_probability),
        "auroc": partial(classification.auroc),
        "accuracy": partial(classification.binary_accuracy),
        "balanced_accuracy": partial(diagnostic.binary_balanced_accuracy),
        "sensitivity": partial(diagnostic.sensitivity),
        "specificity": partial(diagnostic.specificity),
        "brier": partial(classification.brier),
        "calibration_error": partial(diagnostic.calibration_error),
        # metrics of explanations
        "relevance_ap": partial(localisation.relevance_ap),
        "relevance_mass": partial(localisation.relevance_mass),
        "pointing_game": partial(localisation.pointing_game),
    },
    objective="auroc",
    explanation_objective="relevance_ap",
    axes={
        "contrasts": "adapter.channels", "fusion": "model.fusion", "threshold": "targets.severe.at_least",
        "stem_stride": "model.stem_stride", "blocks": "model.blocks", "pooling": "model.pooling",
    },
    problem=("threshold", "phantom_seed"),
    columns=("model", "contrasts"),
    shown=("auroc", "balanced_accuracy", "sensitivity", "specificity"),
    profiles={
        # minutes on two cores: voxels of 6.25 mm and a higher learning rate
        "quick": {
            "recipe.epochs": 30, "recipe.batch_size": 16, "recipe.lr": 2e-3, "recipe.noise": 0.05,
            "recipe.angle_deg": 0.0, "recipe.scaling": 0.0, "recipe.quarter_turns": False,
            "attributions.integrated_gradients.steps": 16,
        },
        "paper": {"phantom.shape": [96, 112, 96]},
    },
    # ordinary contrasts have no unit; quantitative ones keep theirs with adapter.scale=
    data_profiles={"quick": {"cohort.normalise": "percentile", "adapter.scale": "", "cohort.label": ""}},
    presets=PRESETS,
    experiments=EXPERIMENTS,
    experiment="classification",
    spaces=SPACES,
    hypotheses=HYPOTHESES,
)  # fmt: skip
