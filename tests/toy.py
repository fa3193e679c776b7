"""A strategy for the tests: one small convolution over space and time, any plan, nothing learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from vidgen.codecs import PixelCodec
from vidgen.conditioning import Conditioning
from vidgen.level_model import LevelModel
from vidgen.noise import Decomposed
from vidgen.plans import all_at_once, autoregressive
from vidgen.request import Defaults
from vidgen.strategy import Strategy
from vidgen.trainable import Loss, OptimizerGroup, Stage


class ToyNetwork(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, channels: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.conv = nn.Conv3d(channels + 1, channels, 3, padding=1)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x, t, prompt, known, clean):
        self.calls.append(tuple(x.shape))
        mask = known[:, None, :, None, None].expand_as(x[:, :1])
        inputs = torch.cat([torch.where(mask, clean, x), mask.to(x)], 1)
        noise_level = t.reshape(-1, 1, 1, 1, 1) / 1000
        return torch.tanh(self.conv(self.drop(inputs)) + prompt[:, None, None, None, None]) * (
            0.3 + noise_level
        )


@dataclass(frozen=True)
class ToyConfig:
    window: int = 8
    context: int = 3
    dropout: float = 0.0
    stages: int = 1


class ToyStage(Stage):
    name = "denoiser"
    components = ("network",)

    def __init__(self, strategy):
        self.strategy = strategy

    def optimizers(self):
        return (OptimizerGroup("denoiser", self.strategy.parameters_of("network")),)

    def losses(self, batch, step):
        s = self.strategy
        clean = s.codec.encode(batch.clip)
        level = s.levels["video"]
        noise, t = step.noise(level.prior, clean), level.diffusion.sample_timesteps(step.uniform("t"))
        known = torch.zeros(clean.shape[0], clean.shape[2], dtype=torch.bool)
        x_t = level.diffusion.noised(clean, noise, t)
        prediction = s.modules["network"](x_t, t, torch.zeros(len(t)), known, clean)
        loss = (prediction - level.diffusion.target(clean, noise, t)).square().mean()
        yield Loss("denoiser", loss, {"mean_t": float(t.float().mean())})


class ToyScaleStage(Stage):
    """A second stage: learns one number from the network of the first."""

    name = "scale"
    components = ("scale",)

    def __init__(self, strategy):
        self.strategy = strategy

    def optimizers(self):
        return (OptimizerGroup("scale", self.strategy.parameters_of("scale")),)

    def losses(self, batch, step):
        network = self.strategy.modules["network"]
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        (weight,) = self.strategy.parameters_of("scale")
        yield Loss("scale", (weight - network.conv.weight.mean()).square().sum())


class ToyScale(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class ToyLevel(LevelModel):
    def __init__(self, strategy, name):
        super().__init__(name, strategy.diffusion_of(name), prior=Decomposed(lam=0.3), num_inference_steps=4)
        self.strategy = strategy

    def shape(self, request):
        return self.strategy.codec.latent_shape(request.height, request.width)

    def condition(self, call, canvas, request):
        shape = self.shape(request)
        known = torch.zeros(1, len(call.frames), dtype=torch.bool)
        clean = torch.zeros(1, shape[0], len(call.frames), *shape[1:])
        other = 0.0
        for slot in call.given:
            if slot[0] != call.level:  # a coarser level or a global feature
                other += float(canvas[slot].mean()) * (1 + slot[1] % 3)
            else:
                i = call.frames.index(slot[1])
                known[0, i], clean[0, :, i] = True, canvas[slot]
        first = min(frame for _, frame in call.emits)
        words = sum(map(ord, request.prompt_at(self.strategy.codec.frames_of_latent(first).start))) % 97 / 97
        return Conditioning(known=known, clean=clean, extras={"prompt": torch.tensor([words + other])})

    def denoise(self, x_t, t, cond):
        return self.strategy.modules["network"](x_t, t, cond.extras["prompt"], cond.known, cond.clean)


class Toy(Strategy):
    name = "toy"
    Config = ToyConfig
    level_class = ToyLevel
    component_types = {"codec": (PixelCodec,), "network": (ToyNetwork,), "scale": (ToyScale,)}  # noqa: RUF012

    @classmethod
    def create(cls, config):
        modules = {
            "codec": PixelCodec(patch=2),
            "network": ToyNetwork(dropout=config.dropout),
            "scale": ToyScale(),
        }
        # Predicting x_0 keeps an untrained network's latents of order one.
        scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
        return cls(config, modules, scheduler)

    @cached_property
    def levels(self):
        return {name: self.level_class(self, name) for name in ("global", "coarse", "x1", "root", "video")}

    @property
    def defaults(self):
        return Defaults(num_frames=8, height=8, width=8, fps=4.0)

    def plan(self, num_frames):
        c = self.config
        return (
            all_at_once(num_frames)
            if num_frames <= c.window
            else autoregressive(num_frames, c.window, c.context)
        )

    def stages(self):
        return (ToyStage(self), ToyScaleStage(self))[: self.config.stages]


def toy(**config) -> Toy:
    torch.manual_seed(0)
    strategy = Toy.create(ToyConfig(**config))
    for module in strategy.modules.values():
        module.eval()
    return strategy


def levels_of(strategy, **changes):
    """The settings of every level of a request, as they are by default but for ``changes``."""
    return {name: replace(level.settings(), **changes) for name, level in strategy.levels.items()}
