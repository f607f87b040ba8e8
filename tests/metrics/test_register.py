"""Registration of metrics, and how metrics receive their inputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from harness.core.errors import RegistrationError, RequestError, UnknownName
from harness.core.registry import METRICS
from harness.core.types import Source
from harness.metrics import compute
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate, evaluate_ceiling, evaluate_chance, inputs_of, kinds_of, metric, options

FACTS = {"source": "a test", "direction": "higher", "range": (0, 1)}


@pytest.fixture(autouse=True)
def _registry_unchanged(monkeypatch):
    METRICS.names()
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))


def test_function_is_returned_unchanged():
    """The decorator registers the function and returns it unchanged."""

    def overlap(prediction, target):
        return 1.0

    assert metric("overlap", **FACTS)(overlap) is overlap
    assert METRICS.get("overlap").function is overlap


def test_facts_are_kept():
    """The entry contains direction, range, level, value for empty masks, chance level and inputs."""

    @metric("overlap", source=Source("Doe", 2020), direction="lower", range=(0, 2), empty="zero", chance=0.5)
    def overlap(target, brain=None, *, weight=1.0):
        return 1.0

    entry = METRICS.get("overlap")
    assert entry.source == "Doe 2020"
    assert dict(entry.facts) == {
        "direction": "lower",
        "range": (0, 2),
        "level": "subject",
        "empty": "zero",
        "chance": 0.5,
        "ceiling": None,
        "needs": (),
        "interval": True,
        "inputs": ("target", "brain"),
        "kinds": (),
        "fault": None,
        "several": False,
    }


def test_unknown_input_is_refused_with_suggestions():
    """A parameter that is not a metric input is refused, and the metric is not registered."""
    with pytest.raises(
        RegistrationError, match=r"'overlap' has the input `predicton`, which does not exist\. Near: predict"
    ):

        @metric("overlap", **FACTS)
        def overlap(predicton, target):
            return 1.0

    assert "overlap" not in METRICS.names()


def test_keyword_only_without_default_is_an_input():
    """A keyword-only parameter without a default must be a metric input."""
    with pytest.raises(
        RegistrationError, match=r"has the input `weight`.* An option must be keyword-only and have a default"
    ):

        @metric("overlap", **FACTS)
        def overlap(target, *, weight):
            return 1.0


def test_positional_with_default_must_be_an_input_too():
    """A positional parameter with a default must be a metric input, since options are keyword-only."""
    with pytest.raises(RegistrationError, match="has the input `weight`"):

        @metric("overlap", **FACTS)
        def overlap(target, weight=1.0):
            return 1.0


def test_star_arguments_are_refused():
    """Variable arguments are refused, since the inputs must follow from the signature."""
    with pytest.raises(RegistrationError, match=r"has \*arrays"):

        @metric("overlap", **FACTS)
        def overlap(**arrays):
            return 1.0


@pytest.mark.parametrize(
    ("level", "function", "asked"),
    [
        ("pool", lambda prediction: 0.0, "prediction"),
        ("subject", lambda columns: 0.0, "columns"),
        ("subject", lambda explanation: 0.0, "explanation"),
        ("explanation", lambda columns: 0.0, "columns"),
        ("probe", lambda columns: 0.0, "columns"),
        ("subject", lambda predict: 0.0, "predict"),
        ("explanation", lambda predict: 0.0, "predict"),
        ("pool", lambda predict: 0.0, "predict"),
        ("subject", lambda image: 0.0, "image"),
        ("explanation", lambda image: 0.0, "image"),
        ("pool", lambda image: 0.0, "image"),
    ],
)
def test_inputs_of_other_levels_are_refused(level, function, asked):
    """A metric may use only the inputs of its level: columns for pooled metrics, the network for probes."""
    with pytest.raises(
        RegistrationError, match=f"level '{level}' has the input `{asked}`, which is not available at that level"
    ):
        metric("overlap", level=level, **FACTS)(function)


def test_a_probe_runs_the_network_on_changed_images():
    """A probe metric may use image and network beside the inputs of an explanation metric."""

    @metric("fall", **FACTS, level="probe")
    def fall(explanation, image, predict, spacing_mm, *, share=0.5):
        before, after = predict(np.stack([image, image * share]))
        return (before - after) * explanation.sum() * spacing_mm[0]

    inputs = MetricInputs(
        explanation=np.ones((1, 1, 1, 2)),
        image=np.full((1, 1, 1, 2), 3.0),
        predict=lambda images: images.sum(axis=(1, 2, 3, 4)),
        spacing_mm=(2.0, 1.0, 1.0),
    )
    assert evaluate(partial(fall, share=0.25), inputs) == 4.5 * 2 * 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", ("mask",)),
        ("true_count", ("mask",)),
        ("icc_count", ("mask",)),
        ("target_score", ("number",)),
        ("r2", ("number",)),
        ("r2_ceiling", ("number",)),
        ("brier", ("binary",)),
        ("auroc", ("binary",)),
        ("accuracy", ("classes",)),
        ("balanced_accuracy", ("classes",)),
        ("relevance_ap", ("mask", "number", "binary", "classes")),
        ("cdc", ("mask", "number", "binary", "classes")),
    ],
)
def test_kinds_follow_from_the_inputs(name, expected):
    """A metric applies to the target kinds that supply all of its inputs or columns."""
    function = METRICS.get(name).function
    assert kinds_of(function) == kinds_of(partial(function)) == expected


def test_kinds_can_be_declared():
    """Declared kinds override those that follow from the inputs."""
    declared = metric("overlap", **FACTS, kinds=("binary", "classes"))(lambda rng: 0.0)
    assert kinds_of(declared) == ("binary", "classes")


def test_columns_of_different_kinds_have_no_kind():
    """A pooled metric with columns of different kinds applies to no kind."""
    mixed = metric("mixed", **FACTS, level="pool", needs=("target_score", "target_label"))(lambda columns: 0.0)
    assert kinds_of(mixed) == ()


def test_unknown_kinds_are_refused():
    """Unknown kinds are refused, and the message lists the valid ones."""
    with pytest.raises(RegistrationError, match="kinds must be among mask, number, binary, classes, got image"):
        metric("overlap", **FACTS, kinds=("image",))(lambda target: 0.0)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"direction": "up"}, "direction must be one of higher, lower, zero, none, got 'up'"),
        ({"range": (1, 0)}, r"`range\[0\] < range\[1\]` must hold"),
        ({"level": "voxel"}, "level must be one of subject, explanation, probe, pool, got 'voxel'"),
        ({"needs": ("true_count",)}, "only a pooled metric has columns"),
    ],
)
def test_invalid_facts_are_refused(facts, message):
    """Invalid facts are refused at registration."""
    with pytest.raises(RegistrationError, match=message):
        metric("overlap", **{**FACTS, **facts})(lambda target: 0.0)


def test_duplicate_name_is_refused_with_both_locations():
    """A second metric of the same name is refused, and the message shows both locations."""
    with pytest.raises(RegistrationError, match=r"two metrics are named 'dice': .*segmentation\.py.*test_register\.py"):
        metric("dice", **FACTS)(lambda target: 0.0)


def test_options_are_separated_from_inputs():
    """``inputs_of`` and ``options`` separate the inputs of a partial from its options."""
    part = partial(METRICS.get("auc").function, soft=True)
    assert inputs_of(part) == ("prediction", "target", "probability", "brain")
    assert options(part) == ("soft", "inside")


def test_partial_gives_options():
    """``evaluate`` passes on the options of a partial."""

    def scaled(target, *, factor=1.0):
        return factor * target.sum()

    assert evaluate(partial(scaled, factor=3.0), MetricInputs(target=np.ones((1, 1, 2)))) == 6.0


def test_optional_input_falls_back_to_its_default():
    """A missing optional input takes its default."""

    def asks_for_brain(target, brain=None):
        return 1.0 if brain is None else 2.0

    mask = np.ones((1, 1, 2), dtype=bool)
    assert evaluate(asks_for_brain, MetricInputs(target=mask)) == 1.0
    assert evaluate(asks_for_brain, MetricInputs(target=mask, brain=mask)) == 2.0


def test_required_keyword_input_is_passed_by_name():
    """Required inputs may be keyword-only."""

    def volume(*, target):
        return target.sum()

    assert evaluate(volume, MetricInputs(target=np.ones((1, 1, 2)))) == 2.0


def test_missing_input_is_named():
    """A missing input raises an error that names it and the remedy."""
    with pytest.raises(RequestError, match=r"metric dice needs `target` .* pass target=…"):
        compute("dice", prediction=np.ones((2, 2, 2)))


def test_missing_lesions_name_their_sources():
    """Missing lesions raise an error that names the inputs from which they are computed."""
    with pytest.raises(RequestError, match=r"needs `target_lesions` .* pass spacing_mm$"):
        compute("true_count", target=np.ones((2, 2, 2)))


def test_compute_takes_inputs_and_options():
    """``compute`` separates inputs from options."""
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = True
    moved = np.roll(mask, 2, axis=0)
    given = {"prediction": moved, "target": mask, "spacing_mm": (1, 1, 1)}
    assert compute("sensitivity", **given, tolerance_mm=1.5) == 0
    assert compute("sensitivity", **given, tolerance_mm=2) == 1


def test_compute_refuses_unknown_keywords():
    """``compute`` refuses an unknown keyword with suggestions."""
    with pytest.raises(UnknownName, match=r"named 'tolerence_mm'\. Near: tolerance_mm"):
        compute("sensitivity", tolerence_mm=3)


def test_compute_refuses_derived_lesions():
    """``compute`` refuses lesions, which are computed from the mask."""
    with pytest.raises(UnknownName, match="target_lesions"):
        compute("true_count", target_lesions=None)


def test_compute_refuses_unknown_metrics():
    """``compute`` refuses an unknown metric with suggestions."""
    with pytest.raises(UnknownName, match=r"no metric is named 'dise'\. Near: dice"):
        compute("dise")


def test_pooled_metrics_are_computed_from_columns():
    """``compute`` evaluates pooled metrics on columns."""
    columns = {"true_count": np.array([1.0, 2.0]), "predicted_count": np.array([2.0, 4.0])}
    assert compute("count_bias", columns=columns) == 1.5


def test_chance_is_a_constant_or_another_metric(blobs, spacing_mm):
    """A chance level is a constant or another metric, which receives the options that it has."""
    inputs = MetricInputs(prediction=blobs(0), target=blobs(1), spacing_mm=spacing_mm, rng=np.random.default_rng(0))
    near, far = (
        evaluate_chance(partial(METRICS.get("sensitivity").function, tolerance_mm=mm), inputs) for mm in (1.5, 5.0)
    )
    assert 0 < near < far < 1
    assert evaluate_chance(METRICS.get("auc").function, inputs) == 0.5
    assert np.isnan(evaluate_chance(METRICS.get("dice").function, inputs))


def test_ceiling_is_a_constant_or_another_metric():
    """A ceiling is a constant, another metric with the options that it has, or NaN."""

    @metric("highest", source="", direction="none", range=(0, 9))
    def highest(target, *, weight=1.0):
        return weight * target.sum()

    part = metric("bounded", **FACTS, ceiling="highest")(lambda target, *, weight=1.0, other=2.0: 0.0)
    inputs = MetricInputs(target=np.ones((1, 1, 2)))
    assert evaluate_ceiling(partial(part, weight=3.0, other=1.0), inputs) == 6.0
    constant = metric("constant", **FACTS, ceiling=0.75)(lambda target, brain=None: 0.0)
    assert evaluate_ceiling(constant, inputs) == 0.75
    assert np.isnan(evaluate_ceiling(METRICS.get("dice").function, inputs))
