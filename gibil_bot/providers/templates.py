"""What the providers' templates have in common."""

from __future__ import annotations

from gibil_bot.errors import UsageError

CODE_LABELS = ("repo", "commit", "branch")
"""Labels that describe the code on a machine's disk."""


def name_taken(template: str) -> UsageError:
    """Return the error for a name that another template has."""
    return UsageError(
        f"the template {template} exists; choose another name, or delete it: gibil template delete {template}",
        code="TEMPLATE_EXISTS",
    )
