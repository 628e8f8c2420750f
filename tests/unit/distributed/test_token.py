"""Ray's token: a file of this user alone, made so, and corrected with a word where it is not."""

import logging
import os
import stat

import pytest

from safemerge.distributed.token import secure_token
from safemerge.errors import PreflightError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_a_local_cluster_gets_a_token_that_nobody_else_can_read_whatever_the_umask(token):
    before = os.umask(0)
    try:
        secure_token(make=True)
    finally:
        os.umask(before)
    assert mode(token) == 0o600
    assert len(token.read_text()) >= 32
    made = token.read_text()
    secure_token(make=True)
    assert token.read_text() == made, "the cluster's other nodes have it"


def test_a_token_that_others_can_read_is_closed_and_said(token, caplog):
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        secure_token(make=False)
    assert mode(token) == 0o600
    assert "others could read Ray's token (mode 0644)" in caplog.text
    assert "secret" not in caplog.text


def test_a_named_token_is_checked_and_not_made(token, monkeypatch, tmp_path):
    named = tmp_path / "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    secure_token(make=True)
    assert not named.exists()
    assert not token.exists()
    named.write_text("secret")
    named.chmod(0o660)
    secure_token(make=True)
    assert mode(named) == 0o600


def test_another_users_token_is_refused(token, monkeypatch):
    token.parent.mkdir()
    token.write_text("secret")
    monkeypatch.setattr(os, "geteuid", lambda: token.stat().st_uid + 1)
    with pytest.raises(PreflightError, match=r"auth_token: Ray's token must be a file of yours"):
        secure_token(make=False)
