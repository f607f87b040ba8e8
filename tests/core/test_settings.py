"""Run settings are checked and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.core.settings import RunSettings, settings_from


def test_no_overrides_give_the_defaults() -> None:
    """Without overrides, all settings have their defaults."""
    assert settings_from({}) == RunSettings()


def test_values_are_converted() -> None:
    """Text and numbers are converted to the declared type."""
    found = settings_from({"cpus": "2", "gpus": 0.5, "yes": "true", "workers": 4.0})
    assert (found.cpus, found.gpus, found.yes, found.workers) == (2.0, 0.5, True, 4)


def test_one_excluded_subject_is_a_list_of_one() -> None:
    """A single excluded subject is a tuple of one."""
    assert settings_from({"exclude": "sub-01"}).exclude == ("sub-01",)


def test_unknown_setting_is_refused_with_suggestions() -> None:
    """An unknown setting raises an error with suggestions."""
    with pytest.raises(UnknownName, match=r"no setting is named 'worker'\. Near: workers"):
        settings_from({"worker": 2})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cpus", 0, r"cpus must be a number > 0, got 0"),
        ("gpus", -1, r"gpus must be a number >= 0, got -1"),
        ("cpus", float("inf"), r"cpus must be .*, got inf"),
        ("workers", 1.5, r"workers must be a whole number >= 0, got 1\.5"),
        ("trials", 0, r"trials must be a whole number >= 1, got 0"),
        ("yes", "maybe", r"yes must be yes/no, got 'maybe'"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: object, message: str) -> None:
    """A setting out of range raises an error with the valid range."""
    with pytest.raises(OutOfRange, match=message):
        settings_from({key: value})


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders are resolved when the settings are made, whatever the later working folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    found = settings_from({"out": "runs", "data": "../data"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found.folder == tmp_path / "runs"
    assert found.data_folder == tmp_path.parent / "data"


def test_default_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default output folder is resolved when the settings are made."""
    monkeypatch.chdir(tmp_path)
    found = RunSettings()
    monkeypatch.chdir(tmp_path.parent)
    assert found.folder == tmp_path / "harness-runs"


def test_relative_database_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a relative SQLite database is made absolute."""
    monkeypatch.chdir(tmp_path)
    assert settings_from({"mlflow": "sqlite:///my.db"}).mlflow == f"sqlite:///{tmp_path}/my.db"


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is expanded to the home folder."""
    monkeypatch.setenv("HOME", "/home/user")
    assert settings_from({"out": "~/runs"}).folder == Path("/home/user/runs")


def test_no_data_gives_no_data_folder() -> None:
    """Without ``data``, there is no data folder."""
    assert RunSettings().data_folder is None


@pytest.mark.parametrize("key", ["cpus", "gpus"])
def test_resources_above_one_are_whole_numbers(key: str) -> None:
    """Ray grants fractions of one CPU or GPU only."""
    settings_from({key: 0.5})
    settings_from({key: 2.0})
    with pytest.raises(OutOfRange, match=f"{key} must be a whole number above one, as Ray requires, got 1.5"):
        settings_from({key: 1.5})


@pytest.mark.parametrize(("value", "expected"), [("OFF", "off"), (False, "off"), ("auto", "auto"), (True, "auto")])
def test_ray_is_read_in_any_form_that_has_one_meaning(value: Any, expected: str) -> None:
    """Letter case, and yes or no."""
    assert settings_from({"ray": value}).ray == expected


@pytest.mark.parametrize("value", ["maybe", "none", "cluster", ""])
def test_ray_is_a_word_or_an_address(value: str) -> None:
    """Other words would be taken for an address and raise an error of Ray after the cohort is read."""
    with pytest.raises(OutOfRange, match="ray must be auto .*, off .*, or the address HOST:PORT"):
        settings_from({"ray": value})
