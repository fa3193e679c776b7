"""Pictures, videos and masks that are given: what stays, what is made anew, from where."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from temporal_codec import TemporalCodec
from toy import Toy, ToyConfig, toy
from vidgen.errors import CheckpointError, InvalidArgumentError, PlanError
from vidgen.plans import CascadeLevel, autoregressive, cascade, chunks, rooted
from vidgen.sampling import Sampler
from vidgen.sampling.given import latent_mask
from vidgen.video import Video

TOLERANCE = {"rtol": 0, "atol": 1e-5}
RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (13, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def sampler():
    sampler = Sampler(toy())
    sampler.set_progress_bar_config(disable=True)
    return sampler


def frames(sampler, **arguments):
    """Pixels f h w c in 0..255."""
    return sampler("a", **{"seed": 0, **arguments}).frames[0] * 255


def test_image_and_last_image_are_pins_of_the_ends(sampler):
    first, last = Image.fromarray(CLIP[0]), Image.fromarray(CLIP[1])
    made = frames(sampler, num_frames=13, image=first, last_image=last)
    np.testing.assert_array_equal(made, frames(sampler, num_frames=13, pins={0: first, 12: last}))
    np.testing.assert_allclose(made[[0, 12]], CLIP[:2], atol=1e-3)
    with pytest.raises(InvalidArgumentError, match="frame 0 is given twice: by image and by pins"):
        frames(sampler, image=first, pins={0: last})


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_what_one_call_gives_another_takes(sampler, output_type):
    """Frames of a result are its frames again: not washed out, and whatever their form."""
    made = sampler("a", seed=0, num_frames=5, output_type=output_type)
    plain = made.videos[0].frames
    alike = {"rtol": 0, "atol": 1e-3 if output_type != "pil" else 0.6}
    again = frames(sampler, num_frames=8, image=made.frames[0][-1])
    np.testing.assert_allclose(again[0], frames(sampler, num_frames=5)[-1], **alike)
    for video in (made.frames[0], made.frames, made.videos[0], made.videos):
        continued = frames(sampler, num_frames=8, video=video)
        np.testing.assert_allclose(continued[:5], frames(sampler, num_frames=5), rtol=0, atol=0.6)
        assert np.abs(continued[:5] - plain).max() <= 0.51  # rounding to 8 bits


def test_pictures_are_files_too(sampler, tmp_path):
    Image.fromarray(CLIP[0]).save(tmp_path / "a.png")
    Image.fromarray(CLIP[1]).save(tmp_path / "b.png")
    first, last = tmp_path / "a.png", str(tmp_path / "b.png")
    made = frames(sampler, image=first, last_image=last, pins={3: first})
    np.testing.assert_array_equal(made, frames(sampler, image=CLIP[0], last_image=CLIP[1], pins={3: CLIP[0]}))
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "mask.png")
    made = frames(sampler, video=CLIP[:8], mask=tmp_path / "mask.png")
    np.testing.assert_array_equal(made, frames(sampler, video=CLIP[:8], mask=[True] * 8))


@pytest.mark.parametrize("form", ["list", "array", "tensor"])
def test_a_list_gives_a_picture_per_prompt(sampler, form, tmp_path):
    pictures = {
        "list": [CLIP[0], Image.fromarray(CLIP[1])],
        "array": CLIP[:2] / 255,
        "tensor": torch.from_numpy(CLIP[:2]).permute(0, 3, 1, 2) / 255,
    }[form]
    asked = {
        "seed": 0,
        "num_frames": 13,
        "image": pictures,
        "pins": {7: [CLIP[2], CLIP[3]]},
        "last_image": CLIP[4],
    }
    made = sampler(["a", "b"], num_videos_per_prompt=2, **asked).frames
    for i, prompt in enumerate("ab"):
        own = {"image": CLIP[i], "pins": {7: CLIP[2 + i]}, "last_image": CLIP[4]}
        alone = sampler(prompt, seed=0, num_frames=13, num_videos_per_prompt=2, **own).frames
        np.testing.assert_allclose(made[2 * i : 2 * i + 2], alone, atol=1e-5)
    for batch_size in (1, 3):
        again = sampler(["a", "b"], num_videos_per_prompt=2, batch_size=batch_size, **asked).frames
        np.testing.assert_allclose(again, made, atol=1e-5)
    one = sampler("a", **asked)  # the prompt of both
    assert one.frames.shape[0] == 2
    np.testing.assert_allclose(one.frames[0], made[0], atol=1e-5)
    sampler("a", work=tmp_path / "work", **asked)
    with pytest.raises(CheckpointError, match="other settings"):
        sampler("a", work=tmp_path / "work", **{**asked, "pins": {7: [CLIP[3], CLIP[2]]}})
    with pytest.raises(InvalidArgumentError, match="2 pictures or videos were given in a list for 3 prompts"):
        sampler(["a", "b", "c"], **asked)


def test_a_bright_picture_of_a_batch_is_judged_with_the_others(sampler):
    signed = torch.from_numpy(CLIP[:2]).permute(0, 3, 1, 2) / 127.5 - 1
    signed[1] = signed[1].abs()
    made = sampler(["a", "a"], seed=0, image=signed, num_frames=5).frames[:, 0] * 2 - 1
    np.testing.assert_allclose(made, signed.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("how", ["strength", "pixels", "continued"])
def test_a_list_gives_a_video_per_prompt(sampler, how):
    other = 255 - CLIP
    mask = np.zeros((13, 8, 8), bool)
    mask[:, 2:6] = True
    more = {"strength": {"strength": 0.5}, "pixels": {"mask": mask}, "continued": {"num_frames": 15}}[how]
    batch = torch.from_numpy(np.stack([CLIP, other])).permute(0, 1, 4, 2, 3) / 255
    for video in ([CLIP, other], [Video(CLIP, 8), list(other)], batch):
        made = sampler(["a", "b"], seed=0, video=video, batch_size=3, **more).frames
        for i, (prompt, own) in enumerate((("a", CLIP), ("b", other))):
            alone = sampler(prompt, seed=0, video=own, **more).frames[0]
            np.testing.assert_allclose(made[i], alone, atol=1e-5)


def lossy(strategy):
    """Make its codec lose a tenth of all contrast, as a trained one loses details."""
    stream = strategy.codec.stream

    def losing(first=0):
        inner = stream(first)
        return SimpleNamespace(push=lambda latents: 0.9 * inner.push(latents))

    strategy.codec.stream = losing


def test_given_pixels_are_shown_as_they_were_given(sampler, tmp_path):
    lossy(sampler.strategy)
    mask = np.zeros((13, 8, 8), bool)
    mask[2:6, 3:7, 2:5] = True  # latents stand for 2 x 2 pixels, and what is given for one
    mask[9] = True
    made = frames(sampler, video=CLIP, mask=mask)
    np.testing.assert_allclose(made[~mask], CLIP[~mask], atol=1e-3)
    coded = frames(sampler, video=CLIP, mask=mask, paste_given=False)
    np.testing.assert_allclose(coded[0] - 127.5, 0.9 * (CLIP[0] - 127.5), atol=1e-3)
    np.testing.assert_array_equal(coded[mask], made[mask])
    part = frames(sampler, video=CLIP, mask=mask, frames=[0, 4, 11])
    np.testing.assert_allclose(part, made[[0, 4, 11]], atol=1e-3)
    out = sampler("a", seed=0, video=CLIP, mask=mask, out=tmp_path / "frames")
    np.testing.assert_array_equal(out.videos[0].frames, made.round())
    ends = frames(sampler, num_frames=13, video=CLIP[:4], last_image=CLIP[8], pins={6: CLIP[9]})
    np.testing.assert_allclose(ends[[0, 1, 2, 3, 6, 12]], CLIP[[0, 1, 2, 3, 9, 8]], atol=1e-3)
    each = sampler(["a", "a"], seed=0, image=[CLIP[0], CLIP[1]]).frames[:, 0] * 255
    np.testing.assert_allclose(each, CLIP[:2], atol=1e-3)
    remade = frames(sampler, video=CLIP, strength=0.25)
    assert (np.abs(remade - CLIP).max(axis=(1, 2, 3)) > 5).all()


def test_frames_that_the_mask_leaves_are_pins(sampler):
    anew = [frame in (3, 4, 9) for frame in range(13)]
    made = frames(sampler, video=CLIP, mask=anew)
    stay = [frame for frame in range(13) if not anew[frame]]
    np.testing.assert_allclose(made[stay], CLIP[stay], atol=1e-3)
    pinned = frames(sampler, num_frames=13, pins={frame: CLIP[frame] for frame in stay})
    np.testing.assert_array_equal(made, pinned)
    assert np.abs(made[[3, 4, 9]] - CLIP[[3, 4, 9]]).max(axis=(1, 2, 3)).min() > 5


def test_what_a_shorter_video_lacks_is_made_whatever_the_mask_says(sampler):
    mask = [i == 2 for i in range(13)]  # of the eight frames that are missing it says: stay
    made = frames(sampler, num_frames=13, video=CLIP[:5], mask=mask)
    stay = [0, 1, 3, 4]
    np.testing.assert_allclose(made[stay], CLIP[stay], atol=1e-3)
    np.testing.assert_array_equal(made, frames(sampler, num_frames=13, pins={i: CLIP[i] for i in stay}))


def test_a_latent_stays_only_if_all_of_its_pixels_do():
    codec = TemporalCodec()
    stays = torch.ones(9, 4, 4, dtype=torch.bool)
    stays[6, 1, 2] = False  # frame 6 is in latent 2, its pixel in the block (0, 1)
    kept = latent_mask(stays, codec)
    assert kept.shape == (3, 2, 2)
    assert (~kept).nonzero().tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("video", ["array", "Video", "file", "pictures", "tensor"])
def test_a_shorter_video_is_continued(sampler, video, tmp_path):
    given = CLIP[:5]
    forms = {
        "array": given,
        "Video": Video(given, 8.0),
        "file": tmp_path / "video.gif",
        "pictures": [Image.fromarray(frame) for frame in given],
        "tensor": torch.from_numpy(given).permute(3, 0, 1, 2).float() / 127.5 - 1,
    }
    if video == "file":
        Video(given, 8.0).save(forms["file"])
        given = Video.load(forms["file"]).frames  # a gif has few colours
    made = frames(sampler, num_frames=13, video=forms[video])
    np.testing.assert_allclose(made[:5], given, atol=1e-3)
    np.testing.assert_array_equal(made, frames(sampler, num_frames=13, pins=dict(enumerate(given))))


def test_pixels_that_the_mask_leaves_are_held(sampler):
    mask = np.zeros((13, 8, 8), bool)
    mask[2:6, 3:7, 2:5] = True  # its blocks of 2 x 2: rows 2..7, columns 2..5
    blocks = np.zeros_like(mask)
    blocks[2:6, 2:8, 2:6] = True
    made = frames(sampler, video=CLIP, mask=mask, paste_given=False)
    np.testing.assert_allclose(made[~blocks], CLIP[~blocks], atol=1e-3)
    changed = np.abs(made - CLIP).max(axis=-1) > 1
    assert changed[blocks].mean() > 0.9
    # What stays steers what is made.
    other = CLIP.copy()
    other[2:6, :2] = 255 - other[2:6, :2]
    assert np.abs(frames(sampler, video=other, mask=mask, paste_given=False) - made)[blocks].max() > 1


def test_held_pixels_are_noised_to_every_step(sampler):
    strategy, seen = sampler.strategy, []
    diffusion = strategy.levels["video"].diffusion
    network = strategy.modules["network"]
    forward = network.forward
    network.forward = lambda x, t, *rest: seen.append((x, t)) or forward(x, t, *rest)
    mask = np.zeros((8, 8, 8), bool)
    mask[:, 4:] = True
    sampler("a", seed=0, num_frames=8, video=CLIP[:8], mask=mask)
    clean = strategy.codec.encode(torch.from_numpy(CLIP[:8]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    start = (seen[0][0] - diffusion.coefficients(seen[0][1], clean).signal * clean)[..., :2, :]
    noise = start / diffusion.coefficients(seen[0][1], clean).noise
    for x, t in seen:
        k = diffusion.coefficients(t, clean)
        torch.testing.assert_close(
            x[..., :2, :], k.signal * clean[..., :2, :] + k.noise * noise, atol=1e-4, rtol=0
        )


def test_strength_starts_from_the_noised_video(sampler):
    network = sampler.strategy.modules["network"]
    shares = {0.25: 1, 0.5: 2, 0.99: 3, 1.0: 4}
    for strength, evaluations in shares.items():
        network.calls.clear()
        cost = sampler.cost(prompt="a", video=CLIP[:8], strength=strength)
        frames(sampler, video=CLIP[:8], strength=strength)
        assert len(network.calls) == cost.evaluations == evaluations
    np.testing.assert_array_equal(frames(sampler, video=CLIP[:8], strength=1.0), frames(sampler, num_frames=8))
    default = frames(sampler, video=CLIP[:8])
    np.testing.assert_array_equal(default, frames(sampler, video=CLIP[:8], strength=0.8))
    assert np.abs(default - frames(sampler, num_frames=8)).max() > 1


def test_weak_strength_keeps_more_of_the_video():
    # A network that hands back what it sees: what remains of the video is what the noise left.
    strategy = toy()
    strategy.levels["video"].denoise = lambda x, t, cond: x
    sampler = Sampler(strategy)
    sampler.set_progress_bar_config(disable=True)
    far = [
        np.abs(frames(sampler, video=CLIP[:8], strength=s, num_inference_steps=20) - CLIP[:8]).mean()
        for s in (0.1, 0.4, 0.9)
    ]
    assert far[0] < 20 < far[1] < far[2]


PLANS = {
    "windows": autoregressive(13, 6, 2),
    "past the end": autoregressive(13, 8, 2),
    "parallel": chunks(13, 5),
    "levels": cascade([CascadeLevel("coarse", 7, 7), CascadeLevel("video", 13, 5, time_factor=2, halo=1)]),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("how", ["strength", "pixels"])
def test_given_video_is_the_same_in_any_batch_and_span(sampler, how, plan):
    mask = np.zeros((13, 8, 8), bool)
    mask[:, 2:6] = True
    given = {"strength": {"strength": 0.5}, "pixels": {"mask": mask}}[how]
    arguments = {"seed": 5, "video": CLIP, "output_type": "latent", "eta": 0.5, "plan": plan, **given}
    whole = sampler(["a", "b"], **arguments).frames
    torch.testing.assert_close(sampler("b", **arguments).frames, whole[1:], **TOLERANCE)
    network = sampler.strategy.modules["network"]
    for batch_size in (1, 3, 100):
        network.calls.clear()
        again = sampler(["a", "b"], batch_size=batch_size, **arguments).frames
        torch.testing.assert_close(again, whole, **TOLERANCE)
        assert max(call[0] for call in network.calls) <= batch_size
        assert batch_size < 100 or plan is not PLANS["parallel"] or len(network.calls) <= 8  # two batches
    part = sampler(["a", "b"], frames=range(9, 12), **arguments).frames
    torch.testing.assert_close(part, whole[:, :, 9:12], **TOLERANCE)


def test_work_folder_tells_given_videos_apart(sampler, tmp_path):
    frames(sampler, video=CLIP[:8], strength=0.5, work=tmp_path / "work")
    for other in ({"video": CLIP[1:9], "strength": 0.5}, {"video": CLIP[:8], "strength": 0.75}):
        with pytest.raises(CheckpointError, match="other settings"):
            frames(sampler, work=tmp_path / "work", **other)


def test_one_pass_strategies_refuse_what_needs_steps(sampler):
    sampler.strategy.levels["video"].answer = lambda batch: batch.noise()
    with pytest.raises(InvalidArgumentError, match="without its solver"):
        frames(sampler, video=CLIP[:8], strength=0.5)
    frames(sampler, video=CLIP[:8], mask=[i > 3 for i in range(8)])  # whole frames are conditions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": [True] * 8}, "mask was given without a video"),
        ({"strength": 0.5}, "strength was given without a video"),
        ({"video": CLIP, "strength": 0.0}, "strength is 0.0; expected more than 0"),
        ({"video": CLIP, "strength": 1.5}, "strength is 1.5"),
        ({"video": CLIP, "num_frames": 9}, "video has 13 frames and num_frames is 9"),
        ({"video": CLIP, "num_frames": 20, "strength": 0.5}, "can only be made from noise"),
        ({"image": [CLIP[0]] * 2, "last_image": [CLIP[0]] * 3}, "'image': 2, 'last_image': 3"),
        ({"image": []}, "'image': 0"),
        ({"video": [CLIP, CLIP[:5]]}, "the given videos have 5 and 13 frames"),
        ({"image": CLIP[0], "last_image": CLIP[1], "num_frames": 1}, "the same frame of a video of 1 frame"),
    ],
)
def test_contradictions_say_what_to_do(sampler, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sampler("a", **arguments)


ROOT = rooted(chunks(12, 4), "global")
FEATURE = torch.from_numpy(RNG.standard_normal((12, 4, 4))).float()


def test_a_slot_on_the_way_may_be_given_as_it_is(sampler, tmp_path):
    network, arguments = sampler.strategy.modules["network"], {"num_frames": 12, "plan": ROOT}
    made = frames(sampler, **arguments)
    network.calls.clear()
    pinned = frames(sampler, pins={("global", 0): FEATURE}, **arguments)
    assert len(network.calls) == 3 * 4  # three calls of four steps, and none that makes the feature
    assert sampler.cost(prompt="a", pins={("global", 0): FEATURE}, **arguments).calls == 3
    assert np.abs(pinned - made).max() > 1
    doubled = frames(sampler, pins={("global", np.int64(0)): FEATURE.double()}, **arguments)
    np.testing.assert_array_equal(doubled, pinned)
    part = frames(sampler, pins={("global", 0): FEATURE}, frames=range(5, 7), **arguments)
    np.testing.assert_allclose(part, pinned[5:7], atol=1e-3)
    frames(sampler, pins={("global", 0): FEATURE}, work=tmp_path / "work", **arguments)
    with pytest.raises(CheckpointError, match="other settings"):
        frames(sampler, pins={("global", 0): -FEATURE}, work=tmp_path / "work", **arguments)


def test_a_feature_and_pictures_are_given_together(sampler):
    arguments = {"num_frames": 12, "plan": ROOT}
    both = frames(sampler, pins={("global", 0): FEATURE, 5: CLIP[0]}, **arguments)
    np.testing.assert_allclose(both[5], CLIP[0], atol=1e-3)
    alone = frames(sampler, pins={("global", 0): FEATURE}, **arguments)
    np.testing.assert_array_equal(both[8:], alone[8:])  # another chunk


def test_a_frames_latent_is_a_picture_that_was_encoded(sampler):
    codec = sampler.strategy.codec
    pixels = torch.from_numpy(CLIP[3]).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    latent = codec.encode(pixels)[0, :, 0]
    made = frames(sampler, num_frames=8, pins={("video", 3): latent})
    np.testing.assert_array_equal(made, frames(sampler, num_frames=8, pins={3: CLIP[3]}))


@pytest.mark.parametrize(
    ("pins", "error", "message"),
    [
        ({("global", 0): FEATURE[:3]}, InvalidArgumentError, r"\('global', 0\) as \(3, 4, 4\).*= \(12, 4, 4\)"),
        ({("global", 0): FEATURE.numpy()}, InvalidArgumentError, "as ndarray; expected a tensor"),
        ({("global", 0): FEATURE / 0}, InvalidArgumentError, "numbers that are not finite"),
        ({("global", 1): FEATURE}, PlanError, "neither emitted nor pinned.*global, video"),
        ({("v", 0): FEATURE}, PlanError, r"slot \('v', 0\)"),
        ({("global", "0"): FEATURE}, InvalidArgumentError, "a frame of pins is '0'.*a whole number"),
        ({("global", 0, 0): FEATURE}, InvalidArgumentError, "a key of pins"),
        ({"global": FEATURE}, InvalidArgumentError, "a frame of pins is 'global'"),
    ],
)
def test_slots_that_do_not_fit_are_refused(sampler, pins, error, message):
    with pytest.raises(error, match=message):
        frames(sampler, num_frames=12, plan=ROOT, pins=pins)


class Lasting(Toy):
    """A clip of two seconds, however many frames it has."""

    def frame_rate(self, num_frames):
        return num_frames / 2


def test_the_rate_is_the_strategys_for_so_many_frames():
    made = Sampler(Lasting.create(ToyConfig()))
    made.set_progress_bar_config(disable=True)
    assert made("a", seed=0, num_frames=10).fps == 5.0
    assert made("a", seed=0).fps == 4.0
    assert made("a", seed=0, num_frames=10, fps=3).fps == 3.0
    assert made("a", seed=0, num_frames=10, frames=[1, 2]).fps == 5.0
    assert made("a", seed=0, video=CLIP[:6], strength=1.0).fps == 3.0


def test_a_result_is_a_given_video_as_it_is(sampler):
    made = sampler(["a", "b"], num_frames=6, seed=0)
    whole = frames(sampler, video=made.videos[1].frames, num_frames=10)
    one = sampler("b", num_frames=6, seed=0)
    np.testing.assert_allclose(frames(sampler, video=one, num_frames=10), whole, atol=2)
    both = sampler("a", video=made, num_frames=10, seed=5, num_inference_steps=4)
    assert len(both.videos) == 2  # one for each video of the result
