"""Tricks of safetensors."""

import struct

import pytest

from tests.test_hostile_files import MEGABYTES, load, peak


def header(text, data=b""):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(name="a", dtype="F32", shape="[2]", offsets="[0,8]"):
    entry = f'"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}'
    return f'"{name}":{{{entry}}}'


SAFETENSORS = {
    "empty": (b"", "HeaderTooSmall|no safetensors"),
    "length of 2^63": (struct.pack("<Q", 2**63) + b"{}", "no safetensors"),
    "length of 2^27": (struct.pack("<Q", 2**27) + b"{}", "no safetensors"),
    "a name twice": (
        header(f"{{{tensor()},{tensor(dtype='I32')}}}", bytes(8)),
        "a is there twice",
    ),
    "metadata twice": (
        header('{"__metadata__":{},"__metadata__":{"a":"b"}}'),
        "no safetensors",
    ),
    "overlap": (
        header(f"{{{tensor()},{tensor('b', offsets='[4,12]')}}}", bytes(12)),
        "no safetensors",
    ),
    "a hole": (header(f"{{{tensor(offsets='[8,16]')}}}", bytes(16)), "no safetensors"),
    "unknown dtype": (header(f"{{{tensor(dtype='F33')}}}", bytes(8)), "no safetensors"),
    "declares gigabytes": (
        header(f"{{{tensor(shape='[1000000000]', offsets='[0,4000000000]')}}}"),
        "no safetensors",
    ),
    "a size that overflows": (
        header(f"{{{tensor(shape='[4294967296,4294967296]')}}}", bytes(8)),
        "no safetensors",
    ),
    "deep": (header("[" * 100_000), "no safetensors"),
    "truncated": (header(f"{{{tensor()}}}", bytes(4)), "no safetensors"),
    "more than it says": (header(f"{{{tensor()}}}", bytes(9)), "no safetensors"),
    "no utf-8": (header(b'{"\xff":1}'), "no safetensors"),
}


@pytest.mark.parametrize(("data", "words"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_tricks_of_safetensors(data, words, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    before = peak()
    with pytest.raises(ValueError, match=words) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert peak() - before < MEGABYTES
