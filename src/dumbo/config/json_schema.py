"""The JSON Schema of a composed configuration, as editors want it: a name alone may stand for `{type: name}`."""

from __future__ import annotations

from typing import Any

from dumbo.config.schema import RunConfig


def json_schema(model: type[RunConfig]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of files that `model` validates, `extends` included."""
    schema = model.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "dumbo run"
    extends = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema["properties"]["extends"] = extends | {"description": "File or files that this one is laid over."}
    # A file that is laid over others may leave to them what a whole one must have.
    schema |= {"if": {"not": {"required": ["extends"]}}, "then": {"required": schema.pop("required")}}
    for name, definition in schema["$defs"].items():
        if name.startswith("DatasetEntry"):
            for key in ("data_format", "train_format"):
                _admit_names(definition["properties"][key], schema["$defs"])
        _admit_environment(definition, schema["$defs"])
    _admit_environment(schema, schema["$defs"])
    return schema


def _admit_names(choice: dict[str, Any], definitions: dict[str, Any]) -> None:
    """`data_format: alpaca` stands for `data_format: {type: alpaca}`."""
    options = choice.pop("oneOf", None) or [{"$ref": choice.pop("$ref")}]
    choice.pop("discriminator", None)
    names = [definitions[option["$ref"].rpartition("/")[2]]["properties"]["type"].get("const") for option in options]
    known = [name for name in names if name is not None]
    choice["anyOf"] = [{"type": "string", "enum": known}, *options] if known else [{"type": "string"}, *options]


def _admit_environment(definition: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Numbers and truth values may be written `${env:NAME}`, and a section may have nothing behind it."""
    for option in definition.get("properties", {}).values():
        if "$ref" in option:
            section = option.pop("$ref")
            option.setdefault("description", definitions[section.rpartition("/")[2]].get("description", ""))
            option["anyOf"] = [{"$ref": section}, {"type": "null"}]
        kinds = [option.get("type"), *(part.get("type") for part in option.get("anyOf", ()))]
        if {"integer", "number", "boolean"} & set(kinds):
            plain = {key: option.pop(key) for key in _TYPE_WORDS if key in option}
            alternatives = plain.pop("anyOf", None) or [plain]
            option["anyOf"] = [*alternatives, {"type": "string", "pattern": r"^\$\{env:[^}]+\}$"}]


_TYPE_WORDS = ("type", "anyOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
