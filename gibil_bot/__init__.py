"""gibil-bot: pull-request work on disposable machines."""

__version__ = "0.1.0"
