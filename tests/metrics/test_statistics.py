"""Streaming statistics against sums over all rows at once; their files."""

from __future__ import annotations

import gc
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from vidgen.errors import CheckpointError, InvalidArgumentError
from vidgen.metrics.distances import frechet_distance
from vidgen.metrics.protocol import Protocol
from vidgen.metrics.statistics import HalvedStatistics, Statistics, half_of

PROTOCOL = Protocol("fvd_toy", frames=16, extractor={"name": "toy", "hash": "ab"})


def rows(count: int, dim: int = 6, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator)
    return torch.randn(count, dim, generator=generator) @ mixing + offset


def streamed(values: torch.Tensor, batch: int) -> Statistics:
    statistics = Statistics(values.shape[1])
    for part in values.split(batch):
        statistics.update(part)
    return statistics


@pytest.mark.parametrize("count", [2, 5, 63, 64, 65, 700])
def test_mean_and_covariance_are_those_of_all_rows(count: int) -> None:
    values = rows(count, offset=50.0)
    statistics = streamed(values, 9)
    exact = values.double()
    centred = exact - exact.sum(0) / count
    assert statistics.n == count
    torch.testing.assert_close(statistics.mean, exact.sum(0) / count, rtol=1e-13, atol=0)
    expected = centred.T @ centred / (count - 1)
    torch.testing.assert_close(statistics.covariance(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", [3, 100])
def test_the_batches_do_not_matter_to_the_last_bit(dim: int) -> None:
    values = rows(333, dim)
    whole = streamed(values, 333)
    for batch in (1, 7, 64, 130):
        other = streamed(values, batch)
        assert torch.equal(other.mean, whole.mean)
        assert torch.equal(other.factor, whole.factor)


def test_looking_in_between_changes_nothing() -> None:
    values = rows(100)
    looked = Statistics(6)
    for part in values.split(10):
        looked.update(part)
        assert looked.factor.shape[0] <= 6
        looked.mean.zero_()
    assert torch.equal(looked.factor, streamed(values, 100).factor)
    assert torch.equal(looked.mean, streamed(values, 100).mean)


@pytest.mark.parametrize("sizes", [(1, 1), (40, 3), (0, 5), (5, 0), (200, 300)])
def test_merging_is_seeing_both_sets(sizes: tuple[int, int]) -> None:
    values = rows(sum(sizes), offset=-3.0)
    first, second = streamed(values[: sizes[0]], 8), streamed(values[sizes[0] :], 8)
    merged = first.merge(second)
    whole = streamed(values, 50)
    assert (first.n, second.n, merged.n) == (*sizes, sum(sizes))
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-11, atol=1e-11)
    merged.update(values)  # goes on, without the two it came from
    assert (merged.n, first.n) == (2 * sum(sizes), sizes[0])


def test_small_directions_survive_large_ones() -> None:
    """Eigenvalues of a covariance matrix lose what is 1e-9 of the largest; the factor keeps it."""
    values = rows(500, 4).double() * torch.tensor([1e6, 1.0, 1.0, 1e-4], dtype=torch.float64)
    statistics = streamed(values, 33)
    assert float(statistics.covariance()[3, 3]) == pytest.approx(float(values[:, 3].var()), rel=1e-9)


def held(statistics: Statistics | HalvedStatistics) -> tuple[int, int]:
    """Bytes of all tensors that Python knows of, each storage once, and of all that ``statistics`` holds."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not fake tensors, which have no storage
    found = [thing for thing in gc.get_objects() if type(thing) in kinds]
    storages = [tensor.untyped_storage() for tensor in found if tensor.device.type == "cpu"]
    tensors = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(tensors.values()), len(pickle.dumps(statistics))


@pytest.mark.parametrize(("kind", "items"), [(Statistics, 50_000), (HalvedStatistics, 10_000)])
def test_many_items_take_the_memory_of_a_thousand(kind: type, items: int) -> None:
    generator = torch.Generator().manual_seed(0)
    statistics = kind(32)
    total = torch.zeros(32, dtype=torch.float64)
    memory = {}
    for step in range(1, items // 1000 + 1):
        part = torch.randn(1000, 32, generator=generator)
        total += part.double().sum(0)
        statistics.update(part)
        if step in (1, items // 1000):
            whole = statistics.merge(Statistics(32)) if kind is Statistics else statistics.whole()
            assert whole.factor.shape == (32, 32)
            mean, covariance = whole.mean, whole.covariance()
            del whole
            memory[step] = held(statistics)
    assert memory[step][0] == memory[1][0]
    assert memory[step][1] - memory[1][1] < 100  # digits of counts
    assert statistics.n == items
    torch.testing.assert_close(mean, total / items, rtol=0, atol=1e-14)
    assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.02)


def test_given_features_stay_and_may_be_of_any_float_type() -> None:
    values = rows(20)
    before = values.clone()
    statistics = Statistics(6)
    statistics.update(values)
    values += 1  # what the caller does afterwards is no matter either
    torch.testing.assert_close(statistics.mean, before.double().mean(0), rtol=1e-13, atol=1e-13)
    half = Statistics(6)
    half.update(before.half())
    torch.testing.assert_close(half.mean, before.half().double().mean(0), rtol=1e-13, atol=1e-13)
    traced = before.clone().requires_grad_()
    half.update(traced)
    assert not half.mean.requires_grad


def test_bad_features_are_refused_and_leave_no_trace() -> None:
    statistics = streamed(rows(10), 10)
    bad = rows(4)
    bad[2, 1] = float("nan")
    with pytest.raises(InvalidArgumentError, match="row 2 of the features holds NaN"):
        statistics.update(bad)
    with pytest.raises(InvalidArgumentError, match=r"shape \(3, 5\).* expected n rows of 6 floats"):
        statistics.update(rows(3, 5))
    with pytest.raises(InvalidArgumentError, match="6 and of 5 features"):
        statistics.merge(Statistics(5))
    assert statistics.n == 10
    with pytest.raises(InvalidArgumentError, match="a covariance of 1 items"):
        streamed(rows(1), 1).covariance()
    with pytest.raises(InvalidArgumentError, match="a mean of 0 items"):
        _ = Statistics(2).mean
    with pytest.raises(InvalidArgumentError, match="dim is 0"):
        Statistics(0)


@pytest.mark.parametrize("count", [1, 4, 150])
def test_a_file_gives_the_same_statistics_and_protocol(tmp_path, count: int) -> None:
    statistics = streamed(rows(count), 11)
    file = tmp_path / "real.safetensors"
    statistics.save(file, PROTOCOL)
    again, protocol = Statistics.load(file)
    assert protocol == PROTOCOL
    assert again.n == count
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.factor, statistics.factor)
    again.update(rows(9, seed=1))
    assert again.n == count + 9
    assert [path.name for path in tmp_path.iterdir()] == ["real.safetensors"]


def test_foreign_and_damaged_files_are_named(tmp_path) -> None:
    file = tmp_path / "real.safetensors"
    with pytest.raises(CheckpointError, match=r"real.safetensors is missing"):
        Statistics.load(file)
    streamed(rows(30), 30).save(file, PROTOCOL)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Statistics.load(file)
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="holds no statistics"):
        Statistics.load(file)


def test_another_version_and_parts_that_do_not_fit_are_refused(tmp_path) -> None:
    file = tmp_path / "real.safetensors"
    streamed(rows(30), 30).save(file, PROTOCOL)
    tensors = load_file(file)
    metadata = {"format": "vidgen.statistics", "version": "1", "protocol": json.dumps(PROTOCOL.to_json())}
    save_file(tensors, file, metadata=metadata)
    assert Statistics.load(file)[0].n == 30
    damages = [
        ({}, {"version": "2"}, "version '2'"),
        ({"all.mean": torch.zeros(5, dtype=torch.float64)}, {}, "is damaged"),
        ({"all.mean": torch.zeros(6)}, {}, "is damaged"),
        ({"all.n": torch.tensor(0)}, {}, "is damaged"),
        ({"other.n": torch.tensor(3)}, {}, "is damaged"),
        ({}, {"protocol": "{"}, "is damaged"),
        ({}, {"protocol": "{}"}, "is damaged"),
    ]
    for change, entry, message in damages:
        save_file({**tensors, **change}, file, metadata={**metadata, **entry})
        with pytest.raises(CheckpointError, match=message):
            Statistics.load(file)


def test_nothing_half_written_stays_and_nothing_empty_is_written(tmp_path) -> None:
    with pytest.raises(InvalidArgumentError, match="without items"):
        Statistics(3).save(tmp_path / "a.safetensors", PROTOCOL)
    with pytest.raises(OSError, match="cannot be written"):
        streamed(rows(3), 3).save(tmp_path / "no" / "a.safetensors", PROTOCOL)
    taken = tmp_path / "folder"
    taken.mkdir()
    with pytest.raises(OSError):
        streamed(rows(3), 3).save(taken, PROTOCOL)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("batch", [1, 6, 101])
def test_halves_are_disjoint_equal_and_together_the_whole(batch: int) -> None:
    values = rows(101)
    halved = HalvedStatistics(6, seed=3)
    for part in values.split(batch):
        halved.update(part)
    second = torch.tensor([half_of(video, 3) for video in range(101)]).bool()
    assert {half.n for half in halved.halves} == {50, 51}
    for half, chosen in zip(halved.halves, (~second, second), strict=True):
        assert torch.equal(half.factor, streamed(values[chosen], 9).factor)
    whole = streamed(values, 101)
    assert halved.n == halved.whole().n == 101
    torch.testing.assert_close(halved.whole().covariance(), whole.covariance(), rtol=1e-11, atol=1e-11)


def test_halves_follow_the_seed_and_not_the_parity() -> None:
    splits = [[half_of(video, seed) for video in range(200)] for seed in (0, 1)]
    for split in splits:
        assert all(a + b == 1 for a, b in zip(split[::2], split[1::2], strict=True))
        assert 30 < sum(split[::2]) < 70  # of 100 pairs: neither all even videos nor none
    assert splits[0] != splits[1]


@pytest.mark.parametrize("seed", [-1, 2**63 + 1, 2**64 - 2])
def test_any_whole_number_splits_into_halves(seed: int) -> None:
    split = [half_of(video, seed) for video in range(200)]
    assert 30 < sum(split[::2]) < 70
    assert split != [half_of(video, seed - 1) for video in range(200)]


def test_the_items_of_one_video_stay_in_one_half() -> None:
    values = rows(40)
    videos = [video for video in range(8) for _ in range(5)]
    halved = HalvedStatistics(6)
    halved.update(values, videos)
    chosen = torch.tensor([half_of(video, 0) == 0 for video in videos])
    assert halved.halves[0].n == 20
    assert torch.equal(halved.halves[0].mean, streamed(values[chosen], 40).mean)
    with pytest.raises(InvalidArgumentError, match="2 video indices were given for 40 items"):
        halved.update(values, [1, 2])
    with pytest.raises(InvalidArgumentError, match="lowest being -1"):
        halved.update(values[:1], [-1])


def test_a_file_of_halves_gives_halves_or_the_whole(tmp_path) -> None:
    values = rows(80)
    halved = HalvedStatistics(6, seed=5)
    halved.update(values[:33])
    file = tmp_path / "halves.safetensors"
    halved.save(file, PROTOCOL)
    again, protocol = HalvedStatistics.load(file)
    assert protocol == PROTOCOL
    for half in (halved, again):
        half.update(values[33:])  # both go on with video 33
    for one, other in zip(halved.halves, again.halves, strict=True):
        assert one.n == other.n
        assert abs(frechet_distance(one, other)) < 1e-9
    whole, _ = Statistics.load(file)
    assert whole.n == 33
    assert abs(frechet_distance(whole, streamed(values[:33], 33))) < 1e-9
    halved.whole().save(file, PROTOCOL)
    with pytest.raises(CheckpointError, match="without its halves"):
        HalvedStatistics.load(file)
