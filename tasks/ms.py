"""Which tissue damage goes with severe disability in multiple sclerosis (MS)?

A network with one 3D DenseNet per quantitative contrast and gated attention over contrasts
classifies patients with an EDSS of 5 or more, and is explained from its output and from its
attention weights. A held-out test set is predicted by the networks of three stratified
folds; both visits of a patient are in the same subset.

Deviations from the paper
    The images are private, so the default cohort is generated: disability follows from
    damage of the corticospinal tract, which is the truth of every map. profile=quick
    has images of 24×28×24 voxels, a stem with stride 2, one block and a higher learning
    rate, so that it runs in minutes on two cores; profile=paper has 96×112×96 voxels and
    the published network and recipe, and its LRP ε = 1e-8 (the others 1e-6). On a small
    trained network of this kind, maps in single precision differ from those in double
    precision by at most .0013 of their relevance with either ε, and those of the two ε from
    each other by at most .022 (correlation above .99999): 1e-8 is no less stable here.
"""

from functools import partial

from harness.search_spaces.ms import EXPERIMENTS, HYPOTHESES, PRESETS, PUBLISHED, SPACES

from harness.adapters.volumes import volumes
from harness.attribution.controls import constant, input_itself, one_channel, random_map, weights
from harness.attribution.gradients import integrated_gradients, saliency
from harness.attribution.lrp import lrp
from harness.core.explanations import Explanation
from harness.core.task import Task
from harness.core.types import Source
from harness.data.cohort import bids
from harness.data.splits import stratified_k_fold
from harness.data.targets.column import binary_column
from harness.metrics import classification, diagnostic, inversion, localisation, regression
from harness.metrics.exposed import exposed_scalar
from harness.models.attention import attention_densenet
from harness.recipes.volumes import volume_recipe
from harness.simulation.ms import ms_phantom

# Explanations by layer-wise relevance propagation
LRP = (
    *(f"{start}_{rule}{end}" for start in ("aw", "f") for rule in ("proposal", "all") for end in ("", "_combined")),
    "f_proposal_absolute",
)

TASK = Task(
    name="ms",
    version=1,
    question="Which contrasts and which tissue go with severe disability in multiple sclerosis?",
    source=Source("the MS disability study", 2023, "Gated-attention networks and layer-wise relevance propagation"),
    phantom=partial(ms_phantom),
    phantom_subjects=166,
    cohort=partial(bids, label="tract", nuisance="lesion", session="all", normalise="none"),
    targets={"severe": partial(binary_column, column="edss", name="severe", at_least=5.0, weight_span=5.0)},
    adapter=partial(volumes, channels="qT1+MWF+NDI", covariates="age", covariate_scale=100.0, scale="qT1:2500+MWF:0.3"),
    split=partial(stratified_k_fold, by="severe", folds=3, test=0.2),
    model=partial(attention_densenet),
    recipe=partial(volume_recipe, balance="severe"),
    # scenarios 1 to 12 of the paper, from the attention weights (aw) and from the output (f)
    explanations={
        "aw_proposal": Explanation(partial(lrp), of="attention:own"),
        "aw_all": Explanation(partial(lrp, product="all"), of="attention:own"),
        "aw_proposal_combined": Explanation(partial(lrp), "attention:own", "relevance_times_input"),
        "aw_all_combined": Explanation(partial(lrp, product="all"), "attention:own", "relevance_times_input"),
        "f_proposal": Explanation(partial(lrp)),
        "f_all": Explanation(partial(lrp, product="all")),
        "f_proposal_combined": Explanation(partial(lrp), combine="relevance_times_input"),
        "f_all_combined": Explanation(partial(lrp, product="all"), combine="relevance_times_input"),
        "aw_saliency": Explanation(partial(saliency), of="attention:own"),
        "aw_ig": Explanation(partial(integrated_gradients, steps=50), of="attention:own"),
        "f_saliency": Explanation(partial(saliency)),
        "f_ig": Explanation(partial(integrated_gradients, steps=50)),
        # beyond the paper: the same rule from |f|, and controls
        "f_proposal_absolute": Explanation(partial(lrp, start="absolute")),
        "weights": Explanation(partial(weights)),
        "mean_contrast": Explanation(partial(input_itself), combine="sum"),
        "contrast_1": Explanation(partial(one_channel)),
        "contrast_2": Explanation(partial(one_channel, channel=1)),
        "contrast_3": Explanation(partial(one_channel, channel=2)),
        "lesions": Explanation(partial(constant), combine="within_nuisance"),
        "random": Explanation(partial(random_map)),
    },
    metrics={
        "target_label": partial(classification.target_label),
        "predicted_logit": partial(classification.predicted_logit),
        "predicted_probability": partial(classification.predicted_probability),
        "auroc": partial(classification.auroc),
        # of experiment=regression, in which the EDSS itself is predicted
        "target_score": partial(regression.target_score),
        "predicted_score": partial(regression.predicted_score),
        "r2": partial(regression.r2),
        "r_squared": partial(regression.r_squared),
        "accuracy": partial(classification.binary_accuracy),
        "balanced_accuracy": partial(diagnostic.binary_balanced_accuracy),
        "sensitivity": partial(diagnostic.sensitivity),
        "specificity": partial(diagnostic.specificity),
        "best_threshold": partial(diagnostic.best_threshold),
        "tuned_accuracy": partial(diagnostic.tuned_accuracy),
        "tuned_balanced_accuracy": partial(diagnostic.tuned_balanced_accuracy),
        "tuned_sensitivity": partial(diagnostic.tuned_sensitivity),
        "tuned_specificity": partial(diagnostic.tuned_specificity),
        "brier": partial(classification.brier),
        "calibration_error": partial(diagnostic.calibration_error),
        "attention_qT1": partial(exposed_scalar, name="attention:qT1"),
        "attention_MWF": partial(exposed_scalar, name="attention:MWF"),
        "attention_NDI": partial(exposed_scalar, name="attention:NDI"),
        "covariate": partial(regression.covariate, name="edss"),
        # metrics of explanations
        "relevance_ap": partial(localisation.relevance_ap, inside="brain_if_known"),
        "relevance_mass": partial(localisation.relevance_mass),
        "on_lesions": partial(localisation.nuisance_mass),
        "mask_recall": partial(inversion.mask_recall, percent=40),
        "inverted_logits": partial(inversion.inverted_logits),
        "random_inverted_logits": partial(inversion.random_inverted_logits),
        "masked_means": partial(inversion.masked_means),
        "inversion_area": partial(inversion.inversion_area),
        # the curve; its chance level has random masks of the same size
        **{f"inverted_auroc_{n}": partial(inversion.inverted_auroc, percent=n) for n in range(0, 101, 10)},
        **{
            f"rho_{name}_{percent}": partial(inversion.masked_mean_correlation, channel=name, percent=percent)
            for name in ("qT1", "MWF", "NDI")
            for percent in (30, 40, 50)
        },
        **{f"p_{name}_40": partial(inversion.masked_mean_p, channel=name) for name in ("qT1", "MWF", "NDI")},
    },
    objective="auroc",
    explanation_objective="relevance_ap",
    ranks_scalars_together=True,
    axes={
        "contrasts": "adapter.channels", "fusion": "model.fusion", "threshold": "targets.severe.at_least",
        "shuffled": "targets.severe.shuffled",
        "stem_stride": "model.stem_stride", "blocks": "model.blocks", "pooling": "model.pooling",
    },
    problem=("threshold", "phantom_seed"),
    columns=("model", "contrasts"),
    shown=("auroc", "tuned_balanced_accuracy", "tuned_sensitivity", "tuned_specificity"),
    profiles={
        # minutes on two cores: voxels of 6.25 mm and a higher learning rate
        "quick": {
            "recipe.epochs": 30, "recipe.batch_size": 16, "recipe.lr": 2e-3, "recipe.noise": 0.05,
            "recipe.angle_deg": 0.0, "recipe.scaling": 0.0, "recipe.quarter_turns": False,
            "attributions.aw_ig.steps": 8, "attributions.f_ig.steps": 8,
        },
        # Protocol: ε = 1e-8 in the fully connected layers
        "paper": {"phantom.shape": [96, 112, 96], **{f"attributions.{name}.epsilon": 1e-8 for name in LRP}},
    },
    # ordinary contrasts have no unit; quantitative ones keep theirs with adapter.scale=
    data_profiles={"quick": {"cohort.normalise": "percentile", "adapter.scale": "", "cohort.label": ""}},
    presets=PRESETS,
    experiments=EXPERIMENTS,
    experiment="classification",
    synonyms={"target=severe": "classification", "target=edss": "regression"},
    spaces=SPACES,
    hypotheses=HYPOTHESES,
    published=PUBLISHED,
)  # fmt: skip
