"""The operator's certificates and package mirrors in the tools' configuration files."""

from __future__ import annotations

import configparser
import json
import subprocess
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from gibil_bot.config import MIRRORS, load_settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.providers.local.base_tree import trust
from gibil_bot.scripts.tool_settings import tool_files
from tests.doubles.tools import needs

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
ALL = {name: f"https://mirror.example/{name}" for name in MIRRORS}


def test_without_settings_no_tool_is_configured() -> None:
    assert tool_files("", {}) == {}


def test_certificates_are_in_files_that_the_tools_read() -> None:
    files = tool_files(CERTIFICATE, {})
    assert files["/etc/gibil/ca.pem"] == CERTIFICATE
    assert files["/etc/gibil/environment"] == "NODE_EXTRA_CA_CERTS=/etc/gibil/ca.pem\n"
    assert tomllib.loads(files["/etc/uv/uv.toml"]) == {"native-tls": True}
    assert "REQUESTS_CA_BUNDLE" not in "".join(files.values())


def test_each_mirror_is_in_the_configuration_of_its_tools() -> None:
    files = tool_files("", ALL)
    pip = configparser.ConfigParser()
    pip.read_string(files["/etc/pip.conf"])
    assert pip["global"]["index-url"] == ALL["pypi"]
    assert tomllib.loads(files["/etc/uv/uv.toml"]) == {
        "python-install-mirror": ALL["python"],
        "index": [{"url": ALL["pypi"], "default": True}],
    }
    assert files["/root/.npmrc"] == f"registry={ALL['npm']}\n"
    assert yaml.safe_load(files["/root/.yarnrc.yml"]) == {"npmRegistryServer": ALL["npm"]}
    assert files["/root/.config/go/env"] == f"GOPROXY={ALL['go']}\n"
    cargo = tomllib.loads(files["/root/.cargo/config.toml"])["source"]
    assert cargo[cargo["crates-io"]["replace-with"]]["registry"] == f"sparse+{ALL['crates']}"
    assert ElementTree.fromstring(files["/root/.m2/settings.xml"]).findtext("./mirrors/mirror/url") == ALL["maven"]
    assert yaml.safe_load(files["/root/.bundle/config"]) == {"BUNDLE_MIRROR__HTTPS://RUBYGEMS__ORG/": ALL["rubygems"]}
    assert json.loads(files["/root/.config/composer/config.json"])["repositories"][0]["url"] == ALL["packagist"]
    done = subprocess.run(
        [
            "sh",
            "-c",
            f"{files['/etc/gibil/mirrors']}\necho $NODEJS_ORG_MIRROR $GOLANG_MIRROR $RUSTUP_UPDATE_ROOT $ADOPTIUM_MIRROR",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [ALL[name] for name in ("nodejs", "golang", "rustup", "adoptium")]
    assert "/etc/gibil/environment" not in files


def test_other_settings_of_pip_stay() -> None:
    existing = {
        "/etc/pip.conf": "[install]\nuser = no\n[global]\ncert = /old.pem\ntimeout = 60\nindex-url = https://old.example\n"
    }
    pip = configparser.ConfigParser()
    pip.read_string(tool_files(CERTIFICATE, {"pypi": "https://new.example"}, existing)["/etc/pip.conf"])
    assert dict(pip["global"]) == {
        "cert": "/etc/ssl/certs/ca-certificates.crt",
        "index-url": "https://new.example",
        "timeout": "60",
    }
    assert dict(pip["install"]) == {"user": "no"}


def settings(tmp_path: Path, **env: str) -> dict[str, str]:
    return {"GIBIL_DATA_DIR": str(tmp_path), **env}


def test_the_settings_are_checked_and_a_private_key_in_the_bundle_is_left_out(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(f"# our CA\n{CERTIFICATE}-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n{CERTIFICATE}")
    found = load_settings(
        settings(tmp_path, GIBIL_CA_BUNDLE=str(bundle), GIBIL_MIRRORS="npm=https://m.example/npm/, pypi=http://m.example:81/s")
    )
    assert found.ca_bundle == CERTIFICATE * 2
    assert found.mirrors == {"npm": "https://m.example/npm", "pypi": "http://m.example:81/s"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GIBIL_CA_BUNDLE", "/nowhere/ca.pem", "must be the path of a readable PEM file, got '/nowhere/ca.pem'"),
        ("GIBIL_CA_BUNDLE", "/dev/null", "has no certificate"),
        ("GIBIL_MIRRORS", "npmjs=https://m.example", "unknown mirror 'npmjs'; did you mean npm"),
        ("GIBIL_RUNTIMES", "node@22,cobol", "'cobol' can't be stored; known are python, node, "),
        ("GIBIL_RUNTIMES", "node@22; id", "'22; id' is not a version"),
        ("GIBIL_MIRRORS", "npm", r"npm must be an http\(s\) URL such as https://mirror.example/npm, got ''"),
        ("GIBIL_MIRRORS", "npm=ftp://m.example", "npm must be an http"),
        ("GIBIL_MIRRORS", "npm=https://m.example/'; id", "npm must be an http"),
        ("GIBIL_MIRRORS", "npm=https://m.example/\nx=1", "npm must be an http"),
        ("GIBIL_MIRRORS", "npm=https://me:secret@m.example", "must not contain a user name or password"),
    ],
)
def test_wrong_settings_are_rejected(tmp_path: Path, name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        load_settings(settings(tmp_path, **{name: value}))
    assert "secret" not in str(error.value)


@needs("openssl")
def test_openssl_finds_an_added_certificate_by_its_subject(tmp_path: Path) -> None:
    arguments = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=our CA", "-days", "2"]
    subprocess.run(
        ["openssl", "req", "-x509", *arguments, "-keyout", tmp_path / "key", "-out", tmp_path / "ca.pem"],
        check=True,
        capture_output=True,
    )
    folder = tmp_path / "certs"
    trust(folder, (tmp_path / "ca.pem").read_text())
    for options in (["-no-CAfile", "-CApath", str(folder)], ["-no-CApath", "-CAfile", str(folder / "ca-certificates.crt")]):
        command = ["openssl", "verify", "-no-CAstore", *options, str(tmp_path / "ca.pem")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
