"""A worker process: TorchServe's own, started without torch.

    python -m serving.torchserve.patches.worker ts/model_service_worker.py --sock-type unix …

TorchServe's worker imports torch only to tell whether an answer is a tensor, which ours never are. That import takes
two seconds of a core, in which the place of a killed worker stays empty. So it is put off until something looks into
torch: the TorchScript runtime does, ONNX Runtime does not.

And it receives as `receiver.py` does.
"""

import importlib
import runpy
import sys
from types import ModuleType
from typing import Any

from serving.torchserve.patches import receiver

DEFERRED = "torch"


class Deferred(ModuleType):
    """Stands for a module that is imported at the first look into it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def main() -> None:
    """Run the script that the first argument names, with the others, as `python` would."""
    sys.modules[DEFERRED] = Deferred(DEFERRED)
    importlib.import_module("ts.model_service_worker")
    receiver.install()
    del sys.modules[DEFERRED]  # whoever imports it from here on gets the real one
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
