"""A container by runc or crun, locked down as `docker run --read-only --cap-drop ALL …` does it.

The root file system is read-only; /tmp is in memory, and nothing there can be executed; /app/.serving is a folder of
the machine; the user has no capability and gets none; network, processes and mounts are its own.
"""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.deploy.image_check.shell import Failed, Shell

NEW_NETWORK = 0x40000000  # CLONE_NEWNET
PORT = 8080
DEVICES = ["nosuid", "strictatime", "mode=755", "size=65536k"]
IN_MEMORY = ["nosuid", "noexec", "nodev"]  # what --tmpfs means
MOUNTS = (
    ("/proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", DEVICES),
    ("/dev/shm", "tmpfs", [*IN_MEMORY, "mode=1777", "size=65536k"]),
    ("/sys", "sysfs", [*IN_MEMORY, "ro"]),
    ("/tmp", "tmpfs", [*IN_MEMORY, "mode=1777"]),
)
HIDDEN = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]


def runtime() -> str:
    """What runs containers.

    Raises:
        Failed: if nothing does, or this process may not.
    """
    found = next(filter(shutil.which, ("runc", "crun")), None)
    if found is None:
        raise Failed("runc or crun must be there to run what buildah builds, got neither: apt-get install runc")
    if os.geteuid():
        raise Failed("without Docker, root must run this, got another user")
    return found


def configuration(
    image: Mapping[str, Any], root: Path, user: tuple[int, int], state: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """A container's config.json, by the Open Container Initiative's runtime specification.

    Args:
        image: its configuration, as Docker writes it.
        root: its files.
        user: number and group.
        state: folder of the machine that stands at /app/.serving.
        environment: variables on top of the image's.
    """
    variables = dict(entry.split("=", 1) for entry in image["Env"]) | dict(environment)
    mounts = [{"destination": at, "type": kind, "source": kind, "options": how} for at, kind, how in MOUNTS]
    volume = {"destination": "/app/.serving", "type": "bind", "source": str(state), "options": ["rbind", "rw"]}
    return {
        "ociVersion": "1.0.2",
        "hostname": "image-check",
        "process": {
            "args": [*(image.get("Entrypoint") or []), *image["Cmd"]],
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": image["WorkingDir"],
            "user": {"uid": user[0], "gid": user[1]},
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [*mounts, volume],
        "linux": {
            "namespaces": [{"type": one} for one in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": HIDDEN,
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"],
        },
    }


class RuntimeContainer:
    """A container that runs.

    Args:
        shell: runs the commands.
        command: the runtime and its options.
        name: of the container.
        process: the runtime, which ends with the container, with its exit code.
    """

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, shell: Shell, command: list[str], name: str, process: subprocess.Popen[bytes]) -> None:
        self._shell, self._command, self._name, self._process = shell, command, name, process

    @classmethod
    @contextmanager
    def begun(cls, shell: Shell, runtime: str, bundle: Path) -> Iterator["RuntimeContainer"]:
        """Run the bundle in a folder; in the end it is killed if it must be."""
        command, name = [runtime, "--root", str(bundle.parent / "running")], f"image-check-{os.getpid()}"
        process = shell.begin(*command, "run", "--bundle", bundle, name)
        try:
            yield cls(shell, command, name, process)
        finally:
            shell.attempt(*command, "delete", "--force", name)
            process.wait()

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and those that it begins, are in the container's network."""
        pid = json.loads(self._shell.run(*self._command, "state", self._name))["pid"]
        with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{pid}/ns/net").open() as other:
            _enter(other.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self._shell.attempt(*self._command, "exec", self._name, *command)

    def terminate(self) -> None:
        """Send SIGTERM to its main process."""
        self._shell.run(*self._command, "kill", self._name, "TERM")

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, if it comes in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def _enter(network: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, NEW_NETWORK):
        raise Failed(f"the container's network must be open to root, got {os.strerror(ctypes.get_errno())}")
