# shellcheck shell=bash
# Runs when all tasks have ended.

if [ -n "$gibil_failed" ]; then : >@TASKS_FAILED@; echo '=== a task failed'; exit 1; fi
: >@TASKS_DONE@
