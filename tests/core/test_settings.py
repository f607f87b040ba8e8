"""Settings: how to run, checked, and in no identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.core.settings import RunSettings, settings_from


def test_no_words_give_the_defaults() -> None:
    """Nothing said is the default."""
    assert settings_from({}) == RunSettings()


def test_values_take_their_types() -> None:
    """Text becomes what the field declares."""
    found = settings_from({"cpus": "2", "gpus": 0.5, "yes": "true", "workers": 4.0})
    assert (found.cpus, found.gpus, found.yes, found.workers) == (2.0, 0.5, True, 4)


def test_one_excluded_subject_is_a_list_of_one() -> None:
    """A single name needs no comma."""
    assert settings_from({"exclude": "sub-01"}).exclude == ("sub-01",)


def test_unknown_setting_shows_near_ones() -> None:
    """A misspelt setting is answered by the near ones."""
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
def test_settings_show_the_relation(key: str, value: object, message: str) -> None:
    """A value out of range is answered by its bound."""
    with pytest.raises(OutOfRange, match=message):
        settings_from({key: value})


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names are resolved when the settings are made, whatever the working folder is later."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    found = settings_from({"out": "runs", "data": "../data"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found.folder == tmp_path / "runs"
    assert found.data_folder == tmp_path.parent / "data"


def test_default_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing said is a folder of the working folder of that moment."""
    monkeypatch.chdir(tmp_path)
    found = RunSettings()
    monkeypatch.chdir(tmp_path.parent)
    assert found.folder == tmp_path / "harness-runs"


def test_relative_database_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy would open it in the working folder of the moment."""
    monkeypatch.chdir(tmp_path)
    assert settings_from({"mlflow": "sqlite:///my.db"}).mlflow == f"sqlite:///{tmp_path}/my.db"


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is the home folder."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert settings_from({"out": "~/runs"}).folder == Path("/home/somebody/runs")


def test_no_data_is_no_folder() -> None:
    """Without data the cohort is generated."""
    assert RunSettings().data_folder is None
