"""Execution of plans. State lives in receipts on disk, never here."""
