"""Fixtures of the store's tests."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk: test_atomic asserts the flushes, test_crash runs processes of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
