# shellcheck shell=sh
# Installs the version of pnpm that package.json names, or one that runs on every Node from 18 on.

if grep -qs pnpm package.json pnpm-lock.yaml pnpm-workspace.yaml .gibil.yml && ! command -v pnpm >/dev/null 2>&1; then
    version=$(sed -n 's/.*"packageManager": *"pnpm@\([0-9][0-9.]*\).*/\1/p' package.json 2>/dev/null | head -n 1)
    echo "gibil: installing pnpm ${version:-10}"
    prefix=/usr/local
    test -w /usr/local/bin || prefix=$RUNNER_TEMP/pnpm
    npm install --silent --global --prefix "$prefix" "pnpm@${version:-10}" \
        || fail "npm cannot install pnpm; see the output above"
    test "$prefix" = /usr/local || echo "$prefix/bin" >>"$GITHUB_PATH"
fi
