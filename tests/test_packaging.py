"""What a stranger installs: files beside the package that must agree with it."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]


def test_the_citation_is_that_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"]
    assert cited["title"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_gets_what_the_wheel_is_made_of(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for file in (PROJECT["readme"], "pyproject.toml", "src", "constraints.txt", "LICENSE"):
        assert (ROOT / file).exists()
        assert any(fnmatch(file, pattern) for pattern in kept)
    extras = text.partition("loramix-*.whl)[")[2].partition("]")[0].split(",")
    assert extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert "-c /tmp/constraints.txt" in text
    assert "USER 1000" in text  # what is served to others does not run as root


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_a_python_that_the_package_supports(name: str) -> None:
    images = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("FROM ")]
    versions = {line.split()[1].removeprefix("python:").partition("-")[0] for line in images}
    supported = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: 3." in each}
    assert versions
    assert versions <= supported
