"""Dependencies of an installation, read from the metadata of the running environment.

``python tools/dependencies.py`` rewrites ``constraints.txt``: every package that
harness needs, for running and for developing, at the version installed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["pins", "tree"]

ROOT = Path(__file__).parents[1]

# Dependencies of CUDA builds of torch only, which torch pins exactly.
_OF_CUDA = ("cuda-", "nvidia-", "triton")

# Used for the installation: pip, and the build tools of source packages.
_INSTALLERS = ("pip", "setuptools")

_HEAD = """\
# Every version that harness was tested with. For every installation:
#
#     pip install -c constraints.txt --build-constraint constraints.txt -e .
#
# Rewritten by `make constraints` from what is installed; do not add pins that
# nothing needs. torch is pinned without a local part (+cpu, +cu130), so that each
# machine takes the build that suits it.
"""


def tree(*extras: str) -> dict[str, Distribution]:
    """Installed packages that harness needs, directly or not.

    Parameters
    ----------
    extras : extras of harness, e.g. ``"dev"``

    Returns
    -------
    dict
        Metadata by canonical name, sorted, without harness itself and the CUDA libraries.
        Requirements for other systems are left out.

    Raises
    ------
    PackageNotFoundError
        If a dependency is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [("harness", frozenset(extras))]
    while waiting:
        name, wanted = node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        found[name] = distribution(name)
        waiting += _requirements(found[name], wanted)
    del found["harness"]
    return {name: found[name] for name in sorted(found) if not name.startswith(_OF_CUDA)}


def pins() -> list[str]:
    """``name==version`` of all packages, sorted, without local parts of versions."""
    found = {**tree("dev"), **{name: distribution(name) for name in _INSTALLERS}}
    return [f"{name}=={one.version.partition('+')[0]}" for name, one in sorted(found.items())]


def _requirements(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in package.requires or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(one.name), frozenset(one.extras)


if __name__ == "__main__":
    try:
        (ROOT / "constraints.txt").write_text(_HEAD + "\n".join(pins()) + "\n")
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} must be installed; run `make setup` first") from None
