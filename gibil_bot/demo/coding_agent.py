"""A small coding agent. It runs on a machine of the demonstration, which needs nothing for it but Python.

The prompt is on standard input. Until the model asks for no more tools, the program does what the model asks for. It prints its
work as Claude Code does (https://code.claude.com/docs/en/headless), so that the dialect `claude` reads it.

The file contains no words in braces, because the text of engines' files may contain placeholders.
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

MOST_CHARACTERS = 30_000
TOOLS = [
    {
        "name": name,
        "description": description,
        "input_schema": {"type": "object", "properties": {each: {"type": "string"} for each in names}, "required": names},
    }
    for name, description, names in (
        ("Bash", "Run a command in a shell.", ["command"]),
        ("Read", "Read a file.", ["file_path"]),
        ("Write", "Write a whole file.", ["file_path", "content"]),
    )
]


def ask(messages: list[Any]) -> Any:
    """Return the model's reply (https://platform.claude.com/docs/en/api/messages)."""
    url, token, model = (os.environ["GIBIL_MODEL" + name] for name in ("_URL", "_KEY", ""))
    system = "You repair code. Paths are absolute. Your working directory is " + os.getcwd()
    body = {"model": model, "max_tokens": 4096, "system": system, "tools": TOOLS, "messages": messages}
    headers = {"x-api-key": token, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    request = urllib.request.Request(url + "/v1/messages", json.dumps(body).encode(), headers)  # noqa: S310 (the proxy's)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=600) as reply:
        return json.load(reply)


def use(name: str, arguments: Any) -> tuple[str, bool, dict[str, Any]]:
    """Do what the model asks for. Returns the text for the model, whether it failed, and details for the transcript."""
    if name == "Bash":
        command = ["bash", "-c", arguments["command"]]
        environment = {name: value for name, value in os.environ.items() if name != "GIBIL_MODEL_KEY"}
        nothing, pipe, same = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
        ended = subprocess.run(command, env=environment, stdin=nothing, stdout=pipe, stderr=same, check=False)
        output = ended.stdout.decode(errors="replace")[-MOST_CHARACTERS:]
        failed = "Exit code " + str(ended.returncode) + "\n" if ended.returncode else ""
        return failed + output, bool(failed), {}
    path = arguments["file_path"]
    if name == "Read":
        with open(path, encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS), False, {}
    before = use("Read", arguments)[0] if os.path.exists(path) else None
    with open(path, "w", encoding="utf-8") as file:
        file.write(arguments["content"])
    if before is None:
        return "written: " + path, False, {"type": "create"}
    hunks: list[Any] = []
    for line in list(difflib.unified_diff(before.splitlines(), arguments["content"].splitlines(), lineterm="", n=1))[2:]:
        if line.startswith("@@"):  # @@ -6,3 +6,3 @@
            old, new = (int(word[1:].split(",")[0]) for word in line.split()[1:3])
            hunks.append({"oldStart": old, "newStart": new, "lines": []})
        else:
            hunks[-1]["lines"].append(line)
    return "written: " + path, False, {"type": "update", "structuredPatch": hunks}


def show(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def end(text: str, **error: Any) -> None:
    show(type="result", **{"subtype": "success", "is_error": bool(error), "result": text, **error})
    sys.exit(1 if error else 0)


def main() -> None:
    messages: list[Any] = [{"role": "user", "content": sys.stdin.read()}]
    for _ in range(int(sys.argv[1])):
        try:
            reply = ask(messages)
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            return end("API Error: " + str(error.code) + " " + answer, terminal_reason="api_error", api_error_status=error.code)
        except OSError as error:
            return end("API Error: " + str(error), terminal_reason="api_error")
        show(type="assistant", message=reply)
        results = []
        for block in reply["content"]:
            if block["type"] == "tool_use":
                try:
                    text, is_error, details = use(block["name"], block["input"])
                except (OSError, ValueError, KeyError) as error:
                    text, is_error, details = type(error).__name__ + ": " + str(error), True, {}
                results.append({"type": "tool_result", "tool_use_id": block["id"], "content": text, "is_error": is_error})
                show(type="user", message={"content": results[-1:]}, tool_use_result=details)
        if not results:
            return end("\n".join(block["text"] for block in reply["content"] if block["type"] == "text"))
        messages += [{"role": "assistant", "content": reply["content"]}, {"role": "user", "content": results}]
    return end("the turns are used up", subtype="error_max_turns")


if __name__ == "__main__":
    main()
