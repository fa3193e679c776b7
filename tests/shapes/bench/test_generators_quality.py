"""How bundled generators are assessed: a generator that shows what it is told scores so, and others do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidgen.metrics.prompts import expected_spec
from vidgen.sampling import SamplerOutput
from vidgen.shapes.bench.quality import assess_generator
from vidgen.shapes.synthetic import ShapesDataset

FRAMES = 16


class Shower:
    """Shows a clip of the data that is what the prompt says, or, ``wrong``, one that moves otherwise."""

    def __init__(self, *, wrong: bool = False) -> None:
        self.strategy = SimpleNamespace(defaults=SimpleNamespace(num_frames=FRAMES), device=torch.device("cpu"))
        self.data, self.wrong, self.asked = ShapesDataset(2500, 4 * FRAMES, seed=3), wrong, []
        self.looks: dict[tuple[str, str, str], list[int]] = {}
        for i in range(len(self.data)):
            self.looks.setdefault(self._look(self.data.caption(i)), []).append(i)

    def _look(self, caption: str) -> tuple[str, str, str]:
        spec = expected_spec(caption)
        return str(spec.shape), str(spec.colour), str(spec.motion)

    def set_progress_bar_config(self, **settings: Any) -> None:
        del settings

    def __call__(
        self,
        prompts: list[str],
        *,
        generator: Any = (),
        batch_size: int = 1,
        num_frames: int = FRAMES,
        seed: int = 0,
    ) -> SamplerOutput:
        del batch_size, seed
        self.asked.append((len(prompts), num_frames, [g.initial_seed() for g in generator]))
        frames = []
        for k, prompt in enumerate(prompts):
            shape, colour, motion = self._look(prompt)
            if self.wrong:
                motion = {"left": "up", "right": "down", "up": "left", "down": "right"}.get(motion, "left")
            fitting = self.looks[shape, colour, motion]
            frames.append(self.data.render(fitting[k % len(fitting)], range(num_frames)))
        pixels = torch.stack([torch.from_numpy(clip) for clip in frames]).float().numpy() / 255
        return SamplerOutput(frames=pixels, seeds=tuple(range(len(frames))), fps=8.0)


def values(scores: Any) -> dict[str, float]:
    return {score.key: score.value for score in scores}


@pytest.mark.parametrize("wrong", [False, True])
def test_prompts_distances_and_spread_are_read(wrong: bool) -> None:
    sampler: Any = Shower(wrong=wrong)
    quality = assess_generator(sampler, prompts=14, held_out=4, real=28, progress=False)
    trained, unseen = values(quality.scores["trained"]), values(quality.scores["held_out"])
    for found in (trained, unseen):
        assert found["prompt_shape_shapes_v1"] == found["prompt_colour_shapes_v1"] == 1
        assert found["prompt_motion_shapes_v1"] == (0 if wrong else 1)
    (distance,) = (s for s in quality.scores["trained"] if s.key == "fvd_shapes_v1")
    assert distance.null is not None
    assert (distance.num_real, distance.num_generated) == (28, 14)
    assert 0.5 < trained["position_spread_shapes_v1"] < 2
    # Every prompt has noise of its own, and no prompt that was not trained has that of a trained one.
    assert [seeds for _, _, seeds in sampler.asked[:2]] == [list(range(14)), list(range(14, 18))]
    assert sampler.asked[2][:2] == (3, 4 * FRAMES)
    assert set(quality.sheets) == {"sheet.png", "sheet_long.png"}
