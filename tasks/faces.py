"""One network for three targets, and three explanations: age, sex and ethnicity from a face.

A 2D ResNet18 predicts the age (a number), the sex (a label) and the ethnicity (four
classes) of a face, with three heads and a loss each, and is compared with three networks of
one output. Each output is explained by GradientSHAP and integrated gradients inside squared
SmoothGrad and by occlusion. It is the sanity study of the lesion-symptom ResNet10: a reader
can see whether an explanation makes sense.

Deviations from the paper
    The default cohort is generated: each target depends on regions of its own, so that
    maps have a truth, and the groups have no meaning. `data=` reads a folder of UTKFace,
    which is for non-commercial research only; its faces are shown only with
    `show_images=true`. Loss weights are not stated and therefore 1. Divided by 100, the age
    hardly contributes to the loss, so that it is standardised by the training samples; the
    published head is `age_scale=100 model.number_activation=leaky_relu`. The noise has a
    standard deviation of .1, since the 1.0 of captum exceeds the range of the image
    (`attributions.gradient_shap.noise=1.0`). `profile=quick` has faces of 64×64 pixels, a
    quarter of the channels and a higher learning rate; the rest is in `profile=paper`.
"""

from functools import partial

from harness.search_spaces.faces import EXPERIMENTS, HYPOTHESES, PRESETS, SPACES

from harness.adapters.pixels import pixels
from harness.attribution.controls import input_itself, random_map
from harness.attribution.noise_tunnel import noise_tunnel
from harness.attribution.occlusion import occlusion
from harness.core.explanations import Explanation
from harness.core.task import Task
from harness.core.types import Source
from harness.data.pictures import pictures
from harness.data.splits import holdout
from harness.data.targets.column import binary_column, class_column, number_column
from harness.metrics import classification, localisation, regression, skill
from harness.models.resnet import resnet18
from harness.recipes.supervised import supervised
from harness.simulation.faces import faces_phantom

TASK = Task(
    name="faces",
    version=1,
    question="Does one network with three outputs look where each of them is to be seen?",
    source=Source("the lesion-symptom ResNet10 study", 2024, "Sanity study on faces (UTKFace)"),
    phantom=partial(faces_phantom),
    phantom_subjects=1000,
    cohort=partial(pictures),
    targets={
        "age": partial(number_column, column="age"),
        "sex": partial(binary_column, column="sex", positive="female"),
        "ethnicity": partial(class_column, column="ethnicity"),
    },
    adapter=partial(pixels, number_scale="standardised"),
    split=partial(holdout),
    model=partial(resnet18),
    recipe=partial(supervised, epochs=30, batch_size=16, lr=1e-4),
    explanations={
        "gradient_shap": Explanation(
            partial(noise_tunnel, method="gradient_shap", options={"samples": 5}, kind="mean_square"), combine="sum"
        ),
        "integrated_gradients": Explanation(
            partial(noise_tunnel, method="integrated_gradients", options={"steps": 50}, kind="mean_square"),
            combine="sum",
        ),
        "occlusion": Explanation(partial(occlusion, window=15, stride=8, per_channel=False), combine="sum"),
        # controls: the picture without a network, and chance level
        "picture": Explanation(partial(input_itself), combine="sum"),
        "random": Explanation(partial(random_map), combine="sum"),
    },
    metrics={
        "skill": partial(skill.skill),
        "mse": partial(regression.mse),
        "accuracy": partial(skill.label_accuracy),
        "worst_group": partial(skill.worst_group_accuracy),
        "balanced_accuracy": partial(classification.balanced_accuracy),
        "target_score": partial(regression.target_score),
        "predicted_score": partial(regression.predicted_score),
        "target_label": partial(classification.target_label),
        "predicted_probability": partial(classification.predicted_probability),
        "target_class": partial(classification.target_class),
        "predicted_class": partial(classification.predicted_class),
        "covariate": partial(regression.covariate, name="glasses"),
        # metrics of explanations
        "relevance_ap": partial(localisation.relevance_ap),
        "relevance_mass": partial(localisation.relevance_mass),
        "nuisance_mass": partial(localisation.nuisance_mass),
    },
    objective="skill",
    explanation_objective="relevance_ap",
    axes={
        "predicted": "adapter.predicted", "age_scale": "adapter.number_scale", "age_weight": "targets.age.loss_weight",
        "sex_weight": "targets.sex.loss_weight", "ethnicity_weight": "targets.ethnicity.loss_weight",
        "correlation": "phantom.correlation", "correlated": "phantom.correlated",
    },
    problem=("predicted", "correlation", "correlated", "phantom_seed"),
    columns=("model", "predicted"),
    shown=("skill", "mse", "accuracy", "balanced_accuracy"),
    profiles={
        # minutes on two cores; after 8 epochs, the validation loss of the network with three outputs still falls
        "quick": {
            "recipe.epochs": 20, "recipe.lr": 1e-3,
            "attributions.gradient_shap.options": {"samples": 5, "batch_size": 40},
            "attributions.integrated_gradients.options": {"steps": 8, "batch_size": 40},
        },
        "paper": {"phantom_subjects": 9000, "phantom.size": 200},
    },
    # UTKFace says nothing of glasses
    data_profiles={
        "quick": {"cohort": "utkface", "cohort.images": 1000, "cohort.side": 64, "metrics.covariate.name": "age"},
        "paper": {"cohort": "utkface", "cohort.images": 9000, "metrics.covariate.name": "age"},
    },
    presets=PRESETS,
    experiments=EXPERIMENTS,
    experiment="single_multi",
    spaces=SPACES,
    hypotheses=HYPOTHESES,
)  # fmt: skip
