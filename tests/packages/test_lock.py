"""The lock file says what developers install, on every platform, and is in step with pyproject.toml."""

from __future__ import annotations

import re
import sys
from urllib.parse import urlsplit

from packages.environments import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with import-linter

LOCK = ROOT / "uv.lock"
HOSTS = {"pypi.org", "files.pythonhosted.org"}
"""Where everybody finds packages: a mirror's address would be of use to whoever has that mirror."""


def own() -> dict:
    (package,) = (one for one in tomllib.loads(LOCK.read_text())["package"] if one["name"] == "mlx-peft")
    return package


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_names_no_host_but_those_of_everybody():
    assert {urlsplit(url).netloc for url in re.findall(r'https?://[^"\s]+', LOCK.read_text())} == HOSTS
    assert "file://" not in LOCK.read_text()


def test_it_was_made_of_the_requirements_as_they_are():
    """``make lock`` makes it again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = set()
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            name, bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?([<>]=?[\w.]+)?", line).groups()
            asked.add((normal(name), bound or "", extra))
    locked = {
        (one["name"], one.get("specifier", ""), (re.findall(r"extra == '([\w-]+)'", one.get("marker", "")) or [""])[0])
        for one in own()["metadata"]["requires-dist"]
    }
    ours = {one for one in asked if one[0] == "mlx-peft"}
    assert {one for one in locked if one[0] != "mlx-peft"} == asked - ours
