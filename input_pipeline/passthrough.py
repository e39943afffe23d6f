"""Images whose files can be stored as they are: encoding them again would only lose."""

from input_pipeline import dicom

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_BASELINE_FRAME, _JFIF, _SCAN = 0xC0, 0xE0, 0xDA
_TABLES = frozenset({0xC4, 0xDB, 0xDD})  # Huffman and quantisation tables, restart interval
_BARE_JFIF_BYTES = 16  # more is a thumbnail


def bare_jpeg(data: bytes) -> bytes | None:
    """The grey baseline JPEG that a file is, or that a DICOM file holds unchanged, if nothing but a picture is in it; else None.

    A file with a comment, EXIF or another application's segment is not bare: it may say who the patient is. Bytes behind the end marker are cut off.

    Args:
      data: a file that `images.decode_gray` decodes; of a bare JPEG it gives the same pixels.

    Raises:
      DataError, UserError: as `dicom.embedded_jpeg`.
    """
    jpeg = dicom.embedded_jpeg(data) if dicom.is_dicom(data) else data
    scan = _bare_header(jpeg) if jpeg is not None else 0
    # Within a scan, a byte of all ones is always followed by a zero or a restart marker, so the first end marker is the end.
    end = jpeg.find(_END, scan) if jpeg is not None and scan else -1
    return jpeg[: end + len(_END)] if jpeg is not None and end >= 0 else None


def _bare_header(jpeg: bytes) -> int:
    """Where the scan of a grey baseline JPEG starts that has nothing before it but frame, tables and JFIF's mark; else 0 (ITU-T T.81, annex B)."""
    position = len(_START) if jpeg.startswith(_START) else len(jpeg)
    while position + 10 <= len(jpeg) and jpeg[position] == 0xFF:
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4])
        if marker == _SCAN:
            return position
        is_grey_frame = marker == _BASELINE_FRAME and jpeg[position + 9] == 1
        is_bare_mark = marker == _JFIF and length <= _BARE_JFIF_BYTES
        if not (marker in _TABLES or is_grey_frame or is_bare_mark):
            return 0
        position += 2 + length
    return 0
