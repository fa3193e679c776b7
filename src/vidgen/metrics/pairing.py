"""Which real video each generated one is compared with: by file name, or by order; one or several of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from vidgen.errors import InvalidArgumentError
from vidgen.metrics.sources import VideoSet
from vidgen.video.draws import digest

__all__ = ["Pairing"]


@dataclass(frozen=True)
class Pairing:
    """Which real video each generated one is compared with, and by what.

    Attributes:
        by: ``"name"`` or ``"order"``.
        places: of the real video of each generated one, within its set.
    """

    by: str
    places: tuple[int, ...]

    @classmethod
    def of(cls, generated: VideoSet, real: VideoSet, futures: int = 1) -> Pairing:
        """Pair by name where every generated video has a namesake, else by order.

        Args:
            generated: ``futures`` videos for each real one. With several, a video's real one bears the name of
                the folder it lies in; by order, those of one real video follow each other.
            real: the videos compared with; those that no generated one names are left out.
            futures: of each real video.

        Raises:
            InvalidArgumentError: numbers that do not fit, or names that stand for several videos.
        """
        if generated.names and real.names:
            found = {name: place for place, name in enumerate(real.names)}
            wanted = [_namesake(name, futures) for name in generated.names]
            if all(name in found for name in wanted):
                _check_unique(generated)
                _check_unique(real)
                _check_futures(generated, wanted, futures)
                return cls("name", tuple(found[name] for name in wanted))
        if len(generated) != len(real) * futures:
            each = "" if futures == 1 else f"{futures} for each of "
            layout = "each file as the real one" if futures == 1 else "each folder of futures as the real video"
            raise InvalidArgumentError(
                f"{generated.name} has {len(generated)} videos and {real.name} {len(real)}, and not every "
                f"generated one has a namesake, so they cannot be paired. Give {each or 'equally many as '}the "
                f"real videos, or name {layout} it stands for."
            )
        return cls("order", tuple(place for place in range(len(real)) for _ in range(futures)))

    def to_json(self, real: VideoSet) -> dict[str, str]:
        """Return what belongs to a protocol: other pairs give other numbers on the same real set."""
        contents = (real.contents[place] for place in self.places)
        return {"by": self.by, "real": digest("vidgen.metrics.pairs", *contents).hex()}


def _namesake(name: str, futures: int) -> str:
    return name if futures == 1 else PurePosixPath(name).parent.as_posix()


def _check_unique(videos: VideoSet) -> None:
    """Raise InvalidArgumentError where a name stands for several videos."""
    (name, count), *_ = Counter(videos.names or ()).most_common(1)
    if count > 1:
        raise InvalidArgumentError(
            f"{videos.name} has {count} videos of the name {name!r} with different suffixes, so that videos "
            "cannot be paired by name; rename all but one."
        )


def _check_futures(generated: VideoSet, wanted: list[str], futures: int) -> None:
    """Raise InvalidArgumentError where a real video has more or fewer futures than the others."""
    for name, count in Counter(wanted).items():
        if count != futures:
            raise InvalidArgumentError(
                f"{generated.name} has {count} futures of {name!r}; the best of {futures} needs {futures} of "
                "each real video that has any, since more of them score better. Add or remove some."
            )
