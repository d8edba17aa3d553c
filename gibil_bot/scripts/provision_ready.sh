# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by provision_script.py: gibil_began
# Runs when the code is cloned and set up.

gibil_save
gibil_record 0 success 0 $(($(gibil_now) - gibil_began)) ready
gibil_line
echo '=== ready'
: >@READY@  # last: who waits for it finds all of this
