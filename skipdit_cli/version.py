"""The version of the package, for what writes it into files, and how versions are listed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

__version__ = "0.2.0"


def list_versions(versions: Mapping[str, str]) -> str:
    """Return the versions of packages in one line: "torch 2.6.0, diffusers 0.42.1"."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def versions_of_results() -> dict[str, str]:
    """Return the versions that results depend on: what was begun with others is not gone on with."""
    return {"skipdit": __version__, **{package: version(package) for package in ("torch", "diffusers")}}
