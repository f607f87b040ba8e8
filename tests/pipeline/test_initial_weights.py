"""Initial weights from a file: where they are loaded, what their identity is, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from harness.tasks.faces import TASK

from harness.core.errors import CellError, RequestError
from harness.core.overrides import override
from harness.core.targets import Target
from harness.core.task import INITIAL_WEIGHTS, Configuration, Task, describe
from harness.core.types import Input, NetworkSpec
from harness.models.resnet import resnet18
from harness.pipeline.initial_weights import check_initial_weights, initialised
from harness.pipeline.networks import build_network

SPEC = NetworkSpec((Input("image", ("red", "green", "blue"), (32, 32)),), (Target("sex", "binary"),))


def weights(path: Path, seed: int, width: int = 4) -> Path:
    """Write a backbone with a classifier."""
    torch.manual_seed(seed)
    own = resnet18(3, width=width, hidden=0).state_dict()
    state = {name: one.clone() for name, one in own.items() if not name.startswith("heads.")}
    safetensors.torch.save_file(state | {"fc.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A file of a lab."""
    return weights(tmp_path / "lab.safetensors", 1)


def with_weights(path: Path) -> Task:
    """The task with a narrow network that starts from a file."""
    return override(override(TASK, "model.width", 4), "model.weights", str(path))


def configured(task: Task) -> Configuration:
    """The configuration of a task, as a plan makes it."""
    initial = check_initial_weights(task, SPEC)
    more: dict[str, Any] = {} if initial is None else {INITIAL_WEIGHTS: initial.digest}
    return Configuration(json.loads(json.dumps({**describe(task), **more})), {}, "quick", "data")


def test_backbone_starts_from_the_file(lab: Path) -> None:
    """The backbone has the weights of the file, the head those of the random stream."""
    task = with_weights(lab)
    torch.manual_seed(5)
    network = initialised(task, SPEC, configured(task).task)
    torch.manual_seed(5)
    random = build_network(task, SPEC)
    state = safetensors.torch.load_file(lab)
    for name, one in network.state_dict().items():
        expected = state[name] if name in state else random.state_dict()[name]
        assert torch.equal(one, expected), name
    assert not torch.equal(random.state_dict()["conv1.weight"], state["conv1.weight"])


def test_check_says_what_is_loaded_and_keeps_the_random_state(lab: Path) -> None:
    """The note names the file, the number of tensors and what was ignored; without a file there is none."""
    before = torch.get_rng_state()
    found = check_initial_weights(with_weights(lab), SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    assert found is not None and str(lab) in found.note and "121 tensors" in found.note
    assert found.note.endswith("ignored: fc.bias")
    assert check_initial_weights(TASK, SPEC) is None


def test_identity_is_the_content(lab: Path, tmp_path: Path) -> None:
    """A copy of the file gives the same configuration, other weights another one, and so does none."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(lab.read_bytes())
    other = weights(tmp_path / "other.safetensors", 2)
    ids = [configured(with_weights(path)).id for path in (lab, copy, other)]
    none = configured(override(TASK, "model.width", 4)).id
    assert ids[0] == ids[1] and len({*ids, none}) == 3


def test_changed_file_is_refused_by_the_worker(lab: Path) -> None:
    """A file that is replaced or removed after the request was checked ends the training."""
    task = with_weights(lab)
    described = configured(task).task
    weights(lab, 3)
    with pytest.raises(CellError, match="must stay unchanged during a run"):
        initialised(task, SPEC, described)
    lab.unlink()
    with pytest.raises(CellError, match="changed or removed"):
        initialised(task, SPEC, described)


def test_file_that_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    """A missing file and one of another width are refused with the path."""
    wide = weights(tmp_path / "wide.safetensors", 1, width=8)
    with pytest.raises(RequestError, match=r"wide\.safetensors.*conv1\.weight has the shape"):
        check_initial_weights(with_weights(wide), SPEC)
    with pytest.raises(RequestError, match="there is none at"):
        check_initial_weights(with_weights(tmp_path / "nowhere.pth"), SPEC)


def test_path_is_not_part_of_a_described_model(lab: Path) -> None:
    """The model that identifies a training has the digest in place of the path; the task itself keeps the path."""
    made = configured(with_weights(lab))
    assert made.model["weights"] == made.task[INITIAL_WEIGHTS] and len(made.model["weights"]) == 64
    assert made.task["model"]["weights"] == str(lab)
    plain = dataclasses.replace(made, task={k: v for k, v in made.task.items() if k != INITIAL_WEIGHTS})
    assert plain.model == plain.task["model"]
