"""Whether a JPEG file ends where its data end, which no decoder asks: it makes do with whatever bytes stand in for the rest.

A file is SOI, segments (a marker, a length, content), and after each SOS segment entropy-coded data, in which a 0xFF is followed by 0x00
or is a restart marker; after the last of them stands EOI (ITU-T T.81, annex B). Whatever follows EOI, such as a preview or a map of
depths that a telephone appends, is not looked at.
"""

from __future__ import annotations

import re

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart
_SOS, _EOI = 0xDA, 0xD9
_ALONE = (0x01, 0xD8)  # markers without a segment
_FILLED = b"\0\r\n\t "  # what copying and transfers leave behind the end


def has_end_marker(content: bytes) -> bool:
    """Whether a JPEG file ends with EOI, or has it where its data end.

    The first spares nearly all files the search, and keeps silent about those that are odd within and whole; so also about one whose
    middle alone was overwritten: True does not say that the picture is as it was saved.
    """
    return content.rstrip(_FILLED).endswith(b"\xff\xd9") or _is_closed(content)


def _is_closed(content: bytes) -> bool:
    place, scanned = 2, False
    while match := _MARKER.search(content, place):
        marker, place = match[1][0], match.end()
        if marker == _EOI:
            return scanned
        if scanned and not _may_follow_data(marker):
            return False
        if marker not in _ALONE:
            place += max(2, int.from_bytes(content[place : place + 2], "big"))
        scanned |= marker == _SOS
    return False


def _may_follow_data(marker: int) -> bool:
    """DHT, DAC, SOS, DQT, DNL, DRI, an application's segment, or a comment."""
    return marker in (0xC4, 0xCC, _SOS, 0xDB, 0xDC, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF
