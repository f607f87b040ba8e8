"""Indexing of BIDS folders, and phantoms written in the same layout."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harness.core.errors import HarnessError, RequestError, UnknownName
from harness.data import bids, bids_writing, nifti
from harness.data.bids_files import natural

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


def test_valid_cohort_is_indexed(cohort: Path) -> None:
    """Each candidate has its images, masks and row of participants.tsv."""
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


def test_sidecar_at_the_root_applies_to_all_subjects(cohort: Path) -> None:
    """Metadata are inherited (BIDS inheritance principle)."""
    for path in cohort.glob("sub-*/anat/*.json"):
        path.unlink()
    (cohort / "label-lesion_mask.json").write_text('{"Sources": ["SWI"]}')
    assert bids.index(cohort, label="lesion").label_source == "SWI"


def test_a_table_of_another_segmentation_names_no_regions(cohort: Path) -> None:
    """Labels of FreeSurfer are not those of tissues; in BIDS, the entities of a table must be those of the image."""
    (cohort / "label-regions_dseg.tsv").rename(cohort / "desc-aseg_dseg.tsv")
    index = bids.index(cohort, label="lesion")
    assert (index.regions, index.faults) == ({}, ()) and "regions" not in index.candidates[0].masks
    (cohort / "desc-aseg_dseg.tsv").rename(cohort / "dseg.tsv")
    assert bids.index(cohort, label="lesion").regions == {1: "left", 2: "right"}


def test_region_names_may_come_from_json(cohort: Path) -> None:
    """The JSON sidecar of the regions image may hold the names."""
    (cohort / "label-regions_dseg.tsv").unlink()
    path = cohort / "sub-01/anat/sub-01_label-regions_dseg.json"
    path.write_text('{"Levels": {"1": "frontal", "2": "parietal"}}')
    assert bids.index(cohort).regions == {1: "frontal", 2: "parietal"}


def test_a_subject_without_a_file_is_ineligible_not_faulty(cohort: Path) -> None:
    """The reason says what is missing and what is available."""
    (cohort / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()
    index = bids.index(cohort, sequences=("T1w", "FLAIR"), label="lesion")
    assert (ids(index), index.faults) == (["sub-01", "sub-03"], ())
    assert [one.subject for one in index.ineligible] == ["sub-02"]
    assert index.ineligible[0].reason.startswith("no FLAIR; has SWI, T1w, T2w, label-brain_mask")


def test_a_subject_without_a_value_is_ineligible(cohort: Path) -> None:
    """A subject with n/a in a required column is left out."""
    index = bids.index(cohort, label="lesion", required=("score",))
    assert ids(index) == ["sub-01", "sub-03"]
    assert index.ineligible[0].reason == "score n/a in participants.tsv"


def test_subjects_without_a_label_can_be_predicted(cohort: Path) -> None:
    """No mask is required if no label is given."""
    (cohort / "sub-02/anat/sub-02_label-lesion_mask.nii.gz").unlink()
    assert ids(bids.index(cohort, sequences=("T1w",))) == ["sub-01", "sub-02", "sub-03"]


def test_excluded_subject_is_listed_and_its_faults_are_ignored(cohort: Path) -> None:
    """The name is accepted without sub-, and both faults of the subject are ignored."""
    copy(cohort, "sub-02/anat/sub-02_T1w.nii.gz", "sub-02/anat/sub-99_T1w.nii.gz")
    table = cohort / "participants.tsv"
    table.write_text(table.read_text() + "sub-02\tF\t30\t1\n")
    assert sorted(kinds(bids.index(cohort, label="lesion"))) == ["misplaced-file", "participants-duplicate"]
    index = bids.index(cohort, label="lesion", exclude=("02",))
    assert (ids(index), index.faults) == (["sub-01", "sub-03"], ())
    assert [(one.subject, one.reason) for one in index.ineligible] == [("sub-02", "excluded by request")]


def test_excluding_an_unknown_subject_raises(cohort: Path) -> None:
    """Otherwise a misspelt name would keep the faulty subject in the cohort."""
    with pytest.raises(
        UnknownName, match=r"no subject is named 'sub-20'\. Near: .*sub-02.* All: sub-01, sub-02, sub-03"
    ):
        bids.index(cohort, exclude=("20",))


def test_a_listed_subject_without_folder_can_be_excluded(cohort: Path) -> None:
    """Subjects that are only listed in participants.tsv can be excluded, too."""
    shutil.rmtree(cohort / "sub-03")
    assert kinds(bids.index(cohort, label="lesion")) == ["subject-without-folder"]
    assert kinds(bids.index(cohort, label="lesion", exclude=("sub-03",))) == []


@pytest.mark.parametrize("entity", ["ce-gadolinium", "acq-fast", "rec-norm", "run-2", "desc-denoised"])
def test_file_without_further_entities_is_preferred(cohort: Path, entity: str) -> None:
    """T1w selects the file without further entities."""
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", f"sub-01/anat/sub-01_{entity}_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.candidates[0].images["T1w"].name, index.faults) == ("sub-01_T1w.nii.gz", ())


def test_the_first_run_is_preferred(cohort: Path) -> None:
    """run-1 is equivalent to no run entity and preferred to run-2."""
    anat = cohort / "sub-01/anat"
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_run-02_T1w.nii.gz")
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_run-01_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.candidates[0].images["T1w"].name, index.faults) == ("sub-01_run-01_T1w.nii.gz", ())


def test_entities_can_be_requested(cohort: Path) -> None:
    """ce-gadolinium_T1w is another sequence than T1w."""
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w", "ce-gadolinium_T1w"))
    assert ids(index) == ["sub-01"]
    assert index.candidates[0].images["ce-gadolinium_T1w"].name == "sub-01_ce-gadolinium_T1w.nii.gz"
    assert index.candidates[0].images["T1w"].name == "sub-01_T1w.nii.gz"


def test_ambiguous_file_of_an_unused_sequence_is_no_fault(cohort: Path) -> None:
    """Two candidates for T2w are a fault only if T2w is requested."""
    anat = cohort / "sub-01/anat"
    copy(cohort, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_acq-a_T2w.nii.gz")
    (anat / "sub-01_T2w.nii.gz").rename(anat / "sub-01_acq-b_T2w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",))
    assert (index.faults, "T2w" in index.candidates[0].images) == ((), False)
    assert kinds(bids.index(cohort, sequences=("T2w",))) == ["ambiguous"]


def test_all_files_come_from_one_space(cohort: Path) -> None:
    """Native space is preferred if native and template space are both complete."""
    for name in ("T1w.nii.gz", "T2w.nii.gz", "label-lesion_mask.nii.gz"):
        copy(cohort, f"sub-01/anat/sub-01_{name}", f"sub-01/anat/sub-01_space-MNI_{name}")
    index = bids.index(cohort, sequences=("T1w", "T2w"), label="lesion")
    assert index.faults == ()
    assert "space" not in str([*index.candidates[0].images.values(), *index.candidates[0].masks.values()])


def test_complete_space_is_selected(cohort: Path) -> None:
    """If the mask exists only in template space, images are taken from that space, too."""
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


SUBJECTS = ("sub-01", "sub-02", "sub-03")


def test_masks_may_all_lie_in_a_derivative(cohort: Path) -> None:
    """The only derivative with masks is used if the data set itself has none, and a note names it with its program."""
    to_derivatives(cohort, "hand", *SUBJECTS, name="space-T1w_label-lesion_mask", made_by="ITK-SNAP")
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
    assert ids(both) == list(SUBJECTS)
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
    index = bids.index(cohort, label="lesion")
    assert (ids(index), kinds(index)) == ([], ["sequence-unknown"])
    assert "derivatives/net is a prediction of harness and is never used as truth" in index.faults[0].value


def test_a_folder_of_predictions_is_no_data_set(cohort: Path) -> None:
    """Predictions of this program are not read as truth from their own folder, and phantoms are."""
    bids_writing.begin_derivatives(cohort / "new", name="p", source=cohort, version="1", parameters={"networks": ["a"]})
    (cohort / "new/dataset_description.json").replace(cohort / "dataset_description.json")
    assert kinds(bids.index(cohort, label="lesion")) == ["truth-predicted"]
    assert kinds(bids.index(cohort, sequences=("T1w",))) == []


@pytest.mark.parametrize("name", ["harness", "Harness 0.1", "harness (docker)"])
def test_predictions_in_a_container_are_recognised(cohort: Path, name: str) -> None:
    """Whatever follows the name of this program."""
    bids_writing.begin_derivatives(cohort / "new", name="p", source=cohort, version="1", parameters={"networks": ["a"]})
    path = cohort / "new/dataset_description.json"
    text = path.read_text().replace('"Name": "harness"', f'"Name": "{name}"')
    assert name in text
    (cohort / "dataset_description.json").write_text(text)
    assert kinds(bids.index(cohort, label="lesion")) == ["truth-predicted"]


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


def test_desc_brain_mask_is_the_brain_mask(cohort: Path) -> None:
    """BIDS derivatives name it desc-brain_mask."""
    anat = cohort / "sub-01/anat"
    (anat / "sub-01_label-brain_mask.nii.gz").rename(anat / "sub-01_desc-brain_mask.nii.gz")
    assert bids.index(cohort).candidates[0].masks["brain"].name == "sub-01_desc-brain_mask.nii.gz"


def test_single_session_needs_no_option(cohort: Path) -> None:
    """The id of the candidate includes the session; the subject does not."""
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
    """Several sessions are a fault unless an option selects among them."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    to_sessions(root, "sub-02", "ses-1")
    index = bids.index(root, sequences=("T1w",), label="lesion", session=session)
    assert (ids(index), kinds(index)) == (expected, faults)


def test_subject_without_the_requested_session_is_ineligible(make_cohort: Make) -> None:
    """The reason lists the sessions that the subject has."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    to_sessions(root, "sub-02", "ses-1")
    index = bids.index(root, sequences=("T1w",), session="ses-2")
    assert [(one.subject, one.reason) for one in index.ineligible] == [("sub-02", "no ses-2; has ses-1")]


def test_sequences_of_different_sessions_are_not_combined(make_cohort: Make) -> None:
    """T1w of one session and FLAIR of another do not make a complete subject."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    (root / "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz").unlink()
    (root / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz").unlink()
    index = bids.index(root, sequences=("T1w", "FLAIR"))
    assert ids(index) == ["sub-02"]
    assert "sub-01_ses-1: no FLAIR;" in index.ineligible[0].reason
    assert "sub-01_ses-2: no T1w;" in index.ineligible[0].reason


def test_one_session_can_be_excluded(make_cohort: Make) -> None:
    """Excluding all sessions but one resolves the fault of several sessions."""
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
    """Censored values are read with a note, and missing values are None."""
    table = cohort / "participants.tsv"
    table.write_text(table.read_text().replace("\t40\t", f"\t{text}\t"))
    index = bids.index(cohort)
    assert index.candidates[0].covariates["age"] == value
    assert index.notes == ((note,) if note else ())
    assert index.faults == ()


def test_participant_ids_without_sub_are_accepted(cohort: Path) -> None:
    """Many tables list 01 instead of sub-01; a byte order mark is ignored."""
    table = cohort / "participants.tsv"
    table.write_text("\ufeff" + table.read_text().replace("sub-", ""))
    index = bids.index(cohort)
    assert (index.faults, index.candidates[0].covariates["age"]) == ((), 40.0)


def test_a_missing_table_is_a_fault_only_if_a_column_is_needed(cohort: Path) -> None:
    """Segmentation does not need participants.tsv."""
    (cohort / "participants.tsv").unlink()
    assert kinds(bids.index(cohort, label="lesion")) == []
    assert kinds(bids.index(cohort, label="lesion", required=("age",))) == ["participants-missing"]


@pytest.mark.parametrize(
    ("entity", "suffix"),
    [
        ("part-phase", "T2w"),
        ("part-real", "T1w"),
        ("acq-localizer", "T1w"),
        ("acq-3planeLoc", "T1w"),
        ("acq-scout", "FLAIR"),
    ],
)
def test_other_images_never_stand_for_a_plain_name(cohort: Path, entity: str, suffix: str) -> None:
    """A phase image or a localiser is asked for by its own name only; the reason names it."""
    anat = cohort / "sub-02/anat"
    (anat / f"sub-02_{suffix}.nii.gz").rename(anat / f"sub-02_{entity}_{suffix}.nii.gz")
    index = bids.index(cohort, sequences=(suffix,), label="lesion")
    assert (ids(index), index.faults) == (["sub-01", "sub-03"], ())
    assert index.ineligible[0].reason.endswith(f" ({entity}_{suffix} must be asked for by that name)")
    assert ids(bids.index(cohort, sequences=(f"{entity}_{suffix}",))) == ["sub-02"]


def test_magnitude_is_the_plain_image(cohort: Path) -> None:
    """An image with part-mag is the T2w image, with or without a phase image beside it."""
    copy(cohort, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_part-phase_T2w.nii.gz")
    anat = cohort / "sub-01/anat"
    (anat / "sub-01_T2w.nii.gz").rename(anat / "sub-01_part-mag_T2w.nii.gz")
    index = bids.index(cohort, sequences=("T2w",), label="lesion")
    assert index.candidates[0].images["T2w"].name == "sub-01_part-mag_T2w.nii.gz"
    assert index.faults == ()


def test_the_same_contrast_agent_in_all_subjects_is_a_note(cohort: Path) -> None:
    """It is no mix, but T1w is not what the name says."""
    for name in SUBJECTS:
        (cohort / f"{name}/anat/{name}_T1w.nii.gz").rename(cohort / f"{name}/anat/{name}_ce-gadolinium_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert (index.faults, index.notes) == ((), ("T1w is ce-gadolinium_T1w in all 3 subjects",))
    assert index.files == {"T1w": {"ce-gadolinium_T1w": 3}, "lesion": {"label-lesion_mask": 3}}
    assert bids.index(cohort, sequences=("ce-gadolinium_T1w",), label="lesion").notes == ()


def test_other_acquisitions_in_some_subjects_are_a_note(cohort: Path) -> None:
    """With the number of subjects and their names."""
    anat = cohort / "sub-02/anat"
    (anat / "sub-02_T1w.nii.gz").rename(anat / "sub-02_rec-moco_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w", "T2w"), label="lesion")
    assert (index.faults, index.notes) == ((), ("T1w is rec-moco_T1w in 1 of 3 subjects (sub-02), else T1w",))


def test_fewer_entities_do_not_decide_between_two_acquisitions(cohort: Path) -> None:
    """Neither is the plain file, and the one with the shorter name may be the worse one."""
    copy(cohort, "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_acq-lowres_T1w.nii.gz")
    anat = cohort / "sub-02/anat"
    (anat / "sub-02_T1w.nii.gz").rename(anat / "sub-02_acq-highres_rec-norm_T1w.nii.gz")
    (fault,) = bids.index(cohort, sequences=("T1w",), label="lesion").faults
    assert "T1w could be sub-02_acq-highres_rec-norm_T1w.nii.gz or sub-02_acq-lowres_T1w.nii.gz" in str(fault)
    assert "sequences=acq-highres_rec-norm_T1w" in fault.remedy


def test_runs_are_in_numerical_order(cohort: Path) -> None:
    """run-2 before run-10; that it is not the first run is told."""
    copy(cohort, "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_run-10_T1w.nii.gz")
    anat = cohort / "sub-02/anat"
    (anat / "sub-02_T1w.nii.gz").rename(anat / "sub-02_run-2_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert index.candidates[1].images["T1w"].name == "sub-02_run-2_T1w.nii.gz"
    assert index.notes == (
        "sub-02: run 2 of T1w is used; run-10 is not",
        "T1w is run-2_T1w in 1 of 3 subjects (sub-02), else T1w",
    )


def test_masks_of_several_raters_need_a_choice(cohort: Path) -> None:
    """The remedy can be used as it stands."""
    for name in SUBJECTS:
        copy(
            cohort,
            f"{name}/anat/{name}_label-lesion_mask.nii.gz",
            f"{name}/anat/{name}_desc-rater2_label-lesion_mask.nii.gz",
        )
        anat = cohort / name / "anat"
        (anat / f"{name}_label-lesion_mask.nii.gz").rename(anat / f"{name}_desc-rater1_label-lesion_mask.nii.gz")
    faults = bids.index(cohort, sequences=("T1w",), label="lesion").faults
    assert {fault.kind for fault in faults} == {"ambiguous"} and len(faults) == 3
    assert "label=desc-rater1_lesion" in faults[0].remedy
    index = bids.index(cohort, sequences=("T1w",), label="desc-rater1_lesion")
    assert index.faults == ()
    assert index.candidates[0].masks["desc-rater1_lesion"].name == "sub-01_desc-rater1_label-lesion_mask.nii.gz"


def test_a_plain_mask_precedes_those_of_raters_with_a_note(cohort: Path) -> None:
    """E.g. a consensus beside the masks of which it was made."""
    copy(cohort, "sub-01/anat/sub-01_label-lesion_mask.nii.gz", "sub-01/anat/sub-01_label-lesion_rater-2_mask.nii.gz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert (index.faults, index.notes) == (
        (),
        ("sub-01: label-lesion_mask is used; label-lesion_rater-2_mask is not",),
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(("2", "10"), "ses-2"), (("002", "010", "001"), "ses-001"), (("20240101", "20231231"), "ses-20231231")],
)
def test_the_first_session_is_so_by_number(make_cohort: Make, numbers: tuple[str, ...], expected: str) -> None:
    """ses-10 comes after ses-2."""
    root = make_cohort(1)
    to_sessions(root, "sub-01", *(f"ses-{number}" for number in numbers))
    index = bids.index(root, sequences=("T1w",), label="lesion", session="first")
    assert (ids(index), index.notes) == ([f"sub-01_{expected}"], ())
    everything = bids.index(root, sequences=("T1w",), label="lesion", session="all")
    assert ids(everything)[0] == f"sub-01_{expected}"


def test_a_first_session_that_is_not_obvious_is_told(make_cohort: Make) -> None:
    """Because an earlier one is incomplete, or because names have no order but that of the alphabet."""
    root = make_cohort(2)
    to_sessions(root, "sub-01", "ses-1", "ses-2")
    (root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz").unlink()
    to_sessions(root, "sub-02", "ses-post", "ses-pre")
    index = bids.index(root, sequences=("T1w",), label="lesion", session="first")
    assert ids(index) == ["sub-01_ses-2", "sub-02_ses-post"]
    assert index.notes == (
        "sub-01: the first complete session is ses-2 of ses-1, ses-2",
        "sub-02: the first session in alphabetical order is ses-post of ses-post, ses-pre",
    )


def pair(path: Path) -> None:
    """Store an image as .hdr and .img."""
    image = nib.load(path)
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), str(path).replace(".nii.gz", ".img"))
    path.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.rename(str(path).replace(".nii.gz", ".NII.GZ")), r"anat/sub-02_T1w\.NII\.GZ.*small letters"),
        (lambda path: path.rename(str(path).replace(".nii.gz", ".Nii")), r"anat/sub-02_T1w\.Nii.*small letters"),
        (pair, r"anat/sub-02_T1w\.hdr.*\.hdr/\.img pair"),
        (lambda path: path.rename(path.parents[1] / path.name), r"not read: sub-02_T1w\.nii\.gz.*: move it to anat"),
        (
            lambda path: path.rename(str(path).replace(".nii.gz", ".mgz")),
            r"anat/sub-02_T1w\.mgz.*convert it to \.nii\.gz",
        ),
        (lambda path: path.rename(f"{path}.part"), r"anat/sub-02_T1w\.nii\.gz\.part.*: complete or rename it"),
        (lambda path: path.rename(f"{path}.gz"), r"anat/sub-02_T1w\.nii\.gz\.gz.*must end in \.nii or \.nii\.gz"),
    ],
    ids=["upper case", "mixed case", "pair", "beside anat", "other format", "partial download", "gz twice"],
)
@pytest.mark.parametrize("every", [True, False], ids=["all files", "one file"])
def test_files_that_are_not_read_are_named(
    cohort: Path, change: Callable[[Path], object], reason: str, every: bool
) -> None:
    """With what to do, whether the subject has nothing else or lacks one image."""
    for path in sorted((cohort / "sub-02/anat").glob("*_*.nii.gz")):
        if every or path.name.endswith("_T1w.nii.gz"):
            change(path)
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert ids(index) == ["sub-01", "sub-03"]
    assert re.search(reason if not every else reason.split(".*")[-1], index.ineligible[0].reason)


def test_a_session_that_is_not_read_is_told(cohort: Path) -> None:
    """Although the subject has another one; copies of files that are read do not matter."""
    to_sessions(cohort, "sub-02", "ses-1", "ses-2")
    for path in list((cohort / "sub-02/ses-2/anat").glob("*.nii.gz")):
        path.rename(str(path).replace(".nii.gz", ".NII.GZ"))
    copy(cohort, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.mgz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert ids(index) == ["sub-01", "sub-02_ses-1", "sub-03"]
    (note,) = index.notes
    assert note.startswith(
        "not read of sub-02: ses-2/anat/sub-02_ses-2_T1w.NII.GZ, ses-2/anat/sub-02_ses-2_label-brain"
    )
    assert note.endswith(": write the extension in small letters")


def test_files_of_many_subjects_that_are_not_read_are_one_note(make_cohort: Make) -> None:
    """With an example."""
    root = make_cohort(5)
    for number in range(1, 6):
        copy(
            root,
            f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz",
            f"sub-{number:02d}/more/sub-{number:02d}_T1w.nii.gz",
        )
    assert bids.index(root, sequences=("T1w",), label="lesion").notes == (
        "files of 5 subjects are not read, e.g. of sub-01: more/sub-01_T1w.nii.gz: move it to anat",
    )
    assert bids.index(root, sequences=("T2w",), label="lesion").notes == ()


def test_files_of_all_subjects_that_are_not_read_are_named_in_the_fault(cohort: Path) -> None:
    """If no subject has the label, the message has the reason."""
    for path in list(cohort.glob("sub-*/anat/*lesion_mask.nii.gz")):
        path.rename(str(path).replace(".nii.gz", ".NII.GZ"))
    (fault,) = bids.index(cohort, sequences=("T1w",), label="lesion").faults
    assert fault.kind == "sequence-unknown" and "sub-01_label-lesion_mask.NII.GZ" in fault.value


def test_files_beside_the_folders_of_subjects_are_faults(cohort: Path) -> None:
    """They would be left out without a word if their subject has no row in the table."""
    (cohort / "participants.tsv").unlink()
    copy(cohort, "sub-01/anat/sub-01_T1w.nii.gz", "sub-04_T1w.nii.gz")
    (fault,) = bids.index(cohort, sequences=("T1w",), label="lesion").faults
    assert (fault.kind, fault.file, fault.remedy) == ("misplaced-file", "sub-04_T1w.nii.gz", "Move it to sub-04/anat.")


def test_a_folder_of_loose_files_is_no_data_set(tmp_path: Path) -> None:
    """The layout is explained."""
    (tmp_path / "sub-01_T1w.nii.gz").touch()
    assert kinds(bids.index(tmp_path, sequences=("T1w",))) == ["not-bids"]


def test_masks_of_a_derivative_that_are_not_read_are_named(cohort: Path) -> None:
    """With their whole path."""
    to_derivatives(cohort, "hand", *SUBJECTS)
    path = cohort / "derivatives/hand/sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    path.rename(str(path).replace(".nii.gz", ".NII.GZ"))
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert "not read: derivatives/hand/sub-02/anat/sub-02_label-lesion_mask.NII.GZ" in index.ineligible[0].reason


def fmriprep(root: Path, *, session: str = "") -> None:
    """Subject-level anatomy of fMRIPrep: brain mask and tissues."""
    for name in SUBJECTS:
        home = f"{name}/{session}/anat/{name}_{session}" if session else f"{name}/anat/{name}"
        for source, target in (("label-brain_mask", "desc-brain_mask"), ("label-regions_dseg", "dseg")):
            copy(root, f"{home}_{source}.nii.gz", f"derivatives/fmriprep/{name}/anat/{name}_{target}.nii.gz")
            (root / f"{home}_{source}.nii.gz").unlink()
    (root / "label-regions_dseg.tsv").unlink()


def test_tissues_of_a_pipeline_are_no_regions(cohort: Path) -> None:
    """Its brain masks are used, and a note says so."""
    fmriprep(cohort)
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert sorted(index.candidates[0].masks) == ["brain", "lesion"]
    assert (index.faults, index.notes) == (
        (),
        ("sub-01, sub-02, sub-03: the mask brain is taken from derivatives/fmriprep",),
    )


@pytest.mark.parametrize("session", ["only", "all", "first", "ses-1"])
def test_anatomy_of_a_pipeline_above_sessions_is_no_mix(cohort: Path, session: str) -> None:
    """fMRIPrep writes one anatomy for all sessions of a subject."""
    for name in SUBJECTS:
        to_sessions(cohort, name, "ses-1")
    fmriprep(cohort, session="ses-1")
    index = bids.index(cohort, sequences=("T1w",), label="lesion", session=session)
    assert (ids(index), index.faults) == ([f"{name}_ses-1" for name in SUBJECTS], ())
    assert index.ineligible == ()


def test_regions_without_names_are_not_used(cohort: Path) -> None:
    """They are optional; a table that lacks some of the names is a fault of its own."""
    (cohort / "label-regions_dseg.tsv").unlink()
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert index.faults == () and "regions" not in index.candidates[0].masks
    assert index.notes[0].startswith("sub-01, sub-02, sub-03: the regions image is not used, because no table names")


def in_space(root: Path, space: str, *subjects: str, keep: bool = False) -> None:
    """Rename masks so that they name a space."""
    for name in subjects:
        copy(
            root,
            f"{name}/anat/{name}_label-lesion_mask.nii.gz",
            f"{name}/anat/{name}_space-{space}_label-lesion_mask.nii.gz",
        )
        if not keep:
            (root / f"{name}/anat/{name}_label-lesion_mask.nii.gz").unlink()


def masks_of(index: bids.BidsIndex) -> list[str]:
    """Names of the chosen masks without the subject."""
    return [one.masks["lesion"].name.partition("_")[2] for one in index.candidates]


class TestContrast:
    """Images under the name of a sequence that show another contrast."""

    @pytest.mark.parametrize(
        "pairs",
        [
            "acq-postGd", "acq-post", "acq-T1post", "acq-GD", "acq-t1ce", "acq-MPRAGEce", "acq-3DCE", "rec-gad",
            "acq-Gadolinium", "acq-withContrast", "acq-CE", "rec-MIP", "rec-minIP", "acq-MIPthickslab", "acq-mip10mm",
            "rec-thickSlabs", "echo-2", "inv-1", "acq-3D_rec-postgd",
        ],
    )  # fmt: skip
    def test_mix_is_a_fault(self, cohort: Path, pairs: str) -> None:
        """By the words of any entity; the subject can be left out, or the contrast asked for."""
        path = cohort / "sub-02/anat/sub-02_T1w.nii.gz"
        path.rename(path.with_name(f"sub-02_{pairs}_T1w.nii.gz"))
        (fault,) = bids.index(cohort, sequences=("T1w",), label="lesion").faults
        assert fault.kind == "contrast-mix" and f"T1w is {pairs}_T1w in 1 of 3 subjects (sub-02)" in fault.value
        assert "exclude=sub-02" in fault.remedy and f"sequences={pairs}_T1w" in fault.remedy
        assert bids.index(cohort, sequences=("T1w",), label="lesion", exclude=("sub-02",)).faults == ()

    @pytest.mark.parametrize(
        "pairs",
        [
            "acq-preGd", "acq-nonContrast", "acq-unenhanced", "ce-none", "acq-SPACE", "acq-space", "acq-posterior",
            "acq-composite", "acq-3D", "rec-norm", "acq-gradient", "acq-prescanNorm", "acq-MPRAGE",
        ],
    )  # fmt: skip
    def test_other_words_are_a_note(self, cohort: Path, pairs: str) -> None:
        """That the file is another one."""
        path = cohort / "sub-02/anat/sub-02_T1w.nii.gz"
        path.rename(path.with_name(f"sub-02_{pairs}_T1w.nii.gz"))
        index = bids.index(cohort, sequences=("T1w",), label="lesion")
        assert index.faults == () and f"T1w is {pairs}_T1w in 1 of 3 subjects (sub-02), else T1w" in index.notes

    def test_different_echoes_are_a_mix(self, cohort: Path) -> None:
        """Although no subject has the plain name; equal ones by other names are not."""
        for name, pairs in zip(SUBJECTS, ("echo-1", "echo-01", "echo-2"), strict=True):
            path = cohort / f"{name}/anat/{name}_T1w.nii.gz"
            path.rename(path.with_name(f"{name}_{pairs}_T1w.nii.gz"))
        index = bids.index(cohort, sequences=("T1w",), label="lesion")
        assert kinds(index) == ["contrast-mix"] and "exclude=sub-03" in index.faults[0].remedy
        assert kinds(bids.index(cohort, sequences=("T1w",), label="lesion", exclude=("sub-03",))) == []


class TestTemplate:
    """Lesion masks that must be in one template space."""

    def test_template_precedes_native(self, cohort: Path) -> None:
        """Beside it, and in a derivative."""
        in_space(cohort, "MNI152NLin6Asym", *SUBJECTS, keep=True)
        index = bids.index(cohort, label="lesion", template=True)
        assert masks_of(index) == ["space-MNI152NLin6Asym_label-lesion_mask.nii.gz"] * 3
        assert (index.faults, index.notes) == (
            (),
            ("sub-01, sub-02, sub-03: masks in native space are not used; those in space-MNI152NLin6Asym are",),
        )

    def test_template_of_a_derivative_precedes_native(self, cohort: Path) -> None:
        """And a note says where masks come from, and which are not used."""
        for name in SUBJECTS:
            file = f"{name}/anat/{name}_label-lesion_mask.nii.gz"
            copy(cohort, file, f"derivatives/norm/{file.replace('label', 'space-MNI152_label')}")
        index = bids.index(cohort, label="lesion", template=True)
        assert masks_of(index) == ["space-MNI152_label-lesion_mask.nii.gz"] * 3
        assert "is taken from derivatives/norm" in index.notes[0]
        assert "in the data set itself is not used as truth (cohort.truth=raw would use it)" in index.notes[1]

    @pytest.mark.parametrize("space", ["T1w", "individual", "orig", "FLAIR", "acpc", "flair", "dwi"])
    def test_native_space_is_refused(self, cohort: Path, space: str) -> None:
        """However it is named."""
        in_space(cohort, space, *SUBJECTS)
        assert kinds(bids.index(cohort, label="lesion", template=True)) == ["space-native"]

    def test_mix_is_refused_with_the_subjects_of_each_space(self, cohort: Path) -> None:
        """Native with template."""
        in_space(cohort, "MNI152NLin6Asym", "sub-01", "sub-03")
        in_space(cohort, "T1w", "sub-02")
        (fault,) = bids.index(cohort, label="lesion", template=True).faults
        assert fault.value == "2 subjects in space-MNI152NLin6Asym (sub-01, sub-03); 1 subject in space-T1w (sub-02)"
        assert "exclude=sub-02" in fault.remedy
        assert kinds(bids.index(cohort, label="lesion", template=True, exclude=("sub-02",))) == []
        assert kinds(bids.index(cohort, label="lesion", template=True, space="MNI152NLin6Asym")) == []

    def test_two_mni_templates_are_a_note_and_other_templates_a_fault(self, cohort: Path) -> None:
        """MNI152 templates differ by a few mm; fsaverage is another space."""
        in_space(cohort, "MNI152NLin6Asym", "sub-01", "sub-03")
        in_space(cohort, "MNI152NLin2009cAsym", "sub-02")
        index = bids.index(cohort, label="lesion", template=True)
        assert (
            index.faults == ()
            and index.notes[0].startswith("WARNING: the masks are in 2 MNI152 templates")
            and "is some mm apart" in index.notes[0]
            and index.notes[0].endswith("1 subject in space-MNI152NLin2009cAsym (sub-02)")
        )
        anat = cohort / "sub-02/anat"
        next(anat.glob("*2009c*")).rename(anat / "sub-02_space-Talairach_label-lesion_mask.nii.gz")
        assert kinds(bids.index(cohort, label="lesion", template=True)) == ["space-mix"]

    def test_template_that_most_subjects_have_is_used(self, cohort: Path) -> None:
        """A subject with two templates follows the others; if nothing decides, it must be chosen."""
        in_space(cohort, "MNI152NLin2009cAsym", "sub-01", keep=True)
        in_space(cohort, "MNI152NLin6Asym", *SUBJECTS)
        index = bids.index(cohort, label="lesion", template=True)
        assert masks_of(index) == ["space-MNI152NLin6Asym_label-lesion_mask.nii.gz"] * 3
        assert index.notes == (
            "sub-01: masks in space-MNI152NLin2009cAsym are not used; those in space-MNI152NLin6Asym are",
        )
        for name in ("sub-02", "sub-03"):
            copy(cohort, f"{name}/anat/{name}_space-MNI152NLin6Asym_label-lesion_mask.nii.gz",
                 f"{name}/anat/{name}_space-MNI152NLin2009cAsym_label-lesion_mask.nii.gz")  # fmt: skip
        found = bids.index(cohort, label="lesion", template=True)
        assert set(kinds(found)) == {"ambiguous"} and "cohort.space=MNI152NLin" in found.faults[0].remedy
        chosen = bids.index(cohort, label="lesion", template=True, space="MNI152NLin2009cAsym")
        assert masks_of(chosen) == ["space-MNI152NLin2009cAsym_label-lesion_mask.nii.gz"] * 3

    def test_other_resolutions_in_some_subjects_are_a_note(self, cohort: Path) -> None:
        """Entities besides the space are compared as well."""
        in_space(cohort, "MNI152", "sub-01", "sub-03")
        in_space(cohort, "MNI152_res-2", "sub-02")
        index = bids.index(cohort, label="lesion", template=True)
        assert index.faults == ()
        assert index.notes == ("lesion is res-2_label-lesion_mask in 1 of 3 subjects (sub-02), else label-lesion_mask",)

    def test_names_without_a_space_are_a_note(self, cohort: Path) -> None:
        """Nothing says that they are in MNI space."""
        index = bids.index(cohort, label="lesion", template=True)
        assert index.faults == () and index.notes[0].startswith("the names of the masks state no space")

    def test_study_template_is_a_note(self, cohort: Path) -> None:
        """One space for all, but boxes are in MNI space."""
        in_space(cohort, "StudyTemplate", *SUBJECTS)
        index = bids.index(cohort, label="lesion", template=True)
        assert index.faults == () and "space-StudyTemplate of the masks is not an MNI152 template" in index.notes[0]


def test_a_phantom_is_reproducible(make_cohort: Make) -> None:
    """The same subjects give the same bytes in every file."""

    def digests(root: Path) -> dict[str, str]:
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(make_cohort(name="one")) == digests(make_cohort(name="two"))


def test_phantom_is_read_as_written(cohort: Path) -> None:
    """Values, data type and affine of the regions are unchanged."""
    one = bids.index(cohort).candidates[0]
    array, affine = nifti.read(one.masks["regions"])
    assert set(np.unique(array)) == {0, 1, 2}
    assert nifti.header(one.masks["regions"]).dtype == np.uint8
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.1, 0.9, 2.5), rtol=1e-6)
    assert json.loads((cohort / "dataset_description.json").read_text())["GeneratedBy"]


def test_failed_phantom_leaves_no_files(tmp_path: Path) -> None:
    """Neither the folder nor a temporary folder remains."""

    def subjects():  # type: ignore[no-untyped-def]
        yield from ()
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        bids_writing.write_phantom(tmp_path / "phantom", subjects(), name="broken")
    assert list(tmp_path.iterdir()) == []


def test_phantom_does_not_overwrite(cohort: Path, make_cohort: Make) -> None:
    """A folder that contains files is not replaced."""
    with pytest.raises(HarnessError, match="must be a new or an empty folder"):
        make_cohort(name=cohort.name)


def test_a_phantom_needs_subjects(tmp_path: Path) -> None:
    """An empty cohort is refused."""
    with pytest.raises(HarnessError, match="needs at least one subject"):
        bids_writing.write_phantom(tmp_path / "phantom", [], name="empty")


@pytest.mark.parametrize(
    "generated_by",
    [{"Name": "x"}, ["harness"], "harness", [None], 5, [[]], [{"Name": None}], [{"Name": "harness"}], None, {}],
    ids=json.dumps,
)
def test_descriptions_of_other_shapes_are_other_data_sets(tmp_path: Path, generated_by: object) -> None:
    """Whatever GeneratedBy is, nothing is written into the folder of another data set."""
    path = tmp_path / "dataset_description.json"
    path.write_text(json.dumps({"Name": "old", "GeneratedBy": generated_by}))
    before = path.read_text()
    with pytest.raises(RequestError, match=r"holds another data set \(old\); nothing was written"):
        bids_writing.begin_derivatives(tmp_path, name="new", source=tmp_path, version="1", parameters={})
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["[]", "{", '"text"', "5", "null", ""])
def test_descriptions_that_are_no_objects_are_other_data_sets(tmp_path: Path, content: str) -> None:
    """The message says what is wrong with them."""
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(RequestError, match=r"holds another data set \(it .*\); nothing was written"):
        bids_writing.begin_derivatives(tmp_path, name="new", source=tmp_path, version="1", parameters={})


@pytest.mark.parametrize("generated_by", [{"Name": "x"}, "x", ["x"], [{"Name": {"a": 1}}], 7], ids=json.dumps)
def test_derivatives_of_other_shapes_are_read(cohort: Path, generated_by: object) -> None:
    """Their program is named as they state it."""
    to_derivatives(cohort, "hand", *SUBJECTS)
    (cohort / "derivatives/hand/dataset_description.json").write_text(json.dumps({"GeneratedBy": generated_by}))
    index = bids.index(cohort, label="lesion")
    assert index.faults == () and "is taken from derivatives/hand (made by " in index.notes[0]


class TestStatedSpace:
    """Spaces of masks that are stated beside the name of the file."""

    @staticmethod
    def state(path: Path, text: str) -> None:
        path.write_text(json.dumps({"SpatialReference": text}))

    @pytest.mark.parametrize("text", ["orig", "T1w", "bids::sub-01/anat/sub-01_T1w.nii.gz", "file:./sub-01_T1w.nii.gz"])
    @pytest.mark.parametrize("file", ["{0}/anat/{0}_label-lesion_mask.json", "label-lesion_mask.json"])
    def test_native_space_in_a_json_file_is_refused(self, cohort: Path, text: str, file: str) -> None:
        """In that beside the mask, and in one at the top that applies to all masks."""
        for name in SUBJECTS:
            self.state(cohort / file.format(name), text)
        assert kinds(bids.index(cohort, label="lesion", template=True)) == ["space-native"]

    @pytest.mark.parametrize(
        "value",
        [
            "native space", "T1w space", "subject-T1w", "NativeSpace", "space of the patient", "T1w:res-1",
            "file:../anat/T1w.nii.gz", "bids::derivatives/mni/T1w_acpc.nii.gz", "drawn in native space on FLAIR",
            {"VolumeReference": "orig"}, {"VolumeReference": "orig", "CIFTI_STRUCTURE_CORTEX_LEFT": "fsLR"}, ["orig"],
        ],
        ids=json.dumps,
    )  # fmt: skip
    def test_native_space_in_other_words_is_refused(self, cohort: Path, value: object) -> None:
        """Phrases, files of the subject without its name, and objects of several references."""
        (cohort / "label-lesion_mask.json").write_text(json.dumps({"SpatialReference": value}))
        assert kinds(bids.index(cohort, label="lesion", template=True)) == ["space-native"]

    @pytest.mark.parametrize("file", ["{0}/{0}_mask.json", "{0}/anat/{0}_mask.json", "mask.json"])
    def test_json_files_of_all_levels_apply(self, cohort: Path, file: str) -> None:
        """As BIDS has it, to the files with their entities."""
        for name in SUBJECTS:
            self.state(cohort / file.format(name), "orig")
        assert kinds(bids.index(cohort, label="lesion", template=True)) == ["space-native"]

    @pytest.mark.parametrize(
        "text",
        [
            "MNI152 NLin 6 Asym", "MNI152_NLin_6_Asym", "mni152nlin6asym", "MNI152NLin6Asym space",
            "MNI152NLin6Asym:res-1", "/usr/share/fsl/MNI152_T1_2mm_brain.nii.gz",
        ],
    )  # fmt: skip
    def test_template_in_other_words_is_understood(self, cohort: Path, text: str) -> None:
        """And is the same as in the names of other masks."""
        in_space(cohort, "MNI152NLin6Asym", "sub-01", "sub-02")
        self.state(cohort / "label-lesion_mask.json", text)
        index = bids.index(cohort, label="lesion", template=True)
        assert (index.faults, index.notes) == ((), ())

    @pytest.mark.parametrize(
        "value",
        ["somewhere", "not in MNI space", "T1w registered to MNI152", "unknown", 5, {"a": "orig", "b": "MNI152Lin"}],
        ids=json.dumps,
    )
    def test_space_that_is_not_understood_is_a_fault(self, cohort: Path, value: object) -> None:
        """It shows the file and the value; nothing is assumed."""
        value = f"{value} else" if value == "somewhere" else value
        (cohort / "label-lesion_mask.json").write_text(json.dumps({"SpatialReference": value}))
        index = bids.index(cohort, label="lesion", template=True)
        (fault,) = index.faults
        shown = value if isinstance(value, str) else json.dumps(value)
        assert (fault.kind, fault.file) == ("space-unread", "label-lesion_mask.json")
        assert fault.value == f"the space of the masks is {shown!r} (sub-01, sub-02, sub-03)"
        assert not any("taken to be in MNI" in note for note in index.notes)

    def test_space_that_is_not_understood_is_a_note_where_no_template_is_needed(self, cohort: Path) -> None:
        """Files are in the space of the subject then."""
        self.state(cohort / "label-lesion_mask.json", "somewhere else")
        index = bids.index(cohort, sequences=("T1w",), label="lesion")
        assert index.faults == () and index.notes == (
            "sub-01, sub-02, sub-03: the space 'somewhere else' in label-lesion_mask.json is not understood; "
            "the file is taken to be in the space of the subject",
        )

    def test_the_name_precedes_what_is_not_understood(self, cohort: Path) -> None:
        """With a note."""
        in_space(cohort, "MNI152NLin6Asym", *SUBJECTS)
        self.state(cohort / "label-lesion_mask.json", "somewhere else")
        index = bids.index(cohort, label="lesion", template=True)
        assert index.faults == () and "its JSON file or folder 'somewhere else'; the name is used" in index.notes[0]

    def test_template_in_a_json_file_is_used(self, cohort: Path) -> None:
        """As a keyword, or as a file of TemplateFlow; nothing is assumed then."""
        for name, text in zip(SUBJECTS, ["MNI152NLin6Asym", "tpl-MNI152NLin6Asym_res-02_T1w.nii.gz"] * 2, strict=False):
            self.state(cohort / f"{name}/anat/{name}_label-lesion_mask.json", text)
        index = bids.index(cohort, label="lesion", template=True)
        assert (index.faults, index.notes) == ((), ())
        assert {one.space for one in index.candidates} == {"MNI152NLin6Asym"}

    def test_mix_of_json_files_is_refused(self, cohort: Path) -> None:
        """Template in some subjects, native in another."""
        for name, text in zip(SUBJECTS, ["MNI152NLin6Asym", "orig", "MNI152NLin6Asym"], strict=True):
            self.state(cohort / f"{name}/anat/{name}_label-lesion_mask.json", text)
        (fault,) = bids.index(cohort, label="lesion", template=True).faults
        assert fault.kind == "space-mix" and "1 subject in space-orig (not in the name) (sub-02)" in fault.value

    @pytest.mark.parametrize(
        ("folder", "found"),
        [("lesions_space-T1w", ["space-native"]), ("native-space", ["space-native"]), ("masks-MNI152NLin6Asym", [])],
    )
    def test_space_of_a_derivative_is_that_of_its_folder(self, cohort: Path, folder: str, found: list[str]) -> None:
        """For files whose name states none."""
        to_derivatives(cohort, folder, *SUBJECTS, made_by="ITK-SNAP")
        index = bids.index(cohort, label="lesion", template=True)
        assert kinds(index) == found and not any("taken to be in MNI" in note for note in index.notes)

    def test_contradiction_is_told(self, cohort: Path) -> None:
        """The name of the file precedes its JSON file."""
        in_space(cohort, "MNI152NLin6Asym", *SUBJECTS)
        self.state(cohort / "sub-02/anat/sub-02_space-MNI152NLin6Asym_label-lesion_mask.json", "orig")
        index = bids.index(cohort, label="lesion", template=True)
        assert index.faults == () and index.notes == (
            "sub-02: the name of the mask states space-MNI152NLin6Asym, but its JSON file or folder orig; "
            "the name is used",
        )

    def test_letter_case_is_no_other_template(self, cohort: Path) -> None:
        """``space-mni152nlin6asym`` is written in real data."""
        in_space(cohort, "MNI152NLin6Asym", "sub-01", "sub-03")
        in_space(cohort, "mni152nlin6asym", "sub-02")
        index = bids.index(cohort, label="lesion", template=True)
        assert (index.faults, index.notes) == ((), ())


@pytest.mark.parametrize("prefix", ["w", "wr", "c1", "mwc1", "y_"])
def test_files_with_a_prefix_of_spm_are_not_read_and_told(cohort: Path, prefix: str) -> None:
    """SPM writes its results beside the images; they are no reason to stop."""
    copy(cohort, "sub-01/anat/sub-01_label-lesion_mask.nii.gz", f"sub-01/anat/{prefix}sub-01_label-lesion_mask.nii.gz")
    index = bids.index(cohort, label="lesion")
    assert (kinds(index), len(index.candidates)) == ([], 3)
    assert f"anat/{prefix}sub-01_label-lesion_mask.nii.gz: the name starts with {prefix}" in str(index.notes)
    for name in SUBJECTS:
        path = cohort / f"{name}/anat/{name}_label-lesion_mask.nii.gz"
        path.rename(path.with_name(f"{prefix}{path.name}"))
    fault = bids.index(cohort, label="lesion").faults[0]
    assert fault.kind == "sequence-unknown" and f"the name starts with {prefix}" in fault.value


def test_a_session_that_most_subjects_do_not_have_is_told(cohort: Path) -> None:
    """A subject whose baseline is missing would enter with its follow-up."""
    for name in ("sub-01", "sub-02"):
        to_sessions(cohort, name, "ses-0", "ses-1")
    to_sessions(cohort, "sub-03", "ses-1")
    index = bids.index(cohort, label="lesion", session="first")
    assert ids(index) == ["sub-01_ses-0", "sub-02_ses-0", "sub-03_ses-1"]
    assert "the session is ses-1 in 1 of 3 subjects (sub-03), else ses-0" in index.notes
    assert not any("the session is" in note for note in bids.index(cohort, label="lesion", session="all").notes)


def test_further_runs_are_told(cohort: Path) -> None:
    """The first is used, although a later one may be a repetition after movement."""
    for name in SUBJECTS[:2]:
        copy(cohort, f"{name}/anat/{name}_T1w.nii.gz", f"{name}/anat/{name}_run-2_T1w.nii.gz")
        (cohort / f"{name}/anat/{name}_T1w.nii.gz").rename(cohort / f"{name}/anat/{name}_run-1_T1w.nii.gz")
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert {one.images["T1w"].name for one in index.candidates[:2]} == {
        "sub-01_run-1_T1w.nii.gz", "sub-02_run-1_T1w.nii.gz"
    }  # fmt: skip
    assert "sub-01, sub-02: run 1 of T1w is used; run-2 is not" in index.notes
    assert not any("is used" in note for note in bids.index(cohort, sequences=("SWI",), label="lesion").notes)


@pytest.mark.parametrize(
    "end", ["lesion", "label-lesion_dseg", "label-lesion_roi", "desc-lesion_probseg", "desc-T1lesion_mask"]
)
def test_a_mask_by_another_name_is_told_how_to_be_named(cohort: Path, end: str) -> None:
    """The remedy is a name that is read."""
    for name in SUBJECTS:
        path = cohort / f"{name}/anat/{name}_label-lesion_mask.nii.gz"
        path.rename(path.with_name(f"{name}_space-T1w_{end}.nii.gz"))
    fault = bids.index(cohort, label="lesion").faults[0]
    assert fault.kind == "sequence-unknown"
    assert f"sub-01_space-T1w_{end}.nii.gz would be sub-01_space-T1w_label-lesion_mask.nii.gz" in fault.value


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("sub-02/anat/sub-02_mask.nii.gz", "anat/sub-02_mask.nii.gz: the name does not say what the mask shows"),
        (
            "derivatives/lesions/manual/sub-02/anat/sub-02_label-lesion_mask.nii.gz",
            "nested folders are not read; move derivatives/lesions/manual to derivatives/lesions-manual",
        ),
        ("sourcedata/sub-02/anat/sub-02_label-lesion_mask.nii.gz", "sourcedata is not read; copy them to sub-02/anat"),
        (
            "sub-02/anat/sub-02_acq-1.5T_label-lesion_mask.nii.gz",
            "anat/sub-02_acq-1.5T_label-lesion_mask.nii.gz: a dot is not allowed in an entity",
        ),
    ],
)
def test_masks_in_other_places_and_by_other_names_are_told(cohort: Path, file: str, told: str) -> None:
    """With the next step, if a subject lacks its mask, and if all do."""
    path = cohort / "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    (cohort / file).parent.mkdir(parents=True, exist_ok=True)
    path.rename(cohort / file)
    index = bids.index(cohort, sequences=("T1w",), label="lesion")
    assert ids(index) == ["sub-01", "sub-03"] and told in index.ineligible[0].reason
    for name in ("sub-01", "sub-03"):
        (cohort / f"{name}/anat/{name}_label-lesion_mask.nii.gz").unlink()
    fault = bids.index(cohort, sequences=("T1w",), label="lesion").faults[0]
    assert fault.kind == "sequence-unknown" and told in fault.value


def test_an_image_with_a_dot_in_its_name_is_not_taken_for_another(cohort: Path) -> None:
    """The reason does not cut the name at the dot."""
    path = cohort / "sub-02/anat/sub-02_T1w.nii.gz"
    path.rename(path.with_name("sub-02_acq-1.5T_T1w.nii.gz"))
    (left_out,) = bids.index(cohort, sequences=("T1w",), label="lesion").ineligible
    assert "acq-1," not in left_out.reason
    assert "anat/sub-02_acq-1.5T_T1w.nii.gz: a dot is not allowed in an entity" in left_out.reason


def test_a_session_that_no_subject_has_is_the_only_fault(cohort: Path) -> None:
    """Zeros in front are part of the name, and the similar one is offered."""
    for name in SUBJECTS:
        to_sessions(cohort, name, "ses-2", "ses-10")
    with pytest.raises(UnknownName, match=r"no session is named 'ses-02'\. Near: ses-2\b.*All: ses-10, ses-2\."):
        bids.index(cohort, sequences=("T1w",), label="lesion", session="02")
    assert len(ids(bids.index(cohort, sequences=("T1w",), label="lesion", session="2"))) == 3


@pytest.mark.parametrize(
    "stated",
    [
        [[{"Name": "harness"}]], {"name": "harness"}, {"NAME": "Harness"}, [[["harness 1.0"]]], ["x", ["harness"]],
    ],
    ids=json.dumps,
)  # fmt: skip
@pytest.mark.parametrize("key", ["GeneratedBy", "generatedBy", "PipelineDescription"])
def test_own_predictions_are_recognised_in_any_shape(cohort: Path, stated: object, key: str) -> None:
    """They are never truth."""
    to_derivatives(cohort, "out", *SUBJECTS)
    (cohort / "derivatives/out/dataset_description.json").write_text(json.dumps({key: stated}))
    index = bids.index(cohort, label="lesion")
    assert index.candidates == () and "is a prediction of harness" in str(index.faults)


@pytest.mark.parametrize("name", ["ses-\u00b2", "ses-\u0663"])
def test_digits_of_other_scripts_in_names_are_letters(name: str) -> None:
    """They would break the numerical order of sessions."""
    assert natural(name)[-1][0] == -1
