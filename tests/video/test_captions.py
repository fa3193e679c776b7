"""Captions beside videos: each layout, which one is chosen, and what bad files say."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from vidgen.errors import UnknownNameError, VideoError
from vidgen.video.captions import CaptionSpan, class_caption, load_captions

VIDEOS = ["a.mp4", "deep/er/b.webm"]


def put(root: Path, name: str, text: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_sidecar_text(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "  a dog\n runs \n")
    put(tmp_path, "deep/er/b.txt", "\ufeffein Hund läuft")
    found = load_captions(tmp_path, VIDEOS)
    assert found.mode == "txt"
    assert [found.spans[video][0].caption for video in VIDEOS] == ["a dog runs", "ein Hund läuft"]
    assert found.problems == ()


def test_a_table_with_quotes_other_columns_and_absolute_paths(tmp_path: Path) -> None:
    rows = f'id,caption,path\n1,"a dog, running",a.mp4\n2,a cat,{tmp_path}/deep/er/b.webm\n'
    put(tmp_path, "captions.csv", rows)
    found = load_captions(tmp_path, VIDEOS)
    assert found.mode == "csv"
    assert [found.spans[video][0].caption for video in VIDEOS] == ["a dog, running", "a cat"]


def test_json_lines_with_ranges(tmp_path: Path) -> None:
    put(
        tmp_path,
        "captions.jsonl",
        '{"path": "a.mp4", "caption": "one", "frames": [0, 40]}\n\n'
        '{"file": "a.mp4", "caption": "two", "seconds": [1.5, 3]}\n'
        '{"path": "deep/er/b.webm", "caption": "whole"}\n',
    )
    found = load_captions(tmp_path, VIDEOS)
    source = f"{tmp_path}/captions.jsonl, line "
    assert found.spans["a.mp4"] == (
        CaptionSpan("one", 0.0, 40.0, "frames", source + "1"),
        CaptionSpan("two", 1.5, 3.0, "seconds", source + "3"),
    )
    assert found.spans["deep/er/b.webm"] == (CaptionSpan("whole", source=source + "4"),)


def test_classes_from_folder_names(tmp_path: Path) -> None:
    videos = ["YoYo/v_2.avi", "ApplyLipstick/v_1.avi", "YoYo/v_1.avi"]
    found = load_captions(tmp_path, videos)
    assert found.mode == "folder"
    assert found.classes == ("ApplyLipstick", "YoYo")
    assert [found.labels[video] for video in videos] == [1, 0, 1]
    assert found.spans["ApplyLipstick/v_1.avi"][0].caption == "apply lipstick"
    assert class_caption("horse_riding-fast") == "horse riding fast"


def test_one_folder_or_loose_files_are_no_classes(tmp_path: Path) -> None:
    for videos in (["clips/a.mp4", "clips/b.mp4"], ["a.mp4", "x/b.mp4"]):
        found = load_captions(tmp_path, videos)
        assert (found.mode, found.classes) == ("none", ())
        assert all(spans[0].caption == "" for spans in found.spans.values())


def test_auto_prefers_json_lines_then_the_table_then_text(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "text")
    put(tmp_path, "captions.csv", "path,caption\na.mp4,table\n")
    assert load_captions(tmp_path, ["a.mp4"]).mode == "csv"
    put(tmp_path, "captions.jsonl", '{"path": "a.mp4", "caption": "line"}')
    assert load_captions(tmp_path, ["a.mp4"]).spans["a.mp4"][0].caption == "line"
    assert load_captions(tmp_path, ["a.mp4"], "txt").spans["a.mp4"][0].caption == "text"


def test_rows_for_missing_videos_and_videos_without_rows_are_problems(tmp_path: Path) -> None:
    put(tmp_path, "captions.csv", "path,caption\ngone.mp4,x\na.mp4,here\n")
    found = load_captions(tmp_path, VIDEOS)
    assert found.spans["a.mp4"][0].caption == "here"
    assert found.spans["deep/er/b.webm"][0].caption == ""
    first, second = found.problems
    assert "captions.csv, line 2" in first
    assert "'gone.mp4'" in first
    assert "1 of 2 videos" in second


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("captions.jsonl", '{"path": "a.mp4", "caption": "x"}\n{oops\n', "line 2: not JSON"),
        ("captions.jsonl", '["a.mp4"]', 'line 1: expected {"path"'),
        ("captions.jsonl", '{"path": "a.mp4"}', 'line 1: expected {"path"'),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "caption": "x", "frames": [9, 9]}',
            "0 <= start < stop",
        ),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "caption": "x", "frames": [-1, 9]}',
            "0 <= start < stop",
        ),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "caption": "x", "frames": [0.5, 9]}',
            "whole numbers",
        ),
        ("captions.jsonl", '{"path": "a.mp4", "caption": "x", "seconds": "all"}', "seconds: 'all'"),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "caption": "x", "frames": [0, 1], "seconds": [0, 1]}',
            "one of frames",
        ),
        ("captions.csv", "file,text\na.mp4,x\n", "has the columns file, text"),
        ("captions.csv", "", "has the columns none"),
        ("captions.csv", "path,caption\na.mp4\n", "line 2: fewer cells"),
        ("captions.csv", "path,caption\na.mp4,a cat, asleep\n", "line 2: 3 cells, and the first line names 2"),
        ("captions.csv", "caption,path\na cat\na dog, awake, on a mat,a.mp4\n", "line 2: fewer cells"),
        ("captions.csv", "caption,path\nx,a.mp4\na dog, awake,a.mp4\n", "line 3: 3 cells"),
        ("captions.csv", "path,caption,caption\na.mp4,x,y\n", "once each"),
        ("captions.csv", 'path,caption\na.mp4,"a cat\nb.mp4,a dog\n', "not CSV"),
        ("captions.jsonl", '{"path": "a.mp4", "caption": ' + "[" * 100_000, "line 1: not JSON"),
        (
            "captions.jsonl",
            f'{{"path": "a.mp4", "caption": "x", "frames": [0, {"9" * 5000}]}}',
            "line 1: not JSON",
        ),
        ("captions.jsonl", f'{{"path": "a.mp4", "caption": "x", "frames": [0, {"9" * 400}]}}', "the range is"),
        ("captions.jsonl", '{"path": "a.mp4", "caption": "x", "seconds": [0, 1e999]}', "the range is"),
        ("captions.jsonl", '{"path": "a.mp4", "caption": "x", "seconds": [NaN, 1]}', "the range is"),
        ("captions.jsonl", '{"path": "a.mp4", "caption": "\\ud800"}', "surrogate"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    put(tmp_path, name, text)
    with pytest.raises(VideoError) as caught:
        load_captions(tmp_path, VIDEOS)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_missing_file_and_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no captions file .*captions\.csv"):
        load_captions(tmp_path, VIDEOS, "csv")
    with pytest.raises(UnknownNameError, match="'jsonl'"):
        load_captions(tmp_path, VIDEOS, "json")


SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_characters_that_only_python_ends_lines_at_are_spaces(tmp_path: Path, separator: str) -> None:
    caption = f"a red{separator}cat"
    put(tmp_path, "captions.csv", f"path,caption\r\na.mp4,{caption}\r\ndeep/er/b.webm,x")
    assert load_captions(tmp_path, VIDEOS).spans["a.mp4"][0].caption == "a red cat"
    put(tmp_path, "a.txt", caption)
    assert load_captions(tmp_path, VIDEOS, "txt").spans["a.mp4"][0].caption == "a red cat"
    rows = [{"path": "deep/er/b.webm", "caption": "x"}, {"path": "a.mp4", "caption": caption}]
    for escaped in {True, ord(separator) < 32}:  # control characters stand in JSON as escapes only
        lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
        put(tmp_path, "captions.jsonl", "\r\n".join(lines))
        spans = load_captions(tmp_path, VIDEOS).spans
        assert spans["a.mp4"] == (CaptionSpan("a red cat", source=f"{tmp_path}/captions.jsonl, line 2"),)


def test_quotes_spaces_and_lines_inside_a_table(tmp_path: Path) -> None:
    text = 'path , caption\na.mp4, "a cat, asleep"\ndeep/er/b.webm,"one\ntwo  3"" nails"\n'
    put(tmp_path, "captions.csv", text)
    found = load_captions(tmp_path, VIDEOS)
    assert [found.spans[video][0].caption for video in VIDEOS] == ["a cat, asleep", 'one two 3" nails']
    put(tmp_path, "captions.csv", text.replace('""', '"'))
    with pytest.raises(VideoError, match="line 4: not CSV"):
        load_captions(tmp_path, VIDEOS)


def named(root: Path, videos: list[str], path: str, mode: str) -> list[str]:
    """The captions of ``videos`` when one row names ``path``."""
    if mode == "csv":
        put(root, "captions.csv", f'path,caption\n"{path}",a cat\n')
    else:
        put(root, "captions.jsonl", json.dumps({"path": path, "caption": "a cat"}))
    found = load_captions(root, videos, mode)
    assert (found.problems == ()) == all(spans[0].caption for spans in found.spans.values())
    return [spans[0].caption for spans in found.spans.values()]


@pytest.mark.parametrize("mode", ["csv", "jsonl"])
def test_a_row_may_name_its_video_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    video = unicodedata.normalize("NFD", "sub/été.mp4")
    put(tmp_path / "root", video, "")
    (tmp_path / "root/latest").symlink_to("sub", target_is_directory=True)
    (tmp_path / "other").symlink_to("root", target_is_directory=True)
    for root in (tmp_path / "root", Path("root"), Path("other"), tmp_path / "other"):
        for path in (
            unicodedata.normalize("NFC", video),
            f"./{video}",
            f" sub//x/../{video.removeprefix('sub/')} ",
            "sub\\été.mp4",
            ".\\sub\\été.mp4",
            f"{tmp_path}/root/{video}",
            f"{tmp_path}/root/sub/été.mp4",
            f"{tmp_path}/other/sub/été.mp4",
            "latest/été.mp4",
            "../root/sub/été.mp4",
        ):
            assert named(root, [video], path, mode) == ["a cat"], (root, path)
        for path in ("été.mp4", "sub/ete.mp4", f"{tmp_path}/sub/été.mp4", "sub", "\0", "x" * 5000, "/", ""):
            if "\0" not in path or mode == "jsonl":
                assert named(root, [video], path, mode) == [""], path
    assert named(Path("root"), [f"latest/{Path(video).name}"], "sub/été.mp4", mode) == ["a cat"]


def test_a_name_on_disk_wins_over_another_reading_of_it(tmp_path: Path) -> None:
    one, other = "caf\u00e9.mp4", "cafe\u0301.mp4"
    rows = [{"path": one, "caption": "one"}, {"path": other, "caption": "other"}]
    rows += [{"path": "a\\b.mp4", "caption": "a file"}, {"path": "a/b.mp4", "caption": "in a folder"}]
    put(tmp_path, "captions.jsonl", "\n".join(json.dumps(row) for row in rows))
    found = load_captions(tmp_path, [one, other, "a\\b.mp4", "a/b.mp4"])
    assert [spans[0].caption for spans in found.spans.values()] == ["one", "other", "a file", "in a folder"]


def test_text_files_in_upper_case_and_in_another_unicode_form(tmp_path: Path) -> None:
    videos = ["a.MP4", "deep/b.mp4", unicodedata.normalize("NFD", "été.mp4"), "v1.2.mp4"]
    put(tmp_path, "a.TXT", "one")
    put(tmp_path, "deep/b.Txt", "two")
    put(tmp_path, unicodedata.normalize("NFC", "été.txt"), "e\u0301te\u0301")
    put(tmp_path, "v1.2.txt", "four")
    put(tmp_path, "v1.txt", "not of v1.2")
    found = load_captions(tmp_path, videos)
    assert (found.mode, found.problems) == ("txt", ())
    assert [found.spans[video][0].caption for video in videos] == ["one", "two", "été", "four"]
    put(tmp_path, "a.txt", "first")
    found = load_captions(tmp_path, videos)
    assert found.spans["a.MP4"][0].caption == "first"
    assert found.problems == ("a.MP4 has 2 text files (a.txt, a.TXT); the first is read.",)


def test_tables_in_upper_case(tmp_path: Path) -> None:
    put(tmp_path, "Captions.CSV", "path,caption\na.mp4,x\n")
    assert load_captions(tmp_path, ["a.mp4"]).spans["a.mp4"][0].caption == "x"
    put(tmp_path, "captions.JSONL", '{"path": "a.mp4", "caption": "y"}')
    assert load_captions(tmp_path, ["a.mp4"]).spans["a.mp4"][0].caption == "y"


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "captions.csv", "captions.jsonl"])
def test_captions_are_not_read_out_of_the_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, "secret", "path,caption\na.mp4,secret\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / name).symlink_to("../secret")
    with pytest.raises(
        VideoError, match=r"is a link to .*secret, outside of the folder.*copy the file"
    ) as caught:
        load_captions(root, ["a.mp4"])
    assert name in str(caught.value)
    (root / name).unlink()
    put(root, "kept/text", '{"path": "a.mp4", "caption": "x"}' if "json" in name else "path,caption\na.mp4,x")
    (root / name).symlink_to("kept/text")  # within it, a link is a file like another
    assert load_captions(root, ["a.mp4"]).spans["a.mp4"][0].caption.endswith("x")


def test_captions_beside_videos_behind_a_link_and_in_the_hubs_cache_are_read(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.txt", "a cat")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("../elsewhere", target_is_directory=True)
    assert load_captions(tmp_path / "root", ["link/a.mp4"]).spans["link/a.mp4"][0].caption == "a cat"
    put(tmp_path, "datasets--x/blobs/0af3", "path,caption\na.mp4,a dog\n")
    snapshot = tmp_path / "datasets--x/snapshots/1b2c/train"
    snapshot.mkdir(parents=True)
    (snapshot / "captions.csv").symlink_to("../../../blobs/0af3")
    assert load_captions(snapshot, ["a.mp4"]).spans["a.mp4"][0].caption == "a dog"


def test_rows_without_a_video_are_counted_not_listed(tmp_path: Path) -> None:
    rows = "".join(f"gone{number}.mp4,y\n" for number in range(500))
    put(tmp_path, "captions.csv", f"path,caption\na.mp4,x\n{rows}")
    (problem,) = load_captions(tmp_path, ["a.mp4"]).problems
    assert problem.endswith("row ignored, with 499 more like it.")
    assert "captions.csv, line 3: there is no video 'gone0.mp4'" in problem


def test_a_class_in_the_folder_itself_has_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "JumpRope").mkdir()
    monkeypatch.chdir(tmp_path / "JumpRope")
    found = load_captions(Path(), ["a.mp4", "sub/b.mp4"], "folder")
    assert found.classes == ("JumpRope", "sub")
    assert found.spans["a.mp4"][0].caption == "jump rope"


def test_a_captions_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    put(tmp_path, "a.txt", "x")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(VideoError, match=r"cannot read .*a\.txt: Permission denied"):
        load_captions(tmp_path, ["a.mp4"])
