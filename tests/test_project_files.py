"""Files that other tools read: forms, the workflow, hooks, the citation."""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import spectralmoe_jax

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
FIELDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
TEXT = {"type": "string", "minLength": 1, "pattern": r"\S"}

# What the Citation File Format 1.2.0 requires, and what it allows in the keys that the file uses.
PERSON = {
    "type": "object",
    "required": ["family-names"],
    "properties": {"family-names": TEXT, "given-names": TEXT, "affiliation": TEXT},
    "additionalProperties": False,
}
ENTITY = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": TEXT},
    "additionalProperties": False,
}
AUTHORS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"anyOf": [PERSON, ENTITY]}}
IDENTIFIER = {
    "type": "object",
    "required": ["type", "value"],
    "properties": {
        "type": {"enum": ["doi", "url", "swh", "other"]},
        "value": TEXT,
        "description": TEXT,
    },
    "additionalProperties": False,
}
REFERENCE = {
    "type": "object",
    "required": ["type", "title", "authors"],
    "properties": {
        "type": {"enum": ["article", "conference-paper", "generic"]},
        "title": TEXT,
        "authors": AUTHORS,
        "collection-title": TEXT,
        "conference": ENTITY,
        "year": {"type": "integer"},
        "url": {"type": "string", "pattern": "^(https|http|ftp|sftp)://.+"},
        "identifiers": {"type": "array", "minItems": 1, "items": IDENTIFIER},
    },
    "additionalProperties": False,
}
CITATION = {
    "type": "object",
    "required": ["cff-version", "message", "title", "authors"],
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "message": TEXT,
        "title": TEXT,
        "authors": AUTHORS,
        "abstract": TEXT,
        "type": {"enum": ["software", "dataset"]},
        "version": {"type": ["string", "number"]},
        "license": TEXT,
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": TEXT},
        "preferred-citation": REFERENCE,
    },
    "additionalProperties": False,
}


def read(*parts: str) -> Any:
    return yaml.safe_load((ROOT.joinpath(*parts)).read_text())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_keys_that_github_requires(path):
    form = read(*path.relative_to(ROOT).parts)
    assert all(isinstance(form[key], str) and form[key].strip() for key in ("name", "description"))
    assert set(form) <= {"name", "description", "title", "labels", "body"}
    ids = [field["id"] for field in form["body"] if "id" in field]
    labels = [field["attributes"]["label"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    assert len(set(labels)) == len(labels)
    assert {field["type"] for field in form["body"]} <= FIELDS
    assert {field["type"] for field in form["body"]} != {"markdown"}
    for field in form["body"]:
        wanted = {"markdown": "value", "checkboxes": "options", "dropdown": "options"}.get(
            field["type"], "label"
        )
        assert field["attributes"][wanted]
        assert all(re.fullmatch(r"[\w-]+", name) for name in [field.get("id", "x")])


def test_forms_exist_for_bugs_features_and_questions():
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    assert read(".github", "ISSUE_TEMPLATE", "config.yml") == {"blank_issues_enabled": False}


def test_the_workflow_calls_the_script_that_contributors_run():
    workflow = read(".github", "workflows", "ci.yml")
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    assert {"push", "pull_request"} <= set(triggers)
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert oldest[1] in job["strategy"]["matrix"]["python"]


def test_hooks_run_what_is_installed_and_download_nothing():
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["id"] for hook in local["hooks"]] == ["ruff-check", "ruff-format", "mypy"]
    for hook in local["hooks"]:
        assert {"id", "name", "entry", "language"} <= set(hook)
        assert hook["language"] == "system"


def test_citation():
    citation = read("CITATION.cff")
    jsonschema.validate(citation, CITATION)
    assert citation["version"] == spectralmoe_jax.__version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Zhang", "Liu", "Yan"]
    assert " ".join(paper["title"].split()) in " ".join((ROOT / "README.md").read_text().split())
    assert "2603.13352" in paper["url"]
