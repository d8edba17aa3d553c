"""`python -m gibil_bot` is `gibil`."""

from gibil_bot.cli import main

main()
