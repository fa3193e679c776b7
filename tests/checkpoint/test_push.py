"""The hub: what is pushed, what is fetched, at one commit, with the cache alone where there is no network."""

from __future__ import annotations

import json
import time

import pytest

from hub_server import Repo, go_offline
from vidgen import checkpoint
from vidgen.components import hub as hub_module
from vidgen.components.hub import HubId, parse
from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.sampling import Sampler


def test_pushed_and_loaded_again_is_the_same(strategy, hub, same, monkeypatch):
    url = checkpoint.push_strategy(strategy, "ann/demo", private=True, token="hf_x", commit_message="First")
    repo = hub.repos["ann/demo"]
    assert repo.private
    assert repo.messages[-1] == "First"
    assert hub.tokens == {"Bearer hf_x"}
    assert url == f"{hub.endpoint}/ann/demo/commit/{repo.branches['main']}"
    names = {f"{name}/config.json" for name in ("codec", "unet", "temporal", "text_encoder")}
    assert names | {"vidgen.json", "scheduler/scheduler_config.json", "README.md"} <= repo.files().keys()
    assert same(strategy, checkpoint.load_strategy("ann/demo", device="cpu"))
    go_offline(monkeypatch)  # the cache is enough from now on
    assert same(strategy, checkpoint.load_strategy("ann/demo", device="cpu"))


def test_samplers_have_diffusers_names_for_it(strategy, hub, same, tmp_path):
    sampler = Sampler(strategy)
    assert sampler.push_to_hub("ann/own", private=True).startswith(f"{hub.endpoint}/ann/own/commit/")
    assert hub.repos["ann/own"].private
    sampler.save_pretrained(tmp_path / "own")
    for source in ("ann/own", tmp_path / "own"):
        again = Sampler.from_pretrained(source, device="cpu", codec=strategy.codec)
        assert same(strategy, again.strategy)
        assert again.strategy.codec is strategy.codec


def test_model_card_says_how_to_load_it_and_is_never_overwritten(strategy, hub):
    checkpoint.push_strategy(strategy, "ann/demo")
    repo = hub.repos["ann/demo"]
    card = repo.files()["README.md"].decode()
    count = strategy.num_parameters()["unet"]
    assert card.startswith("---\nlibrary_name: vidgen\n")
    assert f"| unet | UNet2DConditionModel | {count:,} |" in card
    assert 'vidgen.load("ann/demo")' in card
    repo.files()["README.md"] = b"mine"
    checkpoint.push_strategy(strategy, "ann/demo")
    assert repo.files()["README.md"] == b"mine"


def test_a_push_replaces_weights_of_before_and_nothing_else(strategy, hub):
    hub.repos["ann/demo"] = Repo()
    hub.repos["ann/demo"].commit("main", {"old/weights.safetensors": b"x", "picture.png": b"y"}, "before")
    checkpoint.push_strategy(strategy, "ann/demo")
    files = hub.repos["ann/demo"].files()
    assert "old/weights.safetensors" not in files
    assert files["picture.png"] == b"y"
    assert json.loads(files["vidgen.json"])["strategy"] == "vdm"


def test_branches(strategy, hub, config, same):
    other = checkpoint.build(type(strategy), config, seed=9)
    checkpoint.push_strategy(strategy, "ann/demo")
    checkpoint.push_strategy(other, "ann/demo", revision="trial")
    checkpoint.push_strategy(other, "ann/other", revision="trial")
    assert 'vidgen.load("ann/other@trial")' in hub.repos["ann/other"].files("trial")["README.md"].decode()
    assert same(strategy, checkpoint.load_strategy("ann/demo", device="cpu"))
    assert same(other, checkpoint.load_strategy("ann/demo@trial", device="cpu"))
    assert same(other, checkpoint.load_strategy("ann/demo", revision="trial", device="cpu"))
    with pytest.raises(InvalidArgumentError, match="names another; give one"):
        checkpoint.load_strategy("ann/demo@trial", revision="main", device="cpu")


def test_only_json_and_safetensors_are_fetched_at_one_commit(strategy, hub, offline):
    checkpoint.push_strategy(strategy, "ann/demo")
    repo = hub.repos["ann/demo"]
    repo.files().update({"unet/diffusion_pytorch_model.bin": b"pickle", "code.py": b"evil()"})
    hub.requests.clear()
    folder = checkpoint.locate("ann/demo")
    assert folder.name == repo.branches["main"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    fetched = [line for line in hub.requests if "/resolve/" in line]
    assert not [line for line in fetched if line.endswith((".bin", ".py", ".md"))]
    assert {line.split("/resolve/")[1].split("/")[0] for line in fetched} == {"main", folder.name}


def test_a_push_in_between_changes_nothing(strategy, hub, same, monkeypatch):
    checkpoint.push_strategy(strategy, "ann/demo")
    download = hub_module.snapshot_download

    def after_another_push(*args, **kwargs):
        hub.repos["ann/demo"].commit("main", {"vidgen.json": b"{}"}, "another")
        return download(*args, **kwargs)

    monkeypatch.setattr(hub_module, "snapshot_download", after_another_push)
    assert same(strategy, checkpoint.load_strategy("ann/demo", device="cpu"))


def test_a_repository_that_is_no_checkpoint_is_not_downloaded(hub):
    hub.repos["ann/images"] = Repo()
    hub.repos["ann/images"].commit("main", {"model.safetensors": b"x" * 100, "model_index.json": b"{}"}, "sd")
    with pytest.raises(CheckpointError, match=r"ann/images holds no vidgen\.json: it was not pushed by vidgen"):
        checkpoint.locate("ann/images")
    assert not [line for line in hub.requests if "model.safetensors" in line]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "ann/nothing",
            "no folder ann/nothing, no bundled model .* shows no repository ann/nothing.*hf auth login",
        ),
        ("ann/demo@v9", "has no revision 'v9': check branch, tag or commit"),
    ],
)
def test_what_the_hub_lacks_is_named(strategy, hub, source, message):
    hub.repos["ann/demo"] = Repo()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.locate(source)


def test_refused_push_says_what_to_do(strategy, hub):
    hub.refuses = True
    with pytest.raises(
        CheckpointError, match=r"the hub failed on ann/demo: check .* token \(`hf auth login`\)"
    ):
        checkpoint.push_strategy(strategy, "ann/demo")
    with pytest.raises(InvalidArgumentError, match="expected user/repo"):
        checkpoint.push_strategy(strategy, "demo")


def test_unreachable_hub_names_the_cache(strategy, offline):
    with pytest.raises(CheckpointError, match=r"not in the local cache .*\(unset HF_HUB_OFFLINE\)"):
        checkpoint.locate("ann/demo")
    with pytest.raises(CheckpointError, match="while HF_HUB_OFFLINE is set: unset it"):
        checkpoint.push_strategy(strategy, "ann/demo")


def test_a_hub_that_is_down_is_reported(strategy, hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits between its tries
    hub.__exit__()
    with pytest.raises(CheckpointError, match="the hub failed on ann/demo: check the connection"):
        checkpoint.push_strategy(strategy, "ann/demo")
    with pytest.raises(CheckpointError, match="the hub cannot be reached: go online"):
        checkpoint.locate("ann/demo")


def test_a_cache_filled_elsewhere_is_enough(strategy, offline, folder, same):
    """The layout of huggingface_hub's cache: refs name commits, snapshots hold their files."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = offline / "models--ann--demo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder.rename(repo / "snapshots" / commit)
    assert same(strategy, checkpoint.load_strategy("ann/demo", device="cpu"))
    assert same(strategy, checkpoint.load_strategy(f"ann/demo@{commit}", device="cpu"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann/demo", HubId("ann/demo")),
        ("ann/demo@v1.0", HubId("ann/demo", "v1.0")),
        ("a-b_c/d.e@refs/pr/1", HubId("a-b_c/d.e", "refs/pr/1")),
        ("demo", None),
        ("runs/demo/model", None),
        ("ann/demo@", None),
        ("../demo", None),
        ("ann/de mo", None),
    ],
)
def test_hub_ids(text, expected):
    assert parse(text) == expected
