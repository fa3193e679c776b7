"""How good a model of the shapes data is, measured on what it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vidgen import plugins
from vidgen.checkpoint.index import read_index
from vidgen.codecs import Codec, load_codec
from vidgen.devices import checked_device
from vidgen.metrics.constancy import DIFFERENT, measure_constancy
from vidgen.metrics.evaluate import Settings, evaluate
from vidgen.metrics.extractors.shapes import ShapesExtractor, ShapesFrameExtractor
from vidgen.metrics.pairs import Psnr, Ssim
from vidgen.metrics.prompts import prompt_set
from vidgen.metrics.score import Score
from vidgen.metrics.sources import View
from vidgen.metrics.specs import shapes_judge
from vidgen.sampling import Sampler, SamplerOutput, load
from vidgen.shapes.bench.generated import GeneratedClips
from vidgen.shapes.classifier import Attributes, load_classifier
from vidgen.shapes.synthetic import ShapesDataset
from vidgen.strategy import Strategy
from vidgen.video import Video
from vidgen.video.dataset import DataConfig, collate, open_dataset
from vidgen.video.sheets import picture_sheet, video_sheet
from vidgen.video.transforms import to_clip

__all__ = ["HOLD_OUT", "Quality", "assess", "assess_generator"]

HOLD_OUT = 0.1
"""Share of the colour x shape x motion combinations that no bundled generator is trained on."""

NUM_PROMPTS = 512
NUM_HELD_OUT = 256
NUM_REAL = 1024
NUM_FRAMES = 512
NUM_CLIPS = 2048
NUM_THROUGH = 96
BATCH = 16


@dataclass(frozen=True)
class Quality:
    """What was measured of a model.

    Attributes:
        scores: with their protocols, by group (``"trained"`` prompts, ``"held_out"`` ones, ...).
        values: plain numbers by name.
        sheets: pictures for the card, by file name.
    """

    scores: Mapping[str, Sequence[Score]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    sheets: Mapping[str, Image.Image] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return scores and values in plain values."""
        scores = {group: [score.to_json() for score in found] for group, found in self.scores.items()}
        return {"scores": scores, "values": dict(self.values)}


def assess(folder: str | Path, *, device: str | None = None, progress: bool = True) -> Quality:
    """Measure the model in ``folder``: a generator of shapes, a frame codec or the classifier.

    Raises:
        CheckpointError: ``folder`` is no checkpoint.
    """
    name = read_index(Path(folder))["strategy"]
    kind = plugins.load_trainable(name)
    if issubclass(kind, Strategy):
        return assess_generator(load(folder, device=device), progress=progress)
    known: dict[str, Callable[..., Quality]] = {"frame_codec": _assess_codec, "classifier": _assess_classifier}
    return known[name](Path(folder), device) if name in known else Quality()


def assess_generator(
    sampler: Sampler,
    *,
    prompts: int = NUM_PROMPTS,
    held_out: int = NUM_HELD_OUT,
    real: int = NUM_REAL,
    seed: int = 0,
    progress: bool = True,
) -> Quality:
    """Measure how a generator of shapes follows prompts, and how its videos resemble the data's.

    Args:
        sampler: of a strategy that was trained on the shapes data with ``hold_out=0.1``.
        prompts: videos of trained combinations, evenly over them.
        held_out: videos of combinations that training never showed; none of a model of single frames.
        real: videos of the data that the distances compare with: other ones than training saw.
        seed: of the generated videos.
        progress: show bars.
    """
    sampler.set_progress_bar_config(disable=not progress)
    frames = sampler.strategy.defaults.num_frames
    view, judge = View(num_frames=frames), shapes_judge(device=sampler.strategy.device)
    settings = Settings(view=view, progress=progress)
    extractor = ShapesFrameExtractor() if frames == 1 else ShapesExtractor()
    extractor.to(sampler.strategy.device)
    data = DataConfig.of("shapes", split="train", seed=1, hold_out=HOLD_OUT, videos=real)
    shown = _generate(sampler, prompt_set(prompts, HOLD_OUT, "trained"), seed)
    metrics = ("avg_fid" if frames == 1 else "fvd", "prompt_accuracy", "constancy", "position_spread")
    if frames == 1:  # which compares equal counts
        data = DataConfig.of("shapes", split="train", seed=1, hold_out=HOLD_OUT, videos=prompts)
    scores = {
        "trained": evaluate(
            shown, data, metrics=metrics, extractors=[extractor], judge=judge, settings=settings
        )
    }
    if held_out and frames > 1:  # of motions; shapes and colours are all seen together
        unseen = _generate(sampler, prompt_set(held_out, HOLD_OUT, "held_out"), seed + prompts)
        scores["held_out"] = evaluate(unseen, metrics=["prompt_accuracy"], judge=judge, settings=settings)
    return Quality(scores, sheets=_sheets(sampler, shown.videos, frames))


def _generate(sampler: Sampler, prompts: Sequence[str], seed: int) -> GeneratedClips:
    # Every prompt has noise of its own: with `seed=` all prompts of a list share one.
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    output = sampler(list(prompts), generator=generators, batch_size=BATCH)
    assert isinstance(output, SamplerOutput)  # return_dict
    return GeneratedClips(output.videos, prompts)


def _sheets(sampler: Sampler, shown: Sequence[Video], frames: int) -> dict[str, Image.Image]:
    if frames == 1:
        return {"sheet.png": picture_sheet([video.frames[0] for video in shown[:32]])}
    longer = sampler(prompt_set(3, HOLD_OUT, "trained", seed=1), num_frames=4 * frames, seed=0)
    assert isinstance(longer, SamplerOutput)
    return {"sheet.png": video_sheet(shown[:8]), "sheet_long.png": video_sheet(longer.videos, 16)}


@torch.no_grad()
def _assess_codec(folder: Path, device: str | None) -> Quality:
    codec = load_codec(folder)
    where = checked_device(device)
    codec.to(where)
    data = open_dataset(DataConfig.of("shapes", clip_length=1, split="test", videos=NUM_FRAMES, objects=(1, 3)))
    totals: dict[str, list[float]] = {"psnr": [], "ssim": [], "mse": []}
    latents, pictures = [], []
    for start in range(0, len(data), BATCH):
        clip = collate([data[i] for i in range(start, start + BATCH)]).clip.to(where)
        z = codec.encode(clip)
        restored = codec.decode(z).clamp(-1, 1)
        totals["psnr"] += Psnr()(restored, clip).tolist()
        totals["ssim"] += Ssim()(restored, clip).tolist()
        totals["mse"] += ((restored - clip) ** 2).mean((1, 2, 3, 4)).tolist()
        latents.append(z.cpu())
        if start == 0:
            pairs = torch.cat([clip[:8], restored[:8]]).cpu()
            pictures = [Video.from_tensor(pair, 1).frames[0] for pair in pairs]
    values = {name: sum(found) / len(found) for name, found in totals.items()}
    z = torch.cat(latents).double()
    values |= {"latent_mean_abs_max": float(z.mean((0, 2, 3, 4)).abs().max())}
    std = z.std((0, 2, 3, 4))
    values |= {"latent_std_min": float(std.min()), "latent_std_max": float(std.max())}
    values |= _through_codec(codec, where)
    return Quality(values=values, sheets={"sheet.png": picture_sheet(pictures)})


def _through_codec(codec: Codec, device: torch.device) -> dict[str, float]:
    """What is left of videos of one object behind the codec: the ceiling of every model in its latents."""
    frames, data = range(16), ShapesDataset(NUM_THROUGH, 16, split="test")
    classifier = load_classifier().to(device)
    right: Counter[str] = Counter()
    errors, found = [], []
    for start in range(0, len(data), BATCH):
        indices = range(start, start + BATCH)
        clips = torch.stack([to_clip(data.render(index, frames)) for index in indices]).to(device)
        restored = codec.decode(codec.encode(clips)).clamp(-1, 1)
        truths = [data.truth(index, frames) for index in indices]
        for truth, read in zip(truths, classifier(restored).attributes(), strict=True):
            expected = {"shape": truth.shapes[0], "colour": truth.colours[0], "motion": truth.motions[0][0]}
            right.update({name: value == getattr(read, name) for name, value in expected.items()})
        ground = clips.flatten(3).median(3).values[..., None, None]
        inside = ((clips - ground).abs().amax(1, keepdim=True) > 2 * DIFFERENT).expand_as(clips)
        errors.append(((restored - clips) ** 2)[inside].cpu())
        found.append(measure_constancy(restored))
    values = {f"accuracy_{name}": count / len(data) for name, count in right.items()}
    values["object_psnr"] = float(10 * torch.log10(4 / torch.cat(errors).mean()))
    kept = [each.kept for each in found]
    return values | {
        f"constancy_{name}": float(torch.cat([k[name] for k in kept]).float().mean()) for name in kept[0]
    }


@torch.no_grad()
def _assess_classifier(folder: Path, device: str | None) -> Quality:
    network = load_classifier(folder).to(checked_device(device))
    where = next(network.parameters()).device
    frames, data = range(16), ShapesDataset(NUM_CLIPS, 16, split="test")
    right: Counter[str] = Counter()
    distance = 0.0
    for start in range(0, len(data), BATCH):
        truths = [data.truth(index, frames) for index in range(start, start + BATCH)]
        clips = [to_clip(data.render(index, frames)) for index in range(start, start + BATCH)]
        reading = network(torch.stack(clips).to(where))
        for truth, found in zip(truths, reading.attributes(), strict=True):
            expected = Attributes(
                truth.shapes[0], truth.colours[0], truth.motions[0][0], truth.background, truth.sizes[0]
            )
            right.update({name: value == getattr(expected, name) for name, value in asdict(found).items()})
        wanted = torch.stack([torch.from_numpy((t.positions[:, 0] + 0.5) / data.size) for t in truths])
        gap = (reading.position.cpu().double() - wanted + 0.5) % 1 - 0.5  # the shorter way round
        distance += float(gap.norm(dim=-1).mean(1).sum()) * data.size
    values = {f"accuracy_{name}": count / len(data) for name, count in right.items()}
    values |= {"position_error_pixels": distance / len(data)}
    shown = [Video(data.render(index, frames), 8.0) for index in range(8)]
    return Quality(values=values, sheets={"sheet.png": video_sheet(shown)})
