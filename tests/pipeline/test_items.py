"""Items of samples give the same batches in memory, memory-mapped or read one by one."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.adapters.axial_slices import AxialSlices
from harness.core.targets import Target
from harness.core.task import Task
from harness.core.types import Cohort, Input, NetworkSpec, Sample
from harness.pipeline import items as module
from harness.pipeline.items import Items, batches, open_items
from harness.recipes.recipe import Batch

SLICES = AxialSlices(("T2w", "FLAIR"))

Opened = Callable[..., Any]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Opened:
    """A context manager that opens items, in memory or, with a memory limit of zero, from files."""

    @contextmanager
    def items(adapter: Any, cohort: Cohort, spec: NetworkSpec, *, held: bool) -> Iterator[Items]:
        with monkeypatch.context() as patch:
            if not held:
                patch.setattr(module, "HELD_BYTES", 0)
            with open_items(adapter, cohort.samples, spec) as found:
                yield found

    return items


def all_batches(items: Items, order: Any, size: int = 4) -> list[Batch]:
    """All batches of items in the given order."""
    return [batch for _, batch in batches(items, np.asarray(order), size)]


def same(one: Batch, two: Batch) -> bool:
    """Whether two batches have equal tensors of equal types and memory layout."""
    pairs = [*zip(one.inputs, two.inputs, strict=True)]
    for left, right in ((one.targets, two.targets), (one.weights, two.weights)):
        assert list(left) == list(right)
        pairs += [(left[name], right[name]) for name in left]
    return all(a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b) for a, b in pairs)


class TestSlices:
    """Samples with several items and different sizes."""

    @pytest.fixture
    def spec(self, toy_cohort: Cohort) -> NetworkSpec:
        """A spec with two input channels and a mask target."""
        return SLICES.spec(toy_cohort)

    def test_items_are_all_padded_slices(self, opened: Opened, toy_cohort: Cohort, spec: NetworkSpec) -> None:
        """Items are all slices of all samples, padded with zeros at the end of each axis."""
        with opened(SLICES, toy_cohort, spec, held=True) as items:
            assert len(items) == 6 + 6 + 5 + 6 and items.shapes == ((2, 16, 16),)
            found = [items[number] for number in range(len(items))]
        number = 0
        for sample in toy_cohort.samples:
            x, y, z = sample.shape
            for level in range(z):
                batch = found[number]
                expected = np.zeros((1, 2, 16, 16), np.float32)
                expected[0, :, :x, :y] = [sample.images[name].load()[:, :, level] for name in ("T2w", "FLAIR")]
                labels = np.zeros((1, 16, 16), np.int64)
                labels[0, :x, :y] = sample.masks["target"].load()[:, :, level]
                assert np.array_equal(batch.inputs[0].numpy(), expected)
                assert np.array_equal(batch.targets["target"].numpy(), labels)
                number += 1

    @pytest.mark.parametrize("order", [range(23), [22, 0, 7, 7, 3], [5]])
    def test_packed_items_give_the_same_batches(
        self, opened: Opened, toy_cohort: Cohort, spec: NetworkSpec, order: Any
    ) -> None:
        """Batches from a memory-mapped file equal those from memory, in any order and with repeats."""
        with opened(SLICES, toy_cohort, spec, held=True) as items:
            expected = all_batches(items, order)
        with opened(SLICES, toy_cohort, spec, held=False) as items:
            found = all_batches(items, order)
        assert len(found) == len(expected) and all(map(same, found, expected))

    def test_files_of_packed_items_are_removed(
        self, opened: Opened, toy_cohort: Cohort, spec: NetworkSpec, temporary: Path
    ) -> None:
        """Memory-mapped files are removed after use, also after an exception."""
        with pytest.raises(ZeroDivisionError), opened(SLICES, toy_cohort, spec, held=False) as items:
            files = [path for path in temporary.rglob("*") if path.is_file()]
            assert len(files) == 2
            assert sum(path.stat().st_size for path in files) > 23 * 16 * 16 * (2 * 4 + 8)
            assert isinstance(items.targets["target"], np.memmap)
            raise ZeroDivisionError
        assert list(temporary.iterdir()) == []

    def test_items_in_memory_need_no_file(
        self, opened: Opened, toy_cohort: Cohort, spec: NetworkSpec, temporary: Path
    ) -> None:
        """Items that fit into memory are not written to files."""
        with opened(SLICES, toy_cohort, spec, held=True) as items:
            assert len(items) == 23 and list(temporary.iterdir()) == []

    def test_slices_have_the_weight_of_their_sample(
        self, opened: Opened, toy_cohort: Cohort, spec: NetworkSpec
    ) -> None:
        """Each slice has the weight of its sample, which is 1 by default."""
        first = dataclasses.replace(toy_cohort.samples[0], weights={"target": 0.5})
        cohort = dataclasses.replace(toy_cohort, samples=(first, *toy_cohort.samples[1:]))
        for held in (True, False):
            with opened(SLICES, cohort, spec, held=held) as items:
                weights = torch.cat([batch.weights["target"] for batch in all_batches(items, range(23))])
            assert weights.dtype == torch.float32
            assert weights.tolist() == [0.5] * 6 + [1.0] * 17


class TestPictures:
    """Samples with one item each, a scalar input and several targets."""

    def test_pictures_read_batch_by_batch_give_the_same_batches(
        self, opened: Opened, study: Task, crowd: Cohort, crowd_spec: NetworkSpec, temporary: Path
    ) -> None:
        """Batches of pictures that are read when needed equal those from memory, and no file is written."""
        adapter, order = study.adapter(), [*reversed(range(24)), 3, 3]
        with opened(adapter, crowd, crowd_spec, held=True) as items:
            expected = all_batches(items, order)
        with opened(adapter, crowd, crowd_spec, held=False) as items:
            assert items.shapes == ((3, 16, 16), (1,))
            found = all_batches(items, order)
            assert list(temporary.iterdir()) == []
        assert len(found) == len(expected) == 7 and all(map(same, found, expected))

    def test_a_picture_is_read_only_when_it_is_in_a_batch(
        self, opened: Opened, study: Task, crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """A picture is read only when its batch is requested."""
        read: list[str] = []
        adapter = study.adapter()

        class RecordingAdapter:
            """An adapter that records which samples are read."""

            def inputs(self, sample: Any) -> Any:
                read.append(sample.id)
                return adapter.inputs(sample)

            def targets(self, sample: Any, targets: Any) -> Any:
                return adapter.targets(sample, targets)

        with opened(RecordingAdapter(), crowd, crowd_spec, held=False) as items:
            read.clear()
            first = next(batches(items, np.array([5, 2]), 2))
            assert read == [crowd.samples[5].id, crowd.samples[2].id]
        assert first[0].tolist() == [5, 2]

    def test_pictures_of_different_size_are_padded(
        self, opened: Opened, study: Task, crowd: Cohort, crowd_spec: NetworkSpec, in_memory: Callable[..., Any]
    ) -> None:
        """Pictures of different sizes are padded to a common size."""
        small = in_memory(crowd.samples[1].images["rgb"].load()[:12, :9])
        samples = (crowd.samples[0], dataclasses.replace(crowd.samples[1], images={"rgb": small}))
        cohort = dataclasses.replace(crowd, samples=samples)
        image = dataclasses.replace(crowd_spec.inputs[0], shape=())
        spec = dataclasses.replace(crowd_spec, inputs=(image, *crowd_spec.inputs[1:]))
        for held in (True, False):
            with opened(study.adapter(), cohort, spec, held=held) as items:
                (batch,) = all_batches(items, [0, 1])
            assert batch.inputs[0].shape == (2, 3, 16, 16)
            expected = np.moveaxis(small.load(), -1, 0) / np.float32(255)
            assert np.array_equal(batch.inputs[0][1, :, :12, :9].numpy(), expected.astype(np.float32))
            assert not batch.inputs[0][1, :, 12:].any() and not batch.inputs[0][1, :, :, 9:].any()

    def test_weights_of_samples_by_target(
        self, opened: Opened, study: Task, crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """A target has weights only if one of them differs from 1."""
        samples = list(crowd.samples)
        samples[2] = dataclasses.replace(samples[2], weights={"smile": 3.0, "hair": 1.0, "other": 9.0})
        cohort = dataclasses.replace(crowd, samples=tuple(samples))
        for held in (True, False):
            with opened(study.adapter(), cohort, crowd_spec, held=held) as items:
                batch = all_batches(items, range(4))[0]
            assert {name: one.tolist() for name, one in batch.weights.items()} == {"smile": [1.0, 1.0, 3.0, 1.0]}

    def test_kinds_of_targets_have_their_types(
        self, opened: Opened, study: Task, crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """Class labels are int64, as cross-entropy requires; numbers and binary labels are float32."""
        with opened(study.adapter(), crowd, crowd_spec, held=True) as items:
            batch = items[0]
        types = {name: (one.dtype, tuple(one.shape)) for name, one in batch.targets.items()}
        assert types == {
            "age": (torch.float32, (1,)),
            "smile": (torch.float32, (1,)),
            "hair": (torch.int64, (1,)),
        }


class VolumeAdapter:
    """An adapter with one volume per sample, which predicts a mask and a number."""

    def inputs(self, sample: Sample) -> tuple[Any, ...]:
        """The T2w image."""
        return (sample.images["T2w"].load()[None, None],)

    def targets(self, sample: Sample, targets: Any) -> dict[str, Any]:
        """The mask, and the number of its voxels."""
        mask = sample.masks["target"].load()
        return {"target": mask[None].astype(np.int64), "count": np.array([mask.sum()], np.float32)}


class TestVolumes:
    """Samples with one item each, a mask as target and different sizes."""

    SPEC = NetworkSpec((Input("T2w", ("T2w",)),), (Target("target", "mask"), Target("count", "number")))

    def test_volumes_read_batch_by_batch_give_the_same_batches(self, opened: Opened, toy_cohort: Cohort) -> None:
        """Batches of volumes that are read when needed equal those from memory, in any order."""
        order = [3, 0, 2, 2, 1]
        with opened(VolumeAdapter(), toy_cohort, self.SPEC, held=True) as items:
            expected = all_batches(items, order, 2)
        with opened(VolumeAdapter(), toy_cohort, self.SPEC, held=False) as items:
            found = all_batches(items, order, 2)
        assert len(found) == len(expected) == 3 and all(map(same, found, expected))

    def test_masks_of_volumes_are_not_held_in_memory(self, opened: Opened, toy_cohort: Cohort, temporary: Path) -> None:
        """The masks of volumes lie in a memory-mapped file, which is removed after use; images are in no file."""
        with opened(VolumeAdapter(), toy_cohort, self.SPEC, held=False) as items:
            assert all(isinstance(one, np.memmap) for one in items.targets.values())
            size = sum(path.stat().st_size for path in temporary.rglob("*.npy"))
            assert 4 * 16 * 16 * 6 * 8 < size < 4 * 16 * 16 * 6 * 9
        assert list(temporary.iterdir()) == []


class TestBatches:
    """The batch loader."""

    @pytest.fixture
    def items(self, study: Task, crowd: Cohort, crowd_spec: NetworkSpec) -> Iterator[Items]:
        """Twenty-four pictures."""
        with open_items(study.adapter(), crowd.samples, crowd_spec) as found:
            yield found

    @pytest.mark.parametrize(
        ("count", "size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 8, [3]), (3, 1, [1] * 3)]
    )
    def test_only_the_last_batch_may_be_smaller(self, items: Items, count: int, size: int, sizes: list[int]) -> None:
        """Every item of the order is in one batch, and only the last batch may be smaller."""
        order = np.arange(24)[::-1][:count]
        found = list(batches(items, order, size))
        assert [len(chosen) for chosen, _ in found] == sizes
        assert np.concatenate([chosen for chosen, _ in found]).tolist() == order.tolist()
        ages = torch.cat([batch.targets["age"] for _, batch in found])
        assert torch.equal(ages, torch.from_numpy(items.targets["age"][order.copy()]))

    def test_global_random_numbers_are_not_used(self, items: Items) -> None:
        """Loading batches does not use the global random state."""
        torch.manual_seed(5)
        before = torch.get_rng_state()
        assert len(all_batches(items, range(24))) == 6
        assert torch.equal(torch.get_rng_state(), before)

    def test_pictures_have_their_channels_last_in_memory(self, items: Items) -> None:
        """Pictures are in channels-last layout, for fast convolutions; scalars are contiguous."""
        (batch,) = all_batches(items, range(4))
        assert batch.inputs[0].is_contiguous(memory_format=torch.channels_last)
        assert batch.inputs[1].shape == (4, 1) and batch.inputs[1].is_contiguous()
