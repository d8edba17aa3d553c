"""Numbered SQL files, applied in order, in one transaction each; `user_version` is the number of the last applied one."""
