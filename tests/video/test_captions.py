"""Captions beside videos: each layout, which one is chosen, and what bad files say."""

from __future__ import annotations

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
        ("captions.jsonl", '{"path": "a.mp4", "caption": "x", "seconds": "all"}', '"all"'),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "caption": "x", "frames": [0, 1], "seconds": [0, 1]}',
            "one of frames",
        ),
        ("captions.csv", "file,text\na.mp4,x\n", "has the columns file, text"),
        ("captions.csv", "", "has the columns none"),
        ("captions.csv", "path,caption\na.mp4\n", "line 2: fewer cells"),
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
