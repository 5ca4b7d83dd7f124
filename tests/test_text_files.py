"""Texts in the encodings that programs write, and paths as lists name them."""

from pathlib import Path

import pytest

from prompt_serve.text_files import expand_user, is_utf8, local_path, not_utf8, read_text

TEXT = "photos/café.png\r\nphotos/猫.png\nphotos/🌹.png\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
)
@pytest.mark.parametrize("text", [TEXT, "a", ""])
def test_a_text_is_read_in_its_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode(encoding))

    assert read_text(path) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp850", "shift-jis", "gb18030"])
def test_bytes_of_other_encodings_are_kept_and_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    name = "猫狗" if encoding in ("shift-jis", "gb18030") else "café"
    data = f"plain.png\n{name}.png\n".encode(encoding)
    path.write_bytes(data)

    text = read_text(path)

    assert not is_utf8(text)
    assert text.encode("utf-8", "surrogateescape") == data
    assert "is not UTF-8 text (line 2)" in not_utf8(path, text)


@pytest.mark.parametrize(
    ("written", "there", "expected"),
    [
        ("a/b.png", "a/b.png", "a/b.png"),
        (r"a\b.png", "a/b.png", "a/b.png"),
        (r".\a\b c.png", "a/b c.png", "a/b c.png"),
        (r"a\b.png", r"a\b.png", r"a\b.png"),
        ("café\\1.png", "café/1.png", "café/1.png"),
        ("not\udce9there\\1.png", "x.png", "not\udce9there/1.png"),
    ],
)
def test_a_path_from_windows_is_found(
    tmp_path: Path, written: str, there: str, expected: str
) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()

    assert local_path(written, tmp_path) == tmp_path / expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "/home/me"),
        ("~/a.png", "/home/me/a.png"),
        ("~no-such-user/a.png", "~no-such-user/a.png"),
        ("a/~/b.png", "a/~/b.png"),
        ("/~", "/~"),
    ],
)
def test_a_tilde_is_the_home_folder(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    assert expand_user(given) == Path(expected)
    assert local_path(given) == Path(expected)
