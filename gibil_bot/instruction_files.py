"""Files of a repository that steer coding agents: their instructions, and settings whose programs they run. The only such list.

Commits from a machine can't change `INSTRUCTION_FILES` (commits/paths.py). While an agent works on an untrusted head, these
and `AGENT_SETTINGS` are the base branch's (agents/instructions.py). Which program reads what was found with canary texts, for
Claude Code, Codex, Gemini CLI, opencode, aider and Qwen Code; the others are from their documentation.
"""

from __future__ import annotations

from collections.abc import Iterable

INSTRUCTION_FILES: tuple[str, ...] = (
    "**/AGENTS.md", "**/AGENTS.override.md", "**/AGENT.md", "**/CLAUDE.md", "**/CLAUDE.local.md", "**/GEMINI.md", "**/QWEN.md",
    "**/.claude/**", "**/.claude.json", "**/.codex/**", "**/.gemini/**", "**/.agents/**", "**/.qwen/**", "**/.mcp.json",
    "**/.cursor/**", "**/.cursorrules", "**/.windsurf/**", "**/.windsurfrules", "**/.clinerules", "**/.clinerules/**",
    "**/.roo/**", "**/.roorules*", "**/.junie/**", "**/.kiro/**", "**/.continue/**", "**/.goosehints", "**/.rules",
    "**/.aider*", "**/.geminiignore", "**/.opencode/**", "**/opencode.json", "**/opencode.jsonc", "**/.vscode/mcp.json",
    ".github/copilot-instructions.md", ".github/instructions/**", ".github/prompts/**", ".github/agents/**",
    ".github/chatmodes/**", ".github/skills/**", ".github/hooks/**",
)  # fmt: skip
"""Globs, with `**/` for any folder or none."""

AGENT_SETTINGS: tuple[str, ...] = ("**/CONTEXT.md", "**/.env", "**/.envrc", "**/.husky/**", "**/.ripgreprc", ".gitmodules")
"""Files with other purposes that agents, or the commands that they run, also read: commits may change them."""


def as_globs(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return an engine's `instruction_files` as globs: a name without a folder is meant at any depth."""
    return tuple(
        each if "/" in each.rstrip("/") else f"**/{each}" for each in (pattern.strip() for pattern in patterns) if each
    )
