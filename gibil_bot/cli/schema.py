"""`gibil schema`: the JSON Schema of what a command prints with `--json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from gibil_bot.cli.completers import complete_commands
from gibil_bot.cli.output import json_option, print_json, print_text
from gibil_bot.errors import UsageError

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCES = "#/$defs/{name}"


@click.command()
@click.argument("command", nargs=-1, metavar="[COMMAND]", shell_complete=complete_commands)
@json_option
def schema(command: tuple[str, ...], as_json: bool) -> None:
    """Print the JSON Schema of a command's --json output.

    Without COMMAND: one object with the schema of every command. The output of a command that failed is `failure`. Later
    versions may add keys, so ignore unknown ones.

    \b
    gibil schema run
    gibil schema cache list
    gibil schema --json | jq 'keys'
    """
    view = schema_of(" ".join(command)) if command else all_schemas()
    if as_json:
        print_json(view)
    else:
        print_text(json.dumps(view, indent=2, ensure_ascii=False) + "\n")


def schema_of(command: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a successful command's output; "failure": that of a failed one.

    Raises UsageError for a command without JSON output.
    """
    import msgspec

    from gibil_bot.cli import json_output
    from gibil_bot.cli.json_output import OUTPUTS, Failure
    from gibil_bot.model import Plan

    types: tuple[Any, ...] | None = (Failure,) if command == "failure" else OUTPUTS.get(command)
    if types is None:
        known = ", ".join((*OUTPUTS, "failure"))
        raise UsageError(f"there is no JSON output of {command!r}; write one of: {known}")
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCES)
    for name, component in components.items():
        if getattr(json_output, name, Plan) is Plan:  # a Struct: its defaults are printed, too
            component["required"] = list(component.get("properties", ()))
    body: dict[str, Any] = dict(schemas[0]) if len(schemas) == 1 else {"anyOf": list(schemas)}
    title = "A failed command" if command == "failure" else f"gibil {command} --json"
    return {"$schema": _DIALECT, "title": title, **body, **({"$defs": components} if components else {})}


def all_schemas() -> dict[str, Any]:
    """Return the schema of every command, and "failure"."""
    from gibil_bot.cli.json_output import OUTPUTS

    return {command: schema_of(command) for command in (*OUTPUTS, "failure")}


def page() -> str:
    """Return the reference for people: a table of keys for each command, and for each type that they share."""
    from gibil_bot.cli.json_output import OUTPUTS

    lines = [_PAGE_BEGIN]
    definitions: dict[str, dict[str, Any]] = {}
    for command in (*OUTPUTS, "failure"):
        view = schema_of(command)
        definitions |= view.get("$defs", {})
        shown = " or ".join(dict.fromkeys(_type_text(each) for each in view.get("anyOf", [view])))
        lines.append(f"| `{command}` | {shown} |")
    for name in sorted(definitions):
        lines += _definition(name, definitions[name])
    return "\n".join(lines) + "\n"


_PAGE_BEGIN = """\
# JSON output of the command line

Every command takes `--json`: it prints one JSON value on stdout, and everything else on stderr. A command that fails prints the
value in the row `failure`, and has its `exit_code`; only `gibil run` passes on the status of the user's command. `gibil schema
COMMAND` prints the JSON Schema. Later versions may add keys.

This page is generated from `json_output.py`: `python -m gibil_bot.cli.schema > gibil_bot/cli/README.md`.

| command | output |
|---|---|"""


def _definition(name: str, definition: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {name}\n"
    if definition.get("description"):
        yield f"{' '.join(definition['description'].split())}\n"
    if "enum" in definition:
        yield ", ".join(f"`{value}`" for value in definition["enum"])
        return
    yield "| key | value | |\n|---|---|---|"
    required = definition.get("required", ())
    for key, value in definition.get("properties", {}).items():
        notes = [] if key in required else ["Optional."]
        notes += [value["description"]] if "description" in value else []
        yield f"| `{key}` | {_type_text(value)} | {' '.join(notes)} |"


def _type_text(schema: dict[str, Any]) -> str:
    """Return a type in a few words: "list of [Job](#job)", "string or null"."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type_text(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type_text(schema['items'])}"
    more = schema.get("additionalProperties")
    if kind == "object" and isinstance(more, dict) and more:
        return f"object of {_type_text(more)}"
    return str(kind)


if __name__ == "__main__":
    print_text(page())
