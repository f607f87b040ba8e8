"""Text that is printed: paths with signs of markup, narrow consoles, and encodings without symbols."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import commands
from harness.cli.console import console, show_table

PROGRAM = Path(sysconfig.get_path("scripts")) / "harness"
NAME = "50% [red] :smile: é日本, {x} (a)=b;c & #d it's"
Shown = Callable[..., str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """A function that prints a table on a console of a given width and returns the text."""

    def show(header: list[str], rows: list[list[str]], *, width: int, title: str = "") -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        show_table(console(), header, rows, title)
        return capsys.readouterr().out

    return show


def test_text_is_not_interpreted(capsys: pytest.CaptureFixture[str], shown: Shown) -> None:
    """Square brackets and colons are printed, in sentences, titles, headers and cells."""
    console().print(NAME)
    assert capsys.readouterr().out == f"{NAME}\n"
    assert shown([f"a{NAME}"], [[f"b{NAME}"]], width=160, title=f"c{NAME}").count(NAME) == 3


def test_unusual_paths_can_be_written_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cohort is generated in a folder with such a name, and verified there."""
    folder = tmp_path / NAME
    small = ("phantom_subjects=3", "phantom.shape=[24,24,8]", "phantom.density=4000")
    assert commands.data("make", ["task=epvs", f"into={folder}", *small]) == 0
    assert commands.data("verify", [f"data={folder}", "label=pvs", "sequences=T2w"]) == 0
    assert capsys.readouterr().out.count(str(folder)) == 2


HEADER = ["configuration", "sequences", "status"]
ROWS = [["0123456789", "T2w+FLAIR", "done"], ["9876543210", "T1w", ""]]


def test_tables_have_a_line_per_cell_on_a_narrow_console(shown: Shown) -> None:
    """If columns do not fit, each cell is shown with its header; empty cells are left out."""
    assert shown(HEADER, ROWS, width=30, title="Results").splitlines() == [
        *("Results", "", "configuration: 0123456789", "sequences: T2w+FLAIR", "status: done"),
        *("", "configuration: 9876543210", "sequences: T1w", ""),
    ]


def test_tables_have_columns_where_they_fit(shown: Shown) -> None:
    """One line per row."""
    lines = shown(HEADER, ROWS, width=40).splitlines()
    assert [line.split() for line in lines if "0" in line] == [ROWS[0], ROWS[1][:2]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data", "verify", "data=/é×日"], r"/\xe9x\u65e5: 0 subjects usable"),
        (["doctor"], "ok"),
        (["describe", "model=cnn"], "kernel"),
        (["--help"], "Usage: harness"),
        (["run", "task=é×"], r"error: no task is named '\xe9x'"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_output_is_ascii_where_the_encoding_is(tmp_path: Path, arguments: list[str], expected: str) -> None:
    """Symbols are replaced and letters are escaped; nothing is raised."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, cwd=tmp_path, env=environment, check=False)
    text = (done.stdout + done.stderr).decode("ascii")
    assert expected in text and "Traceback" not in text


@pytest.mark.skipif(
    not str(PROGRAM).isascii(), reason="in this locale, Python reads no package from a folder whose name is not ASCII"
)
def test_text_that_the_locale_cannot_decode_is_refused(tmp_path: Path) -> None:
    """A locale without UTF-8 would change the names of files."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [PROGRAM, "data", "verify", "data=é", "label=pvs"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2 and b"set PYTHONUTF8=1 if it is UTF-8" in done.stderr


def test_a_width_of_zero_is_not_obeyed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Some batch systems set it, and nothing would be printed."""
    monkeypatch.setenv("COLUMNS", "0")
    console().print("verified")
    assert capsys.readouterr().out == "verified\n"


def test_a_folder_that_no_longer_exists_is_said(tmp_path: Path) -> None:
    """Libraries end the process without a helpful message when they are loaded there."""
    gone = tmp_path / "gone"
    command = f'mkdir "{gone}" && cd "{gone}" && rmdir "{gone}" && "{PROGRAM}" list tasks'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    # If the environment is in a folder with spaces, pip starts the command by a shell, which complains as well.
    said = [line for line in done.stderr.splitlines() if not line.startswith("sh: ")]
    assert said == ["error: the current folder no longer exists; change to another one (cd) and repeat"]
