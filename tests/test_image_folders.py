"""The walker of folders: what it takes, what it leaves out, and that it tells what."""

import unicodedata
from pathlib import Path

import pytest

from prompt_serve.image_folders import Ignored, find_images, nfc


def tree(root: Path, *files: str) -> Path:
    """Write empty files."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def found(root: Path) -> tuple[list[str], str]:
    ignored = Ignored()
    images = find_images(root, ignored)
    return [path.relative_to(root).as_posix() for path in images], str(ignored)


@pytest.mark.parametrize(
    "folder",
    [
        *(".thumbnails", ".ipynb_checkpoints", "@eaDir", "#recycle", "__MACOSX", "#snapshot"),
        *(".git", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    ],
)
def test_hidden_and_system_folders_are_left_out_and_told(tmp_path: Path, folder: str) -> None:
    tree(tmp_path, "a.jpg", f"{folder}/b.jpg", f"sub/{folder}/deep/c.jpg")
    assert found(tmp_path) == (["a.jpg"], "2 folders ignored: 2 hidden")


@pytest.mark.parametrize(
    "file", ["._x.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "ehthumbs.db"]
)
def test_hidden_and_system_files_are_left_out_and_told(tmp_path: Path, file: str) -> None:
    tree(tmp_path, "a.jpg", file)
    assert found(tmp_path) == (["a.jpg"], "1 file ignored: 1 hidden")


@pytest.mark.parametrize(
    "name", ["a.JPG", "a.Jpeg", "a.PNG", "a.jfif", "a.JFIF", "a.Avif", "a.TIFF", "a.b.WebP"]
)
def test_suffixes_count_in_any_case(tmp_path: Path, name: str) -> None:
    assert found(tree(tmp_path, name)) == ([name], "")


def test_what_is_no_image_is_counted_by_suffix(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "b.txt", "sub/c.TXT", "sub/d.mp4", "README", "._a.jpg", "e.txt")
    expected = "6 files ignored: 3 .txt, 1 .mp4, 1 hidden, 1 without suffix"
    assert found(tmp_path) == (["a.jpg"], expected)


@pytest.mark.parametrize(
    "name", ["Mr. Smith by the sea", "a.b c", "x.\udcff", "x.über", "x.0123456789abcdef", "y.a\nb"]
)
def test_what_only_looks_like_a_suffix_is_not_shown(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "a.jpg", name)
    assert found(tmp_path) == (["a.jpg"], "1 file ignored: 1 with another suffix")


def test_ignored_heic_comes_with_the_way_out() -> None:
    ignored = Ignored()
    ignored.add_files(".heic", 3)
    ignored.add_files("hidden", 1)
    assert str(ignored) == (
        "4 files ignored: 3 .heic, 1 hidden (to read HEIC: pip install 'prompt-serve[heif]')"
    )


def test_a_long_list_of_reasons_is_cut(tmp_path: Path) -> None:
    tree(tmp_path, *(f"x.s{n:02}" for n in range(12)), "y.s11")
    _, line = found(tmp_path)
    assert line.startswith("13 files ignored: 2 .s11, 1 .s00, 1 .s01")
    assert line.endswith(", 4 of other kinds")


def test_images_come_in_the_order_of_the_names_folder_by_folder(tmp_path: Path) -> None:
    tree(tmp_path, "b/1.jpg", "a/z.jpg", "c.jpg", "a/b/1.jpg", "a b/1.jpg")
    assert found(tmp_path)[0] == ["c.jpg", "a/z.jpg", "a/b/1.jpg", "a b/1.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    ("link", "target", "expected", "before"),
    [
        ("all", ".", ["a/1.jpg", "b/2.jpg"], 1),  # a loop
        ("a/up", ".", ["a/1.jpg", "b/2.jpg"], 1),
        ("a/top", "..", ["a/1.jpg", "b/2.jpg"], 1),
        ("a/self", "a", ["a/1.jpg", "b/2.jpg"], 1),
        ("0", "b", ["a/1.jpg", "b/2.jpg"], 1),  # sorted before its target
        ("a/b", "b", ["a/1.jpg", "b/2.jpg"], 1),
        ("more", "../outside", ["a/1.jpg", "b/2.jpg", "more/3.jpg"], 0),
        ("a/more", "../outside", ["a/1.jpg", "a/more/3.jpg", "b/2.jpg"], 0),
    ],
)
def test_linked_folders_are_followed_once(
    tmp_path: Path, link: str, target: str, expected: list[str], before: int
) -> None:
    root = tree(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    tree(tmp_path / "outside", "3.jpg")
    (root / link).symlink_to((root / target).resolve(), target_is_directory=True)
    told = f"{before} folder ignored: {before} visited before" if before else ""
    assert found(root) == (expected, told)


def test_two_links_to_one_folder_count_once_and_broken_links_are_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "1.jpg")
    outside = tree(tmp_path / "outside", "2.jpg")
    for name in ("x", "y"):
        (root / name).symlink_to(outside)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "itself").symlink_to(root / "itself")
    (root / "linked.jpg").symlink_to(outside / "2.jpg")
    images, line = found(root)
    assert images == ["1.jpg", "linked.jpg", "x/2.jpg"]
    assert line == "2 files ignored: 2 broken link; 1 folder ignored: 1 visited before"


def test_both_spellings_of_a_name_sort_alike(tmp_path: Path) -> None:
    names = ("é.jpg", "f.jpg", "e.jpg", "z.jpg", "ü.jpg")
    for spelling in ("NFC", "NFD"):
        root = tree(tmp_path / spelling, *(unicodedata.normalize(spelling, n) for n in names))
        assert [nfc(name) for name in found(root)[0]] == sorted(names)
