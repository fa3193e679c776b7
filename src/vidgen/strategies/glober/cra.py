"""The coherence and realism adversarial loss of GLOBER (Sun et al. 2023, section 3.1, eq. 10).

The discriminator judges pairs of frames ``<earlier, later>``. Pairs with a synthesised frame teach it realism,
pairs in the wrong order teach it coherence. What the decoder is judged by is its estimate of the clean frame in
one step, ``Diffusion.clean_estimate``: eq. 9, whose noise coefficient (like that of eq. 5) is printed as
``1 - abar`` and must be ``sqrt(1 - abar)`` for a noised frame to lead back to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vidgen.diffusion import Diffusion
from vidgen.errors import InvalidArgumentError

__all__ = [
    "DISCRIMINATOR_FAKE",
    "DISCRIMINATOR_FAKE_UNORDERED",
    "DISCRIMINATOR_REAL",
    "GENERATOR_REAL",
    "Form",
    "discriminator_loss",
    "discriminator_pairs",
    "draw_frames",
    "generator_loss",
    "generator_pairs",
    "judge",
    "pair_weights",
    "timestep_gate",
]

Form = Literal["hinge", "log"]
Frame = tuple[Literal["real", "synthetic"], int]
Pair = tuple[Frame, Frame]
Two = Float[Tensor, "b c 2 h w"]
Estimates = Float[Tensor, "_ _ 2 _ _"]  # of the same shape, which is checked with words
Pairs = Float[Tensor, "p b c 2 h w"]
RealPairs = Float[Tensor, "r b c 2 h w"]
Logits = Float[Tensor, "p b"]
RealLogits = Float[Tensor, "r b"]

X_I: Frame = ("real", 0)
X_J: Frame = ("real", 1)
XH_I: Frame = ("synthetic", 0)
XH_J: Frame = ("synthetic", 1)

# GLOBER section 3.1, the pairs of eq. 10 in its order.
DISCRIMINATOR_REAL: tuple[Pair, ...] = ((X_I, X_J),)
"""What the discriminator should take for real."""
DISCRIMINATOR_FAKE: tuple[Pair, ...] = ((X_I, XH_J), (XH_I, X_J), (XH_I, XH_J), (X_J, X_I), (XH_J, XH_I))
"""What it should not: a synthesised frame, or the wrong order."""
DISCRIMINATOR_FAKE_UNORDERED: tuple[Pair, ...] = DISCRIMINATOR_FAKE[:3]
"""The same without the order, for data that look alike backwards: there a swapped real pair is a real pair."""
GENERATOR_REAL: tuple[Pair, ...] = ((XH_I, XH_J), (XH_I, X_J), (X_I, XH_J))
"""What the decoder wants it to take for real."""


def draw_frames(uniforms: Float[Tensor, "b 2"], num_frames: int) -> Int[Tensor, "b 2"]:
    """Two frames ``i < j`` of each video; every pair of distinct frames is as likely as any other.

    Args:
        uniforms: two numbers in [0, 1) per video, such as ``step.uniforms(sample, "frames", 2)``.
        num_frames: frames of a video.

    Raises:
        InvalidArgumentError: a video of fewer than two frames.
    """
    if num_frames < 2:
        raise InvalidArgumentError(
            f"two distinct frames cannot be drawn from {num_frames}; train on clips of two frames or more."
        )
    # The paper prints 0 <= i < j <= F, one frame too many.
    first = (uniforms[:, 0] * num_frames).long().clamp(max=num_frames - 1)
    other = (uniforms[:, 1] * (num_frames - 1)).long().clamp(max=num_frames - 2)
    other = other + (other >= first)  # one of the remaining frames: never the first again
    return torch.stack([first, other], dim=1).sort(dim=1).values


def discriminator_pairs(
    real: Two, synthetic: Estimates, fakes: Sequence[Pair] = DISCRIMINATOR_FAKE
) -> tuple[RealPairs, Pairs]:
    """The pairs that the discriminator learns from: real ones ``(1, b, ...)`` and fake ones ``(p, b, ...)``.

    No gradient leaves them: what the discriminator learns never reaches the decoder.

    Args:
        real: frames i and j of the data.
        synthetic: the decoder's estimates of the same frames.
        fakes: which pairs are fake, ``DISCRIMINATOR_FAKE`` or ``DISCRIMINATOR_FAKE_UNORDERED``.
    """
    real, synthetic = real.detach(), synthetic.detach()
    return _pairs(DISCRIMINATOR_REAL, real, synthetic), _pairs(fakes, real, synthetic)


def generator_pairs(real: Two, synthetic: Estimates) -> Pairs:
    """The pairs ``(3, b, ...)`` that the decoder wants taken for real; gradients reach ``synthetic``."""
    return _pairs(GENERATOR_REAL, real.detach(), synthetic)


def judge(discriminator: nn.Module, pairs: Pairs) -> Logits:
    """The discriminator's logits of pairs, all in one call; on the CPU in float32 under mixed precision too.

    PyTorch's bfloat16 convolutions over two frames have gradients that are not numbers on some CPUs.
    """
    device = pairs.device.type
    with torch.autocast(device, enabled=device != "cpu" and torch.is_autocast_enabled(device)):
        logits: Tensor = discriminator(pairs.flatten(0, 1))
    return logits.reshape(pairs.shape[:2])


def discriminator_loss(
    real: RealLogits,
    fake: Logits,
    form: str = "hinge",
    real_weights: RealLogits | None = None,
    fake_weights: Logits | None = None,
) -> Float[Tensor, ""]:
    """What the discriminator descends: summed over pairs as in eq. 10, mean over videos, in float32.

    ``"hinge"`` is ``max(0, 1 - l)`` for a real and ``max(0, 1 + l)`` for a fake pair of logit ``l``. ``"log"``
    is eq. 10 as printed, ``log(1 - D)`` and ``log D`` with ``D = sigmoid(l)``: without a lower bound, so that
    logits of pairs that are told apart already are driven on at full strength.

    Args:
        real: logits of ``DISCRIMINATOR_REAL``.
        fake: logits of ``DISCRIMINATOR_FAKE``.
        form: ``"hinge"`` or ``"log"``.
        real_weights: of the real pairs (``pair_weights``); None weighs all alike.
        fake_weights: of the fake pairs.

    Raises:
        InvalidArgumentError: an unknown form.
    """
    real, fake = real.float(), fake.float()
    if _checked(form) == "hinge":
        losses = functional.relu(1 - real), functional.relu(1 + fake)
    else:
        losses = functional.logsigmoid(-real), functional.logsigmoid(fake)  # eq. 10, first line
    return _total(losses[0], real_weights) + _total(losses[1], fake_weights)


def generator_loss(logits: Logits, form: str = "hinge", weights: Logits | None = None) -> Float[Tensor, ""]:
    """What the decoder descends: summed over pairs as in eq. 10, mean over videos, in float32.

    ``"hinge"`` is ``-l``; ``"log"`` is eq. 10 as printed, ``log(1 - D)`` with ``D = sigmoid(l)``.

    Args:
        logits: of ``GENERATOR_REAL``.
        form: ``"hinge"`` or ``"log"``.
        weights: of the pairs (``pair_weights``); None weighs all alike.

    Raises:
        InvalidArgumentError: an unknown form.
    """
    logits = logits.float()
    losses = -logits if _checked(form) == "hinge" else functional.logsigmoid(-logits)  # eq. 10, second line
    return _total(losses, weights)


def timestep_gate(diffusion: Diffusion, t: Tensor, limit: float | None) -> Float[Tensor, "b f"]:
    """1 where the estimate of a clean frame can be judged, 0 where noise is all it shows, per frame.

    An error of the predicted noise grows by ``sqrt((1 - abar) / abar)`` on the way to the clean frame: by 14.6
    at the last step of Stable Diffusion's schedule.

    Args:
        diffusion: the noise process.
        t: training timesteps ``b f``.
        limit: largest factor that is let through; None lets all through.
    """
    if limit is None:
        return torch.ones(t.shape, device=t.device)
    k = diffusion.coefficients(t, torch.empty(0, device=t.device))
    return (k.noise <= limit * k.signal)[:, 0, :, 0, 0].float()


def pair_weights(gates: Float[Tensor, "b 2"], pairs: Sequence[Pair]) -> Logits:
    """Weights of pairs: the product of their synthesised frames' gates; real frames always count.

    Args:
        gates: of the estimates of frames i and j (``timestep_gate``).
        pairs: ``DISCRIMINATOR_FAKE``, ``GENERATOR_REAL``, ...
    """
    whole = torch.ones_like(gates[:, 0])
    factors = [[gates[:, slot] if kind == "synthetic" else whole for kind, slot in pair] for pair in pairs]
    return torch.stack([first * second for first, second in factors])


def _pairs(listed: Sequence[Pair], real: Tensor, synthetic: Tensor) -> Tensor:
    if real.shape != synthetic.shape:
        raise InvalidArgumentError(
            f"real frames {tuple(real.shape)} and synthesised ones {tuple(synthetic.shape)} differ in shape; "
            "both are frames i and j of the same videos, as latents or as pixels."
        )
    frames = {"real": real, "synthetic": synthetic.to(real.dtype)}
    return torch.stack(
        [torch.stack([frames[kind][:, :, slot] for kind, slot in pair], dim=2) for pair in listed]
    )


def _total(losses: Tensor, weights: Tensor | None) -> Tensor:
    # Divided by the videos and not by the weights: a batch may be cut anywhere.
    return (losses if weights is None else losses * weights).sum(0).mean()


def _checked(form: str) -> str:
    if form not in ("hinge", "log"):
        raise InvalidArgumentError(f"the adversarial loss has no form {form!r}; choose 'hinge' or 'log'.")
    return form
