"""Folders that cannot be written to: one message with the next step, before anything is computed."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import commands, main
from harness.core.errors import RequestError
from harness.storage.files import check_writable

Fail = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file."""
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.mark.parametrize("below", ["", "a/b"])
def test_file_is_refused(file: Path, below: str) -> None:
    """The message names the file that is in the way."""
    with pytest.raises(RequestError, match=f"out must be a folder, but {file} is a file; choose another path"):
        check_writable(file / below, "out")


def test_missing_folder_is_not_created(tmp_path: Path) -> None:
    """The check leaves no trace."""
    check_writable(tmp_path / "a" / "b", "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc on this system")
@pytest.mark.parametrize("folder", ["/proc", "/proc/x"])
def test_folder_that_refuses_files(folder: str) -> None:
    """The message has the reason of the system, which no user can overrule."""
    with pytest.raises(RequestError, match=rf"out must be a folder that this user can write to, got {folder}: \w+"):
        check_writable(Path(folder), "out")


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        (commands.run, ["task=epvs", "ray=off", "out={file}"]),
        (commands.plan, ["task=epvs", "out={file}/x"]),
        (lambda given: commands.data("make", given), ["task=epvs", "into={file}"]),
        (lambda given: commands.data("describe", given), ["task=epvs", "out={file}"]),
        (commands.leaderboard, ["task=epvs", "csv={file}/x.csv"]),
    ],
    ids=["run", "plan", "make", "describe", "leaderboard"],
)
def test_commands_check_their_folders(command: Callable[[list[str]], int], overrides: list[str], file: Path) -> None:
    """Every command that writes refuses a file, and computes nothing."""
    with pytest.raises(RequestError, match=f"must be a folder, but {file} is a file"):
        command([one.format(file=file) for one in overrides])
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("target", "what"), [("/dev/null", "device"), ("{folder}", "folder")])
def test_csv_must_be_a_file(target: str, what: str, tmp_path: Path) -> None:
    """A folder cannot be replaced by a file, and a device must not."""
    with pytest.raises(RequestError, match=f"csv must be a file, but .* is a {what}; set csv=FILE"):
        commands.leaderboard(["task=epvs", f"csv={target.format(folder=tmp_path)}"])


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """A function that runs the program with a command that raises an error, and returns what is printed."""

    def run(error: Exception) -> str:
        def raising(kind: str) -> int:
            raise error

        monkeypatch.setattr(commands, "list_components", raising)
        monkeypatch.setattr(sys, "argv", ["harness", "list"])
        with pytest.raises(SystemExit, match="1"):
            main.main()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_message(fail: Fail, code: int) -> None:
    """A disk may fill up, or a quota be reached, at any time during a run."""
    assert fail(OSError(code, "No space", "/a/b")).startswith("error: cannot write /a/b: the disk is full. Finished")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.ESTALE])
def test_folder_that_vanishes_is_one_message(fail: Fail, code: int) -> None:
    """A folder may be removed or become read-only during a run."""
    assert fail(OSError(code, "why", "/a/b")).startswith("error: cannot use /a/b: why. Finished cells are kept; check")


def test_other_errors_have_a_traceback(monkeypatch: pytest.MonkeyPatch, fail: Fail) -> None:
    """An error that no user can fix is not hidden."""
    with pytest.raises(ConnectionResetError):
        fail(ConnectionResetError(errno.ECONNRESET, "reset"))


@pytest.mark.parametrize(("by_signal", "code"), [(False, 130), (True, 143)])
def test_exit_code_of_an_interrupted_command(monkeypatch: pytest.MonkeyPatch, by_signal: bool, code: int) -> None:
    """Commands other than run end with 130 after Ctrl-C and with 143 after SIGTERM."""
    previous = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("harness.cli.streams._terminated", threading.Event())
    monkeypatch.setattr("sys.argv", ["harness", "plan", "task=epvs"])

    def interrupted(texts: object) -> int:
        if by_signal:
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "plan", interrupted)
    try:
        with pytest.raises(SystemExit) as stopped:
            main.main()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stopped.value.code == code


def test_a_file_is_refused_before_results_are_announced(lesion_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said about results that cannot be written."""
    with pytest.raises(RequestError, match="out must be a folder"):
        commands.plan(["task=lsm", f"data={lesion_root}", f"out={lesion_root / 'participants.tsv'}"])
    assert "results are written" not in capsys.readouterr().out
