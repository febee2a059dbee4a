"""What Triton loads of each version; the code beside it is what it was written with, and nothing else is taken."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-")  # prometheus-client looks when imported

from serving.triton.adapter import TritonPythonModel  # noqa: F401
