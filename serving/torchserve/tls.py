"""TLS: the server's two files, and what a client on the same machine believes of it.

The certificate that counts is a copy in the state folder: whatever becomes of the file that it was made from, a running
server and its clients here have the same one.
"""

import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from serving.errors import ServerError

CERTIFICATE = "certificate.pem"  # in the state folder
CERTIFICATES = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)  # no key beside them
CIPHERS = ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA")  # TorchServe's, with TLS 1.2
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name


def take_tls(certificate: Path | None, private_key: Path | None, state: Path) -> tuple[Path | None, Path | None]:
    """A copy of the certificate in the state folder, and its key, checked as TorchServe will use them; or neither.

    Raises:
        ServerError: if there is only one of them, they do not belong together, TorchServe cannot use them, or the
            certificate is of another time.
    """
    if certificate is None and private_key is None:
        return None, None
    if certificate is None or private_key is None:
        raise ServerError("TLS must have a certificate and a private key, got only one of them")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    copy, partial = state / CERTIFICATE, state / f"{CERTIFICATE}.partial"
    try:
        partial.write_bytes(b"\n".join(CERTIFICATES.findall(certificate.read_bytes())) + b"\n")
        server.load_cert_chain(partial, private_key, password="")
        _check_use(server, trusting(partial), certificate, private_key)
        partial.replace(copy)
    except (OSError, ssl.SSLError) as exc:
        raise ServerError(f"{certificate} and {private_key} must be a certificate and its key, got {exc}") from exc
    finally:
        partial.unlink(missing_ok=True)
    return copy, private_key.resolve()


def trusting(certificate: Path) -> ssl.SSLContext:
    """What believes a server with this very certificate, whoever issued it, whatever host and time it names.

    Raises:
        ServerError: if it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=CERTIFICATES.findall(certificate.read_bytes())[0].decode())
    except (OSError, IndexError) as exc:
        raise ServerError(f"{certificate} must be the server's copy of its certificate, got {exc}: start anew") from exc
    return context


def _check_use(server: ssl.SSLContext, client: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    """Refuse what no client could connect to."""
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers(":".join(CIPHERS))
    try:
        named = _handshake(server, client)
    except ssl.SSLError as exc:
        raise ServerError(
            f"{private_key} must be an RSA key, the one kind that TorchServe takes, and {certificate} one for servers, "
            f"got a handshake that fails ({exc.reason}): make both with `openssl req -x509 -nodes -newkey rsa:2048`, "
            "or leave TLS to a proxy in front"
        ) from exc
    first, last = str(named["notBefore"]), str(named["notAfter"])
    if not ssl.cert_time_to_seconds(first) <= time.time() <= ssl.cert_time_to_seconds(last):
        raise ServerError(f"{certificate} must be valid now, got one from {first} to {last}: renew it")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> Mapping[str, object]:
    """Connect both in memory; what the client reads in the server's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (here, there, here, there, here):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue  # the other side is next
    return here.getpeercert() or {}
