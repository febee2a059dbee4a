"""How this machine reaches its package index, as an image to build on, so that none of it gets into what is built.

    base = with_index_settings(engine, "localhost/base", folder)     # or the same name, if there is nothing to set

pip and uv are told by variables, pip by its configuration too; certificates are in files that variables name. Local
folders of packages are left out: the build does not see them.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from serving.deploy.image_check.engine import Engine
from serving.deploy.image_check.shell import Shell

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
TRUST = ("PIP_TRUSTED_HOST", "UV_INSECURE_HOST", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
OF_PIP = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
    "cert": "PIP_CERT",
    "proxy": "HTTPS_PROXY",
}
INSIDE = "/etc/host-certificates.pem"


def with_index_settings(engine: Engine, shell: Shell, base: str, folder: Path) -> str:
    """An image like `base` in which pip and uv reach the package index as on this machine.

    Args:
        engine: which builds it.
        shell: runs pip.
        base: name of an image.
        folder: for what goes into the image.
    """
    settings = index_settings({**_configuration_of_pip(shell), **os.environ})
    if not settings:
        return base
    (context := folder / "settings").mkdir()
    lines = [f"FROM {base}"]
    for name in CERTIFICATES:
        if name in settings:
            shutil.copy(settings[name], context / name)
            lines.append(f"COPY {name} {INSIDE}.{name}")
            settings[name] = f"{INSIDE}.{name}"
    lines += [f"ENV {name}='{value}'" for name, value in settings.items()]
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    return engine.build(context, "build-base")


def index_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say how a package index is reached, without those of its values that are local folders."""
    names = [*INDEXES, *TRUST, *PROXIES, *map(str.lower, PROXIES)]
    values = {name: " ".join(_remote(environment.get(name, ""))) for name in names}
    values |= {name: environment[name] for name in CERTIFICATES if Path(environment.get(name, "")).is_file()}
    return {name: value for name, value in values.items() if value}


def _remote(value: str) -> list[str]:
    return [word for word in value.split() if not word.startswith(("/", "file:"))]


def _configuration_of_pip(shell: Shell) -> dict[str, str]:
    """What pip's configuration files say, as variables; nothing where there is no pip."""
    found = {}
    for line in shell.attempt("python3", "-m", "pip", "config", "list").stdout.splitlines():
        place, _, value = line.partition("=")
        name = place.rpartition(".")[2]
        if not place.startswith(":env:") and name in OF_PIP:
            found[OF_PIP[name]] = value.strip("'\"").replace("\\n", " ")
    return found
