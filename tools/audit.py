"""``python tools/audit.py`` looks up the versions in ``constraints.txt`` in a database of vulnerabilities.

pip-audit asks the database of the Python Packaging Authority, over the network. Exit code 0 if it
knows no vulnerability of any version, 1 if it knows one, 2 if it could not be asked about all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["judge"]

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip")
_SHOWN = 5


def judge(packages: Sequence[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and lines for the user.

    Parameters
    ----------
    packages : the list ``dependencies`` of pip-audit's JSON
    """
    if not packages:
        return 2, ["nothing was checked: pip-audit returned no packages"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    found = [(one, fault) for one in packages for fault in one.get("vulns", ())]
    lines = [
        f"{one['name']} {one['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'no version'}"
        for one, fault in found
    ]
    checked = len(packages) - len(skipped)
    lines.append(f"{checked} of {len(packages)} packages checked, {len(found)} known vulnerabilities")
    if skipped:
        more = ", …" if len(skipped) > _SHOWN else ""
        lines.append(
            f"the database was not reached, or does not know {', '.join(skipped[:_SHOWN])}{more}: "
            "repeat it where pypi.org can be reached"
        )
    return 1 if found else 2 if skipped else 0, lines


def main() -> int:
    """Run pip-audit and print what it found."""
    done = subprocess.run(
        [sys.executable, *COMMAND, "--format", "json", "--progress-spinner", "off"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"nothing was checked: {reason}. The database is on the network; is pypi.org reachable?")  # noqa: T201
        return 2
    code, lines = judge(packages)
    print("\n".join(lines))  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
