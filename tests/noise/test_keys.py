"""Keyed random numbers: never change, never collide, never depend on what was drawn before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.noise import NoiseKey, normal, seeds_from

KEY = NoiseKey(7, "start", "video")


def test_numbers_never_change():
    # a checkpoint's seed must give the same video in every later version
    raw = KEY.generator(0).bit_generator.random_raw(2).tolist()
    assert raw == [17690786833601598082, 15876118131420557347]
    assert normal(KEY, 0, (4,)).tolist() == pytest.approx([0.32661, 2.374676, 0.225094, -1.060308], abs=1e-6)
    assert normal(KEY, "base", (2,)).tolist() == pytest.approx([-0.796999, -0.916178], abs=1e-6)
    assert normal(NoiseKey(2**63 - 1, "", ""), -3, (1,)).item() == pytest.approx(-0.407274, abs=1e-6)


def test_every_part_of_the_key_counts():
    variants = {
        "same again": (NoiseKey(7, "start", "video"), 0),
        "seed": (NoiseKey(8, "start", "video"), 0),
        "high bits of the seed": (NoiseKey(7 + 2**40, "start", "video"), 0),
        "stream": (NoiseKey(7, "step-0", "video"), 0),
        "level": (NoiseKey(7, "start", "x1"), 0),
        "frame": (KEY, 1),
        "negative frame": (KEY, -1),
        "name": (KEY, "0"),
        "shifted text": (NoiseKey(7, "startv", "ideo"), 0),
        "quotes": (NoiseKey(7, 'start", "video', ""), 0),
        "number in the text": (NoiseKey(7, "start", "video, 0"), 0),
    }
    first = normal(KEY, 0, (3, 2))
    same = [name for name, at in variants.items() if torch.equal(normal(*at, (3, 2)), first)]
    assert same == ["same again"]
    assert KEY.with_stream("step-0") == variants["stream"][0]


def test_numbers_are_standard_normal_and_independent():
    drawn = torch.stack([normal(KEY, frame, (20_000,)) for frame in range(6)]).double()
    assert drawn.dtype == torch.float64
    assert normal(KEY, 0, (2,)).dtype == torch.float32
    bound = 5 / 20_000**0.5
    assert drawn.mean(1).abs().max() < bound
    assert (drawn @ drawn.T / 20_000 - torch.eye(6)).abs().max() < bound * 2**0.5
    assert (drawn**4).mean() == pytest.approx(3, abs=0.15)


def test_longer_draws_extend_shorter_ones():
    assert np.array_equal(normal(KEY, 0, (4, 5)).ravel()[:7], normal(KEY, 0, (7,)))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed: int):
    with pytest.raises(InvalidArgumentError, match=f"seed={seed} was given; seeds are 0 to"):
        NoiseKey(seed, "start", "video")
    with pytest.raises(InvalidArgumentError, match=f"seed={seed}"):
        seeds_from(None, seed, 1)


def fresh(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_seed_counts_up_and_wraps():
    assert seeds_from(None, 5, 3) == [5, 6, 7]
    assert seeds_from(None, 2**63 - 1, 2) == [2**63 - 1, 0]


@pytest.mark.parametrize("seed", [0, 5, 2**40 + 3, 2**63 - 1])
def test_a_fresh_generator_equals_its_seed(seed: int):
    assert seeds_from(fresh(seed), None, 3) == seeds_from(None, seed, 3)
    assert seeds_from([fresh(seed), fresh(1)], None, 2) == [seed, 1]


def test_seeds_of_64_bits_lose_the_first():
    assert seeds_from(fresh(2**63 + 9), None, 2) == [9, 10]


def test_a_generator_moves_on_so_that_the_next_video_differs():
    generator, control = fresh(5), fresh(5)
    first = seeds_from(generator, None, 2)
    second = seeds_from(generator, None, 2)
    assert first == [5, 6]
    assert len({*first, *second}) == 4
    # read once per video: three videos and then one equal two and then two
    seeds_from(control, None, 3)
    assert seeds_from(control, None, 1) == second[1:]


def test_a_used_generator_is_drawn_from():
    used, twin = fresh(5), fresh(5)
    torch.randn(3, generator=used), torch.randn(3, generator=twin)
    seeds = seeds_from(used, None, 4)
    assert seeds == seeds_from(twin, None, 4)
    assert 5 not in seeds
    assert max(seeds) >= 2**60  # all 63 bits are in use
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_one_generator_listed_twice_gives_two_videos():
    shared = fresh(5)
    first, second = seeds_from([shared, shared], None, 2)
    assert first == 5
    assert second != 5


def test_without_a_seed_every_run_differs():
    runs = [seeds_from(None, None, 2) for _ in range(4)]
    assert len({run[0] for run in runs}) == 4
    assert all(run[1] == (run[0] + 1) % 2**63 for run in runs)


def test_the_ambient_generator_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    seeds_from(None, None, 2), seeds_from(fresh(1), None, 2), normal(KEY, 0, (3,))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((fresh(1), 2, 1), "seed=2 and a generator were given"),
        (([fresh(1)], None, 2), "1 generators were given for 2 videos"),
        (([], None, 2), "0 generators were given for 2 videos"),
        ((None, 1, 0), "count=0 videos"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        seeds_from(*arguments)
