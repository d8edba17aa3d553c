"""Go, Rust, C, Ruby, Java, PHP and shell: the minimal manifests of real projects, and what follows from them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.detection import ci_hints, cmake, go, java, linters, node, others, php, ruby, rust, shell, submodules
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project

MODULES = (node, go, rust, cmake, ruby, java, php, shell, linters, others, submodules)
CI = ".github/workflows/ci.yml"


def project(files: Mapping[str, str], *others: str) -> Project:
    return Project(frozenset({*files, *others}), {path: text.encode() for path, text in files.items()})


def workflow(*runs: str, uses: str = "") -> str:
    steps = [f"      - {uses}\n"] if uses else []
    steps += [f"      - run: {run}\n" for run in runs]
    return f"on: push\njobs:\n  test:\n    steps:\n{''.join(steps)}"


def versions(found: Facts) -> dict[str, str]:
    return {each.name: each.version for each in found.runtimes}


@dataclass
class Case:
    """The manifests of one project, and the expected facts."""

    facts: Callable[[Project], Facts | None]
    files: dict[str, str]
    others: tuple[str, ...] = ()
    runtimes: tuple[tuple[str, str], ...] = ()
    install: str = ""
    tests: tuple[str, ...] = ()


PROJECTS = {
    "Go with requirements, older than forward compatibility": Case(
        go.facts,
        {"go.mod": "module github.com/a/b\n\ngo 1.15\n\nrequire (\n\tgithub.com/c/d v2.0.6\n)\n"},
        others=("b_test.go", "go.sum"),
        runtimes=(("go", "1.24"),),
        install="go mod download",
        tests=("go test ./...",),
    ),
    "Go without requirements": Case(
        go.facts,
        {"go.mod": "module github.com/a/b\n\n// the oldest we test\ngo 1.22.1 // really\n"},
        others=("b_test.go",),
        runtimes=(("go", "1.22"),),
        tests=("go test ./...",),
    ),
    "Go with a toolchain": Case(
        go.facts,
        {"go.mod": "module a\ngo 1.21\ntoolchain go1.23.4\n"},
        others=("cmd/a_test.go",),
        runtimes=(("go", "1.23"),),
        tests=("go test ./...",),
    ),
    "Go with dependencies in the repository": Case(
        go.facts,
        {"go.mod": "module a\ngo 1.21\nrequire b v1.0.0\n"},
        others=("a_test.go", "vendor/modules.txt"),
        runtimes=(("go", "1.21"),),
        tests=("go test ./...",),
    ),
    "a Go workspace": Case(
        go.facts,
        {"go.work": "go 1.23\n\nuse (\n\t./api // first\n\t./cli\n\t./gone\n)\nuse .\n"},
        others=("go.mod", "api/go.mod", "api/a_test.go", "cli/go.mod"),
        runtimes=(("go", "1.23"),),
        install="go mod download",
        tests=("go test ./... ./api/... ./cli/...",),
    ),
    "Rust with an optional dependency": Case(
        rust.facts,
        {"Cargo.toml": '[package]\nname = "a"\nrust-version = "1.32"\n[dependencies]\ncore = {version = "1"}\n'},
        runtimes=(("rust", ""),),
        install="cargo fetch",
        tests=("cargo test",),
    ),
    "Rust with dependencies of one target": Case(
        rust.facts,
        {"Cargo.toml": "[package]\nname = \"a\"\n[target.'cfg(not(miri))'.dev-dependencies]\ncriterion = '0.8'\n"},
        runtimes=(("rust", ""),),
        install="cargo fetch",
        tests=("cargo test",),
    ),
    "a Rust workspace with a toolchain": Case(
        rust.facts,
        {"Cargo.toml": "[workspace]\nmembers = ['a']\n", "rust-toolchain.toml": '[toolchain]\nchannel = "1.75.0"\n'},
        others=("Cargo.lock",),
        runtimes=(("rust", "1.75.0"),),
        install="cargo fetch --locked",
        tests=("cargo test --workspace",),
    ),
    "a Rust workspace that chooses its members": Case(
        rust.facts,
        {"Cargo.toml": "[workspace]\nmembers = ['a']\ndefault-members = ['a']\n", "rust-toolchain": "nightly-2024-05-01\n"},
        runtimes=(("rust", "nightly"),),
        install="cargo fetch",
        tests=("cargo test",),
    ),
    "CMake with tests by default": Case(
        cmake.facts,
        {
            "CMakeLists.txt": 'option(ENABLE_CJSON_TEST "Tests" On)\nif(ENABLE_CJSON_TEST)\n  enable_testing()\nendif()\n',
        },
        install="cmake -S . -B build",
        tests=(
            'cmake -S . -B build && cmake --build build -j"$(nproc)" && '
            "ctest --test-dir build --output-on-failure --no-tests=error",
        ),
    ),
    "CMake with tests on request, and a folder build": Case(
        cmake.facts,
        {
            "CMakeLists.txt": 'option(FOO_BUILD_TESTS "Build the tests" OFF)\noption(FOO_FUZZ_TEST "x" OFF)\n',
            "tests/CMakeLists.txt": "add_test(NAME a COMMAND a)\n",
        },
        others=("build/README",),
        install="cmake -S . -B build-tests -DFOO_BUILD_TESTS=ON",
        tests=(
            'cmake -S . -B build-tests -DFOO_BUILD_TESTS=ON && cmake --build build-tests -j"$(nproc)" && '
            "ctest --test-dir build-tests --output-on-failure --no-tests=error",
        ),
    ),
    "CMake with an option that leaves the tests out": Case(
        cmake.facts,
        {
            "CMakeLists.txt": (
                "option(JANSSON_WITHOUT_TESTS \"Don't build tests ('make test' to execute tests)\" OFF)\n\n"
                "if (NOT JANSSON_WITHOUT_TESTS)\n   ENABLE_TESTING()\nendif ()\n"
            ),
        },
        install="cmake -S . -B build",
        tests=(
            'cmake -S . -B build && cmake --build build -j"$(nproc)" && '
            "ctest --test-dir build --output-on-failure --no-tests=error",
        ),
    ),
    "Autotools without a generated configure": Case(
        cmake.facts,
        {"configure.ac": "AC_INIT([jq])\n"},
        others=("Makefile.am",),
        tests=('autoreconf -fi && ./configure && make -j"$(nproc)" && make check',),
    ),
    "Meson": Case(
        cmake.facts,
        {"meson.build": "project('a', 'c')\ntest('a', a)\n"},
        install="meson setup build",
        tests=("meson setup build && meson compile -C build && meson test -C build --print-errorlogs",),
    ),
    "Ruby with tasks of minitest": Case(
        ruby.facts,
        {
            "Gemfile": "source 'https://rubygems.org'\ngemspec\ngem 'rake'\ngem 'minitest', '~> 5.0'\n",
            "Rakefile": "require 'rake/clean'\ntask default: :test\nMinitest::TestTask.create # Default `test` task\n",
        },
        others=("sinatra.gemspec", "test/base_test.rb"),
        runtimes=(("ruby", ""),),
        install='bundle install --jobs "$(nproc)" --retry 3',
        tests=("bundle exec rake test",),
    ),
    "Ruby with RSpec": Case(
        ruby.facts,
        {"Gemfile": "gem 'rspec'\nruby '3.2.2'\n", ".ruby-version": "ruby-3.3.1\n", ".rspec": "--color\n"},
        others=("spec/a_spec.rb", "Gemfile.lock"),
        runtimes=(("ruby", "3.3.1"),),
        install='bundle install --jobs "$(nproc)" --retry 3',
        tests=("bundle exec rspec",),
    ),
    "Rails": Case(
        ruby.facts,
        {"Gemfile": 'ruby "~> 3.2.0"\ngem "rails"\n'},
        others=("bin/rails", "test/models/a_test.rb"),
        runtimes=(("ruby", "3.2"),),
        install='bundle install --jobs "$(nproc)" --retry 3',
        tests=("bin/rails test",),
    ),
    "Maven whose plugins want a newer Java than its code": Case(
        java.facts,
        {
            "pom.xml": "<project>\n<maven.compiler.release>8</maven.compiler.release>\n<maven.compiler.testRelease>11"
            "</maven.compiler.testRelease>\n<requireJavaVersion>\n<!-- JDK 17 -->\n<version>[17,22)</version>\n"
            "</requireJavaVersion>\n</project>\n",
            CI: workflow("mvn verify javadoc:jar ${{ matrix.args }}", "mvn clean test --projects gson"),
        },
        runtimes=(("java", "17"), ("maven", "")),
        install="mvn -B -ntp dependency:go-offline",
        tests=("mvn -B -ntp verify",),
    ),
    "Maven with a wrapper": Case(
        java.facts,
        {"pom.xml": "<project><properties><java.version>21</java.version></properties></project>"},
        others=("mvnw",),
        runtimes=(("java", "21"),),
        install="sh ./mvnw -B -ntp dependency:go-offline",
        tests=("sh ./mvnw -B -ntp test",),
    ),
    "Gradle with a toolchain": Case(
        java.facts,
        {
            "build.gradle.kts": "java {\n  toolchain { languageVersion = JavaLanguageVersion.of(21) }\n}\n",
            CI: workflow("./gradlew build -x test", "./gradlew check"),
        },
        others=("gradlew",),
        runtimes=(("java", "21"),),
        install="sh ./gradlew --no-daemon --quiet help",
        tests=("sh ./gradlew --no-daemon check",),
    ),
    "Gradle with compatibility settings": Case(
        java.facts,
        {"build.gradle": "sourceCompatibility = JavaVersion.VERSION_1_8\n"},
        others=("gradlew",),
        runtimes=(("java", "17"),),
        install="sh ./gradlew --no-daemon --quiet help",
        tests=("sh ./gradlew --no-daemon test",),
    ),
    "PHPUnit with suites, of which the CI's first is for every machine": Case(
        php.facts,
        {
            "composer.json": '{"require": {"php": "^7.2.5 || ^8.0"}, "require-dev": {"phpunit/phpunit": "^9"}}',
            CI: workflow('vendor/bin/phpunit --testsuite "Unit Test Suite"', "vendor/bin/phpunit --testsuite Integration"),
        },
        runtimes=(("php", ""), ("composer", "")),
        install="composer install --no-interaction --prefer-dist --no-progress",
        tests=("php vendor/bin/phpunit --testsuite 'Unit Test Suite'",),
    ),
    "PHP with a script and Pest": Case(
        php.facts,
        {
            "composer.json": '{"require": {"php": ">=8.3"}, "require-dev": {"pestphp/pest": "^3"},'
            ' "scripts": {"test": ["@lint", "pest"]}}',
        },
        others=("composer.lock",),
        runtimes=(("php", "8.3"), ("composer", "")),
        install="composer install --no-interaction --prefer-dist --no-progress",
        tests=("composer test", "php vendor/bin/pest"),
    ),
    "Elixir": Case(
        others.facts,
        {"mix.exs": "defmodule A do\nend\n", ".tool-versions": "elixir 1.17.2-otp-27\n"},
        runtimes=(("elixir", "1.17.2"),),
        install="mix local.hex --force --if-missing && mix local.rebar --force --if-missing && mix deps.get",
        tests=("mix test",),
    ),
    ".NET": Case(
        others.facts,
        {"global.json": '{"sdk": {"version": "8.0.204"}}'},
        others=("My App.sln",),
        runtimes=(("dotnet", "8.0"),),
        install="dotnet restore 'My App.sln'",
        tests=("dotnet test 'My App.sln'",),
    ),
    "Deno with a task": Case(
        others.facts,
        {"deno.json": '{"tasks": {"test": "deno test -A"}}'},
        runtimes=(("deno", ""),),
        tests=("deno task test",),
    ),
    "Ruby whose CI runs the default task, with a task that writes a document": Case(
        ruby.facts,
        {
            "Gemfile": "gem 'minitest'\n",
            "Rakefile": 'desc "Generate the specification"\ntask spec: "SPEC.rdoc"\nRake::TestTask.new("test:regular")\n',
            CI: workflow("bundle exec rake"),
        },
        runtimes=(("ruby", ""),),
        install='bundle install --jobs "$(nproc)" --retry 3',
        tests=("bundle exec rake",),
    ),
    "Ruby without a CI, with a task that writes a document": Case(
        ruby.facts,
        {"Gemfile": "gem 'minitest'\n", "Rakefile": 'task spec: "SPEC.rdoc"\nRake::TestTask.new("test:regular")\n'},
        runtimes=(("ruby", ""),),
        install='bundle install --jobs "$(nproc)" --retry 3',
        tests=("bundle exec rake test:regular",),
    ),
    "Meson with tests on request, in a folder": Case(
        cmake.facts,
        {
            "meson.build": "if get_option('tests')\n  subdir('tests')\nendif\n",
            "tests/meson.build": "  test('a', a)\n",
            "meson_options.txt": "option('tests',\n  type : 'boolean',\n  value : false,\n  description : 'test'\n)\n",
        },
        install="meson setup build -Dtests=true",
        tests=("meson setup build -Dtests=true && meson compile -C build && meson test -C build --print-errorlogs",),
    ),
    "a test script in a folder that the CI changes to": Case(
        shell.facts,
        {CI: workflow("|\n          cd tests\n          ./unittest.sh")},
        others=("tests/unittest.sh",),
        tests=("cd tests && bash unittest.sh",),
    ),
    "a script in the folder of the tests": Case(
        shell.facts, {CI: workflow("./test/run.sh")}, others=("test/run.sh", "test/test_a.sh"), tests=("bash test/run.sh",)
    ),
    "a test script that no CI runs": Case(shell.facts, {}, others=("test_runner", "a.sh"), tests=("./test_runner",)),
    "bats": Case(
        shell.facts,
        {},
        others=("test/a.bats", "test/fixtures/b.bats"),
        runtimes=(("bats", ""),),
        tests=("bats test",),
    ),
    "bats that the repository carries": Case(
        shell.facts,
        {},
        others=("test/bats/bin/bats", "test/unit/a.bats"),
        tests=("./test/bats/bin/bats -r test",),
    ),
    "a test script that the CI runs": Case(
        shell.facts,
        {CI: workflow("./tests/run-tests.sh")},
        others=("tests/run-tests.sh",),
        tests=("bash tests/run-tests.sh",),
    ),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_project_is_installed_and_tested_as_its_manifests_say(name: str) -> None:
    case = PROJECTS[name]
    found = case.facts(project(case.files, *case.others))
    assert found is not None
    assert [step.shown or step.run for step in found.steps] == ([case.install] if case.install else [])
    assert [each.shown or each.run for each in found.tests] == list(case.tests)
    assert tuple(versions(found).items()) == case.runtimes


@pytest.mark.parametrize("module", MODULES)
def test_a_project_without_the_ecosystem_has_no_facts(module: object) -> None:
    facts: Callable[[Project], Facts | None] = module.facts  # type: ignore[attr-defined]
    assert facts(project({"README.md": "npm test; go test; cargo test"}, "src/main.txt", "scripts/test.sh")) is None


def test_headers_that_the_ci_installs_are_installed_and_nothing_else() -> None:
    install = "sudo apt-get install -y libonig-dev bison valgrind crossbuild-essential-${{ matrix.arch }} ; rm -rf /"
    found = cmake.facts(project({"configure.ac": "", CI: workflow(install)}, "Makefile.am"))
    assert found is not None
    assert set(found.packages) - {"autoconf", "automake", "libtool", "pkg-config", "make", "g++"} == {"libonig-dev", "bison"}


def test_cmake_isnt_installed_for_a_project_whose_makefile_tests_it() -> None:
    files = {"CMakeLists.txt": "enable_testing()\n", "Makefile": "all: a\n\ntest: tests\n\t./a\n"}
    found = cmake.facts(project(files))
    assert found is not None
    assert found.tests
    assert found.packages == ()
    found = cmake.facts(project({**files, "Makefile": "test := 1\nall: a\n"}))
    assert found is not None
    assert "cmake" in found.packages


def test_submodules_are_fetched_if_the_ci_does() -> None:
    modules = '[submodule "lib"]\n\tpath = vendor/lib\n\turl = git@github.com:a/lib.git\n[submodule "b"]\n\turl = ../b\n'
    files = {".gitmodules": modules, CI: workflow("ctest", uses='{uses: actions/checkout@v4, with: {submodules: "recursive"}}')}
    found = submodules.facts(project(files, "vendor/lib"))
    assert found is not None
    assert (found.submodules, found.steps) == ("recursive", ())
    assert found.submodules_evidence[0].path == CI
    elsewhere = modules.replace("git@github.com:a/", "https://git.example.com/a/")
    assert submodules.facts(project({**files, ".gitmodules": elsewhere}, "vendor/lib")) is None
    assert submodules.facts(project({**files, CI: workflow()}, "vendor/lib")) is None


def test_submodules_are_fetched_if_the_ci_does_so_by_a_command() -> None:
    modules = {".gitmodules": "\tpath = a\n\turl = ../a\n"}
    found = submodules.facts(project({**modules, CI: workflow("git submodule update --init", "ctest")}))
    assert found is not None
    assert str(found.submodules_evidence[0]) == f"{CI}:5 (its CI runs `git submodule update --init`)"


def test_submodules_of_jobs_that_do_not_test_are_not_fetched() -> None:
    """date-fns checks out its submodules to find out whether its types are wrong, in a workflow named attw_tests.yaml."""
    modules = {".gitmodules": "\tpath = a\n\turl = ../a\n"}
    checkout = '{uses: actions/checkout@v4, with: {submodules: "recursive"}}'
    types, tests = ".github/workflows/attw_tests.yaml", ".github/workflows/node_tests.yaml"
    files = {**modules, types: workflow("./scripts/test/types.sh", uses=checkout), tests: workflow("npx vitest run")}
    assert submodules.facts(project(files)) is None
    for command in ("npx vitest run", "make TERM=xterm test-${{ matrix.shell }}"):
        found = submodules.facts(project({**files, tests: workflow(command, uses=checkout)}))
        assert found is not None
        assert found.submodules_evidence[0].path == tests


def test_test_frameworks_that_cmake_looks_for_are_installed() -> None:
    text = "find_package( GTest REQUIRED)\n"
    found = cmake.facts(project({"CMakeLists.txt": "enable_testing()\n", "tests/CMakeLists.txt": text}))
    assert found is not None
    assert {"libgtest-dev", "libgmock-dev"} < set(found.packages)
    assert "catch2" not in found.packages


def test_a_meson_project_without_tests_isnt_tested_by_meson() -> None:
    assert cmake.facts(project({"meson.build": "project('a', 'c')\ntest_data = 1\n"})) is None


def test_a_language_that_extends_another_ones_package_is_the_last_resort() -> None:
    files = {"Cargo.toml": "[package]\nname = 'a'\n"}
    alone, extension = rust.facts(project(files)), rust.facts(project(files, "pyproject.toml"))
    tested = rust.facts(project({**files, CI: workflow("cargo test --lib")}, "pyproject.toml"))
    assert alone is not None
    assert extension is not None
    assert tested is not None
    assert alone.tests[0].rank == tested.tests[0].rank == 50
    assert extension.tests[0].rank >= 80


@pytest.mark.parametrize(
    ("enforced", "version", "accepted", "rejected"),
    [("[17,22)", "17", "21", "22"), ("[21,)", "21", "25", "17"), ("(,11]", "11", None, "17"), ("1.8", "17", "21", "99")],
)
def test_java_is_a_version_that_maven_enforces(enforced: str, version: str, accepted: str | None, rejected: str) -> None:
    rule = f"<requireJavaVersion><version>{enforced}</version></requireJavaVersion>"
    found = java.facts(project({"pom.xml": f"<maven.compiler.release>8</maven.compiler.release>{rule}"}))
    assert found is not None
    chosen = found.runtimes[0]
    assert chosen.version == version
    assert accepted is None or accepted in chosen.accepts
    assert rejected not in (chosen.version, *chosen.accepts)


def test_a_newer_go_of_the_machine_will_do_and_an_older_one_wont() -> None:
    found = go.facts(project({"go.mod": "module a\ngo 1.22\n"}))
    assert found is not None
    assert "1.25" in found.runtimes[0].accepts
    assert "1.21" not in found.runtimes[0].accepts


@pytest.mark.parametrize(
    ("runs", "command"),
    [
        (["cargo test --all-features", "cargo test --locked"], "cargo test --all-features"),
        (
            ["cargo test --features 'a b'", "cargo test --no-run", "cargo test $(id)", "cargo test; id"],
            "cargo test --workspace",
        ),
        (["cargo test --features a,b/c --exclude d"], "cargo test --features a,b/c --exclude d"),
        (["cargo test --all-features", "cargo test --workspace"], "cargo test --workspace"),
        (["cargo test --target wasm32-unknown-unknown"], "cargo test --workspace"),
    ],
)
def test_cargo_tests_the_features_that_the_ci_tests(runs: list[str], command: str) -> None:
    found = rust.facts(project({"Cargo.toml": "[workspace]\n", CI: workflow(*runs)}))
    assert found is not None
    assert found.tests[0].run == command


def test_a_linter_that_a_test_script_calls_is_installed() -> None:
    found = shell.facts(project({"test.sh": "set -e  # without shellcheck\nshellcheck a.sh\n"}))
    assert found is not None
    assert found.packages == ("shellcheck",)
    other = shell.facts(project({"test.sh": "set -e  # without shellcheck\n"}))
    assert other is not None
    assert other.packages == ()


def test_extensions_of_php_become_packages() -> None:
    names = ("json", "dom", "intl", "pdo_mysql", "made-up; id", "inhouse")
    manifest = json.dumps({"require": {f"ext-{name}": "*" for name in names}})
    assert php.facts(project({"composer.json": manifest}, "moment.js")) is None, "published for Composer, too"
    found = php.facts(project({"composer.json": manifest}, "index.php"))
    assert found is not None
    usual = {"php-cli", "php-mbstring", "php-xml", "php-curl", "php-zip", "unzip"}
    assert set(found.packages) == usual | {"php-intl", "php-mysql"}


def test_a_version_of_the_ci_is_chosen_where_java_leaves_it_open() -> None:
    setup = "{uses: actions/setup-java@v4, with: {java-version: 21}}"
    pom = "<project><maven.compiler.release>11</maven.compiler.release></project>"
    found = java.facts(project({"pom.xml": pom, CI: workflow(uses=setup)}))
    assert found is not None
    assert versions(found)["java"] == "21"


LINTED: list[tuple[dict[str, str], tuple[str, ...], list[str]]] = [
    ({".pre-commit-config.yaml": "repos: []"}, (), ["uvx pre-commit run --all-files --show-diff-on-failure"]),
    ({"pyproject.toml": "[tool.ruff]\n"}, (), ["uvx ruff check"]),
    ({"setup.cfg": "[flake8]\n", "pyproject.toml": "[project]\n"}, (), ["uvx flake8"]),
    ({"package.json": '{"scripts": {"lint": "eslint ."}}'}, (), ["npm run lint"]),
    ({"package.json": '{"scripts": {"lint": "eslint . --fix"}, "devDependencies": {"xo": "1"}}'}, (), ["npx xo"]),
    ({"package.json": '{"devDependencies": {"eslint": "9"}}'}, ("eslint.config.mjs",), ["npx eslint ."]),
    ({"package.json": "{}"}, ("biome.json",), ["npx @biomejs/biome ci ."]),
    ({"go.mod": "module a\n"}, (".golangci.yml",), ["golangci-lint run", "go vet ./..."]),
    ({"go.mod": "module a\n", CI: workflow("go vet ./...")}, (), ["go vet ./..."]),
    ({"Cargo.toml": "", CI: workflow("cargo clippy --tests -- -Dclippy::all")}, (), ["cargo clippy --tests -- -Dclippy::all"]),
    ({"Cargo.toml": "", CI: workflow("cargo clippy $(id)")}, (), ["cargo clippy"]),
    ({"Gemfile": "gem 'rubocop', '~> 1'\n"}, (".rubocop.yml",), ["bundle exec rubocop"]),
    ({"composer.json": "{}"}, ("phpcs.xml.dist",), ["php vendor/bin/phpcs"]),
    ({}, (".shellcheckrc", "install.sh"), ["git ls-files -z '*.sh' '*.bash' | xargs -0 shellcheck"]),
    ({"package.json": '{"scripts": {"test": "x"}}', "go.mod": "module a", "Cargo.toml": "", "Gemfile": ""}, ("a.sh",), []),
]


@pytest.mark.parametrize(("files", "others", "expected"), LINTED)
def test_a_linter_runs_only_if_the_project_is_set_up_for_it(
    files: dict[str, str], others: tuple[str, ...], expected: list[str]
) -> None:
    seen = project(files, *others)
    found = [candidate for module in MODULES if (facts := module.facts(seen)) for candidate in facts.linters]
    assert [each.shown or each.run for each in found] == expected


def test_a_script_that_changes_files_isnt_a_linter() -> None:
    scripts = {"lint": "biome lint --write .", "format:check": "prettier --check ."}
    found = node.facts(project({"package.json": json.dumps({"scripts": scripts}), "biome.json": "{}"}))
    assert found is not None
    assert [each.shown for each in found.linters] == ["npm run format:check"]


def test_pre_commit_runs_only_on_a_machine_that_can_fetch_its_hooks() -> None:
    config = "repos:\n  - repo: local\n  - repo: https://github.com/a/hooks;id\n  - repo: https://example.com/b\n"
    found = linters.facts(project({".pre-commit-config.yaml": config, "pyproject.toml": "[tool.ruff]\n"}))
    assert found is not None
    assert [each.check for each in found.linters] == ["timeout 20 git ls-remote -q https://github.com/a/hooks HEAD", ""]
    found = linters.facts(project({".pre-commit-config.yaml": "repos:\n  - repo: local\n"}))
    assert found is not None
    assert found.linters[0].check == ""


def test_the_lines_of_a_workflow_are_those_of_its_commands() -> None:
    text = (
        "jobs:\n  build:\n    steps:\n      - run: npm ci\n      - name: Test\n        working-directory: ./web/\n"
        "        run: |\n          # first\n          npm test \\\n            -- --coverage\n          npm run lint\n"
    )
    found = ci_hints.commands(project({CI: text}))
    assert [(each.run, each.line, each.folder) for each in found] == [
        ("npm ci", 4, ""),
        ("npm test -- --coverage", 9, "web"),
        ("npm run lint", 11, "web"),
    ]


def test_workflows_that_dont_test_are_not_evidence() -> None:
    text = workflow("npm install --force")
    found = ci_hints.commands(project({".github/workflows/release.yml": text, ".github/workflows/docs.yaml": text}))
    assert found == ()
    lint = project({".github/workflows/lint.yml": text})
    assert ci_hints.commands(lint) == ()
    assert [each.run for each in ci_hints.commands(lint, linting=True)] == ["npm install --force"]


KEYS = st.sampled_from(
    (
        *(
            "scripts",
            "test",
            "build",
            "lint",
            "engines",
            "node",
            "devEngines",
            "runtime",
            "packageManager",
            "volta",
            "workspaces",
        ),
        *("packages", "devDependencies", "ext-intl", "name", "version", "require", "php", "config", "platform", "bin-dir"),
        *("phpunit/phpunit", "jobs", "steps", "run", "uses", "with", "strategy", "matrix", "tools", "toolchain", "channel"),
        *("workspace", "target", "yarnPath", "a b; id", "eslint", "submodules"),
    )
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["*", "./", "$(id)", "\n", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
FILES = tuple(sorted({pattern.replace("*", "$(id)") for module in MODULES for pattern in module.WANTED}))


@given(
    st.dictionaries(st.sampled_from(FILES), JSON.map(json.dumps).map(str.encode) | st.binary(max_size=40), max_size=8),
    st.sets(
        st.text(max_size=6) | st.sampled_from(["test/a.bats", "spec/'_spec.rb", "test/;_test.rb", "a\n/package.json"]),
        max_size=4,
    ),
)
def test_no_content_of_a_repository_raises_and_every_command_is_one_line(files: dict[str, bytes], others: set[str]) -> None:
    seen = Project(frozenset({*files, *others}), files)
    for module in MODULES:
        found = module.facts(seen)
        commands = (
            [*(each.run for each in (*found.tests, *found.linters)), *(step.run for step in found.steps)] if found else []
        )
        for command in commands:
            assert "\n" not in command
            assert "\0" not in command
            shlex.split(command)


@pytest.mark.parametrize("name", PROJECTS)
def test_every_command_is_valid_bash(name: str) -> None:
    case = PROJECTS[name]
    found = case.facts(project(case.files, *case.others))
    assert found is not None
    for command in [*(each.run for each in found.tests), *(step.run for step in found.steps)]:
        assert subprocess.run(["bash", "-n", "-c", command], check=False, timeout=30).returncode == 0


HOSTILE = {
    "blank lines": "\n" * 200_000,
    "spaces": "option(" + " " * 200_000 + "x\ngem" + " " * 200_000 + "x\nruby '1.2'" + " " * 200_000 + "x",
    "nested braces": "[" * 100_000,
    "nested mappings": "a: {" * 20_000,
    "one long word": "a" * 250_000,
    "many commands": "jobs:\n  a:\n    steps:\n" + "      - run: apt-get -a install -b\n" * 5_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_large_hostile_files_cost_seconds_at_most(name: str) -> None:
    content = HOSTILE[name].encode()
    seen = Project(frozenset(FILES), dict.fromkeys(FILES, content))
    for module in MODULES:
        module.facts(seen)
