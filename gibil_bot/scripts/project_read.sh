# shellcheck shell=sh
# Prints the objects whose ids are in the input as git has them: without filters, and without following links.

cd @WORKSPACE@ || exit 1
git cat-file --batch | head -c @BYTES@
exit 0
