"""``profile=paper`` has the sizes, epochs, folds and preparation of the papers, and can be run."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import harness
from harness.cli.api import LIMIT_S
from harness.core.errors import RequestError
from harness.core.seeding import generator
from harness.core.space import grid
from harness.core.targets import Target
from harness.core.task import Task, describe
from harness.core.types import Input, SplitSample
from harness.metrics.inversion import PERCENTS
from harness.recipes.recipe import Batch
from harness.simulation.ms import ms_phantom
from harness.sweep.grammar import parse
from harness.sweep.grid import at
from harness.sweep.plan import Plan, Request, prepare
from harness.sweep.request import resolve

# One subject each for test, validation and training, with an axis that ends outside the brain.
SMALL = ("phantom_subjects=3", "phantom.shape=[16,176,8]")


def request_of(*overrides: str) -> Request:
    """The request of overrides with the paper profile."""
    return resolve(parse([*overrides, "profile=paper"]), texts=overrides)


def options(task: Task) -> dict[str, Any]:
    """All options of a task's components."""
    return describe(task)


def samples(count: int) -> list[SplitSample]:
    """Subjects with one sample each."""
    return [SplitSample(name, name) for name in (f"sub-{number:04d}" for number in range(count))]


def folds(task: Task) -> int:
    """Number of folds for as many subjects as the task generates."""
    return len(task.split(samples(task.phantom_subjects), seed=0).folds)


@pytest.fixture(scope="module")
def epvs_paper() -> Request:
    """The request of the published ablation."""
    return request_of("task=epvs")


class TestEpvs:
    """The sequence ablation of the ePVS paper."""

    def test_eight_sets_21_folds_three_seeds(self, epvs_paper: Request) -> None:
        """Eight sets and 21 folds give 168 published trainings, with three seeds each."""
        assert len(epvs_paper.axes["sequences"]) == 8
        assert folds(epvs_paper.task) == 21
        assert epvs_paper.seeds == (0, 1, 2)

    def test_16_train_and_4_validate(self, epvs_paper: Request) -> None:
        """Of the 20 subjects outside the test set, 16 train and 4 validate."""
        drawn = epvs_paper.task.split(samples(21), seed=0).folds
        assert {(len(one.train), len(one.validation), len(one.test)) for one in drawn} == {(16, 4, 1)}

    def test_recipe(self, epvs_paper: Request) -> None:
        """Adam 1e-3, batch size 32, 30 epochs, best validation mean IoU, 398 balanced copies of each slice."""
        recipe = options(epvs_paper.task)["recipe"]
        expected = {
            "optimiser": "adam", "lr": 1e-3, "weight_decay": 0.0, "batch_size": 32, "epochs": 30, "select": "mean_iou",
            "copies": 398, "balance": True, "augmentation": "published", "max_angle_deg": 16.0, "max_shift_px": 45.0,
            "lesion_weight": 1.0,
        }  # fmt: skip
        assert {key: recipe[key] for key in expected} == expected

    def test_an_epoch_has_23_880_slices(self, epvs_paper: Request) -> None:
        """An epoch has 60 slices times 398, as in the paper: 30 with a lesion and as many without."""
        targets = np.zeros((100, 4, 4), np.int64)
        targets[:30, 1, 1] = 1
        assert len(epvs_paper.task.recipe().sample(generator(0, "test"), {"target": targets})) == 23_880

    def test_preparation(self, epvs_paper: Request) -> None:
        """Images are reoriented, bias-corrected, skull-stripped and z-scored at the resolution of the label."""
        cohort = options(epvs_paper.task)["cohort"]
        assert (cohort["reorient"], cohort["n4"], cohort["skull_strip"]) == (True, True, True)
        assert (cohort["normalise"], list(cohort["spacing_mm"]), cohort["crop"]) == ("zscore", [], "none")

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_31_109_954_parameters(self, epvs_paper: Request, channels: int) -> None:
        """The network has 31,109,954 parameters, and 288 more for each further sequence."""
        network = epvs_paper.task.model(channels, 2)
        assert sum(one.numel() for one in network.parameters()) == 31_109_954 + 288 * (channels - 1)

    def test_widths_and_depth(self, epvs_paper: Request) -> None:
        """Five levels have 32 to 512 channels, and the centre has 1024."""
        network = epvs_paper.task.model(4, 2)
        widths = {one.out_channels for one in network.modules() if isinstance(one, torch.nn.Conv2d)}
        assert widths == {32, 64, 128, 256, 512, 1024, 2}

    def test_one_step_on_slices_of_published_size(self, epvs_paper: Request) -> None:
        """One step on two augmented slices of 176 × 208 with four channels changes every weight."""
        torch.manual_seed(0)
        recipe, network = epvs_paper.task.recipe(), epvs_paper.task.model(4, 2)
        inputs, targets = torch.randn(2, 4, 176, 208), torch.zeros(2, 176, 208, dtype=torch.int64)
        targets[:, 80:84, 100:103] = 1
        before = {name: one.detach().clone() for name, one in network.named_parameters()}
        optimiser = recipe.optimiser(list(network.parameters()))
        batch = recipe.augment(generator(0, "test"), Batch((inputs,), {"target": targets}))
        outputs = network(*batch.inputs)
        assert outputs.shape == (2, 2, 176, 208)
        loss = recipe.loss({"target": outputs}, batch, [Target("target", "mask")])
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)
        stayed = [name for name, one in network.named_parameters() if torch.equal(one.detach(), before[name])]
        assert stayed == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The published plan and preparation on three small generated subjects."""
    return prepare(request_of("task=epvs", *SMALL, f"out={tmp_path_factory.mktemp('paper') / 'out'}"))


class TestEpvsPrepared:
    """The published preparation of images."""

    def test_skull_is_stripped_and_the_brain_is_scaled(self, prepared: Plan) -> None:
        """Images are zero outside the brain, with mean 0 and standard deviation 1 inside."""
        sample = prepared.cohort.samples[0]
        brain = sample.masks["brain"].load()
        assert 0.2 < brain.mean() < 1
        assert sorted(sample.images) == ["FLAIR", "SWI", "T1w", "T2w"]
        for image in sample.images.values():
            values = image.load()
            assert values.shape == brain.shape == (16, 176, 8)
            assert not values[~brain].any()
            np.testing.assert_allclose([values[brain].mean(), values[brain].std()], [0, 1], atol=1e-3)

    def test_n4_changes_the_images_and_nothing_else(self, prepared: Plan) -> None:
        """N4 changes the images and not the masks."""
        overrides = (*SMALL, f"out={prepared.request.settings.folder}", "cohort.n4=false")
        ours, plain = prepared.cohort.samples[0], prepare(request_of("task=epvs", *overrides)).cohort.samples[0]
        assert [
            name for name in ours.images if not np.abs(ours.images[name].load() - plain.images[name].load()).any()
        ] == []
        for name, mask in ours.masks.items():
            np.testing.assert_array_equal(mask.load(), plain.masks[name].load())

    def test_three_subjects_of_the_grid_are_72_trainings(self, prepared: Plan) -> None:
        """Eight sets, three folds and three seeds give 72 trainings."""
        assert len(prepared.jobs) == 8 * 3 * 3

    def test_the_run_stops_with_its_estimate(self, prepared: Plan) -> None:
        """The run with 398 copies and 30 epochs needs ``yes=true``, even for three small subjects."""
        out = prepared.request.settings.folder
        overrides = {"phantom_subjects": 3, "phantom__shape": "[16,176,8]"}
        pattern = r"this run would take about ([\d.]+) (hours|days) on .*Set yes=true to start it anyway"
        with pytest.raises(RequestError, match=pattern) as refused:
            harness.run(task="epvs", profile="paper", **overrides, ray="off", mlflow="off", out=str(out))
        match = re.search(pattern, str(refused.value))
        assert match is not None
        assert float(match[1]) * {"hours": 3600, "days": 86400}[match[2]] >= LIMIT_S == 12 * 3600
        assert not Path(out / "store").exists() and not Path(out / "leaderboards").exists()


# Epochs of the CNN study by experiment and model.
EPOCHS = {
    ("single", "cnn"): 60,
    ("multi", "cnn"): 70,
    ("multi", "residual_cnn"): 90,
    ("noise", "cnn"): 90,
    ("noise", "residual_cnn"): 110,
    ("intercorrelation", "cnn"): 70,
}
CNN_STUDY = ("single", "multi", "noise", "intercorrelation")


def points(experiment: str) -> list[Task]:
    """The task at every point of an experiment."""
    request = request_of("task=lsm", f"experiment={experiment}")
    assert request.seeds == (0,)
    return [at(request.task, point) for point in grid(request.axes)]


class TestLsm:
    """Lesion-symptom mapping as in both papers."""

    def test_17_configurations_of_5_folds_are_85_trainings(self) -> None:
        """One single, two multi, ten noisy and four intercorrelated configurations with 5 folds give 85 trainings."""
        counts = {name: [folds(task) for task in points(name)] for name in CNN_STUDY}
        assert {name: len(found) for name, found in counts.items()} == {
            "single": 1, "multi": 2, "noise": 10, "intercorrelation": 4,
        }  # fmt: skip
        assert sum(sum(found) for found in counts.values()) == 85

    def test_all_821_subjects_outside_the_test_fold_train(self) -> None:
        """All 821 subjects outside the test fold train, without validation, and the last epoch is used."""
        (task,) = points("single")
        drawn = task.split(samples(821), seed=0).folds
        assert {(len(one.train) + len(one.test), len(one.validation)) for one in drawn} == {(821, 0)}
        assert options(task)["recipe"]["select"] == "last"

    @pytest.mark.parametrize("experiment", CNN_STUDY)
    def test_cnn_study(self, experiment: str) -> None:
        """AdamW 1e-3, decay .01, batch 4, the epochs; 1 mm, regions of 5³, window 5, stride 3, 30 noisy samples."""
        for task in points(experiment):
            made = options(task)
            recipe, phantom = made["recipe"], made["phantom"]
            assert recipe["epochs"] == EPOCHS[experiment, made["model"]["use"]]
            found = (recipe["optimiser"], recipe["lr"], recipe["weight_decay"], recipe["batch_size"])
            assert found == ("adamw", 1e-3, 0.01, 4)
            assert recipe["lr_drop_epoch"] == 0
            assert (made["phantom_subjects"], phantom["spacing_mm"]) == (821, 1.0)
            assert list(phantom["shape"]) == [152, 179, 142] and list(made["cohort"]["spacing_mm"]) == []
            assert (made["targets"]["scores"]["size"], made["targets"]["scores"]["rois"]) == (5, 3)
            explained = made["attributions"]
            assert (explained["occlusion"]["window"], explained["occlusion"]["stride"]) == (5, 3)
            assert (explained["gradient_shap"]["samples"], explained["gradient_shap"]["noise"]) == (30, 0.01)

    def test_published_kernels_and_parameters(self) -> None:
        """At the published size, the CNN has 5,074,453 weights for three scores, the residual one 2,254,053."""
        counted = {
            options(task)["model"]["use"]: sum(one.numel() for one in task.model(1, 3).parameters())
            for task in points("multi")
        }
        assert counted == {"cnn": 5_074_453, "residual_cnn": 2_254_053}

    def test_noise_and_intercorrelation_levels(self) -> None:
        """Noise levels are .1 to .5 for both models, and intercorrelations .6 to .9 for the CNN."""
        noisy = {(one["model"]["use"], one["targets"]["scores"]["noise"]) for one in map(options, points("noise"))}
        assert noisy == {(model, a) for model in ("cnn", "residual_cnn") for a in (0.1, 0.2, 0.3, 0.4, 0.5)}
        mixed = {
            (one["targets"]["scores"]["design"], one["targets"]["scores"]["b"])
            for one in map(options, points("intercorrelation"))
        }
        assert mixed == {("intercorrelation", b) for b in (0.6, 0.7, 0.8, 0.9)}

    def test_resnet10_study(self) -> None:
        """Four trainings: Adam 1e-5 for 100 epochs, then 1e-6, at 1.67 mm, regions and windows of 8³, one split."""
        tasks = points("resnet10")
        assert [folds(task) for task in tasks] == [1, 1, 1, 1]
        chosen = [options(task)["adapter"]["scores"] for task in tasks]
        assert chosen == ["score_1", "score_2", "score_3", "score_1+score_2+score_3"]
        for made in map(options, tasks):
            recipe = made["recipe"]
            assert made["model"]["use"] == "resnet10"
            assert (recipe["optimiser"], recipe["lr"], recipe["weight_decay"], recipe["batch_size"]) == (
                "adam",
                1e-5,
                0,
                4,
            )
            assert (recipe["epochs"], recipe["select"]) == (200, "validation_loss")
            assert list(made["cohort"]["spacing_mm"]) == [1.67, 1.67, 1.65]
            assert made["targets"]["scores"]["size"] == 8
            occlusion, shap = made["attributions"]["occlusion"], made["attributions"]["gradient_shap"]
            assert (occlusion["window"], occlusion["stride"]) == (8, 4)
            assert (shap["samples"], shap["noise"]) == (5, 0.0)
        recipe = tasks[0].recipe()
        assert [1e-5 * recipe.lr_factor(epoch) for epoch in (1, 100, 101, 200)] == pytest.approx(
            [1e-5, 1e-5, 1e-6, 1e-6]
        )

    def test_resnet10_split(self) -> None:
        """The split is 60, 20 and 20 % of 822 subjects."""
        drawn = points("resnet10")[0].split(samples(822), seed=0).folds
        assert [(len(one.train), len(one.validation), len(one.test)) for one in drawn] == [(493, 164, 165)]


MS_LRP = {
    f"{start}_{rule}{combined}"
    for start in ("aw", "f")
    for rule in ("proposal", "all")
    for combined in ("", "_combined")
}


@pytest.fixture(scope="module")
def ms_paper() -> Request:
    """The request of the twelve scenarios of the MS study."""
    return request_of("task=ms", "experiment=scenarios", "shuffled=false")


class TestMs:
    """Disability in multiple sclerosis."""

    def test_cohort(self, ms_paper: Request) -> None:
        """166 patients, 66 with a second visit, 40 with an EDSS of 5 or more at the first; 96 × 96 × 112 voxels."""
        made = options(ms_paper.task)
        phantom = made["phantom"]
        assert (made["phantom_subjects"], phantom["patients"], phantom["second_visits"]) == (166, 166, 66)
        assert sorted(phantom["shape"]) == [96, 96, 112]
        small = partial(ms_phantom, shape=(12, 12, 12))
        visits = [small(0, number) for number in range(166)]
        assert sum(len(one) for one in visits) == 232
        assert sum(one[0].covariates["edss"] >= 5 for one in visits) == 40

    def test_split(self, ms_paper: Request) -> None:
        """A held-out test set of a fifth, and three folds stratified by the label."""
        split = options(ms_paper.task)["split"]
        assert (split["use"], split["folds"], split["test"], split["by"]) == ("stratified_k_fold", 3, 0.2, "severe")

    def test_inputs_and_label(self, ms_paper: Request) -> None:
        """qT1 up to 2500 ms, MWF up to 30 % and NDI in [0, 1], age / 100; EDSS ≥ 5, weight 2 − |EDSS − 5| / 5."""
        made = options(ms_paper.task)
        adapter, severe = made["adapter"], made["targets"]["severe"]
        assert (adapter["channels"], adapter["scale"]) == ("qT1+MWF+NDI", "qT1:2500+MWF:0.3")
        assert (adapter["covariates"], adapter["covariate_scale"], made["cohort"]["normalise"]) == (
            "age",
            100.0,
            "none",
        )
        assert (severe["column"], severe["at_least"], severe["weight_span"]) == ("edss", 5.0, 5.0)

    def test_464_463_parameters(self, ms_paper: Request) -> None:
        """An encoder has 154,452 parameters, and the network 464,463."""
        inputs = [Input("image", ("qT1", "MWF", "NDI"), (96, 96, 112)), Input("age", ("age",), (), explained=False)]
        counted = [
            sum(one.numel() for one in ms_paper.task.model(chosen, [Target("severe", "binary")]).parameters())
            for chosen in (inputs, [replace(inputs[0], channels=("qT1", "MWF")), inputs[1]])
        ]
        assert counted == [464_463, 464_463 - 154_452]

    def test_network(self, ms_paper: Request) -> None:
        """Four blocks after a stem with stride 1, flattened to 32 features, 16 gated units, compression one half."""
        model = options(ms_paper.task)["model"]
        expected = {
            "use": "attention_densenet", "fusion": "gated", "blocks": 4, "stem_stride": 1, "pooling": "flatten",
            "compression": 0.5, "features": 32, "hidden": 16,
        }  # fmt: skip
        assert {key: model[key] for key in expected} == expected

    def test_recipe(self, ms_paper: Request) -> None:
        """Batch 70, AdamW 5e-5, decay .01, flips, quarter turns, noise .2, ±30°, ±10 %, balanced, best AUC."""
        recipe = options(ms_paper.task)["recipe"]
        expected = {
            "batch_size": 70, "lr": 5e-5, "weight_decay": 0.01, "flips": True, "quarter_turns": True, "noise": 0.2,
            "angle_deg": 30.0, "scaling": 0.1, "balance": "severe", "select": "auc", "epochs": 300, "patience": 50,
        }  # fmt: skip
        assert {key: recipe[key] for key in expected} == expected

    def test_twelve_scenarios(self, ms_paper: Request) -> None:
        """Eight maps of LRP with ε = 1e-8, α1β0 and z^B on [0, 1], no biases; saliency, and IG with 50 steps."""
        explained = options(ms_paper.task)["attributions"]
        assert {*MS_LRP, "aw_saliency", "f_saliency", "aw_ig", "f_ig"} <= set(explained)
        for name in (*MS_LRP, "f_proposal_absolute"):
            one = explained[name]
            assert (one["epsilon"], one["composite"], one["bias"]) == (1e-8, "alpha1beta0_box", False), name
            assert (one["low"], one["high"], one["product"]) == (0.0, 1.0, "all" if "_all" in name else "proposal")
        assert {explained[name]["steps"] for name in ("aw_ig", "f_ig")} == {50}

    def test_what_is_explained(self, ms_paper: Request) -> None:
        """Maps start from each contrast's own weight or from the output; four sum relevance × contrast."""
        named = ms_paper.task.explanations
        assert {name for name in MS_LRP if named[name].of == "attention:own"} == {
            name for name in MS_LRP if name.startswith("aw")
        }
        combined = {name for name in MS_LRP if named[name].combine == "relevance_times_input"}
        assert combined == {name for name in MS_LRP if name.endswith("_combined")}

    def test_metrics(self, ms_paper: Request) -> None:
        """Masks of 30, 40 and 50 % for ρ, 20,000 permutations, and AUC from 0 to 100 % inverted voxels."""
        made = options(ms_paper.task)["metrics"]
        for channel in ("qT1", "MWF", "NDI"):
            assert {made[f"rho_{channel}_{percent}"]["percent"] for percent in (30, 40, 50)} == {30, 40, 50}
            found = made[f"p_{channel}_40"]
            assert (found["channel"], found["percent"], found["permutations"]) == (channel, 40, 20_000)
        assert {0, 100} < {made[name]["percent"] for name in made if name.startswith("inverted_auroc_")}
        assert tuple(range(5, 101, 5)) == PERCENTS


class TestFaces:
    """The sanity study on faces."""

    def test_four_networks_of_the_published_size(self) -> None:
        """Three networks with one output and one with three, of 64 to 512 channels and 512 hidden units."""
        request = request_of("task=faces")
        assert request.axes["predicted"] == ("age", "sex", "ethnicity", "age+sex+ethnicity")
        model = options(request.task)["model"]
        assert (model["use"], model["width"], model["hidden"], model["weights"]) == ("resnet18", 64, 512, None)

    def test_recipe(self) -> None:
        """Adam 1e-4, batch size 16, at most 30 epochs, lowest validation loss, equal weights."""
        made = options(request_of("task=faces").task)
        recipe = made["recipe"]
        assert (recipe["optimiser"], recipe["lr"], recipe["batch_size"], recipe["epochs"]) == ("adam", 1e-4, 16, 30)
        assert (recipe["select"], recipe["weight_decay"], recipe["balance"]) == ("validation_loss", 0, "")
        assert {one["loss_weight"] for one in made["targets"].values()} == {1.0}

    def test_explanations(self) -> None:
        """Squared SmoothGrad over 10 samples with an SD of .1; windows of 15 pixels in all channels, stride 8."""
        made = options(request_of("task=faces").task)["attributions"]
        for method, given in (("gradient_shap", {"samples": 5}), ("integrated_gradients", {"steps": 50})):
            one = made[method]
            assert (one["method"], one["options"], one["kind"]) == (method, given, "mean_square")
            assert (one["samples"], one["noise"]) == (10, 0.1)
        occlusion = made["occlusion"]
        assert (occlusion["window"], occlusion["stride"], occlusion["per_channel"]) == (15, 8, False)

    def test_data(self, tmp_path: Path) -> None:
        """9,000 faces of 200×200 pixels, split into 60, 20 and 20 %; of real data, 9,000 are drawn."""
        task = request_of("task=faces").task
        assert (task.phantom_subjects, options(task)["phantom"]["size"]) == (9000, 200)
        drawn = task.split(samples(9000), seed=0).folds
        assert [(len(one.train), len(one.validation), len(one.test)) for one in drawn] == [(5400, 1800, 1800)]
        cohort = options(request_of("task=faces", f"data={tmp_path}").task)["cohort"]
        assert (cohort["use"], cohort["images"], cohort["side"]) == ("utkface", 9000, 0)
