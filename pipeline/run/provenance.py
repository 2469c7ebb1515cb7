"""Where and with what a stage is made."""

import os
import platform
import sys
from typing import Any

from pipeline.versions import versions


def provenance() -> dict[str, Any]:
    """Where and with what a stage is made; informs people, never part of a key."""
    return {
        "versions": versions("bmoe-cache", "torch", "numpy", "av", "opencv-python-headless"),
        "python": platform.python_version(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "command": " ".join(sys.argv),
    }
