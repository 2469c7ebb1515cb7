"""Where and with what a stage is made."""

import os
import platform
import sys
from importlib.metadata import version
from typing import Any


def provenance() -> dict[str, Any]:
    """Where and with what a stage is made; informs people, never part of a key."""
    names = ("bmoe-cache", "torch", "numpy", "av", "opencv-python-headless")
    return {
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "command": " ".join(sys.argv),
    }
