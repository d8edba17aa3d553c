# shellcheck shell=sh
# Lists the files of the commit that is checked out, those of the top folder first: `MODE TYPE ID SIZE<tab>PATH`, each ended by
# NUL.

cd @WORKSPACE@ && git rev-parse -q --verify 'HEAD^{tree}' >/dev/null || exit 1
{ git ls-tree -l -z HEAD && git ls-tree -r -l -z HEAD; } | head -c @BYTES@
exit 0
