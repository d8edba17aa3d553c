"""`python -m gibil_bot` is `gibil`."""

import os
import sys


def main() -> None:
    """Run the command line. Until its import is complete, which takes a moment, Ctrl-C ends the process without a traceback."""
    if sys.argv[1:2] == ["run"]:
        from gibil_bot import warm_run as warm

        status = warm.run(sys.argv[1:], os.environ)
        if status is not None:
            os._exit(status)
    import signal

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # False if SIGINT is ignored, as under nohup
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gibil_bot.cli import main as command_line

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


if __name__ == "__main__":
    main()
