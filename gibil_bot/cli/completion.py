"""`gibil completion`: a script that completes gibil's arguments in a shell."""

from __future__ import annotations

import click

from gibil_bot.cli.output import json_option, print_json, print_text

_ZSH_BEGIN = """
# A ~/.zshrc that doesn't set up zsh's completion: do it here, without the question about insecure folders.
if ! (( $+functions[compdef] )); then
    autoload -Uz compinit && compinit -i
fi
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print a completion script for a shell: commands, options, machines, jobs, workflows.

    \b
    eval "$(gibil completion bash)"            in ~/.bashrc
    eval "$(gibil completion zsh)"             in ~/.zshrc
    gibil completion fish > ~/.config/fish/completions/gibil.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    text = kind(context.find_root().command, {}, "gibil", "_GIBIL_COMPLETE").source() + "\n"
    if shell == "zsh":
        text = text.replace("#compdef gibil\n", f"#compdef gibil\n{_ZSH_BEGIN}", 1)
    if as_json:
        print_json({"shell": shell, "script": text})
    else:
        print_text(text)
