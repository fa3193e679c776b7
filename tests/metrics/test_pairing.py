"""Which video is compared with which, and the best of several sampled futures of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.pairing import Pairing
from vidgen.metrics.pairs import Psnr, best_of
from vidgen.metrics.protocol import ProtocolMismatchError
from vidgen.metrics.sources import View, open_videos
from vidgen.video import VideoWriter

VIEW = View(num_frames=2)
REAL = {"a": 100, "b": 200}
FUTURES = {"a": (60, 90, 80), "b": (190, 120, 195)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


def write(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 8.0) as writer:
        writer.extend(np.full((2, 16, 16, 3), level, np.uint8))


@pytest.fixture
def folders(tmp_path):
    """Two real videos, and three grey futures of each in folders of their names."""
    for name, level in REAL.items():
        write(tmp_path / "real" / f"{name}.mp4", level)
        for number, future in enumerate(FUTURES[name]):
            write(tmp_path / "futures" / name / f"{number}.mp4", future)
    return tmp_path


def scored(root, futures="futures", real="real", best_of=3, metrics=("psnr",)):
    settings = Settings(view=VIEW, batch_size=2, best_of=best_of)
    return evaluate(root / futures, root / real, metrics=metrics, settings=settings)


def expected(metric, root, futures="futures"):
    """By hand: every future against its real video, and the best of each."""
    generated, real = open_videos(root / futures, VIEW), open_videos(root / "real", VIEW)
    values = [
        float(metric(generated.clip(3 * i + k)[None], real.clip(i)[None])) for i in range(2) for k in range(3)
    ]
    values = torch.tensor(values, dtype=torch.float64).reshape(2, 3)
    return best_of(values, metric.higher_is_better).mean().item(), values.mean().item()


def test_the_best_of_the_futures_of_each_real_video(folders):
    (score,) = scored(folders)
    best, mean = expected(Psnr(), folders)
    assert score.key == "psnr_best_of_3"
    assert score.value == pytest.approx(best)
    assert best > mean + 3
    assert score.notes == (f"all futures, good and bad, have {mean:.4g} on average.",)
    assert (score.num_real, score.num_generated) == (2, 6)
    assert score.protocol["best_of"] == 3
    assert score.protocol["pixels"] == Psnr().fingerprint()
    assert score.protocol["pairing"]["by"] == "name"


def test_futures_in_order_where_no_name_fits(folders):
    (named,) = scored(folders)
    for name in REAL:
        for file in sorted((folders / "futures" / name).iterdir()):
            file.rename(folders / "futures" / f"{name}_{file.name}")
        (folders / "futures" / name).rmdir()
    (score,) = scored(folders)
    assert score.protocol["pairing"]["by"] == "order"
    assert score.value == pytest.approx(named.value)


def test_unequal_numbers_of_futures_are_never_compared(folders):
    (three,) = scored(folders)
    for name in REAL:
        (folders / "futures" / name / "2.mp4").unlink()
    (two,) = scored(folders, best_of=2)
    with pytest.raises(ProtocolMismatchError, match=r"psnr_best_of_3 .* and psnr_best_of_2"):
        three.difference(two)
    assert three.protocol.differences(two.protocol)["best_of"] == (3, 2)


def test_drift_is_that_of_all_futures(folders):
    (score,) = scored(folders, metrics=("drift",))
    assert score.value == pytest.approx(0, abs=1e-6)
    assert "best_of" not in score.protocol.to_json()


def test_missing_futures_are_refused(folders):
    (folders / "futures" / "b" / "1.mp4").unlink()
    with pytest.raises(
        InvalidArgumentError, match="futures has 2 futures of 'b'; the best of 3 needs 3 of each"
    ):
        scored(folders)
    write(folders / "futures" / "c" / "0.mp4", 1)
    (folders / "futures" / "c" / "0.mp4").rename(folders / "futures" / "c.mp4")
    with pytest.raises(InvalidArgumentError, match="Give 4 for each of the real videos, or name each folder"):
        scored(folders, best_of=4)


def test_futures_are_not_drawn():
    with pytest.raises(InvalidArgumentError, match="videos=5 with best_of=3"):
        Settings(videos=5, best_of=3)
    with pytest.raises(InvalidArgumentError, match="best_of=0"):
        Settings(best_of=0)


def test_places_are_those_of_the_real_videos(folders):
    write(folders / "real" / "aa.mp4", 0)  # stands for none
    found = Pairing.of(open_videos(folders / "futures", VIEW), open_videos(folders / "real", VIEW), 3)
    assert found == Pairing("name", (0, 0, 0, 2, 2, 2))
