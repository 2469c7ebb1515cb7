"""Video files to upright RGB frames, in worker processes that can be killed.

Read in this order: ``probe`` (what a file holds, from its packets), ``backends`` (decord and PyAV as plain
functions), ``worker`` (the process they run in), ``process`` (that process from outside) and ``pool`` (which
decides).
"""

from pipeline.decode.pool import DecodeJob, DecodePool, Frames

__all__ = ["DecodeJob", "DecodePool", "Frames"]
