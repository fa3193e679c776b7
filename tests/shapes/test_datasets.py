"""The procedural data as datasets: by name, by its own options, and from files of older versions."""

from __future__ import annotations

import json

import pytest
import torch

from vidgen import config as configs
from vidgen.errors import InvalidArgumentError, UnknownNameError
from vidgen.recipe import Recipe
from vidgen.shapes.clips import ShapesClips
from vidgen.shapes.datasets import ShapesOptions, StoryOptions
from vidgen.shapes.scene import MOTIONS
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.video.dataset import DataConfig, FolderOptions, check_data, open_dataset, summarize

SOURCE = ShapesDataset(24, 100, size=32, objects=(1, 2), seed=7)

# As every run folder held it before options had a class of their own.
FLAT = {
    "path": "shapes",
    "clip_length": 2,
    "stride": 1,
    "size": 64,
    "crop": "center",
    "flip": False,
    "fps": 8.0,
    "captions": "auto",
    "seed": 3,
    "cache_dir": None,
    "videos": 16384,
    "frames": None,
    "objects": [1, 2],
    "split": "test",
    "hold_out": 0.1,
    "caption_style": "full",
}


def test_open_dataset_builds_the_procedural_data_of_a_config() -> None:
    config = DataConfig.of(
        "shapes", clip_length=4, size=32, videos=24, frames=100, objects=(1, 2), seed=7, fps=8
    )
    clips = open_dataset(config)
    assert torch.equal(clips[2, 3].clip, ShapesClips(SOURCE, 4, seed=7)[2, 3].clip)
    story = open_dataset(DataConfig.of("story", videos=2, size=(16, 16)))
    assert story[0].clip.shape == (3, 16, 16, 16)
    assert story.source.num_frames == 480
    facts = summarize(clips)
    assert facts["seconds"] == 24 * 100 / 8
    assert facts["captions"][0] == SOURCE.caption(0)
    assert facts["classes"] == list(MOTIONS)


def test_bad_configs() -> None:
    for config, words in (
        (DataConfig("shapes", clip_length=0), "clip_length=0"),
        (DataConfig.of("shapes", frames=10), "spans 16 frames"),
        (DataConfig("shapes", size=(32, 64)), "square"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            open_dataset(config)
    with pytest.raises(UnknownNameError, match="unknown field of data 'hold_out'"):
        DataConfig.of("story", hold_out=0.1)
    with pytest.raises(UnknownNameError, match="split"):
        open_dataset(DataConfig.of("shapes", split="val"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ShapesOptions(16384, 64, (1, 2), "test", 0.1, "full")),
        ({"frames": 16}, ShapesOptions(16384, 16, (1, 2), "test", 0.1, "full")),
        ({"path": "story"}, StoryOptions(16384, 480, (1, 2), "test", "full")),
        ({"path": "/clips", "crop": "none"}, FolderOptions("none", "auto")),
    ],
    ids=["shapes", "frames", "story", "folder"],
)
def test_flat_options_of_older_files_are_read(changes, expected):
    old = json.loads(json.dumps(FLAT | changes))
    config = configs.from_dict(DataConfig, old)
    assert config.options == expected
    assert (config.clip_length, config.fps, config.seed) == (2, 8.0, 3)
    again = configs.from_dict(DataConfig, json.loads(json.dumps(configs.to_dict(config))))
    assert again == config


def test_a_name_that_no_data_ever_had_is_refused():
    with pytest.raises(UnknownNameError, match="field of DataConfig"):
        configs.from_dict(DataConfig, FLAT | {"widht": 3})
    with pytest.raises(UnknownNameError, match=r"field of ShapesOptions 'options\.vidoes'"):
        configs.from_dict(DataConfig, {"path": "shapes", "options": {"vidoes": 3}})
    with pytest.raises(InvalidArgumentError, match=r"'options\.videos' was given 'many'"):
        configs.from_dict(DataConfig, {"path": "shapes", "options": {"videos": "many"}})


@pytest.mark.parametrize("name", ["objects", "data.objects", "options.objects", "data.options.objects"])
def test_an_option_is_set_by_its_name_or_path(name):
    recipe = Recipe("any", None, DataConfig.of("shapes", videos=5))
    found = configs.override(recipe, [f"{name}=[1,3]", "size=32"]).data
    assert found == DataConfig.of("shapes", videos=5, objects=(1, 3), size=32)


def test_another_path_brings_its_options_in_any_order():
    recipe = Recipe("any", None, DataConfig.of("shapes", videos=5, hold_out=0.5, size=32))
    found = configs.override(recipe, ["crop=random", "data.path=~/clips", "data.captions=none"]).data
    assert found == DataConfig("~/clips", size=32, options=FolderOptions("random", "none"))
    assert configs.override(recipe, ["data.path=shapes", "frames=8"]).data == recipe.data.changed(frames=8)
    with pytest.raises(UnknownNameError, match="unknown field 'hold_out'"):
        configs.override(recipe, ["data.path=~/clips", "hold_out=0.1"])


def test_options_are_those_of_the_path():
    with pytest.raises(InvalidArgumentError, match=r"'story' and options ShapesOptions.*expected StoryOptions"):
        DataConfig("story", options=ShapesOptions())
    changed = DataConfig.of("shapes", videos=5, seed=2).changed(path="story", frames=99)
    assert changed == DataConfig("story", seed=2, options=StoryOptions(frames=99))


def test_data_that_is_not_named_is_asked_for():
    expected = r"no data was (named|given); expected a folder of videos, or shapes or story"
    with pytest.raises(InvalidArgumentError, match=expected):
        open_dataset(DataConfig())
    with pytest.raises(InvalidArgumentError, match=expected):
        check_data("")
    assert DataConfig() == DataConfig(options=FolderOptions())
