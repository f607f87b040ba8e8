"""participants.tsv as people, Excel and R write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data.participants import Participants, read_participants

FOLDERS = ("sub-01", "sub-02", "sub-10")
PLAIN = "participant_id\tage\tsite\nsub-01\t40\ta\nsub-02\t41.5\tb\nsub-10\t89+\tn/a\n"
ROWS = {
    "sub-01": {"age": 40.0, "site": "a"},
    "sub-02": {"age": 41.5, "site": "b"},
    "sub-10": {"age": 89.0, "site": None},
}
CENSORED = ("sub-10", "age 89+ is read as 89")


def read(root: Path, content: str | bytes, folders: tuple[str, ...] = FOLDERS) -> tuple[Participants, list[str]]:
    """The table and the kinds of its faults."""
    (root / "participants.tsv").write_bytes(content.encode() if isinstance(content, str) else content)
    table, faults = read_participants(root, (), folders)
    return table, [fault.kind for fault in faults]


def quoted(text: str, separator: str = "\t") -> str:
    """Every cell in quotation marks."""
    return "".join(separator.join(f'"{cell}"' for cell in line.split("\t")) + "\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r\n").encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        quoted(PLAIN),
        PLAIN.replace("\t", " \t").replace("sub-01", "  sub-01"),
        PLAIN.replace("sub-01", "\u00a0sub-01\u00a0"),
        PLAIN.replace("\n", "\t\t\n"),
        PLAIN + "\n\n",
        PLAIN.replace("sub-", ""),
    ],
    ids=[
        "plain",
        "CRLF",
        "BOM",
        "UTF-16",
        "quotes",
        "spaces",
        "hard spaces",
        "empty columns",
        "empty lines",
        "no sub-",
    ],
)
def test_marks_of_editors_do_not_matter(tmp_path: Path, content: str | bytes) -> None:
    """The same rows, without a note."""
    table, faults = read(tmp_path, content)
    assert (table.rows, table.notes, faults) == (ROWS, (CENSORED,), [])


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (PLAIN.replace("\t", ";"), "participants.tsv is separated by semicolons, not by tabs"),
        (PLAIN.replace("\t", ","), "participants.tsv is separated by commas, not by tabs"),
        (PLAIN.replace("\t", " "), "participants.tsv is separated by spaces, not by tabs"),
        (quoted(PLAIN, "  "), "participants.tsv is separated by spaces, not by tabs"),
        (quoted(PLAIN, ";"), "participants.tsv is separated by semicolons, not by tabs"),
        (PLAIN.replace("participant_id", "Participant_ID"), "the column Participant_ID of participants.tsv is read as"),
        (
            "".join(f"{number}\t{line}\n" if number else f"{line}\n" for number, line in enumerate(PLAIN.splitlines())),
            "the first cell of each row of participants.tsv has no column (row names of R)",
        ),
        (
            "".join(f'"{number or ""}"\t{line}\n' for number, line in enumerate(PLAIN.splitlines())),
            "the first column of participants.tsv has no name and is not used",
        ),
    ],
    ids=[
        "semicolons",
        "commas",
        "spaces",
        "quotes and spaces",
        "quotes and semicolons",
        "upper case",
        "write.table",
        "write.csv",
    ],
)
def test_other_tables_are_read_with_a_note(tmp_path: Path, content: str, note: str) -> None:
    """The same rows, and what was inferred."""
    table, faults = read(tmp_path, content)
    assert (table.rows, faults) == (ROWS, [])
    assert table.notes[0][0] == "" and table.notes[0][1].startswith(note)
    assert table.notes[1:] == (CENSORED,)


def test_decimal_commas_of_a_table_with_semicolons(tmp_path: Path) -> None:
    """As Excel writes it in most of Europe."""
    table, faults = read(tmp_path, PLAIN.replace("\t", ";").replace("41.5", "41,5"))
    assert (table.rows, faults) == (ROWS, [])
    assert ("", "decimal commas of age are read as points") in table.notes


def test_what_may_be_a_code_or_a_decimal_comma_is_noted(tmp_path: Path) -> None:
    """Columns that nobody predicts have a note, because they may be covariates."""
    table, faults = read(
        tmp_path,
        "participant_id\tnihss\tmmse\nsub-01\t4\t28,5\nsub-02\t-999\t29,0\nsub-10\t7\t17,5\n",
    )
    assert not faults
    assert table.notes == (
        ("", "decimal commas of mmse are read as points"),
        ("sub-02", "nihss -999 may be a code for a missing value; write n/a if it is"),
    )


def test_a_decimal_comma_between_tabs_is_a_fault(tmp_path: Path) -> None:
    """It could be two values, and the remedy shows the number."""
    (tmp_path / "participants.tsv").write_text(PLAIN.replace("41.5", "41,5"))
    (fault,) = read_participants(tmp_path, (), FOLDERS)[1]
    assert (fault.kind, fault.remedy) == ("column-mixed", "Write a decimal point: 41.5")


@pytest.mark.parametrize("id", ["1", "01.0", "1.0", "001", "SUB-01", "Sub-01", "sub_01", "sub01", "subject 1", "sub-1"])
def test_ids_of_excel_and_r_are_read_with_a_note(tmp_path: Path, id: str) -> None:
    """If only one folder can be meant."""
    table, faults = read(tmp_path, PLAIN.replace("sub-01", id))
    assert (table.rows, faults) == (ROWS, [])
    assert table.notes[0] == ("", f"participant_id {id} is read as sub-01")


def test_many_ids_are_one_note(tmp_path: Path) -> None:
    """A table of hundreds of subjects does not fill the screen."""
    folders = tuple(f"sub-{number:03d}" for number in range(1, 10))
    table, _ = read(tmp_path, "participant_id\n" + "".join(f"{number}\n" for number in range(1, 10)), folders)
    assert list(table.rows) == list(folders)
    assert table.notes == (
        ("", "participant_id 1, 2, 3, 4, … and 5 more are read as sub-001, sub-002, sub-003, sub-004, … and 5 more"),
    )


@pytest.mark.parametrize("id", ["1", "1.0", "SUB-1"])
def test_ids_that_could_be_several_folders_are_a_fault(tmp_path: Path, id: str) -> None:
    """With the folders."""
    (tmp_path / "participants.tsv").write_text(PLAIN.replace("sub-01", id))
    faults = read_participants(tmp_path, (), ("sub-01", "sub-001", "sub-02", "sub-10"))[1]
    assert [fault.value for fault in faults] == [f"participant_id {id} could be sub-01 or sub-001"]


def test_an_exact_name_precedes_others(tmp_path: Path) -> None:
    """sub-1 is the folder sub-1, whatever else there is."""
    table, faults = read(tmp_path, "participant_id\tage\n1\t40\n01\t41\n", ("sub-1", "sub-01"))
    assert ({name: row["age"] for name, row in table.rows.items()}, faults) == ({"sub-1": 40.0, "sub-01": 41.0}, [])


def test_two_rows_of_one_subject_are_a_fault_however_they_are_written(tmp_path: Path) -> None:
    """1 and 01 are both sub-01."""
    _, faults = read(tmp_path, PLAIN + "1\t50\ta\n")
    assert faults == ["participants-duplicate"]


@pytest.mark.parametrize(
    ("text", "value", "noted"),
    [
        ("89+", 89.0, True),
        (">23", 23.0, True),
        ("≥ 90", 90.0, True),
        ("<1", 1.0, True),
        ("1e3", 1000.0, False),
        ("-0", 0.0, False),
        ("0.000", 0.0, False),
        ("1e30", 1e30, False),
    ],
)
def test_censored_values_are_read_with_a_note(tmp_path: Path, text: str, value: float, noted: bool) -> None:
    """The bound is used, and said."""
    table, faults = read(tmp_path, PLAIN.replace("41.5", text))
    assert (table.rows["sub-02"]["age"], faults) == (value, [])
    assert (("sub-02", f"age {text} is read as {value:g}") in table.notes) is noted


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1e39", "1e-400", "1e-45", ">1e999"])
def test_numbers_that_cannot_be_stored_are_faults(tmp_path: Path, text: str) -> None:
    """They would become infinite or zero."""
    assert read(tmp_path, PLAIN.replace("41.5", text))[1] == ["number-range"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "participants-unreadable"),
        (b"\n \n", "participants-unreadable"),
        ("participant_id\tname\nsub-01\tJosé\n".encode("cp1252"), "participants-unreadable"),
        (b'participant_id\tage\nsub-01\t"40\n', "participants-unreadable"),
        (b"subject age\nsub-01 40\n", "participants-columns"),
        (b"participant_id\tage\tage\nsub-01\t40\t41\n", "participants-columns"),
        (b"participant_id\tage\nsub-01\t40\t7\nsub-02\t41\n", "participants-ragged"),
    ],
    ids=["empty", "blank", "cp1252", "open quote", "spaces", "twice", "ragged"],
)
def test_what_has_no_single_meaning_is_a_fault(tmp_path: Path, content: bytes, kind: str) -> None:
    """Nothing is guessed."""
    assert kind in read(tmp_path, content)[1]


@pytest.mark.parametrize(
    ("text", "kinds"), [("1", []), ("1.0", []), ("2.00", []), ("3.0", ["level-unknown"]), ("1.5", ["level-unknown"])]
)
def test_levels_may_be_written_as_decimals(tmp_path: Path, text: str, kinds: list[str]) -> None:
    """pandas writes a column of integers with gaps as 1.0, 2.0."""
    (tmp_path / "participants.json").write_text('{"group": {"Levels": {"1": "patient", "2": "control"}}}')
    assert read(tmp_path, f"participant_id\tgroup\nsub-01\t{text}\nsub-02\tn/a\n")[1] == kinds


def test_a_table_of_another_format_is_named(tmp_path: Path) -> None:
    """participants.tsv is missing, but not participants.xlsx."""
    (tmp_path / "participants.xlsx").touch()
    (fault,) = read_participants(tmp_path, ("age",), FOLDERS)[1]
    assert fault.value == "there is no such file, but participants.xlsx"


@pytest.mark.parametrize("mark", ["#N/A", "#NULL!", ".", "<NA>", "?", "-", "unknown"])
def test_marks_of_missing_values_are_read_with_a_note(tmp_path: Path, mark: str) -> None:
    """Excel, SPSS, Stata and R write them; half of a column of numbers may be missing."""
    table, faults = read(tmp_path, f"participant_id\tedss\nsub-01\t3.5\nsub-02\t{mark}\nsub-10\t{mark}\n")
    assert not faults and [row["edss"] for row in table.rows.values()] == [3.5, None, None]
    assert table.notes == (("sub-02", f"edss {mark} is read as n/a"), ("sub-10", f"edss {mark} is read as n/a"))


def test_words_for_unknown_are_classes_among_words(tmp_path: Path) -> None:
    """``unknown`` may be a class, but ``#N/A`` is none."""
    table, faults = read(tmp_path, "participant_id\tside\nsub-01\tleft\nsub-02\tunknown\nsub-10\t#N/A\n")
    assert not faults and [row["side"] for row in table.rows.values()] == ["left", "unknown", None]


def test_commas_that_may_separate_thousands_are_a_fault(tmp_path: Path) -> None:
    """The remedy has both readings."""
    (tmp_path / "participants.tsv").write_text("participant_id\tvolume\nsub-01\t900\nsub-02\t1,234\nsub-10\t750\n")
    (fault,) = read_participants(tmp_path, (), FOLDERS)[1]
    assert fault.remedy == "Write a decimal point: 1.234 or 1234"
    table, faults = read(tmp_path, "participant_id\tvolume\nsub-01\t900\nsub-02\t1,234\nsub-10\t7,5\n")
    assert not faults and [row["volume"] for row in table.rows.values()] == [900, 1.234, 7.5]


def test_a_typeset_minus_is_read_with_a_note(tmp_path: Path) -> None:
    """Word processors and journals write the sign U+2212."""
    table, faults = read(tmp_path, "participant_id\tz\nsub-01\t0.5\nsub-02\t\u22121.5\nsub-10\t2\n")
    assert not faults and table.rows["sub-02"]["z"] == -1.5
    assert table.notes == (("sub-02", "z \u22121.5 is read as -1.5"),)


def test_decimal_commas_between_commas_are_not_row_names(tmp_path: Path) -> None:
    """The first cell would be dropped, and digits before and after the comma taken for the id and the value."""
    (tmp_path / "participants.tsv").write_text("participant_id,edss\nsub-01,1,5\nsub-02,2,5\nsub-10,10,0\n")
    _, found = read_participants(tmp_path, (), FOLDERS)
    assert [fault.kind for fault in found] == ["participants-ragged"] * 3
    assert "quote those with commas" in found[0].remedy
    table, faults = read(tmp_path, "participant_id,edss\n1,sub-01,5\n2,sub-02,6\n3,sub-10,7\n")
    assert not faults and table.rows["sub-10"]["edss"] == 7


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_read(tmp_path: Path, encoding: str) -> None:
    """Every other byte of its header is zero."""
    (tmp_path / "participants.tsv").write_bytes("participant_id\tage\nsub-01\t41\n".encode(encoding))
    table, faults = read_participants(tmp_path, (), ("sub-01",))
    assert not faults and table.rows["sub-01"]["age"] == 41


def test_names_of_columns_are_composed(tmp_path: Path) -> None:
    """macOS writes é as two characters, which nobody can type or see."""
    table, faults = read(tmp_path, "participant_id\tge\u0301ne\nsub-01\t1\nsub-02\t2\nsub-10\t3\n")
    assert not faults and table.rows["sub-01"]["g\u00e9ne"] == 1


def test_the_mark_of_text_in_excel_is_no_part_of_an_id(tmp_path: Path) -> None:
    """``'01`` keeps the zero in a spreadsheet."""
    table, faults = read(tmp_path, "participant_id\tage\n'01\t41\n'02\t42\n'10\t43\n")
    assert not faults and list(table.rows) == ["sub-01", "sub-02", "sub-10"]


@pytest.mark.parametrize(
    ("preface", "note"),
    [
        ("sep=;\n", "the line 'sep=;' before the header of participants.tsv is left out"),
        ('\ufeff"sep=;"\r\n', "the line '\"sep=;\"' before the header"),
        ("# exported 2024\n", "the line '# exported 2024' before the header"),
        ("\n# exported; by hand\n\n# 2024\n", "the line '# exported; by hand' before the header"),
    ],
)
def test_lines_before_the_header_are_left_out(tmp_path: Path, preface: str, note: str) -> None:
    """Excel marks the separator, and programs write comments; the numbers of lines stay."""
    content = PLAIN.replace("\t", ";") if "sep" in preface else PLAIN
    table, faults = read(tmp_path, preface + content)
    assert (table.rows, faults) == (ROWS, [])
    assert any(text.startswith(note) for _, text in table.notes)
    (tmp_path / "participants.tsv").write_text(f"# one\n{PLAIN}sub-01\t1\tx\n")
    (fault,) = read_participants(tmp_path, (), FOLDERS)[1]
    assert fault.value == "sub-01 has a second row in line 6"


def test_a_header_may_begin_with_a_hash(tmp_path: Path) -> None:
    """As some programs mark it."""
    table, faults = read(tmp_path, f"#{PLAIN}")
    assert (table.rows, faults) == (ROWS, [])
    assert ("", "the column #participant_id of participants.tsv is read as participant_id") in table.notes


@pytest.mark.parametrize(
    "name", ["participants.csv", "participants.tsv.gz", "participants.xlsx", "participants.txt", "participant.tsv"]
)
def test_a_table_by_another_name_is_a_note(tmp_path: Path, name: str) -> None:
    """It is not read, and the note says how to save it."""
    (tmp_path / name).write_text("x")
    table, faults = read_participants(tmp_path, (), FOLDERS)
    assert (table.present, faults) == (False, [])
    assert table.notes[0][1].startswith(f"there is no participants.tsv, but {name}; it is not read; save it as")
    assert f"there is no such file, but {name}" in read_participants(tmp_path, ("age",), FOLDERS)[1][0].value


def test_a_broken_link_is_no_missing_table(tmp_path: Path) -> None:
    """Its content may not have been fetched yet."""
    (tmp_path / "participants.tsv").symlink_to(tmp_path / "annex")
    (fault,) = read_participants(tmp_path, (), FOLDERS)[1]
    assert fault.kind == "participants-unreadable" and "annex, which is not there" in fault.value


def test_digits_of_other_scripts_are_no_numbers(tmp_path: Path) -> None:
    """Python reads them as numbers, other programs do not."""
    _, faults = read(tmp_path, PLAIN.replace("41.5", "\u0664\u0661"))
    assert faults == ["column-mixed"]
