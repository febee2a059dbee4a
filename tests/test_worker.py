"""What a worker's process holds, and how it comes to run."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from conftest import workers_of

from serving.torchserve.patches import folder
from serving.torchserve.patches.receiver import Later, Receiver
from serving.torchserve.patches.worker import Deferred
from serving.torchserve.state import Server


@pytest.mark.parametrize(("model", "has_torch"), [("tiny-mda", False), ("tiny-mda-ts", True)])
def test_only_a_worker_that_computes_with_torch_loads_it(server: Server, model: str, has_torch: bool) -> None:
    (worker,) = workers_of(server, model)

    libraries = {Path(library.path).name for library in psutil.Process(worker["pid"]).memory_maps()}

    assert any(name.startswith("onnxruntime_pybind11_state") for name in libraries) is not has_torch
    assert ("libtorch_cpu.so" in libraries) is has_torch


def test_a_deferred_module_is_the_real_one_once_it_is_looked_into() -> None:
    script = """
import sys
from serving.torchserve.patches.worker import Deferred
sys.modules["colorsys"] = Deferred("colorsys")
import colorsys as held
del sys.modules["colorsys"]
assert held.rgb_to_hsv(1, 1, 1) == (0, 0, 1)
assert held.rgb_to_hsv is sys.modules["colorsys"].rgb_to_hsv
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_deferred_module_that_is_missing_is_so_said() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = Deferred("no_such_module").anything


def test_bytes_are_received_whole_however_they_come() -> None:
    sent = bytes(range(256)) * 20_000
    here, there = socket.socketpair()
    receive = Receiver()
    with here, there:
        sender = threading.Thread(target=here.sendall, args=(sent,))
        sender.start()

        assert receive(there, 10) == sent[:10]
        assert receive(there, 300_000) == sent[10:300_010]
        assert b"".join(receive(there, 7) for _ in range(10_000)) == sent[300_010:370_010]
        assert receive(there, len(sent) - 370_010) == sent[370_010:]
        assert receive(there, 0) == b""
        sender.join()
        here.close()
        with pytest.raises(SystemExit):
            receive(there, 1)


def test_what_is_put_off_is_done_before_a_worker_waits() -> None:
    done: list[str] = []
    later = Later()
    receive = Receiver(later.run)
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"one, two")
        assert receive(there, 3) == b"one"
        later.submit(done.append, "counted")
        assert receive(there, 5) == b", two"
        assert done == []
        failed = later.submit(int, "no number")

        here.sendall(b"!")
        assert receive(there, 1) == b"!"
    assert done == ["counted"]
    assert isinstance(failed.exception(), ValueError)


def test_nothing_below_tmp_is_executed(server: Server) -> None:
    """In a container, /tmp commonly forbids it."""
    files = [file for file in Path(server.tmp).rglob("*") if file.is_file()]

    assert files
    assert not [file for file in files if file.stat().st_mode & 0o111]


def test_the_script_hands_its_arguments_on_as_they_are(tmp_path: Path) -> None:
    executable = tmp_path / "a 'python' of mine"
    executable.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    executable.chmod(0o700)
    environment = {folder.PYTHON_VARIABLE: str(executable)}

    result = subprocess.run(
        [folder.PYTHON, "a b", "$HOME", "'"], env=environment, capture_output=True, text=True, check=True
    )

    assert result.stdout.splitlines() == ["-P", "-m", folder.WORKER, "a b", "$HOME", "'"]
