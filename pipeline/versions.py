"""Which software made something: for records that people read, never part of a key."""

from importlib.metadata import PackageNotFoundError, version


def versions(*packages: str) -> dict[str, str]:
    """Package -> its version. What is not installed (decord, on some machines) is left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def program() -> str:
    """This program, with its version where it is installed: `bmoe-cache 0.1.0`."""
    return " ".join(["bmoe-cache", *versions("bmoe-cache").values()])
