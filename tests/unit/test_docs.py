"""README and docs: every command has a test, every manifest is valid, every link has a target."""

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


def test_documented_commands_have_a_test() -> None:
    commands = list(documented.commands())
    assert len(commands) > 20
    for page, command in commands:
        rule = documented.rule(command)
        assert rule is not None, f"{page.name}: {command}: no rule in tests/support/documented.py"
        if rule.how == "covered":
            path, _, name = rule.why.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), rule.why


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, content) of the YAML blocks that are a job or a part of a job's spec."""
    blocks = []
    for page in documented.PAGES:
        for i, block in enumerate(_YAML.findall(page.read_text(encoding="utf-8"))):
            content = yaml.safe_load(block)
            if isinstance(content, dict) and "spec" in content:
                blocks.append((f"{page.name}-{i}", content))
    return blocks


@pytest.mark.parametrize(("name", "content"), manifests(), ids=[name for name, _ in manifests()])
def test_documented_manifest_is_valid(name: str, content: dict[str, Any]) -> None:
    job = parse(content if "kind" in content else minimal(**content["spec"]))
    assert job.spec.model_dump(by_alias=True, exclude_unset=True).keys() >= content["spec"].keys(), (
        "the parser drops a field"
    )


def test_links_have_a_target() -> None:
    for page in documented.PAGES:
        for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            assert path.exists(), f"{page.name}: {target}"
            if anchor and path.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_costs_page_names_every_assumption() -> None:
    text = (ROOT / "docs" / "costs.md").read_text()
    for name, field in Assumptions.model_fields.items():
        assert f"`{field.alias or name}`" in text, name


def test_catalogue_on_the_costs_page_is_valid(tmp_path: Path) -> None:
    block = next(b for b in _YAML.findall((ROOT / "docs" / "costs.md").read_text()) if b.startswith("machines:"))
    (tmp_path / "mine.yaml").write_text(block)
    assert "team-a100" in machines.load(tmp_path / "mine.yaml").machines
