# shellcheck shell=sh
# On a machine that starts from a prepared one: removes the files of the earlier run's tasks and jobs, but not what tasks left in
# RUNNER_TEMP, which is their common folder.

rm -rf "$HOME/.gibil/jobs" "$HOME/.gibil/outbox.git" "$HOME/.gibil/files"/[0-9]* "$HOME/.gibil"/source.*
