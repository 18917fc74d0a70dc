"""The JSON Schema of study files: python -m ablation.spec.schema >ablation/study.schema.json"""

import json
from typing import Any

from ablation.spec.study import StudySpec


def study_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of a study file, with which editors complete and check it while it is written.

    What it cannot say, such as that a cut belongs to the backbone, `load_study` checks.
    """
    made = StudySpec.model_json_schema()
    del made["properties"]["name"]  # that of the file
    made["required"].remove("name")
    schema = _for_toml(made, made["$defs"])
    del schema["$defs"]
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _for_toml(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a part of pydantic's schema without references, and without null, which TOML does not have."""
    if isinstance(schema, list):
        return [_for_toml(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **schema}
    schema = {key: _for_toml(value, definitions) for key, value in schema.items() if key != "$ref"}
    if isinstance(schema.get("title"), str):
        del schema["title"]  # made of Python's names
    if "default" in schema and (schema["default"] is None or isinstance(schema["default"], dict)):
        del schema["default"]  # not given, or a table of which each key has its own
    if isinstance(schema.get("anyOf"), list):
        others = [part for part in schema["anyOf"] if part != {"type": "null"}]
        schema = {**schema, "anyOf": others} if len(others) > 1 else {**others[0], **schema, "anyOf": None}
        schema = {key: value for key, value in schema.items() if value is not None}
    return schema


if __name__ == "__main__":
    print(json.dumps(study_schema(), indent=2))
