"""Every kind of data fault: each case damages a valid cohort in one way."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harness.cli import commands
from harness.cli.cohorts import faults_of
from harness.core.errors import CohortError
from harness.core.types import Fault
from harness.data import bids, nifti
from harness.data.cohort import bids as read
from harness.data.verify import FAULT_KINDS, brain_faults, verify

OPEN_MS = Path(__file__).parents[2].parent / "shared" / "data" / "open-ms"
T1W = "sub-02/anat/sub-02_T1w.nii.gz"
SWI = "sub-02/anat/sub-02_SWI.nii.gz"
LESION = "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
BRAIN = "sub-02/anat/sub-02_label-brain_mask.nii.gz"
LESIONS = [LESION.replace("02", number) for number in ("01", "02", "03")]
BRAINS = [BRAIN.replace("02", number) for number in ("01", "02", "03")]
REGIONS = "sub-02/anat/sub-02_label-regions_dseg.nii.gz"
OUTSIDE = frozenset({"outside-brain"})
Patch = pytest.MonkeyPatch


def check(root: Path, **options: Any) -> list[Fault]:
    """Index and verify as a task does."""
    options = {"sequences": ("T1w", "SWI"), "label": "lesion"} | options
    minimum, target = options.pop("minimum", 2), options.pop("target", None)
    after, needed_for = options.pop("after", None), options.pop("needed_for", "")
    index = bids.index(root, **options)
    if after:
        after(root)
    faults = verify(index, sequences=options["sequences"], label=options["label"], target=target, minimum=minimum)
    return [*faults, *brain_faults(index, needed_for=needed_for)]


@dataclass(frozen=True)
class Case:
    """One way to damage a cohort.

    Parameters
    ----------
    kind : the expected kind of fault
    fragment : regular expression that its message must match
    damage : damages the folder
    options : options of the index and of verify
    others : further kinds of fault that the same damage may cause
    """

    kind: str
    fragment: str
    damage: Callable[[Path, Patch], Any]
    options: dict[str, Any] = field(default_factory=dict)
    others: frozenset[str] = frozenset()


# --- ways to damage a folder ----------------------------------------------------


def values(file: str, change: Callable[[np.ndarray], np.ndarray], dtype: Any = np.float32) -> Any:
    """Change the voxels of a file."""

    def apply(root: Path, _: Patch) -> None:
        array, affine = nifti.read(root / file)
        nifti.write(root / file, change(array), affine, dtype=dtype)

    return apply


def to_pipe(root: Path, _: Patch) -> None:
    """Replace an image by a named pipe, which nobody writes to."""
    (root / T1W).unlink()
    os.mkfifo(root / T1W)


def voxel(value: float, where: tuple[int, int, int] = (4, 5, 2)) -> Callable[[np.ndarray], np.ndarray]:
    """Set one voxel."""

    def change(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change


def place(file: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Change the affine of a file."""

    def apply(root: Path, _: Patch) -> None:
        array, affine = nifti.read(root / file)
        nifti.write(root / file, array, change(affine))

    return apply


def shifted(millimetres: float) -> Callable[[np.ndarray], np.ndarray]:
    """Shift the origin along the first world axis."""
    return lambda affine: nib.affines.from_matvec(affine[:3, :3], affine[:3, 3] + [millimetres, 0, 0])


def header(file: str, **fields: Any) -> Any:
    """Write fields of the raw header without checks."""

    def apply(root: Path, _: Patch) -> None:
        content = gzip.decompress((root / file).read_bytes())
        raw = nib.Nifti1Header(content[:348], check=False)
        for name, value in fields.items():
            raw[name] = value
        (root / file).write_bytes(gzip.compress(raw.binaryblock + content[348:]))

    return apply


def stored(file: str, change: Callable[[bytes], bytes]) -> Any:
    """Change the bytes of a file."""
    return lambda root, _: (root / file).write_bytes(change((root / file).read_bytes()))


def text(file: str, change: Callable[[str], str]) -> Any:
    """Change a text file."""
    return lambda root, _: (root / file).write_text(change((root / file).read_text()))


def write(file: str, content: str) -> Any:
    """Write a text file."""
    return lambda root, _: (root / file).write_text(content)


def copy(source: str, target: str) -> Any:
    """Copy a file within the folder."""

    def apply(root: Path, _: Patch) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)

    return apply


def move(source: str, target: str) -> Any:
    """Move a file within the folder."""

    def apply(root: Path, _: Patch) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / source).rename(root / target)

    return apply


def delete(file: str) -> Any:
    """Delete a file or a folder."""
    return lambda root, _: shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()


def both(*steps: Any) -> Any:
    """Apply several steps in order."""
    return lambda root, patch: [step(root, patch) for step in steps]


def link(file: str, target: str) -> Any:
    """Replace a file by a link."""

    def apply(root: Path, _: Patch) -> None:
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(target)

    return apply


def refuse(method: str, file: str, error: OSError) -> Any:
    """Simulate an error of the operating system, which root would not get."""

    def apply(root: Path, patch: Patch) -> None:
        real = getattr(Path, method)

        def refusing(self: Path, *args: Any) -> Any:
            if self == root / file:
                raise error
            return real(self, *args)

        patch.setattr(Path, method, refusing)

    return apply


def to_elsewhere(file: str) -> Any:
    """Move a file or folder out of the data set, and leave a link to it."""

    def apply(root: Path, _: Patch) -> None:
        target = root.parent / "elsewhere" / Path(file).name
        target.parent.mkdir()
        (root / file).rename(target)
        (root / file).symlink_to(target)

    return apply


def claims_too_much(root: Path, _: Patch) -> None:
    """A header of 2³² voxels before a stream that is long enough to hold them."""
    content = bytearray(gzip.decompress((root / T1W).read_bytes()))
    content[40:48] = np.array([3, 2**11, 2**10, 2**11], "<i2").tobytes()
    content[70:74] = np.array([2, 8], "<i2").tobytes()  # uint8
    random = np.random.default_rng(0).bytes(2**12)
    (root / T1W).write_bytes(gzip.compress(bytes(content) + random) + bytes(2**32 // 1032))


def folder_instead(file: str) -> Any:
    """Replace a file by a folder."""

    def apply(root: Path, _: Patch) -> None:
        (root / file).unlink()
        (root / file).mkdir()

    return apply


def sessions(root: Path, _: Patch) -> None:
    """Two sessions of sub-02, with different images."""
    for path in sorted((root / "sub-02/anat").iterdir()):
        for session in ("ses-1", "ses-2"):
            copy(f"sub-02/anat/{path.name}", f"sub-02/{session}/anat/{path.name.replace('02_', f'02_{session}_')}")(
                root, _
            )
    shutil.rmtree(root / "sub-02/anat")
    for name in ("T1w", "SWI"):
        values(f"sub-02/ses-2/anat/sub-02_ses-2_{name}.nii.gz", lambda array: array + 1)(root, _)
    values("sub-02/ses-2/anat/sub-02_ses-2_label-lesion_mask.nii.gz", voxel(1, (8, 8, 3)))(root, _)


def copied_subject(root: Path, _: Patch) -> None:
    """Make sub-03 a copy of sub-02."""
    shutil.rmtree(root / "sub-03")
    for path in sorted((root / "sub-02/anat").iterdir()):
        copy(f"sub-02/anat/{path.name}", f"sub-03/anat/{path.name.replace('02', '03')}")(root, _)


def reordered(root: Path, _: Patch) -> None:
    """Store the voxels of T1w as int16, and as float32 in another subject's SWI."""
    array, affine = nifti.read(root / T1W)
    image = nib.Nifti1Image(np.rint(array).astype(np.int16), affine)
    nib.save(image, root / T1W)
    nifti.write(root / SWI.replace("02", "03"), np.rint(array), affine)


def qform_moved(root: Path, _: Patch) -> None:
    """Shift the qform 5 mm to the right of the sform."""
    image = nib.load(root / T1W)
    moved = image.affine.copy()
    moved[0, 3] += 5
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    image.set_qform(moved, code=1)
    nib.save(image, root / T1W)


def singular(root: Path, patch: Patch) -> None:
    """Make two axes of the grid parallel."""
    header(T1W, qform_code=0, srow_x=[1.1, 0, 0, 0], srow_y=[1.1, 0, 0, 0], srow_z=[0, 0, 2.5, 0])(root, patch)


def colour(root: Path, _: Patch) -> None:
    """Store RGB voxels."""
    array, affine = nifti.read(root / T1W)
    pixels = np.zeros(array.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(pixels, affine), root / T1W)


TABLE = "participants.tsv"
PAIR = ["T1w.nii.gz", "label-lesion_mask.nii.gz"]


def spaces(*names: str) -> Any:
    """Replace T1w and lesion mask of sub-02 by copies in the given spaces."""
    copies = [copy(f"sub-02/anat/sub-02_{one}", f"sub-02/anat/sub-02_space-{s}_{one}") for s in names for one in PAIR]
    return both(*copies, *(delete(f"sub-02/anat/sub-02_{one}") for one in PAIR))


CASES = [
    # the folder
    Case("folder-missing", r"no such folder.*Near: cohort", lambda root, _: root.rename(root.with_name("cohorts"))),
    Case("not-a-folder", r"a file; expected a BIDS folder", lambda root, _: (shutil.rmtree(root), root.touch())),
    Case("empty-folder", r"no files", lambda root, _: (shutil.rmtree(root), root.mkdir())),
    Case(
        "not-bids",
        r"no sub-\* folder among a\.txt",
        lambda root, _: [
            shutil.rmtree(root),
            root.mkdir(),
            (root / "a.txt").touch(),
        ],
    ),
    Case(
        "folder-unreadable",
        r"sub-02/anat: Permission denied",
        refuse("iterdir", "sub-02/anat", PermissionError(13, "Permission denied")),
    ),
    Case(
        "description-missing", r"dataset_description\.json: there is no such file", delete("dataset_description.json")
    ),
    Case("description-unreadable", r"it cannot be read \(Expecting", write("dataset_description.json", "{")),
    # participants.tsv
    Case(
        "participants-missing",
        r"columns participant_id, score",
        delete(TABLE),
        {"required": ("score",)},
        frozenset({"too-few"}),
    ),
    Case(
        "participants-unreadable", r"it cannot be read \('utf-8'", lambda root, _: (root / TABLE).write_bytes(b"\xff")
    ),
    Case(
        "participants-columns",
        r"the columns are subject, sex",
        text(TABLE, lambda content: content.replace("participant_id", "subject")),
    ),
    Case(
        "participants-ragged",
        r"line 3 has 3 cells; expected 4",
        text(TABLE, lambda content: content.replace("\t41\tn/a", "\t41")),
    ),
    Case(
        "participants-duplicate",
        r"sub-02 has a second row in line 5",
        text(TABLE, lambda content: content + "sub-02\tM\t41\tn/a\n"),
    ),
    Case(
        "sessions-table",
        r"sub-02/sub-02_sessions\.tsv: the columns are session, edss, without session_id",
        write("sub-02/sub-02_sessions.tsv", "session\tedss\nses-1\t3\n"),
    ),
    Case("participants-json", r"participants\.json: it holds a list", write("participants.json", "[]")),
    Case(
        "column-missing",
        r"a column scor\. Did you mean score\?",
        lambda *_: None,
        {"required": ("scor",)},
        frozenset({"too-few"}),
    ),
    Case(
        "column-mixed",
        r"age of sub-02 is 'old'; expected a number",
        text(TABLE, lambda content: content.replace("\t41\t", "\told\t")),
    ),
    Case(
        "level-unknown",
        r"sex of sub-02 is 'X'; expected one of F, M",
        text(TABLE, lambda content: content.replace("sub-02\tM", "sub-02\tX")),
    ),
    Case(
        "subject-unlisted",
        r"sub-02 has a folder but no row",
        text(TABLE, lambda content: re.sub(r"sub-02.*\n", "", content)),
    ),
    Case(
        "subject-without-folder",
        r"sub-07 has a row but no folder",
        text(TABLE, lambda content: content + "sub-07\tF\t30\t1\n"),
    ),
    Case(
        "out-of-range",
        r"age of sub-02 is 141; expected 0 to 120",
        text(TABLE, lambda content: content.replace("\t41\t", "\t141\t")),
    ),
    Case(
        "one-class",
        r"score is 2\.5 for all 2 eligible subjects",
        lambda *_: None,
        {"required": ("score",), "target": "score"},
    ),
    Case("too-few", r"3 eligible subjects; left out: none; expected at least 5", lambda *_: None, {"minimum": 5}),
    Case(
        "number-range",
        r"age of sub-02 is 1e400; expected 0, or a magnitude",
        text(TABLE, lambda content: content.replace("\t41\t", "\t1e400\t")),
        {},
        frozenset({"out-of-range"}),
    ),
    Case("number-range", r"1e-400", text(TABLE, lambda content: content.replace("\t41\t", "\t1e-400\t"))),
    Case(
        "participants-id",
        r"participant_id 2 could be sub-002 or sub-02",
        both(
            lambda root, _: (root / "sub-002").mkdir(),
            text(TABLE, lambda content: content.replace("sub-02", "2") + "sub-002\tF\t40\t1\n"),
        ),
        {},
        frozenset({"subject-unlisted", "subject-without-folder"}),
    ),
    # where files come from
    Case(
        "truth-predicted",
        r"dataset_description\.json: the data set holds predictions of harness",
        write(
            "dataset_description.json",
            '{"Name": "p", "GeneratedBy": [{"Name": "harness", "Parameters": {"networks": ["a"]}}]}',
        ),
    ),
    Case(
        "truth-several",
        r"label-lesion_mask is in derivatives/a \(sub-01, sub-02\) and derivatives/b \(sub-03\)",
        both(
            move(LESION, f"derivatives/a/{LESION}"),
            move(LESION.replace("02", "01"), f"derivatives/a/{LESION.replace('02', '01')}"),
            move(LESION.replace("02", "03"), f"derivatives/b/{LESION.replace('02', '03')}"),
        ),
    ),
    Case(
        "contrast-mix",
        r"T1w is ce-gadolinium_T1w in 1 of 3 subjects \(sub-02\); .*exclude=sub-02.*sequences=ce-gadolinium_T1w",
        move(T1W, T1W.replace("T1w", "ce-gadolinium_T1w")),
    ),
    Case(
        "space-native",
        r"3 masks are in the space of the subject: space-T1w",
        both(*(move(one, one.replace("label", "space-T1w_label")) for one in LESIONS)),
        {"sequences": (), "template": True},
    ),
    Case(
        "space-unread",
        r"label-lesion_mask\.json: the space of the masks is 'some place' \(sub-01, sub-02, sub-03\); .*\"orig\"",
        write("label-lesion_mask.json", '{"SpatialReference": "some place"}'),
        {"sequences": (), "template": True},
    ),
    Case(
        "space-mix",
        r"2 subjects in space-MNI152NLin6Asym \(sub-01, sub-03\); 1 subject with no space in the name \(sub-02\)",
        both(*(move(one, one.replace("label", "space-MNI152NLin6Asym_label")) for one in LESIONS if "02" not in one)),
        {"sequences": (), "template": True},
        frozenset({"brain-mask-of-some"}),
    ),
    # names of folders and files
    Case(
        "subject-name",
        r"the folder 'Sub-04' is not read; expected sub- in small letters",
        lambda root, _: (root / "Sub-04").mkdir(),
    ),
    Case(
        "subject-name",
        r"the name is 'sub-0 2'",
        both(
            lambda root, _: (root / "sub-02").rename(root / "sub-0 2"),
            text(TABLE, lambda content: content.replace("sub-02", "sub-0 2")),
        ),
    ),
    Case(
        "broken-folder-link",
        r"sub-04: a link to /nowhere, which is not there",
        both(link("sub-04", "/nowhere"), text(TABLE, lambda content: content + "sub-04\tF\t30\t1\n")),
        {},
        frozenset({"subject-without-folder"}),
    ),
    Case(
        "misplaced-file",
        r"the name says sub-99; expected a name with sub-02",
        move("sub-02/anat/sub-02_FLAIR.nii.gz", "sub-02/anat/sub-99_FLAIR.nii.gz"),
    ),
    Case(
        "sequence-unknown",
        r"no subject has T1; .*Did you mean T1w",
        lambda *_: None,
        {"sequences": ("T1",)},
        frozenset({"too-few"}),
    ),
    Case(
        "ambiguous",
        r"T1w could be sub-02_acq-a_T1w\.nii\.gz or sub-02_acq-b_T1w\.nii\.gz",
        both(
            copy("sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_acq-a_T1w.nii.gz"),
            move(T1W, "sub-02/anat/sub-02_acq-b_T1w.nii.gz"),
        ),
    ),
    Case(
        "ambiguous",
        r"complete in space-A and in space-B",
        spaces("A", "B"),
        {"sequences": ("T1w",)},
        frozenset({"brain-mask-of-some"}),  # the brain mask is in neither of them
    ),
    Case(
        "space-mix",
        r"T1w in native space; lesion in space-MNI",
        move(LESION, LESION.replace("label", "space-MNI_label")),
        {"sequences": ("T1w",)},
    ),
    Case(
        "session-mix",
        r"images in sub-02/anat and in ses-1",
        copy("sub-02/anat/sub-02_T2w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz"),
    ),
    Case("sessions-several", r"sub-02_ses-1, sub-02_ses-2 are all complete", sessions),
    # tables and JSON beside the images
    Case(
        "regions-table",
        r"it cannot be read \('index' is not in list\)",
        write("label-regions_dseg.tsv", "number\tname\n1\ta\n"),
        {},
        frozenset({"regions-unnamed"}),
    ),
    Case(
        "regions-conflict",
        r"region 1 is 'front' here and 'left' in label-regions_dseg\.tsv",
        write(REGIONS.replace(".nii.gz", ".tsv"), "index\tname\n1\tfront\n"),
    ),
    Case("regions-unnamed", r"1 labels have no name: 2", write("label-regions_dseg.tsv", "index\tname\n1\tleft\n")),
    Case("sidecar", r"mask\.json: it holds a str", write(LESION.replace(".nii.gz", ".json"), '"T2w"')),
    # files that cannot be read
    Case("empty-file", r"T1w\.nii\.gz: 0 bytes", stored(T1W, lambda _: b"")),
    Case("truncated", r"the compressed stream stops after", stored(T1W, lambda content: content[: len(content) // 2])),
    Case(
        "truncated",
        r"expected \d+ bytes for \(12, 14, 6\) voxels of float32",
        stored(T1W, lambda content: gzip.compress(gzip.decompress(content)[:-100])),
    ),
    Case(
        "truncated",
        r"the 348 bytes of the header",
        stored(T1W, lambda content: gzip.compress(gzip.decompress(content)[:100])),
    ),
    Case(
        "corrupt-gzip",
        r"incorrect data check; expected an intact gzip stream",
        stored(T1W, lambda content: content[:-8] + b"\x00" * 8),
    ),
    Case(
        "inflated",
        r"holds more than 1\d{6} bytes; expected at most 4384 for the voxels of the header, and 1 MiB",
        stored(T1W, lambda content: gzip.compress(gzip.decompress(content) + bytes(2**26))),
    ),
    Case(
        "inflated",
        r"holds more than 1\d{6} bytes",
        stored(T1W, lambda content: content + 40 * gzip.compress(bytes(2**20))),
    ),
    Case(
        "truncated",
        r"compressed bytes; expected 4000000000352 bytes for \(10000, 10000, 10000\) voxels",
        header(T1W, dim=[3, 10000, 10000, 10000, 1, 1, 1, 1]),
    ),
    Case(
        "truncated",
        r"voxels of float32",
        header(T1W, dim=[7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]),
    ),
    Case("dimensions", r"the shape is \(-12, 14, 6\)", header(T1W, dim=[3, -12, 14, 6, 1, 1, 1, 1])),
    Case("not-nifti", r"the header contradicts itself", header(T1W, dim=[-3, 12, 14, 6, 1, 1, 1, 1])),
    Case("too-large", r"describes 4294967296 voxels.*at most 2147483648", claims_too_much),
    Case("link-outside", r"a link to .*/elsewhere/sub-02_T1w.*cohort\.links=/.*/elsewhere", to_elsewhere(T1W)),
    Case(
        "link-outside", r"sub-02/anat: a link to .*/elsewhere/anat; expected a link within", to_elsewhere("sub-02/anat")
    ),
    Case("link-outside", r"participants\.tsv: a link to", to_elsewhere("participants.tsv")),
    Case(
        "link-outside",
        r"sub-02_T1w\.nii\.gz: a link to /etc/passwd",
        link(T1W, "/etc/passwd"),
        {},
        frozenset({"wrong-extension"}),
    ),
    Case("not-nifti", r"it starts with b'<!DOCTYP'", stored(T1W, lambda _: gzip.compress(b"<!DOCTYPE html>" * 50))),
    Case("not-nifti", r"the magic word is b'ni1", header(T1W, magic=b"ni1")),
    Case(
        "wrong-extension", r"the content is not compressed \(it starts with b'<htm'\)", stored(T1W, lambda _: b"<html>")
    ),
    Case(
        "placeholder",
        r"b'version' ….*git lfs pull",
        stored(T1W, lambda _: b"version https://git-lfs.github.com/spec/v1\n"),
    ),
    Case(
        "placeholder",
        r"b'/annex/objects/MD5E-s12--0\.nii\.gz'",
        stored(T1W, lambda _: b"/annex/objects/MD5E-s12--0.nii.gz\n"),
    ),
    Case("wrong-extension", r"T1w\.nii: the content is compressed", move(T1W, T1W.removesuffix(".gz"))),
    Case("broken-symlink", r"a link to \.\./\.\./\.git/annex/x, which is not there", link(T1W, "../../.git/annex/x")),
    Case("broken-symlink", r"sub-02_T1w\.nii\.gz: Too many levels", link(T1W, "sub-02_T1w.nii.gz")),
    Case("missing-file", r"there is no such file", lambda *_: None, {"after": lambda root: (root / T1W).unlink()}),
    Case("not-a-file", r"a folder; expected a file", folder_instead(T1W)),
    Case("permission", r"reading is not permitted", refuse("read_bytes", T1W, PermissionError(13, "denied"))),
    Case("unreadable", r"Input/output error", refuse("read_bytes", T1W, OSError(5, "Input/output error"))),
    Case("datatype", r"expected integers or floating point", colour),
    # headers
    Case("dimensions", r"the shape is \(12, 14, 6, 2\)", values(T1W, lambda array: np.stack([array, array + 1], -1))),
    Case("spacing", r"the voxel size is \(1\.1, 0\.9, 0\)", header(T1W, pixdim=[1, 1.1, 0.9, 0, 1, 1, 1, 1])),
    Case("spacing", r"the voxel size is \(1\.1, -0\.9, 2\.5\)", header(T1W, pixdim=[1, 1.1, -0.9, 2.5, 1, 1, 1, 1])),
    Case("spacing", r"the voxel size is \(nan, 0\.9, 2\.5\)", header(T1W, pixdim=[1, np.nan, 0.9, 2.5, 1, 1, 1, 1])),
    Case(
        "spacing-implausible",
        r"\(11, 0\.9, 2\.5\) mm; expected 0\.1 to 10 mm",
        header(T1W, pixdim=[1, 11, 0.9, 2.5, 1, 1, 1, 1]),
        {},
        frozenset({"spacing-affine", "qform-sform"}),
    ),
    Case(
        "spacing-affine",
        r"pixdim says \(1\.1, 0\.9, 3\) mm and the affine \(1\.1, 0\.9, 2\.5\) mm",
        header(T1W, pixdim=[1, 1.1, 0.9, 3, 1, 1, 1, 1], qform_code=0),
    ),
    Case("units", r"the unit is micron; expected mm", header(T1W, xyzt_units=3)),
    Case("singular-affine", r"the affine has the rows \(1\.1, 0, 0, 0\), \(1\.1, 0, 0, 0\), ", singular),
    Case("singular-affine", r"the affine has the rows \(nan, 0, 0, 0\), ", header(T1W, srow_x=[np.nan, 0, 0, 0])),
    Case(
        "no-orientation",
        r"qform_code and sform_code are 0",
        header(T1W, qform_code=0, sform_code=0),
        {},
        frozenset({"affine-mismatch", "orientation-mismatch"}),
    ),
    Case(
        "voxel-offset",
        r"vox_offset is 0; expected a whole number of bytes, 352 or more",
        header(T1W, vox_offset=0),
    ),
    Case("voxel-offset", r"vox_offset is 348", header(T1W, vox_offset=348)),
    Case("voxel-offset", r"vox_offset is 352\.5", header(T1W, vox_offset=352.5)),
    Case("voxel-offset", r"vox_offset is nan", header(T1W, vox_offset=np.nan)),
    Case("truncated", r"expected 44\d\d bytes", header(T1W, vox_offset=368)),
    Case("qform", r"quaternion and offset give no transform", header(T1W, quatern_b=0.9, quatern_c=0.9)),
    Case("qform", r"quaternion and offset give no transform", header(T1W, quatern_b=np.nan)),
    Case("qform", r"quaternion and offset", header(T1W, quatern_b=0.9, quatern_c=0.9, sform_code=0)),
    Case("qform-sform", r"place a corner 20 mm apart", header(T1W, pixdim=[0, 1.1, 0.9, 2.5, 1, 1, 1, 1], qoffset_x=0)),
    Case("qform-sform", r"place a corner 5 mm apart", qform_moved),
    # grids within a subject
    Case(
        "shape-mismatch",
        r"the shape is \(11, 14, 6\); expected the shape of an image: T1w \(12, 14, 6\), SWI",
        values(LESION, lambda array: array[1:]),
    ),
    Case("affine-mismatch", r"a corner is 3 mm from that of .*lesion_mask.*origins", place(T1W, shifted(3))),
    Case(
        "orientation-mismatch",
        r"the axes run to LAS, those of .*lesion_mask\.nii\.gz to RAS",
        place(T1W, lambda affine: affine @ nib.affines.from_matvec(np.diag([-1, 1, 1]), [11, 0, 0])),
    ),
    Case("field-of-view", r"SWI\.nii\.gz: \d+% of the label lies outside", place(SWI, shifted(8))),
    Case("field-of-view", r"of the centre of T1w lies outside", place(SWI, shifted(9)), {"label": None}),
    # values of images
    Case("non-finite", r"1 of 1008 voxels are NaN or infinite, the first at \(4, 5, 2\)", values(T1W, voxel(np.nan))),
    Case("non-finite", r"lesion_mask\.nii\.gz: 1 of 1008", values(LESION, voxel(np.inf))),
    Case("constant-image", r"every voxel is 7", values(T1W, lambda array: np.full_like(array, 7))),
    Case("all-negative", r"the values are -\d+.* to -\d+", values(T1W, lambda array: -array)),
    Case("extreme-intensity", r"the largest magnitude is 1e\+30", values(T1W, voxel(1e30))),
    # values of masks
    Case("empty-mask", r"no voxel is set", values(LESION, np.zeros_like)),
    Case("empty-mask", r"brain_mask\.nii\.gz: no voxel is set", values(BRAIN, np.zeros_like)),
    Case("inverted-mask", r"9\d\.\d% of the voxels are set", values(LESION, lambda mask: 1 - mask), {}, OUTSIDE),
    Case("number-range", r"the values are .*e\+30", values(T1W, lambda image: image.astype(float) * 1e300, float)),
    Case("number-range", r"e-\d\d; expected a range from 1e-18", values(T1W, lambda image: image * 1e-30)),
    Case("not-a-file", r"T1w\.nii\.gz: a pipe or device; expected a file", to_pipe),
    Case("full-mask", r"all 1008 voxels are set", values(LESION, np.ones_like), {}, OUTSIDE),
    Case("non-binary", r"the values are 0, 1, 3; expected 0 and 1", values(LESION, voxel(3))),
    Case("non-binary", r"the values are 0, 0\.5, 1", values(LESION, voxel(0.5))),
    Case("negative-mask", r"the smallest value is -1", values(LESION, voxel(-1))),
    Case(
        "outside-brain",
        r"\d+% of its voxels lie outside of .*brain_mask",
        values(LESION, lambda array: np.pad(array[3:], ((0, 3), (0, 0), (0, 0)))),
    ),
    Case(
        "regions-not-integer",
        r"there are values such as 1\.5",
        values(REGIONS, voxel(1.5)),
        {},
        frozenset({"regions-unnamed"}),
    ),
    Case("regions-unnamed", r"regions_dseg\.nii\.gz: 1 labels have no name: 9", values(REGIONS, voxel(9))),
    # copies
    Case("duplicate-image", r"SWI\.nii\.gz: the voxels equal those of sub-02/anat/sub-02_T1w", copy(T1W, SWI)),
    Case(
        "duplicate-image", r"sub-03_T1w\.nii\.gz: the voxels equal those of sub-02", copy(T1W, T1W.replace("02", "03"))
    ),
    Case("duplicate-image", r"sub-03_SWI\.nii\.gz: the voxels equal those of .*sub-02_T1w", reordered),
    Case("duplicate-subject", r"sub-03: all files equal those of sub-02", copied_subject),
    # brain masks
    Case("brain-mask-of-some", r"1 of 3 subjects have no brain mask: sub", delete(BRAIN)),
    Case(
        "brain-mask-missing",
        r"no brain masks; expected one for crop=brain",
        both(*map(delete, BRAINS)),
        {"needed_for": "crop=brain"},
    ),
]
# Cases whose options ``harness data verify`` accepts.
PLAIN = [case for case in CASES if case.options.keys() <= {"sequences", "label"}]


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.kind}" for number, case in enumerate(CASES)])
def test_every_kind_of_fault_is_found(cohort: Path, case: Case, monkeypatch: Patch) -> None:
    """The fault is listed with its value and remedy, and no unrelated fault is."""
    case.damage(cohort, monkeypatch)
    faults = check(cohort, **case.options)
    of_kind = [fault for fault in faults if fault.kind == case.kind]
    assert of_kind, [str(fault) for fault in faults]
    assert re.search(case.fragment, str(of_kind[0]), re.DOTALL), str(of_kind[0])
    assert of_kind[0].expected and of_kind[0].remedy
    assert {fault.kind for fault in faults} <= {case.kind} | case.others, [str(fault) for fault in faults]


@pytest.mark.parametrize("case", PLAIN, ids=[f"{number}-{case.kind}" for number, case in enumerate(PLAIN)])
def test_data_verify_lists_what_a_run_stops_at(cohort: Path, case: Case, monkeypatch: Patch) -> None:
    """Both list the same faults in the same order."""
    case.damage(cohort, monkeypatch)
    options = {"sequences": ("T1w", "SWI"), "label": "lesion"} | case.options
    sequences, label = tuple(options["sequences"]), options["label"] or ""
    with pytest.raises(CohortError) as stopped:
        read(cohort, cohort.parent / "cache", sequences=sequences, label=label, minimum=3 if label else 1)
    _, listed = faults_of(cohort, sequences=sequences, label=label)
    assert case.kind in {fault.kind for fault in listed}
    assert [str(fault) for fault in listed] == [str(fault) for fault in stopped.value.faults]


@pytest.mark.parametrize(
    ("kind", "overrides", "damage"),
    [
        ("brain-mask-missing", ["cohort.crop=brain"], both(*map(delete, BRAINS))),
        ("label-vanished", ["reference=T1w", "cohort.spacing_mm=[9,9,9]"], lambda root, _: None),
    ],
)
def test_data_verify_for_a_run_prepares_as_that_run_would(
    cohort: Path, capsys: pytest.CaptureFixture[str], kind: str, overrides: list[str], damage: Any, monkeypatch: Patch
) -> None:
    """Faults that depend on the preparation are found with the overrides of the run, and nothing is trained."""
    damage(cohort, monkeypatch)
    out = cohort.parent / "out"
    given = ["task=epvs", f"data={cohort}", f"out={out}", "label=lesion", "sequences=T1w"]
    plain = [*given, "cohort.brain=if_present", "cohort.crop=none", "cohort.size=[]", "cohort.spacing_mm=[]"]
    kept = [
        override for override in plain if override.partition("=")[0] not in {one.partition("=")[0] for one in overrides}
    ]
    assert commands.data("verify", plain) == 0
    assert commands.data("verify", [*kept, *overrides]) == 1
    assert kind in capsys.readouterr().out and not (out / "store").exists()


def test_every_kind_of_fault_has_a_test() -> None:
    """``CASES`` covers exactly the documented kinds."""
    assert {case.kind for case in CASES} == set(FAULT_KINDS)
    assert len(FAULT_KINDS) >= 25
    assert list(FAULT_KINDS) == sorted(FAULT_KINDS)


OF_COHORT = {"contrast-mix", "participants-id", "space-mix", "space-unread", "truth-several"}
OF_FILES = [case for case in CASES if "sub-02" in case.fragment and case.kind not in OF_COHORT]


@pytest.mark.parametrize("case", OF_FILES, ids=lambda case: case.kind)
def test_fault_names_its_subject(cohort: Path, case: Case, monkeypatch: Patch) -> None:
    """The name can be passed to exclude=."""
    case.damage(cohort, monkeypatch)
    assert {fault.subject for fault in check(cohort, **case.options)} <= {"sub-02", "sub-03", "sub-04"}


def test_valid_cohort_has_no_faults(cohort: Path) -> None:
    """Neither a finer grid nor equal brain masks are faults."""
    options = {"sequences": ("T1w", "T2w", "FLAIR", "SWI"), "required": ("age",), "target": "age"}
    assert check(cohort, **options) == []


def test_all_faults_are_listed_at_once(make_cohort: Callable[..., Path], monkeypatch: Patch) -> None:
    """Verification does not stop at the first fault, and the error suggests which subjects to exclude."""
    root = make_cohort(6)
    delete("dataset_description.json")(root, monkeypatch)
    text(TABLE, lambda content: content.replace("\t41\t", "\t200\t"))(root, monkeypatch)
    values(T1W, voxel(np.nan))(root, monkeypatch)
    values(LESION, np.zeros_like)(root, monkeypatch)
    stored(T1W.replace("02", "03"), lambda content: content[:200])(root, monkeypatch)
    place(SWI.replace("02", "04"), shifted(30))(root, monkeypatch)
    copy(T1W.replace("02", "05"), T1W.replace("02", "06"))(root, monkeypatch)
    faults = check(root, minimum=10)
    assert [fault.kind for fault in faults] == [
        "description-missing",
        "non-finite",
        "empty-mask",
        "truncated",
        "field-of-view",
        "duplicate-image",
        "out-of-range",
        "too-few",
    ]
    listing = str(CohortError(faults))
    assert all(str(fault) in listing for fault in faults)
    assert "exclude=sub-02,sub-03,sub-04,sub-06" in listing


@pytest.mark.parametrize("where", [".git/annex/objects/x", "sourcedata/x.nii.gz"])
def test_links_within_the_data_set_are_followed(cohort: Path, where: str) -> None:
    """git-annex and DataLad keep the content of files so."""
    (cohort / where).parent.mkdir(parents=True)
    (cohort / T1W).rename(cohort / where)
    (cohort / T1W).symlink_to(cohort / where)
    assert check(cohort) == []


def test_data_set_that_is_a_link(cohort: Path) -> None:
    """The folder itself was named by the user, wherever it leads."""
    (cohort.parent / "link").symlink_to(cohort)
    assert check(cohort.parent / "link") == []


def test_links_may_lead_to_a_named_folder(cohort: Path, monkeypatch: Patch) -> None:
    """Many cohorts are folders of links into an archive; the option names it."""
    to_elsewhere(T1W)(cohort, monkeypatch)
    assert check(cohort, links=cohort.parent / "elsewhere") == []


def test_excluding_the_faulty_subjects_leaves_a_valid_cohort(cohort: Path, monkeypatch: Patch) -> None:
    """The error suggests to exclude them."""
    values(T1W, voxel(np.nan))(cohort, monkeypatch)
    assert check(cohort, exclude=("sub-02",)) == []


def test_excluding_one_of_two_copies_is_enough(cohort: Path, monkeypatch: Patch) -> None:
    """A duplicate is a fault of the pair, whichever is excluded."""
    copied_subject(cohort, monkeypatch)
    assert check(cohort, exclude=("sub-03",)) == []
    assert check(cohort, exclude=("sub-02",)) == []


def test_copies_with_another_dtype_are_found(cohort: Path, monkeypatch: Patch) -> None:
    """Voxels are compared, not bytes."""
    values(T1W, np.rint)(cohort, monkeypatch)
    copy(T1W, T1W.replace("02", "03"))(cohort, monkeypatch)
    values(T1W, np.rint, np.int16)(cohort, monkeypatch)
    assert [fault.kind for fault in check(cohort)] == ["duplicate-image"]


def test_unused_files_are_not_verified(cohort: Path, monkeypatch: Patch) -> None:
    """A damaged FLAIR is no fault if only T1w is used."""
    stored("sub-02/anat/sub-02_FLAIR.nii.gz", lambda _: b"")(cohort, monkeypatch)
    assert check(cohort) == []


def test_mask_may_be_on_the_grid_of_an_unused_sequence(cohort: Path) -> None:
    """The label is on the grid of T2w, and only SWI is used."""
    assert check(cohort, sequences=("SWI",)) == []


def test_a_pipeline_may_reorient_its_brain_masks(cohort: Path) -> None:
    """fMRIPrep turns images to RAS; its masks have other axes, and cover the same brain."""
    for file in BRAINS:
        array, affine = nifti.read(cohort / file)
        target = cohort / "derivatives/fmriprep" / file.replace("label-brain", "desc-brain")
        nifti.write(target, np.swapaxes(array, 0, 2), affine @ np.eye(4)[:, [2, 1, 0, 3]])
        (cohort / file).unlink()
    assert check(cohort) == []
    array, affine = nifti.read(target)
    nifti.write(target, array, shifted(15)(affine))
    assert [fault.kind for fault in check(cohort)] == ["outside-brain"]


def test_regions_need_names_only_if_they_are_used(cohort: Path, monkeypatch: Patch) -> None:
    """The regions image is not read if it is not among the optional masks."""
    delete("label-regions_dseg.tsv")(cohort, monkeypatch)
    stored(REGIONS, lambda _: b"")(cohort, monkeypatch)
    index = bids.index(cohort, sequences=("T1w",), label="lesion", optional=("brain",))
    assert verify(index, sequences=("T1w",), label="lesion", optional=("brain",)) == []


def scaled(file: str, factor: int, slope: float, inter: float = 0) -> Any:
    """Store a label times a factor, with a slope that undoes it."""

    def apply(root: Path, _: Patch) -> None:
        array, affine = nifti.read(root / file)
        image = nib.Nifti1Image(np.rint(array * factor).astype(np.uint8), affine)
        image.header.set_slope_inter(slope, inter)
        # nibabel would scale again on saving.
        content = bytearray(image.to_bytes())
        raw = nib.Nifti1Header(bytes(content[:348]), check=False)
        raw["scl_slope"], raw["scl_inter"] = slope, inter
        content[:348] = raw.binaryblock
        (root / file).write_bytes(gzip.compress(bytes(content)))

    return apply


@pytest.mark.parametrize(
    ("factor", "slope", "inter"), [(255, 1 / 255, 0), (100, 0.01, 0), (3, 1 / 3, 1e-6), (7, 1 / 7, -1e-7)]
)
def test_masks_that_scaling_makes_nearly_binary_pass(
    cohort: Path, monkeypatch: Patch, factor: int, slope: float, inter: float
) -> None:
    """255 times a slope of 1/255 is 1.0000000591 in single precision; copies of such masks are found all the same."""
    for number in ("01", "02", "03"):
        for file in (LESION, BRAIN):
            scaled(file.replace("02", number), factor, slope, inter)(cohort, monkeypatch)
        if factor < 128:
            scaled(REGIONS.replace("02", number), factor, slope, inter)(cohort, monkeypatch)
    assert check(cohort) == []
    original = read(cohort, cohort.parent / "cache", sequences=("T1w",), label="lesion")
    assert {one.masks["target"].load().any() for one in original.samples} == {True}
    copy(LESION, LESION.replace("02", "03"))(cohort, monkeypatch)
    values(LESION, np.rint, np.uint8)(cohort, monkeypatch)
    assert [fault.kind for fault in check(cohort)] == ["duplicate-image"]


@pytest.mark.parametrize(("factor", "slope"), [(255, 1), (100, 0.0095)])
def test_masks_that_are_not_nearly_binary_are_refused(
    cohort: Path, monkeypatch: Patch, factor: int, slope: float
) -> None:
    """0 and 255, or 0 and 0.95, are no binary mask."""
    scaled(LESION, factor, slope)(cohort, monkeypatch)
    assert [fault.kind for fault in check(cohort)] == ["non-binary"]


def test_masks_alone_are_compared_with_each_other(cohort: Path, monkeypatch: Patch) -> None:
    """Without images, brain and label must be on one grid, and duplicates are found by their masks."""
    assert check(cohort, sequences=()) == []
    values(BRAIN, lambda array: array[1:])(cohort, monkeypatch)
    copy(LESION, LESION.replace("02", "03"))(cohort, monkeypatch)
    assert [fault.kind for fault in check(cohort, sequences=())] == ["shape-mismatch", "duplicate-subject"]


def test_declared_ranges_are_checked(cohort: Path, monkeypatch: Patch) -> None:
    """participants.json may declare Minimum and Maximum of a column."""
    write("participants.json", json.dumps({"score": {"Minimum": 0, "Maximum": 2}}))(cohort, monkeypatch)
    faults = check(cohort)
    assert [str(fault.value) for fault in faults] == ["score of sub-01 is 2.5", "score of sub-03 is 2.5"]


def test_rounded_affines_are_accepted(cohort: Path, monkeypatch: Patch) -> None:
    """A shift of 0.01 mm is within tolerance."""
    place(T1W, shifted(0.01))(cohort, monkeypatch)
    assert check(cohort) == []


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="the open MS data are not beside the repository")
def test_real_data_are_valid() -> None:
    """Three subjects have all sequences, the others are listed as ineligible, and there are no faults."""
    sequences = ("T1w", "T2w", "FLAIR")
    index = bids.index(OPEN_MS, sequences=sequences, label="lesion")
    assert [one.id for one in index.candidates] == ["sub-07", "sub-19", "sub-26"]
    assert len(index.ineligible) == 27
    assert index.ineligible[0].reason == "no T1w, T2w, FLAIR; has label-lesion_mask"
    assert verify(index, sequences=sequences, label="lesion", minimum=3) == []
