"""What builds and publishes the package takes nothing that may change under it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOWS = Path(__file__).parents[1] / ".github" / "workflows"


def _workflow(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text())
    return content


def _steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_actions_are_pinned_and_may_read_alone(name: str) -> None:
    workflow = _workflow(name)
    assert workflow["permissions"] == {"contents": "read"}
    for step in _steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), step["uses"]


def test_pins_are_audited_and_a_release_is_attested() -> None:
    commands = [step.get("run", "") for step in _steps(_workflow("ci.yml"))]
    assert any("pip-audit --requirement constraints.txt" in run and "--strict" in run for run in commands)
    assert any("--format cyclonedx-json" in run for run in commands)
    release = _workflow("release.yml")
    used = [step.get("uses", "").partition("@")[0] for step in _steps(release)]
    assert used[-1] == "pypa/gh-action-pypi-publish"
    assert {"actions/attest-build-provenance", "actions/attest-sbom"} <= set(used)
    assert release["jobs"]["publish"]["needs"] == "ci"
