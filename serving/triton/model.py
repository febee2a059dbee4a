"""What Triton loads of each version; the code beside it is what it was written with, and nothing else is taken."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
METRICS = tempfile.TemporaryDirectory(prefix="metrics-")  # gone when this process ends
os.environ["PROMETHEUS_MULTIPROC_DIR"] = METRICS.name  # for prometheus-client, which looks when it is imported

from serving.triton.adapter import TritonPythonModel  # noqa: E402, F401
