"""Do intervals cover what another cohort of the same size gives?

Splits a folder of lesion masks into disjoint cohorts, runs lesion-symptom mapping with
the same regions on each, and compares the standard deviation of every value between
cohorts with its stated standard error, by root mean square and by median over the cohorts:
where a few patients decide, errors differ much between cohorts. A ratio of 1 is right; above
1, intervals are too narrow. Without a folder, cohorts are generated.

    python benchmarks/coverage.py [folder=DIR] [cohorts=4] [repeats=2] [sets=1] [subjects=120] [out=DIR] [overrides …]

``repeats`` is the number of random partitions of the folder, and ``sets`` the number of sets of
regions: with one set and eight cohorts, a ratio is known to about a third. Further overrides are those
of ``harness run task=lsm``; the default is six models without noise. Cells are kept in
``out`` and are not computed again.
"""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

import harness

MODELS = ("ridge", "sparse_linear", "lesion_field", "mass_univariate", "svr_lsm_tuned", "cnn")
Key = tuple[str, str, str]
Four = tuple[float, float, float, float]
# Value, bounds and standard error of each cohort, by set of regions and partition.
Values = dict[Key, dict[int, list[list[Four]]]]


def split_folder(folder: Path, into: Path, count: int, seed: int) -> list[Path]:
    """Folders with links to the subjects of ``count`` disjoint cohorts of equal size."""
    with (folder / "participants.tsv").open() as file:
        lines = list(csv.reader(file, delimiter="\t"))
    order = np.random.default_rng(seed).permutation(len(lines) - 1)
    parts = []
    for number in range(count):
        part = into / f"cohort-{seed}-{number}"
        part.mkdir(parents=True, exist_ok=True)
        chosen = sorted(order[number * (len(order) // count) :][: len(order) // count])
        for name in ("dataset_description.json", "participants.json"):
            if (folder / name).exists():
                (part / name).write_bytes((folder / name).read_bytes())
        own = [lines[0], *(lines[row + 1] for row in chosen)]
        (part / "participants.tsv").write_text("".join("\t".join(line) + "\n" for line in own))
        for line in own[1:]:
            if not (part / line[0]).is_symlink() and (folder / line[0]).exists():
                (part / line[0]).symlink_to(folder / line[0])
        parts.append(part)
    return parts


def centres_of(result_csv: Path) -> list[list[int]]:
    """Voxel indices of the regions of a run."""
    with result_csv.with_name(f"{result_csv.stem}-rois.csv").open() as file:
        return [[int(one) for one in line["centre_voxel"].split()] for line in csv.DictReader(file)]


def values_of(result: harness.Result) -> dict[Key, Four]:
    """Value, bounds and standard error by model, attribution and metric."""
    found = {}
    for table, metric in ((result.leaderboard, "r2"), (result.explanations, "relevance_ap")):
        for line in table.to_pylist():
            if line[metric] is not None:
                four = [line[f"{metric}{end}"] for end in ("", "_low", "_high", "_se")]
                found[line["model"], line["attribution"], metric] = tuple(
                    math.nan if one is None else one for one in four
                )
    return found


def main(arguments: list[str]) -> None:
    """Run and print."""
    given = dict(argument.split("=", 1) for argument in arguments)
    folder, count = given.pop("folder", ""), int(given.pop("cohorts", 4))
    repeats, subjects = int(given.pop("repeats", 2)), int(given.pop("subjects", 120))
    sets, out = int(given.pop("sets", 1)), Path(given.pop("out", "coverage-runs")).resolve()
    models = tuple(given.pop("model", ",".join(MODELS)).split(","))
    shared = {"task": "lsm", "out": str(out), "mlflow": "off", "report": False, **given}
    whole = {"data": folder} if folder else {"phantom_subjects": 4 * subjects}
    values: Values = defaultdict(lambda: defaultdict(list))
    for seed in range(sets):
        first = harness.run(
            **shared, **whole, model="total_volume", attribution="none", targets__scores__patients=10 * count,
            targets__scores__roi_seed=seed,
        )  # fmt: skip
        centres = centres_of(first.csv)
        for repeat in range(repeats):
            if folder:
                parts = split_folder(Path(folder).resolve(), out / "cohorts", count, repeat)
                cohorts = [{"data": str(part), "cohort__links": str(Path(folder).resolve())} for part in parts]
            else:
                cohorts = [
                    {"phantom_subjects": subjects, "phantom_seed": 1 + repeat * count + one} for one in range(count)
                ]
            here: dict[Key, list[Four]] = defaultdict(list)
            for cohort in cohorts:
                result = harness.run(**shared, **cohort, model=models, targets__scores__centres=centres)
                for key, four in values_of(result).items():
                    here[key].append(four)
            for key, several in here.items():
                values[key][seed].append(several)
            show(values)


def show(values: Values) -> None:
    """Print the ratio and the coverage of each value."""
    head = ("mean", "SD", "SE", "SD/SE", "median", "covers")
    print(f"{'model':16}{'attribution':16}{'metric':14}" + "".join(f"{name:>8}" for name in head))
    for key, of_sets in sorted(values.items(), key=lambda item: (item[0][2], item[0][1], item[0][0])):
        groups = [np.array(group) for of_set in of_sets.values() for group in of_set if len(group) > 1]
        if not groups:
            continue
        between = math.sqrt(np.mean([group[:, 0].var(ddof=1) for group in groups]))
        errors = np.concatenate([group[:, 3] for group in groups])
        stated = math.sqrt(np.nanmean(errors**2)) if np.isfinite(errors).any() else math.nan
        covered, means = [], []
        for of_set in of_sets.values():
            four = np.concatenate([np.array(group) for group in of_set])
            means.append(four[:, 0].mean())
            covered += list((four[:, 1] <= means[-1]) & (means[-1] <= four[:, 2]))
        median = float(np.nanmedian(errors)) if stated else math.nan
        ratios = [between / one if one else math.nan for one in (stated, median)]
        print(f"{key[0]:16}{key[1]:16}{key[2]:14}{np.mean(means):8.3f}{between:8.4f}{stated:8.4f}"
              f"{ratios[0]:8.2f}{ratios[1]:8.2f}{np.mean(covered):8.2f}")  # fmt: skip
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
