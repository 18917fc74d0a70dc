"""The JSON Schema of study files: python -m ablation.spec.schema >ablation/study.schema.json"""

import json
from typing import Any

from ablation.spec.study import StudySpec


def study_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of a study file, with which editors complete and check it.

    `load_study` also checks what a schema cannot express, such as that the backbone has a cut.
    """
    model_schema = StudySpec.model_json_schema()
    del model_schema["properties"]["name"]  # from the file's name
    model_schema["required"].remove("name")
    schema = _for_toml(model_schema, model_schema["$defs"])
    del schema["$defs"]
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _for_toml(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a part of pydantic's schema without references and without null, which TOML does not have."""
    if isinstance(schema, list):
        return [_for_toml(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **schema}
    schema = {key: _for_toml(value, definitions) for key, value in schema.items() if key != "$ref"}
    if isinstance(schema.get("title"), str):
        del schema["title"]  # generated from Python's names
    if "default" in schema and (schema["default"] is None or isinstance(schema["default"], dict)):
        del schema["default"]  # None means absent; the keys of a table have defaults of their own
    if isinstance(schema.get("anyOf"), list):
        others = [part for part in schema["anyOf"] if part != {"type": "null"}]
        schema = {**schema, "anyOf": others} if len(others) > 1 else {**others[0], **schema, "anyOf": None}
        schema = {key: value for key, value in schema.items() if value is not None}
    return schema


if __name__ == "__main__":
    print(json.dumps(study_schema(), indent=2))
