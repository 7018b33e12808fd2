import json
import os

import pytest
from pydantic import Field

from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.stored import Count, Finite, Moment, Scalar, Stored, checked, parse, printable


class Example(Stored):
    count: Count
    share: Finite = 0.0
    when: Moment = 0.0
    settings: dict[str, Scalar] = Field(default_factory=dict)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (DEEP, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "not a finite number"),
        ("[1, -Infinity]", "not a finite number"),
        ("1e999", "not a finite number"),
        ('{"a": 1, "a": 2}', "the key 'a' is duplicated"),
        ("1" * 5000, "limit"),
        (b'"\xff"', "utf-8"),
        ("{", "Expecting"),
        ('"\x1b[31m', "Invalid control character"),
    ],
)
def test_json_that_is_none_is_a_value_error_of_one_line(text, rule):
    """Also what Python's parser takes, or raises something else for."""
    with pytest.raises(ValueError, match=rule) as refused:
        parse(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "count is missing"),
        ({"count": "3"}, "count: '3': must be a valid integer"),
        ({"count": True}, "count: True: must be"),
        ({"count": -1}, "count: -1: must be greater than"),
        ({"count": 2**60}, "count: .*: must be less than"),
        ({"count": 1, "share": float("nan")}, "share: nan: must be a finite number"),
        ({"count": 1, "when": 1e300}, "when: 1e[+]300: must be less than"),
        ({"count": 1, "settings": {"a": [1]}}, "settings.a"),
        ([], "its content"),
        ({"count": "\x1b]0;title\x07"}, r"count: '\\x1b\]0;title\\x07'"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(value, said):
    """The place, the value, and the rule."""
    with pytest.raises(ValueError, match=said) as refused:
        checked(Example, value)
    assert str(refused.value).isprintable()
    assert checked(Example, {"count": 1, "share": 1, "later": "x"}).share == 1


def test_text_of_files_cannot_steer_a_terminal():
    """Letters of all languages are shown as they are."""
    assert printable("Käfer 车 é") == "Käfer 车 é"
    assert printable("a\x1b[2J\r\n\x9b\u202e\udcff\x00") == r"a\x1b[2J\r\n\x9b\u202e\udcff\x00"
    assert printable(os.fsdecode(b"caf\xe9")).encode() == rb"caf\udce9"


@pytest.mark.parametrize("text", [DEEP, '{"seal": "x", "a": ' + DEEP, "[]", '"seal"', "null", b"\xff", '[["seal", 1]]'])
def test_a_sealed_file_that_holds_anything_else_is_torn(tmp_path, text):
    """Whatever it is."""
    file = tmp_path / "f.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorruptFileError, match="cannot be read") as refused:
        read_checksummed(file)
    assert str(refused.value).isprintable()


def test_a_right_checksum_does_not_make_wrong_content_right(tmp_path):
    """The seal of a file is no secret: everyone can make one."""
    file = tmp_path / "f.json"
    write_checksummed(file, {"count": 1})
    assert read_checksummed(file, Example) == {"count": 1}
    write_checksummed(file, {"count": "many"})
    assert read_checksummed(file) == {"count": "many"}
    with pytest.raises(CorruptFileError, match=r"f\.json: has invalid content .*count"):
        read_checksummed(file, Example)


def test_a_pipe_is_not_waited_for(tmp_path):
    """Nor is a file without end read."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(CorruptFileError, match="not a regular file"):
            read_checksummed(tmp_path / name)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CorruptFileError, match="1,073,741,824 bytes"):
        read_checksummed(tmp_path / "large.json")
    assert json.loads('{"a": 1}') == parse(b'{"a": 1}')
