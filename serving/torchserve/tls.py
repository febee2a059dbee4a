"""The two files of TLS."""

import ssl
from pathlib import Path

from serving.errors import ServerError


def check_tls(certificate: Path | None, private_key: Path | None) -> tuple[Path | None, Path | None]:
    """Both files, checked to belong together, or neither.

    Raises:
        ServerError: if there is only one of them, or they do not belong together.
    """
    if certificate is None and private_key is None:
        return None, None
    if certificate is None or private_key is None:
        raise ServerError("TLS must have a certificate and a private key, got only one of them")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, private_key, password="")
    except (OSError, ssl.SSLError) as exc:
        raise ServerError(f"{certificate} and {private_key} must be a certificate and its key, got {exc}") from exc
    return certificate.resolve(), private_key.resolve()
