"""TLS: certificates as an authority issues them, and what becomes of their files while a server runs."""

import json
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from conftest import serving

from serving.errors import ServerError
from serving.torchserve import launch
from serving.torchserve.state import Server
from serving.torchserve.tls import CIPHERS, take_tls

RSA = trustme.KeyType.RSA


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=RSA)


@pytest.fixture
def own_state(own_state: Path) -> Path:
    own_state.mkdir()
    return own_state


def issued(authority: trustme.CA, folder: Path, key_type: trustme.KeyType = RSA, **validity: Any) -> tuple[Path, Path]:
    """The files of a certificate that an authority has issued, without that of the authority, and of its key."""
    one = authority.issue_cert("discriminant.example", key_type=key_type, **validity)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(one.cert_chain_pems[0].bytes())
    key.write_bytes(one.private_key_pem.bytes())
    return certificate, key


def started(model_store: Path, state: Path, certificate: Path, key: Path) -> Server:
    tls = {"certificate": certificate, "private_key": key}
    return launch.start(["tiny-mda"], model_store=model_store, state=state, device="cpu", port=0, **tls)  # type: ignore[arg-type]


def test_a_certificate_of_an_authority_whose_files_change(
    authority: trustme.CA, own_state: Path, model_store: Path, images: list[bytes], tmp_path: Path
) -> None:
    certificate, key = issued(authority, tmp_path)
    server = started(model_store, own_state, certificate, key)
    image = tmp_path / "image.png"
    image.write_bytes(images[0])
    issued(authority, tmp_path)  # renewed
    classify = ("classify", image, "--json", "--state", own_state)
    assert json.loads(serving(*classify, check=True).stdout)["label"]
    certificate.unlink()
    key.unlink()

    assert server.url.startswith("https://")
    assert json.loads(serving(*classify, check=True).stdout)["label"]
    with pytest.raises(httpx.ConnectError):  # it is signed by nobody that the world knows
        httpx.post(f"{server.url}/predictions/tiny-mda", content=images[0], trust_env=False)
    plain = f"http{server.url.removeprefix('https')}/predictions/tiny-mda"
    assert httpx.post(plain, content=images[0], trust_env=False).status_code == 403
    assert serving("stop", "--state", own_state).stdout == f"Stopped the server at {server.url}.\n"


def test_a_server_whose_certificate_is_gone_is_stopped(
    authority: trustme.CA, own_state: Path, model_store: Path, tmp_path: Path
) -> None:
    server = started(model_store, own_state, *issued(authority, tmp_path))
    (own_state / "certificate.pem").unlink()

    copy = own_state / "certificate.pem"
    assert launch.stop(own_state) == (
        f"Stopped the server at {server.url}; what was in flight was dropped: {copy} must be the server's copy of its "
        f"certificate, got [Errno 2] No such file or directory: '{copy}': start anew."
    )
    assert launch.status(own_state) is None


def test_torchserve_takes_no_other_ciphers_than_are_checked(
    authority: trustme.CA, own_state: Path, model_store: Path, tmp_path: Path
) -> None:
    server = started(model_store, own_state, *issued(authority, tmp_path))
    address = ("127.0.0.1", httpx.URL(server.url).port or 0)

    def accepted(ciphers: str) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        try:
            with socket.create_connection(address, 10) as connection, context.wrap_socket(connection):
                return True
        except ssl.SSLError:
            return False

    assert all(map(accepted, CIPHERS))
    assert not accepted("ALL:!" + ":!".join(CIPHERS))


def test_a_key_that_is_not_rsa_is_refused(authority: trustme.CA, own_state: Path, tmp_path: Path) -> None:
    certificate, key = issued(authority, tmp_path, trustme.KeyType.ECDSA)
    message = rf"^{key} must be an RSA key, .*got a handshake that fails \(NO_SHARED_CIPHER\): make both with `openssl "

    with pytest.raises(ServerError, match=message):
        take_tls(certificate, key, own_state)


@pytest.mark.parametrize(("first", "last"), [(-2, -1), (1, 2)])
def test_a_certificate_of_another_time_is_refused(
    first: int, last: int, authority: trustme.CA, own_state: Path, tmp_path: Path
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    dates = {"not_before": now + timedelta(days=first), "not_after": now + timedelta(days=last)}
    certificate, key = issued(authority, tmp_path, **dates)
    year = str((now + timedelta(days=last)).year)

    with pytest.raises(
        ServerError, match=rf"^{certificate} must be valid now, got one from .* to .* {year} GMT: renew"
    ):
        take_tls(certificate, key, own_state)


def test_the_files_that_the_advice_makes_are_taken(own_state: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    advice = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=here"]
    subprocess.run([*advice, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    assert take_tls(certificate, key, own_state) == (own_state / "certificate.pem", key)
    assert (own_state / "certificate.pem").read_bytes() == certificate.read_bytes()


def test_half_of_tls_and_a_wrong_key_are_refused(own_state: Path, model_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.pem"
    file.write_text("no key")

    with pytest.raises(ServerError, match=r"^TLS must have a certificate and a private key, got only one of them$"):
        launch.start(model_store=model_store, state=own_state, port=0, certificate=file)
    with pytest.raises(ServerError, match=r" must be a certificate and its key, got "):
        launch.start(model_store=model_store, state=own_state, port=0, certificate=file, private_key=file)
    assert list(own_state.glob("certificate*")) == []


def test_a_key_is_never_copied(authority: trustme.CA, own_state: Path, tmp_path: Path) -> None:
    certificate, key = issued(authority, tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())

    with pytest.raises(ServerError, match=r"key\.pem and .*certificate\.pem must be a certificate and its key, got "):
        take_tls(key, certificate, own_state)
    assert list(own_state.iterdir()) == []
    assert take_tls(both, both, own_state) == (own_state / "certificate.pem", both)
    assert (own_state / "certificate.pem").read_bytes() == certificate.read_bytes()
