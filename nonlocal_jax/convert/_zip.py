"""The records of an uncompressed zip file, such as PyTorch writes."""

import struct
import zipfile
import zlib
from typing import Any

# Of the list of all records. 50,000 records fit.
_MAX_DIRECTORY = 2**22

_HEADER = 30  # bytes in front of a record, before its name


class _Reader:
    """A file for ``zipfile``, which reads the list of records in one piece of any size."""

    def __init__(self, file: Any):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise ValueError(f"a zip file whose list of records has {size:,} bytes")
        return self._file.read(size)


class Records:
    """The records of a zip file by name, as views of its content.

    Every byte of the file belongs to at most one record, and no two records have the same name.

    Args:
      file: The file.
      content: Its bytes.

    Raises:
      ValueError: The file is not such a zip file.
      zipfile.BadZipFile: The file is damaged.
    """

    def __init__(self, file: Any, content: memoryview):
        self._records: dict[str, tuple[zipfile.ZipInfo, memoryview]] = {}
        with zipfile.ZipFile(_Reader(file)) as archive:
            infos, limit = archive.infolist(), archive.start_dir
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            name, header = info.filename, info.header_offset
            if name in self._records:
                raise ValueError(f"the zip file has two records {name}")
            if content[header : header + 4] != b"PK\x03\x04":
                raise ValueError(f"the record {name} has no header")
            if header < end:
                raise ValueError(f"the record {name} overlaps another one")
            # The name and extra fields follow the header.
            start = header + _HEADER + sum(struct.unpack_from("<HH", content, header + 26))
            end = start + info.compress_size
            if end > limit:
                raise ValueError(f"the record {name} does not end within the file")
            self._records[name] = info, content[start:end]

    def names(self) -> list[str]:
        return list(self._records)

    def __getitem__(self, name: str) -> memoryview:
        """Returns the bytes of a record.

        Raises:
          KeyError: There is no such record.
          ValueError: It is compressed or encrypted, or its checksum is wrong.
        """
        info, data = self._records[name]
        if info.flag_bits & 1:
            raise ValueError(f"{name} is encrypted; PyTorch does not encrypt")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed; PyTorch writes uncompressed records")
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError(f"the checksum of {name} is wrong")
        return data
