"""The YAML tables of manifests/, fast.

PyYAML's loader in C takes a tenth of the time, which every plan pays (60 ms for the table of weights), but deep nesting
makes it crash. So it reads the files that come with this program, and yaml.safe_load those of users.
"""

from pathlib import Path
from typing import Any

import yaml

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_own_yaml(path: Path) -> Any:
    """Plain values of a file that comes with this program."""
    return yaml.load(path.read_bytes(), Loader=_SafeLoader)  # noqa: S506  (both are safe loaders)
