# shellcheck shell=bash
# Files that exist before the formatter runs and that git doesn't track, such as installed dependencies, aren't its changes: they
# are excluded from the commit as .gitignore would. https://git-scm.com/docs/gitignore#_pattern_format

exclude=$(git rev-parse --git-path info/exclude 2>/dev/null) || exclude=
if test -n "$exclude"; then
    mkdir -p "${exclude%/*}"
    git ls-files -z --others --exclude-standard --directory | while IFS= read -r -d '' path; do
        case $path in *$'\n'*) continue ;; esac # no pattern can contain one
        printf '/%s\n' "$path" | sed 's/[][\\*? ]/\\&/g'
    done >>"$exclude"
fi
