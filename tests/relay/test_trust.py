"""Where authorities come from, and what Python's ssl must give us."""

import os
import ssl
from pathlib import Path

import pytest
import trustme

from relay.trust import Trust


def test_the_chain_that_a_host_sent_can_be_had() -> None:
    """Before 3.13 by a private way only: should it go, this says so before a delivery does."""
    inner = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="mx.meg.test")
    assert hasattr(inner, "get_unverified_chain") or hasattr(inner._sslobj, "get_unverified_chain")  # type: ignore[attr-defined]


def test_authorities_are_the_system_s_and_those_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert not Trust().known
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "own.pem"))
    assert Trust(str(tmp_path / "own.pem")).known
    (tmp_path / "none/0a775a30.0").touch()  # a folder as c_rehash leaves it
    assert Trust().known
    with pytest.raises(OSError, match="No such file"):
        Trust(str(tmp_path / "other.pem")).known
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(OSError, match="X509"):
        Trust(str(tmp_path / "bad.pem")).known
