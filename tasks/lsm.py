"""Which voxels determine a score? Lesion-symptom mapping with deep networks and standard methods.

Scores are simulated from the lesion load of small regions of interest, so that the truth of
explanations is known. Networks predict the scores from whole-brain lesion maps, and their
explanations are evaluated as sums over all test patients. The task covers two studies: a
CNN and a residual CNN with noise and intercorrelation (821 white-matter lesion masks,
5-fold cross-validation), and a 3D ResNet10 with one or several outputs (822 masks, one
split).

Deviations from the papers
    Both cohorts are private: set `data=` to a folder of lesion masks, or use the generated
    default cohort. Regions are drawn at random where at least ten patients have lesions,
    and scores are scaled to [0, 1] over the cohort. R² refers to the noisy scores; the R²
    relative to the scores without noise is also reported. Average precision is exact; the
    published area over 1,000 thresholds is also reported. `profile=quick` uses a 5 mm grid
    with fractional occupancy, few epochs, and kernels scaled with the grid.
"""

from functools import partial

from harness.search_spaces.lsm import EXPERIMENTS, HYPOTHESES, PRESETS, SPACES

from harness.adapters.lesion_volume import lesion_volume
from harness.attribution.controls import input_itself, random_map, weights
from harness.attribution.gradients import gradient_shap
from harness.attribution.occlusion import occlusion
from harness.core.explanations import Explanation
from harness.core.task import Task
from harness.core.types import Source
from harness.data.lesions import lesions
from harness.data.splits import k_fold
from harness.data.targets.scores import scores
from harness.metrics import localisation, regression
from harness.models.lesion_networks import cnn
from harness.recipes.regression import regression as regression_recipe
from harness.simulation.wmh import wmh_phantom

TASK = Task(
    name="lsm",
    version=1,
    question="Which voxels of a lesion drive a score, and which models and explanations find them?",
    source=Source(
        "the lesion-symptom CNN and ResNet10 studies", 2024, "Explainable deep lesion-symptom mapping (simulation)"
    ),
    phantom=partial(wmh_phantom),
    phantom_subjects=120,
    cohort=partial(lesions, label="wmh", box="published"),
    targets={"scores": partial(scores)},
    adapter=partial(lesion_volume),
    split=partial(k_fold, folds=5, validation=0),
    model=partial(cnn),
    recipe=partial(regression_recipe),
    explanations={
        "occlusion": Explanation(partial(occlusion, window=5, stride=3), keep="sums"),
        "gradient_shap": Explanation(partial(gradient_shap, samples=30, noise=0.01), keep="sums"),
        "weights": Explanation(partial(weights), keep="sums"),
        # controls: lesion frequency and chance level
        "prevalence": Explanation(partial(input_itself), keep="sums"),
        "random": Explanation(partial(random_map), keep="sums"),
    },
    metrics={
        "r2": partial(regression.r2),
        "r2_clean": partial(regression.r2_clean),
        "r_squared": partial(regression.r_squared),
        "r_squared_p": partial(regression.r_squared_p),
        "mse": partial(regression.mse),
        "slope": partial(regression.slope),
        "bias": partial(regression.bias),
        "target_score": partial(regression.target_score),
        "predicted_score": partial(regression.predicted_score),
        "clean_score": partial(regression.clean_score),
        # metrics of explanations
        "relevance_ap": partial(localisation.relevance_ap),
        "ap_of_ceiling": partial(localisation.ap_of_ceiling),
        "pr_auc_1000": partial(localisation.pr_auc_1000),
        "roi_mass": partial(localisation.relevance_mass, sign="positive"),
        "cdc": partial(localisation.cdc),
        "peak_distance_mm": partial(localisation.peak_distance_mm),
        "pointing_game": partial(localisation.pointing_game),
        "rc_roi1": partial(localisation.rc_rate, roi=0),
        "rc_roi2": partial(localisation.rc_rate, roi=1),
        "rc_roi3": partial(localisation.rc_rate, roi=2),
    },
    objective="r2",
    explanation_objective="relevance_ap",
    axes={
        "noise": "targets.scores.noise", "design": "targets.scores.design", "b": "targets.scores.b",
        "score": "targets.scores.column", "nonlinearity": "targets.scores.nonlinearity",
        "volume_effect": "targets.scores.volume_effect", "age_effect": "targets.scores.age_effect",
        "rois": "targets.scores.rois", "roi_size": "targets.scores.size", "roi_shape": "targets.scores.shape",
        "roi_seed": "targets.scores.roi_seed", "shuffled": "targets.scores.shuffled",
        "scores": "adapter.scores", "volume_control": "adapter.volume_control", "target_range": "adapter.target_range",
        "label": "cohort.label", "box": "cohort.box",
    },
    problem=("noise", "design", "b", "score", "nonlinearity", "volume_effect", "age_effect", "rois", "roi_size",
             "roi_shape", "roi_seed", "shuffled", "scores", "label", "box"),
    columns=("model", "noise"),
    regional=("r2", "r2_clean", "r_squared", "r_squared_p", "mse", "slope", "bias"),
    shown=("r2", "r2_clean", "r_squared", "slope"),
    profiles={
        # minutes on two cores: 5 mm, regions of 20 mm, ten epochs
        "quick": {
            "cohort.spacing_mm": [5.0], "targets.scores.size": 4,
            "recipe.epochs": 10, "recipe.batch_size": 16,
            "attributions.occlusion.window": 3, "attributions.occlusion.stride": 2,
            "attributions.gradient_shap.samples": 5,
        },
        # as published: 1 mm, regions of 5³ voxels; the epochs of each experiment are presets
        "paper": {"phantom_subjects": 821, "phantom.spacing_mm": 1.0, "phantom.shape": [152, 179, 142]},
    },
    # the published box does not contain all of brainstem and cerebellum
    data_profiles={"quick": {"cohort.label": "lesion", "cohort.box": "brain"}, "paper": {"cohort.label": "lesion"}},
    presets=PRESETS,
    experiments=EXPERIMENTS,
    experiment="multi",
    spaces=SPACES,
    hypotheses=HYPOTHESES,
)  # fmt: skip
