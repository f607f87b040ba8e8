"""Can one network predict age, smile and hair from a small portrait? A task that uses all interfaces.

It has three targets of different kinds, one scalar input, two portraits per subject, a
fixed test set beside stratified folds whose networks are averaged, a gate that can be
explained, explanations of chosen samples, metrics that run the network again, one of
them pooled over samples with their labels, and pixels without a grid. The tests install it as a third-party package.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from harness.adapters.pixels import pixels
from harness.attribution.controls import random_map
from harness.attribution.gradients import saliency
from harness.core.explanations import Explanation
from harness.core.registry import MODELS, PHANTOMS
from harness.core.seeding import generator
from harness.core.targets import Target
from harness.core.task import Task
from harness.core.types import Array, Input, Source
from harness.data.pictures import pictures
from harness.data.splits import stratified_k_fold
from harness.data.targets.column import binary_column, class_column, number_column
from harness.metrics import classification, inversion, localisation, regression
from harness.metrics.metric_inputs import Columns, Predict
from harness.metrics.register import metric
from harness.recipes.supervised import supervised
from harness.simulation.phantom import PhantomPicture

HAIR = ("black", "blond", "red")
COLOURS = {"black": (30, 30, 30), "blond": (220, 200, 90), "red": (190, 60, 40)}


@PHANTOMS.register("portraits", layout="pictures")
def portraits(seed: int, number: int) -> list[PhantomPicture]:
    """Two portraits of one subject, 16 × 16: hair at the top, smile at the bottom, age as brightness."""
    rng = generator(seed, "portraits", number)
    hair, age = HAIR[number % 3], float(rng.uniform(20, 80))
    made = []
    for visit in range(2):
        smiles = bool(rng.random() < 0.5)
        image = rng.normal(0, 12, (16, 16, 3)) + 60 + 1.5 * age
        image[:4] = COLOURS[hair] + rng.normal(0, 12, (4, 16, 3))
        mask = np.zeros((16, 16), bool)
        mask[11:13, 4:12] = True
        image[mask] += 90 if smiles else -40
        facts = {
            "age": round(age, 1),
            "smile": "yes" if smiles else "no",
            "hair": hair,
            "height": round(1.6 + age / 500, 3),
        }
        name = f"person-{number:02d}_visit-{visit}"
        made.append(PhantomPicture(name, f"person-{number:02d}", np.clip(image, 0, 255).astype(np.uint8), mask, facts))
    return made


class Gated(nn.Module):
    """A convolution, pooled to a grid and gated by a scalar input, with one linear head for all targets."""

    exposes = ("gate",)

    def __init__(self, inputs: Sequence[Input], targets: Sequence[Target], width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(len(inputs[0].channels), width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()
        )
        self.gate = nn.Linear(16 * width + 1, 1)
        self.head = nn.Linear(16 * width + 1, sum(target.width for target in targets))

    def _parts(self, image: torch.Tensor, scalar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.cat([self.features(image), scalar], dim=1)
        return seen, torch.sigmoid(self.gate(seen))

    def forward(self, image: torch.Tensor, scalar: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) and (N, 1) → (N, Σ widths)."""
        seen, gate = self._parts(image, scalar)
        outputs: torch.Tensor = self.head(seen * gate)
        return outputs

    def exposed(self, image: torch.Tensor, scalar: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gate, (N,)."""
        return {"gate": self._parts(image, scalar)[1][:, 0]}


@MODELS.register("gated", source="this test")
def gated(inputs: Sequence[Input], targets: Sequence[Target], *, width: int = 8) -> nn.Module:
    """A small network with a picture and a scalar as inputs.

    Parameters
    ----------
    width : number of channels
    """
    return Gated(inputs, targets, width)


def masked(explanation: Array, image: Array, share: float) -> Array:
    """The image with the most relevant pixels set to grey."""
    relevance = np.abs(explanation).sum(axis=0)
    grey: Array = np.where(relevance >= np.quantile(relevance, 1 - share), 0.5, image)
    return grey


@metric("fall_when_masked", source="this test", direction="higher", range=(-np.inf, np.inf), level="probe")
def fall_when_masked(explanation: Array, image: Array, predict: Predict, *, share: float = 0.1) -> float:
    """Change of the explained scalar if the most relevant pixels are set to grey.

    Parameters
    ----------
    share : share of the pixels that are set to grey
    """
    before, after = predict(np.stack([image, masked(explanation, image, share)]))
    return float(abs(before - after))


@metric("score_when_masked", source="this test", direction="none", range=(-np.inf, np.inf), level="probe")
def score_when_masked(explanation: Array, image: Array, predict: Predict, *, share: float = 0.1) -> float:
    """The explained scalar if the most relevant pixels are set to grey.

    Parameters
    ----------
    share : share of the pixels that are set to grey
    """
    return float(predict(masked(explanation, image, share)[None])[0])


@metric(
    "auroc_when_masked",
    source="this test",
    direction="lower",
    range=(0, 1),
    level="pool",
    chance=0.5,
    needs=("score_when_masked", "target_label"),
)
def auroc_when_masked(columns: Columns) -> float:
    """Area under the ROC curve if the most relevant pixels are set to grey."""
    return classification.auroc(
        {"predicted_logit": columns["score_when_masked"], "target_label": columns["target_label"]}
    )


TASK = Task(
    name="portraits",
    version=1,
    question="Can one network tell age, smile and hair from a small portrait?",
    source=Source("this test", 2026),
    phantom=partial(portraits),
    phantom_subjects=18,
    cohort=partial(pictures),
    targets={
        "age": partial(number_column, column="age", loss_weight=0.001),
        "smile": partial(binary_column, column="smile", positive="yes"),
        "hair": partial(class_column, column="hair", classes=HAIR),
    },
    adapter=partial(pixels, covariates="height"),
    split=partial(stratified_k_fold, by="smile", folds=2, test=0.25),
    model=partial(gated),
    recipe=partial(supervised, epochs=4, batch_size=8, lr=0.01, balance="smile"),
    explanations={
        "saliency": Explanation(partial(saliency), combine="sum", keep="maps+sums"),
        "smiles": Explanation(partial(saliency), of="smile", samples="correct", chosen_by="smile", at_most=3),
        "gate": Explanation(partial(saliency), of="gate", combine="relevance_times_input"),
        "random": partial(random_map),
    },
    metrics={
        "target_score": partial(regression.target_score),
        "predicted_score": partial(regression.predicted_score),
        "r2": partial(regression.r2),
        "target_label": partial(classification.target_label),
        "predicted_logit": partial(classification.predicted_logit),
        "auroc": partial(classification.auroc),
        "brier": partial(classification.brier),
        "target_class": partial(classification.target_class),
        "predicted_class": partial(classification.predicted_class),
        "balanced_accuracy": partial(classification.balanced_accuracy),
        "relevance_ap": partial(localisation.relevance_ap),
        "fall_when_masked": partial(fall_when_masked),
        "score_when_masked": partial(score_when_masked),
        "auroc_when_masked": partial(auroc_when_masked),
        "inverted_logits": partial(inversion.inverted_logits),
        "random_inverted_logits": partial(inversion.random_inverted_logits),
        "inversion_area": partial(inversion.inversion_area),
        "random_inversion_area": partial(inversion.random_inversion_area),
        "auroc_without_inversion": partial(inversion.inverted_auroc, percent=0),
        "inverted_auroc": partial(inversion.inverted_auroc, percent=40),
        "masked_means": partial(inversion.masked_means),
        "covariate": partial(regression.covariate, name="age"),
        "masked_mean_correlation": partial(inversion.masked_mean_correlation, channel="red"),
        "masked_mean_p": partial(inversion.masked_mean_p, channel="red"),
    },
    objective="auroc",
    explanation_objective="fall_when_masked",
    axes={"width": "model.width"},
    columns=("model", "width"),
    shown=("auroc", "r2", "balanced_accuracy"),
    profiles={"quick": {}},
)
