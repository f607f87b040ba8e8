"""Which files belong to which subject, and phantoms that are read like any other data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import HarnessError, UnknownName
from harness.data import bids, bids_writing, nifti

Make = Callable[..., Path]


def kinds(index: bids.BidsIndex) -> list[str]:
    """Kinds of the faults, in order."""
    return [fault.kind for fault in index.faults]


def ids(index: bids.BidsIndex) -> list[str]:
    """Ids of the candidates, in order."""
    return [one.id for one in index.candidates]


def copy(root: Path, source: str, target: str) -> None:
    """Copy a file within the folder."""
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / source, root / target)


def to_sessions(root: Path, subject: str, *sessions: str) -> None:
    """Put a subject's files into session folders, a copy in each."""
    for session in sessions:
        for path in sorted((root / subject / "anat").iterdir()):
            name = path.name.replace(subject, f"{subject}_{session}")
            copy(root, str(path.relative_to(root)), f"{subject}/{session}/anat/{name}")
    shutil.rmtree(root / subject / "anat")


def test_a_sound_cohort_is_indexed(cohort: Path) -> None:
    """Every subject with its images, masks and row."""
    index = bids.index(cohort, sequences=("T1w", "SWI"), label="lesion")
    one = index.candidates[0]
    assert (index.name, ids(index), index.faults) == ("Small cohort", ["sub-01", "sub-02", "sub-03"], ())
    assert sorted(one.images) == ["FLAIR", "SWI", "T1w", "T2w"]
    assert sorted(one.masks) == ["brain", "lesion", "regions"]
    assert one.images["SWI"] == cohort / "sub-01/anat/sub-01_SWI.nii.gz"
    assert one.covariates == {"sex": "F", "age": 40.0, "score": 2.5}


def test_region_names_and_label_source_are_found(cohort: Path) -> None:
    """Names come from the dseg table, the source from the mask's JSON."""
    index = bids.index(cohort, label="lesion")
    assert index.regions == {1: "left", 2: "right"}
    assert index.label_source == "T2w, FLAIR"


def test_differing_label_sources_are_counted(cohort: Path) -> None:
    """Where masks were drawn on different sequences, the index says on how many."""
    path = cohort / "sub-02/anat/sub-02_label-lesion_mask.json"
    path.write_text(json.dumps({"Sources": "bids::sub-02/anat/sub-02_T1w.nii.gz"}))
    assert bids.index(cohort, label="lesion").label_source == "T1w (1 masks); T2w, FLAIR (2 masks)"


def test_one_sidecar_at_the_root_serves_all(cohort: Path) -> None:
    """BIDS lets metadata be inherited."""
    for path in cohort.glob("sub-*/anat/*.json"):
        path.unlink()
    (cohort / "label-lesion_mask.json").write_text('{"Sources": ["SWI"]}')
    assert bids.index(cohort, label="lesion").label_source == "SWI"


def test_names_of_regions_may_be_json(cohort: Path) -> None:
    """A JSON beside the regions image may hold the names."""
    (cohort / "label-regions_dseg.tsv").unlink()
    path = cohort / "sub-01/anat/sub-01_label-regions_dseg.json"
    path.write_text('{"Levels": {"1": "frontal", "2": "parietal"}}')
    assert bids.index(cohort).regions == {1: "frontal", 2: "parietal"}


def test_a_subject_without_a_file_is_ineligible_not_faulty(cohort: Path) -> None:
    """It is named with what is missing and what is there."""
    (cohort / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()
    index = bids.index(cohort, sequences=("T1w", "FLAIR"), label="lesion")
    assert (ids(index), index.faults) == (["sub-01", "sub-03"], ())
    assert [one.subject for one in index.ineligible] == ["sub-02"]
    assert index.ineligible[0].reason.startswith("no FLAIR; has SWI, T1w, T2w, label-brain_mask")


def test_a_subject_without_a_value_is_ineligible(cohort: Path) -> None:
    """n/a in a required column leaves the subject out."""
    index = bids.index(cohort, label="lesion", required=("score",))
    assert ids(index) == ["sub-01", "sub-03"]
    assert index.ineligible[0].reason == "score n/a in participants.tsv"


def test_a_subject_without_a_label_serves_prediction(cohort: Path) -> None:
    """Without label= no mask is required."""
    (cohort / "sub-02/anat/sub-02_label-lesion_mask.nii.gz").unlink()
    assert ids(bids.index(cohort, sequences=("T1w",))) == ["sub-01", "sub-02", "sub-03"]


def test_an_excluded_subject_is_named_and_its_faults_vanish(cohort: Path) -> None:
    """With or without sub-, and although it has two kinds of fault."""
    copy(cohort, "sub-02/anat/sub-02_T1w.nii.gz", "sub-02/anat/sub-99_T1w.nii.gz")
    table = cohort / "participants.tsv"
    table.write_text(table.read_text() + "sub-02\tF\t30\t1\n")
    assert sorted(kinds(bids.index(cohort, label="lesion"))) == ["misplaced-file", "participants-duplicate"]
    index = bids.index(cohort, label="lesion", exclude=("02",))
    assert (ids(index), index.faults) == (["sub-01", "sub-03"], ())
    assert [(one.subject, one.reason) for one in index.ineligible] == [("sub-02", "excluded by request")]


def test_an_excluded_subject_must_exist(cohort: Path) -> None:
    """A misspelt name would leave the faulty subject in."""
    with pytest.raises(
        UnknownName, match=r"no subject is named 'sub-20'\. Near: .*sub-02.* All: sub-01, sub-02, sub-03"
    ):
        bids.index(cohort, exclude=("20",))


def test_a_listed_subject_without_folder_can_be_excluded(cohort: Path) -> None:
    """The table knows names that have no folder."""
    shutil.rmtree(cohort / "sub-03")
    assert kinds(bids.index(cohort, label="lesion")) == ["subject-without-folder"]
    assert kinds(bids.index(cohort, label="lesion", exclude=("sub-03",))) == []


@pytest.mark.parametrize("entity", ["ce-gadolinium", "acq-fast", "rec-norm", "run-2", "desc-denoised"])
def test_the_plain_file_is_preferred(cohort: Path, entity: str) -> None:
    """T1w means the file without further entities."""
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", f"sub-01/anat/sub-01_{entity}_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.candidates[0].images["T1w"].name, index.faults) == ("sub-01_T1w.nii.gz", ())


def test_the_first_run_is_preferred(cohort: Path) -> None:
    """run-1 is as good as no run, and better than run-2."""
    anat = cohort / "sub-01/anat"
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_run-02_T1w.nii.gz")
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_run-01_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.candidates[0].images["T1w"].name, index.faults) == ("sub-01_run-01_T1w.nii.gz", ())


def test_entities_can_be_asked_for(cohort: Path) -> None:
    """ce-gadolinium_T1w is a sequence of its own."""
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w", "ce-gadolinium_T1w"))
    assert ids(index) == ["sub-01"]
    assert index.candidates[0].images["ce-gadolinium_T1w"].name == "sub-01_ce-gadolinium_T1w.nii.gz"
    assert index.candidates[0].images["T1w"].name == "sub-01_T1w.nii.gz"


def test_a_tie_of_a_sequence_that_nobody_uses_is_no_fault(cohort: Path) -> None:
    """Two equally good T2w matter only to those who ask for T2w."""
    anat = cohort / "sub-01/anat"
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_acq-a_T2w.nii.gz")
    (anat / "sub-01_T2w.nii.gz").rename(anat / "sub-01_acq-b_T2w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.faults, "T2w" in index.candidates[0].images) == ((), False)
    assert kinds(bids.index(cohort, sequences=("T2w",))) == ["ambiguous"]


def test_all_files_come_from_one_space(cohort: Path) -> None:
    """Where native and template space are both complete, native is taken for all."""
    for name in ("T1w.nii.gz", "T2w.nii.gz", "label-lesion_mask.nii.gz"):
        copy(cohort, f"sub-01/anat/sub-01_{name}", f"sub-01/anat/sub-01_space-MNI_{name}")
    index = bids.index(cohort, sequences=("T1w", "T2w"), label="lesion")
    assert index.faults == ()
    assert "space" not in str([*index.candidates[0].images.values(), *index.candidates[0].masks.values()])


def test_the_complete_space_is_taken(cohort: Path) -> None:
    """If the mask is only in template space, so are the images."""
    for name in ("T1w.nii.gz", "label-lesion_mask.nii.gz"):
        copy(cohort, f"sub-01/anat/sub-01_{name}", f"sub-01/anat/sub-01_space-MNI_{name}")
    (cohort / "sub-01/anat/sub-01_label-lesion_mask.nii.gz").unlink()
    one = bids.index(cohort, sequences=("T1w",), label="lesion").candidates[0]
    assert one.images["T1w"].name == "sub-01_space-MNI_T1w.nii.gz"


def test_a_mask_in_the_space_of_an_image_is_native(cohort: Path) -> None:
    """BIDS derivatives mark native space as space-T1w or space-orig."""
    anat = cohort / "sub-01/anat"
    (anat / "sub-01_label-lesion_mask.nii.gz").rename(anat / "sub-01_space-T1w_label-lesion_mask.nii.gz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert (len(index.candidates), index.faults) == (3, ())


def to_derivatives(
    root: Path, pipeline: str, *subjects: str, name: str = "label-lesion_mask", made_by: str = ""
) -> None:
    """Move masks into a derivative."""
    for subject in subjects:
        copy(root, f"{subject}/anat/{subject}_label-lesion_mask.nii.gz",
             f"derivatives/{pipeline}/{subject}/anat/{subject}_{name}.nii.gz")  # fmt: skip
        (root / f"{subject}/anat/{subject}_label-lesion_mask.nii.gz").unlink()
    if made_by:
        description = {"Name": pipeline, "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": made_by}]}
        (root / f"derivatives/{pipeline}/dataset_description.json").write_text(json.dumps(description))


EVERYBODY = ("sub-01", "sub-02", "sub-03")


def test_masks_may_all_lie_in_a_derivative(cohort: Path) -> None:
    """The only derivative with masks is used if the data set itself has none, and a note names it with its program."""
    to_derivatives(cohort, "hand", *EVERYBODY, name="space-T1w_label-lesion_mask", made_by="ITK-SNAP")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert index.candidates[0].masks["lesion"].parent == cohort / "derivatives/hand/sub-01/anat"
    assert index.faults == ()
    assert index.notes == (
        "sub-01, sub-02, sub-03: label-lesion_mask is taken from derivatives/hand (made by ITK-SNAP)",
    )


def test_a_derivative_does_not_complete_the_truth_of_the_data_set(cohort: Path) -> None:
    """An unlabelled subject stays unlabelled until the derivative is asked for."""
    to_derivatives(cohort, "lst", "sub-03")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert (ids(index), [one.subject for one in index.ineligible]) == (["sub-01", "sub-02"], ["sub-03"])
    assert index.notes == (
        "sub-03: label-lesion_mask in derivatives/lst (it does not state the program that made it) is not used as "
        "truth (cohort.truth=derivatives/lst would use it)",
    )
    both = bids.index(cohort, sequences=("T1w",), label="lesion", truth="raw+lst")
    assert ids(both) == list(EVERYBODY)
    assert both.notes[0].startswith("sub-03: label-lesion_mask is taken from derivatives/lst")
    assert ids(bids.index(cohort, label="lesion", truth="derivatives/lst")) == ["sub-03"]


@pytest.mark.parametrize("maker", ["harness", " Harness"])
def test_own_predictions_are_never_truth(cohort: Path, maker: str) -> None:
    """Neither silently, nor if nothing else is there, nor on request."""
    to_derivatives(cohort, "net", "sub-03", made_by=maker)
    index = bids.index(cohort, label="lesion")
    assert (ids(index), index.faults) == (["sub-01", "sub-02"], ())
    assert index.notes == (
        "sub-03: label-lesion_mask in derivatives/net is a prediction of harness and is never used as truth",
    )
    assert kinds(bids.index(cohort, label="lesion", truth="raw+net")) == ["truth-predicted"]
    to_derivatives(cohort, "net", "sub-01", "sub-02")
    assert ids(bids.index(cohort, label="lesion")) == []


def test_a_folder_of_predictions_is_no_data_set(cohort: Path) -> None:
    """Predictions of this program are not read as truth from their own folder, and phantoms are."""
    bids_writing.begin_derivatives(cohort / "new", name="p", source=cohort, version="1", parameters={"networks": ["a"]})
    (cohort / "new/dataset_description.json").replace(cohort / "dataset_description.json")
    assert kinds(bids.index(cohort, label="lesion")) == ["truth-predicted"]
    assert kinds(bids.index(cohort, sequences=("T1w",))) == []


def test_two_derivatives_need_a_choice(cohort: Path) -> None:
    """Also if each subject has masks in only one of them, as of two raters."""
    to_derivatives(cohort, "rater1", "sub-01", "sub-02")
    to_derivatives(cohort, "rater2", "sub-03")
    (fault,) = bids.index(cohort, label="lesion").faults
    assert str(fault) == (
        "[truth-several] derivatives: label-lesion_mask is in derivatives/rater1 (sub-01, sub-02) and "
        "derivatives/rater2 (sub-03); expected one source of the truth. Choose one: cohort.truth=derivatives/rater1"
    )
    assert kinds(bids.index(cohort, label="lesion", truth="rater1")) == []


def test_an_unknown_source_of_the_truth_is_refused(cohort: Path) -> None:
    """With the names that there are."""
    with pytest.raises(UnknownName, match=r"no source of the truth is named 'lst'.*raw"):
        bids.index(cohort, label="lesion", truth="lst")


def test_the_brain_may_be_a_description(cohort: Path) -> None:
    """desc-brain_mask is the name that BIDS derivatives use."""
    anat = cohort / "sub-01/anat"
    (anat / "sub-01_label-brain_mask.nii.gz").rename(anat / "sub-01_desc-brain_mask.nii.gz")
    assert bids.index(cohort).candidates[0].masks["brain"].name == "sub-01_desc-brain_mask.nii.gz"


def test_one_session_needs_no_choice(cohort: Path) -> None:
    """The candidate's id names the session, the subject stays the same."""
    to_sessions(cohort, "sub-01", "ses-1")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert (ids(index), index.faults) == (["sub-01_ses-1", "sub-02", "sub-03"], ())
    assert index.candidates[0].subject == "sub-01"


@pytest.mark.parametrize(
    ("session", "expected", "faults"),
    [
        ("only", ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], ["sessions-several"]),
        ("all", ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], []),
        ("first", ["sub-01_ses-1", "sub-02_ses-1"], []),
        ("ses-2", ["sub-01_ses-2"], []),
        ("1", ["sub-01_ses-1", "sub-02_ses-1"], []),
    ],
)
def test_session_policies(make_cohort: Make, session: str, expected: list[str], faults: list[str]) -> None:
    """Several sessions need a choice, and every choice does what it says."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    to_sessions(root, "sub-02", "ses-1")
    index = bids.index(root, sequences=("T1w",), label="lesion", session=session)
    assert (ids(index), kinds(index)) == (expected, faults)


def test_a_session_that_a_subject_lacks_makes_it_ineligible(make_cohort: Make) -> None:
    """Named, with the sessions it has."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    to_sessions(root, "sub-02", "ses-1")
    index = bids.index(root, sequences=("T1w",), session="ses-2")
    assert [(one.subject, one.reason) for one in index.ineligible] == [("sub-02", "no ses-2; has ses-1")]


def test_sequences_scattered_over_sessions_make_no_subject(make_cohort: Make) -> None:
    """T1w of one day and FLAIR of another are not combined."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    (root / "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz").unlink()
    (root / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz").unlink()
    index = bids.index(root, sequences=("T1w", "FLAIR"))
    assert ids(index) == ["sub-02"]
    assert "sub-01_ses-1: no FLAIR;" in index.ineligible[0].reason
    assert "sub-01_ses-2: no T1w;" in index.ineligible[0].reason


def test_one_session_can_be_excluded(make_cohort: Make) -> None:
    """That is a way out of several sessions."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    index = bids.index(root, sequences=("T1w",), exclude=("sub-01_ses-1",))
    assert (ids(index), index.faults) == (["sub-01_ses-2", "sub-02"], ())


@pytest.mark.parametrize(
    ("text", "value", "note"),
    [
        ("89+", 89.0, "sub-01: age 89+ is read as 89"),
        ("> 89", 89.0, "sub-01: age > 89 is read as 89"),
        ("41", 41.0, ""),
        ("4.1e1", 41.0, ""),
        ("n/a", None, ""),
        ("", None, ""),
        ("NaN", None, ""),
    ],
)
def test_values_of_real_tables(cohort: Path, text: str, value: float | None, note: str) -> None:
    """Bounds are read with a note, and what is not available is None."""
    table = cohort / "participants.tsv"
    table.write_text(table.read_text().replace("\t40\t", f"\t{text}\t"))
    index = bids.index(cohort)
    assert index.candidates[0].covariates["age"] == value
    assert index.notes == ((note,) if note else ())
    assert index.faults == ()


def test_names_without_sub_are_understood(cohort: Path) -> None:
    """Many tables list 01 rather than sub-01; a byte order mark does not matter either."""
    table = cohort / "participants.tsv"
    table.write_text("\ufeff" + table.read_text().replace("sub-", ""))
    index = bids.index(cohort)
    assert (index.faults, index.candidates[0].covariates["age"]) == ((), 40.0)


def test_a_missing_table_is_a_fault_only_if_a_column_is_needed(cohort: Path) -> None:
    """Segmentation does not need participants.tsv."""
    (cohort / "participants.tsv").unlink()
    assert kinds(bids.index(cohort, label="lesion")) == []
    assert kinds(bids.index(cohort, label="lesion", required=("age",))) == ["participants-missing"]


def test_a_phantom_is_reproducible(make_cohort: Make) -> None:
    """The same subjects give the same bytes in every file."""

    def digests(root: Path) -> dict[str, str]:
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(make_cohort(name="one")) == digests(make_cohort(name="two"))


def test_a_phantom_is_what_was_given(cohort: Path) -> None:
    """Values and affine of an image and of the regions come back."""
    one = bids.index(cohort).candidates[0]
    array, affine = nifti.read(one.masks["regions"])
    assert set(np.unique(array)) == {0, 1, 2}
    assert nifti.header(one.masks["regions"]).dtype == np.uint8
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.1, 0.9, 2.5), rtol=1e-6)
    assert json.loads((cohort / "dataset_description.json").read_text())["GeneratedBy"]


def test_a_broken_phantom_leaves_nothing(tmp_path: Path) -> None:
    """Neither the folder nor its unfinished part stays."""

    def subjects():  # type: ignore[no-untyped-def]
        yield from ()
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        bids_writing.write_phantom(tmp_path / "phantom", subjects(), name="broken")
    assert list(tmp_path.iterdir()) == []


def test_a_phantom_overwrites_nothing(cohort: Path, make_cohort: Make) -> None:
    """A folder with files is never replaced."""
    with pytest.raises(HarnessError, match="must be a new or an empty folder"):
        make_cohort(name=cohort.name)


def test_a_phantom_needs_subjects(tmp_path: Path) -> None:
    """An empty cohort is refused."""
    with pytest.raises(HarnessError, match="needs at least one subject"):
        bids_writing.write_phantom(tmp_path / "phantom", [], name="empty")
