"""What comes before TorchServe's own: copies of its classes in the server's private folder, and a script.

The script lies here, for the private folder is below /tmp, where it may be that nothing can be executed.
"""

from pathlib import Path

from serving.keys import Keys
from serving.torchserve.patches.classes import changed_classes

CLASS_FOLDER = "classes"
PYTHON = Path(__file__).with_name("python")
PYTHON_VARIABLE = "DISCRIMINANT_PYTHON"  # how the script knows which Python to run
WORKER = "serving.torchserve.patches.worker"


def write(folder: Path, torchserve_home: Path, keys: Keys | None) -> None:
    """Write the copies.

    Args:
        folder: the server's private one.
        torchserve_home: folder that holds the package `ts`.
        keys: what clients have to name, if the server asks for keys.

    Raises:
        ServerError: if TorchServe is not the version that this was made for.
    """
    for name, code in changed_classes(torchserve_home, keys).items():
        file = folder / CLASS_FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(code)
