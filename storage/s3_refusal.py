"""An S3 that refuses, in words: what it said, and what to do. In: an error's text, boto3's or deltalake's."""

from __future__ import annotations

import re
from typing import Final

# S3's answer as object_store quotes it: an XML document in the middle of a line.
_XML: Final = re.compile(r"<\?xml.*?<Code>(?P<code>.*?)</Code>.*?<Message>(?P<message>.*?)</Message>.*</Error>", re.S)
_REMEDIES: Final = (
    (re.compile("NoSuchBucket"), "make the bucket, or correct store.root or store.s3_endpoint_url"),
    (
        re.compile(
            r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|ExpiredToken|InvalidToken|403 Forbidden|\(403\)|"
            r"Unable to locate credentials|169\.254\.169\.254"  # where credentials are looked for last
        ),
        "give this machine AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role) that "
        "may read and write there",
    ),
    (
        re.compile("Could not connect|[Cc]onnection refused|error trying to connect|error sending request"),
        "is the server up, and store.s3_endpoint_url its address?",
    ),
)


def explained(reason: str) -> str:
    """The reason in one line, with the remedy where one is known."""
    short = _XML.sub(r"\g<code>: \g<message>", reason).rstrip(". ")
    remedy = next((remedy for pattern, remedy in _REMEDIES if pattern.search(short)), "")
    return f"{short}; {remedy}" if remedy else short
