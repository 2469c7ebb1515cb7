"""Parquet files with a checksum of all their bytes, so that no flipped bit in a clip table passes for a fact.

Parquet can sum its pages but not its footer, where schema and offsets lie. So twelve bytes stand between the last page
and the footer, a place that no Parquet reader looks at: MARK, then the CRC-32 of everything else in the file
(little-endian). A table written by another program has none, and is read as it is.
"""

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MARK = b"\xffbmoecrc"  # 0xff is in no UTF-8, so the texts of a footer never hold it
_BYTES = len(MARK) + 4


def table_bytes(table: "pa.Table", compression: str = "zstd") -> bytes:
    """A table as a Parquet file. Raises what pyarrow raises."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, write_page_checksum=True)
    data = sink.getvalue().to_pybytes()
    place = _before_footer(data)
    return b"".join((data[:place], MARK, zlib.crc32(data).to_bytes(4, "little"), data[place:]))


def read_table(data: bytes) -> "pa.Table":
    """The table in the bytes of a Parquet file. Raises ValueError (pyarrow's errors are) or OSError when damaged.

    It is read in this thread. Those of pyarrow may still hold the bytes when the interpreter ends, and then abort
    it: one process in 50 to 200 on a busy machine.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = data.rfind(MARK)
    marked = place >= 0
    if not marked:
        place = _before_footer(data) - _BYTES
    told = int.from_bytes(data[place + len(MARK) : place + _BYTES], "little")
    view = memoryview(data)
    sound = place > 0 and zlib.crc32(view[place + _BYTES :], zlib.crc32(view[:place])) == told
    if marked != sound:  # sound and not marked: a bit of the mark itself
        raise ValueError("its checksum is wrong")
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=not sound) as file:
        return file.read(use_threads=False)


def _before_footer(data: bytes) -> int:
    """Where the footer begins, as its last eight bytes say: its length, and PAR1."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")
