"""README and docs: every command has a test, every manifest is valid, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, documented, minimal

from yolojob.api.manifest import parse
from yolojob.catalogue import machines
from yolojob.estimation.assumptions import Assumptions

_YAML = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#([^)\s]+))?\)")


def test_every_command_has_a_test() -> None:
    found = list(documented.commands())
    assert len(found) > 20
    for page, command in found:
        rule = documented.rule(command)
        assert rule is not None, f"{page.name}: {command}: no rule in tests/support/documented.py"
        if rule.how == "covered":
            path, _, name = rule.why.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), rule.why


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """YAML blocks that are a job, or a piece of one's spec."""
    found = []
    for page in documented.PAGES:
        for i, block in enumerate(_YAML.findall(page.read_text(encoding="utf-8"))):
            content = yaml.safe_load(block)
            if isinstance(content, dict) and "spec" in content:
                found.append((f"{page.name}-{i}", content))
    return found


@pytest.mark.parametrize(("name", "content"), manifests(), ids=[name for name, _ in manifests()])
def test_manifests_in_the_docs_are_valid(name: str, content: dict[str, Any]) -> None:
    job = parse(content if "kind" in content else minimal(**content["spec"]))
    assert job.spec.model_dump(by_alias=True, exclude_unset=True).keys() >= content["spec"].keys(), "nothing is dropped"


def test_links_lead_somewhere() -> None:
    for page in documented.PAGES:
        for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.name}: {target}"
            if anchor and path.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_the_docs_know_every_assumption() -> None:
    text = (ROOT / "docs" / "costs.md").read_text()
    for name, field in Assumptions.model_fields.items():
        assert f"`{field.alias or name}`" in text, name


def test_the_catalogue_in_the_docs_is_one(tmp_path: Path) -> None:
    block = next(b for b in _YAML.findall((ROOT / "docs" / "costs.md").read_text()) if b.startswith("machines:"))
    (tmp_path / "mine.yaml").write_text(block)
    assert "team-a100" in machines.load(tmp_path / "mine.yaml").machines
