"""Which MRI sequences are needed to segment enlarged perivascular spaces (ePVS)?

Rashid et al. 2023, "Deep Learning Based Detection of Enlarged Perivascular Spaces on Brain
MRI". A 2D multi-channel U-Net is trained on axial slices of eight sets of sequences, with
leave-one-participant-out cross-validation, and compared with the labels of one expert.
This task reproduces Table 1 and Tables S3-S9.

Deviations from the paper
    Depth, width and recipe are not stated in the paper; they are those of the authors'
    earlier work (DEEPMIR, Rashid et al. 2021, public code). The initial output bias is -3,
    the prior of a rare class, instead of 0, because some trainings otherwise predict only
    background. ICC is ICC(1,1); ICC(2,1) and ICC(3,1) are also reported. Configurations
    are ranked by Dice, because sensitivity at 3 mm saturates. The MESA images are private,
    so the default cohort is generated. Images are resampled to the grid of the label; set
    `reference=SWI` for the grid of SWI, as in the paper. profile=paper corrects the bias
    field and strips the skull with the brain mask of the data (cohort.brain=compute
    creates a crude one); profile=quick does neither.
"""

from functools import partial

from harness.search_spaces.epvs import EXPERIMENTS, HYPOTHESES, PUBLISHED, SPACES

from harness.adapters.axial_slices import axial_slices
from harness.attribution.controls import random_map
from harness.attribution.gradients import integrated_gradients
from harness.attribution.perturbations import channel_shapley
from harness.core.task import Task
from harness.core.types import Source
from harness.data.cohort import bids
from harness.data.splits import leave_one_subject_out
from harness.data.targets.mask import mask
from harness.metrics import agreement, detection, distance, localisation, segmentation
from harness.models.unet import unet
from harness.recipes.segmentation import segmentation as segmentation_recipe
from harness.simulation.epvs import epvs_phantom

TASK = Task(
    name="epvs",
    version=1,
    question="Which MRI sequences are needed to segment enlarged perivascular spaces?",
    source=Source(
        "Rashid, Liu, Ware, …, Habes",
        2023,
        "Deep Learning Based Detection of Enlarged Perivascular Spaces on Brain MRI",
        "10.1016/j.ynirp.2023.100162",
    ),
    phantom=partial(epvs_phantom),
    phantom_subjects=6,
    cohort=partial(bids, label="pvs"),
    targets={"mask": partial(mask)},
    adapter=partial(axial_slices),
    split=partial(leave_one_subject_out),
    model=partial(unet),
    recipe=partial(segmentation_recipe),
    explanations={
        "channel_shapley": partial(channel_shapley),
        "integrated_gradients": partial(integrated_gradients, steps=50),
        "random": partial(random_map),
    },
    metrics={
        "dice": partial(segmentation.dice),
        # Table 1, by lesion centre; the paper does not state the tolerance
        "sensitivity": partial(detection.sensitivity, tolerance_mm=3.0),
        "precision": partial(detection.precision, tolerance_mm=3.0),
        "magnitude_accuracy": partial(detection.magnitude_accuracy, tolerance_mm=3.0),
        "sensitivity_0mm": partial(detection.sensitivity, tolerance_mm=0.0),
        "precision_0mm": partial(detection.precision, tolerance_mm=0.0),
        "sensitivity_1.5mm": partial(detection.sensitivity, tolerance_mm=1.5),
        "precision_1.5mm": partial(detection.precision, tolerance_mm=1.5),
        "sensitivity_5mm": partial(detection.sensitivity, tolerance_mm=5.0),
        "precision_5mm": partial(detection.precision, tolerance_mm=5.0),
        "volumetric_similarity": partial(segmentation.volumetric_similarity),
        "auc": partial(segmentation.auc),
        "average_hausdorff": partial(distance.average_hausdorff),
        "mahalanobis": partial(distance.mahalanobis),
        "icc_count": partial(agreement.icc_count, form="1,1"),
        "icc_volume": partial(agreement.icc_volume, form="1,1"),
        "icc_count_2,1": partial(agreement.icc_count, form="2,1"),
        "icc_volume_2,1": partial(agreement.icc_volume, form="2,1"),
        "icc_count_3,1": partial(agreement.icc_count, form="3,1"),
        "icc_volume_3,1": partial(agreement.icc_volume, form="3,1"),
        # Figures 5 and 7
        "count_bias": partial(agreement.count_bias),
        "volume_bias": partial(agreement.volume_bias),
        # not in the paper: by size of the true lesion, in voxels
        "sensitivity_1-3_voxels": partial(detection.sensitivity, tolerance_mm=3.0, size_bin=(1, 3)),
        "sensitivity_4-9_voxels": partial(detection.sensitivity, tolerance_mm=3.0, size_bin=(4, 9)),
        "sensitivity_10+_voxels": partial(detection.sensitivity, tolerance_mm=3.0, size_bin=(10, 1_000_000)),
        "true_count": partial(detection.true_count),
        "predicted_count": partial(detection.predicted_count),
        "true_volume_mm3": partial(segmentation.true_volume_mm3),
        "predicted_volume_mm3": partial(segmentation.predicted_volume_mm3),
        # metrics of explanations
        "relevance_ap": partial(localisation.relevance_ap),
        "relevance_mass": partial(localisation.relevance_mass),
        "pointing_game": partial(localisation.pointing_game),
        "share_T1w": partial(localisation.channel_share, channel="T1w"),
        "share_T2w": partial(localisation.channel_share, channel="T2w"),
        "share_FLAIR": partial(localisation.channel_share, channel="FLAIR"),
        "share_SWI": partial(localisation.channel_share, channel="SWI"),
    },
    objective="dice",
    explanation_objective="relevance_ap",
    axes={
        "sequences": "adapter.channels",
        "label": "cohort.label",
        "reference": "cohort.reference",
        "width": "model.width",
    },
    problem=("label",),
    columns=("sequences", "model"),
    regional=("dice", "sensitivity", "precision", "magnitude_accuracy", "volumetric_similarity", "auc",
              "average_hausdorff", "mahalanobis", "true_count", "predicted_count",
              "true_volume_mm3", "predicted_volume_mm3", "icc_count", "icc_volume"),
    shown=("dice", "sensitivity", "precision", "sensitivity_1.5mm", "average_hausdorff", "icc_count"),
    profiles={
        # minutes on two cores: six subjects with a small field of view, a network with 8 to 32
        # channels, and small batches with a higher learning rate, so that 12 epochs suffice
        "quick": {
            "model.width": 8, "model.depth": 2, "attributions.integrated_gradients.steps": 8,
            "recipe.epochs": 12, "recipe.batch_size": 4, "recipe.lr": 2e-3, "recipe.copies": 1,
            "recipe.augmentation": "joint", "recipe.max_shift_px": 6.0, "recipe.balance": False,
        },
        # as published: 21 participants, 5 levels with 32 to 512 channels, 1024 in the bottleneck
        "paper": {
            "cohort.n4": True, "cohort.skull_strip": True,
            "phantom_subjects": 21, "phantom.shape": [176, 208, 128],
            "model.width": 32, "model.depth": 5,
            "recipe.epochs": 30, "recipe.batch_size": 32, "recipe.copies": 398,
            "recipe.augmentation": "published", "recipe.max_shift_px": 45.0, "recipe.balance": True,
            "seed": [0, 1, 2],
        },
    },
    # user data keep their resolution, because lesions have few voxels; only what surrounds the brain is cropped
    data_profiles={"quick": {"cohort.crop": "brain", "cohort.brain": "compute"}},
    experiments=EXPERIMENTS,
    experiment="ablation",
    spaces=SPACES,
    hypotheses=HYPOTHESES,
    published=(PUBLISHED,),
)  # fmt: skip
