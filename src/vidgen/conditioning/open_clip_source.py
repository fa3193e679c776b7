"""Where an open_clip model comes from, and how it is built without ever reading a pickle.

Weights are safetensors or they are not read. open_clip itself falls back to pickles, so it is never
asked to find or download weights here:

- a tag (``"laion2b_s34b_b79k"``) means the safetensors file in the tag's Hugging Face repository; a tag
  whose repository has only a pickle is refused,
- a local file must be safetensors,
- ``hf-hub:org/name`` and ``local-dir:folder`` mean ``open_clip_config.json`` and
  ``open_clip_model.safetensors`` of that repository or folder.

A configuration may come from a stranger: nothing that it names is loaded unless the caller, or open_clip
itself, names it too, no code is run, and nothing is built that the weights do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vidgen.components import at_most
from vidgen.conditioning.open_clip_trust import check_repository, check_trusted, tokenizer_options
from vidgen.config import read_json
from vidgen.errors import CheckpointError, InvalidArgumentError, UnknownNameError, VidgenError
from vidgen.paths import expanded
from vidgen.weights import read_shapes

__all__ = ["OpenClipSource", "on_meta"]

_HUB, _FOLDER = "hf-hub:", "local-dir:"
_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_SAFE = ".safetensors"
_MOST_PARTS = 100_000  # parameters by name; the largest published models have some thousand
_SLACK = 1_000_000  # weights that a file may lack
_CONVERT = (
    "Reading a pickle can run code, so it is not loaded. Where you trust the file, convert it once: "
    'state = torch.load(FILE, map_location="cpu", weights_only=True); state = state.get("state_dict", state); '
    'safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, "weights.safetensors"); and give '
    "that file's path as `pretrained`."
)


@dataclass(frozen=True)
class OpenClipSource:
    """What a checkpoint stores in place of an open_clip model's weights.

    Args:
        model: open_clip's name, ``hf-hub:org/name`` or ``local-dir:folder``.
        pretrained: a tag, the path of a safetensors file, or ``""`` where ``model`` says it.
        architecture: open_clip's configuration of the model, so that a model configured by hand is
            rebuilt where its name is unknown.
        preprocessing: how pictures are prepared: fields of open_clip's ``PreprocessCfg`` but size and mode.
    """

    model: str
    pretrained: str
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]

    @classmethod
    def find(cls, model: str, pretrained: str | Path | None = None) -> OpenClipSource:
        """Look up ``model`` and ``pretrained``; reads configurations, never weights.

        Raises:
            UnknownNameError: open_clip knows no such model, or no such tag of it.
            InvalidArgumentError: weights given twice or not at all, or a tag that needs a variant of
                the model.
            CheckpointError: a configuration is missing, or the weights are no safetensors file.
        """
        given = "" if pretrained is None else str(pretrained)
        if model.startswith((_HUB, _FOLDER)):
            if given:
                raise InvalidArgumentError(
                    f"pretrained={given!r} was given with model={model!r}, which has weights of its own; leave "
                    "`pretrained` out, or name a model of open_clip."
                )
            if model.startswith(_FOLDER):
                model = f"{_FOLDER}{expanded(model.removeprefix(_FOLDER)).absolute()}"
            found = read_json(_config_file(model))
            return cls(model, "", found.get("model_cfg", found), _preprocessing(found.get("preprocess_cfg")))
        return cls._named(model, given)

    @classmethod
    def _named(cls, model: str, pretrained: str) -> OpenClipSource:
        import open_clip

        architecture = open_clip.get_model_config(model)
        if architecture is None:
            raise UnknownNameError("open_clip model", model, open_clip.list_models())
        tag = open_clip.get_pretrained_cfg(model, pretrained)
        if not tag:
            file = _safe_file(pretrained, model, open_clip.list_pretrained_tags_by_model(model))
            return cls(model, str(file), architecture, _preprocessing(None))
        if tag.get("quick_gelu") and not architecture.get("quick_gelu"):
            raise InvalidArgumentError(
                f"the weights {pretrained!r} were trained with QuickGELU activations and {model!r} has GELU, "
                f"so its embeddings would be wrong. Use the model {model + '-quickgelu'!r}."
            )
        return cls(model, pretrained, architecture, _preprocessing(tag))

    @property
    def weights(self) -> Path:
        """The safetensors file; downloaded if it lies on the Hub and is not cached.

        Raises:
            CheckpointError: it is missing, cannot be reached, or exists only as a pickle.
        """
        if self.model.startswith(_HUB):
            return _download(self.model.removeprefix(_HUB), _WEIGHTS)
        if self.model.startswith(_FOLDER):
            return _existing(Path(self.model.removeprefix(_FOLDER)) / _WEIGHTS)
        import open_clip

        tag = open_clip.get_pretrained_cfg(self.model, self.pretrained)
        if not tag:
            return _existing(_safe(Path(self.pretrained)))
        repository, _, name = str(tag.get("hf_hub", "")).rpartition("/")
        if not repository:
            raise CheckpointError(f"the weights {self.pretrained!r} of {self.model!r} are a pickle. {_CONVERT}")
        return _download(repository, str(Path(name).with_suffix(_SAFE)) if name else _WEIGHTS)

    def build(self) -> Any:
        """Return the whole model with its weights, on the default device.

        On the meta device nothing is downloaded or read. The state of torch's generator is kept.

        Raises:
            CheckpointError: the weights are missing, no safetensors, or of another model.
        """
        import open_clip

        if on_meta():
            return self._network(_MOST_PARTS)
        file = self.weights
        self._check_size(file)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model = self._network(_MOST_PARTS)
        try:
            open_clip.load_checkpoint(model, str(file))  # by its suffix, through safetensors alone
        except (SafetensorError, RuntimeError, AssertionError, StopIteration) as error:
            raise CheckpointError(
                f"{file} cannot be loaded as weights of {self.model!r} ({type(error).__name__}: {error}). "
                "Expected a whole safetensors file of that model's own tensors. It may be truncated, a "
                "pickle under a false name, or of another model."
            ) from error
        return model

    def _check_size(self, file: Path) -> None:
        """Refuse a configuration of far more weights than ``file`` has, before anything is allocated."""
        shapes = read_shapes(file)
        with torch.device("meta"):
            model = self._network(10 * len(shapes) + 1000)
        described, held = sum(p.numel() for p in model.parameters()), sum(map(math.prod, shapes.values()))
        if described > 2 * held + _SLACK:  # open_clip fits some layouts and sizes itself
            raise CheckpointError(
                f"{file} holds {held:,} weights, and the configuration of {self.model!r} describes "
                f"{described:,}: it cannot be loaded as weights of that model. One of the two was changed, or "
                "is of another model."
            )

    def _network(self, parts: int) -> Any:
        """The model with random weights, of at most ``parts`` parameters by name."""
        import open_clip

        architecture = deepcopy(self.architecture)
        try:
            check_trusted(architecture, self.model)
            kind = open_clip.CoCa if "multimodal_cfg" in architecture else open_clip.CustomTextCLIP
            architecture.pop("custom_text", None)
            # Towers of other libraries come without weights of their own: all weights are in one file.
            architecture["vision_cfg"]["timm_model_pretrained"] = False
            architecture["text_cfg"]["hf_model_pretrained"] = False
            with at_most(parts, f"the configuration of {self.model!r}"):
                return kind(**architecture)
        except VidgenError:
            raise
        except Exception as error:  # any value may stand in a configuration
            raise CheckpointError(
                f"the configuration of {self.model!r} cannot be built ({type(error).__name__}: {error}). "
                "Expected open_clip's embed_dim, vision_cfg and text_cfg; parts that live on the Hugging Face "
                f"Hub must be cached or in reach. open_clip is {open_clip.__version__}; another may be needed."
            ) from error

    def tokenizer(self) -> Any:
        """Return open_clip's tokenizer of the model.

        CLIP's byte-pair vocabulary comes with open_clip; models with a tokenizer of the Hugging Face Hub
        (SigLIP, RoBERTa, ...) need the Hub, or its cache, or ``local-dir:`` with the tokenizer's files.

        Raises:
            CheckpointError: the tokenizer cannot be found.
        """
        import open_clip
        from open_clip.tokenizer import HFTokenizer

        text = self.architecture["text_cfg"]
        options = tokenizer_options(self.architecture, self.model)
        name = text.get("hf_tokenizer_name")
        if not name:
            return open_clip.SimpleTokenizer(context_length=self.context_length, **options)
        options["trust_remote_code"] = False
        folder = self.model.removeprefix(_FOLDER)
        source = folder if folder != self.model else name
        mode = text.get("tokenizer_mode")
        if source == name:
            check_repository(name, self.model)
        try:
            return HFTokenizer(source, context_length=self.context_length, tokenizer_mode=mode, **options)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the tokenizer {str(source)!r} of {self.model!r} cannot be loaded: {error} It comes from the "
                "Hugging Face Hub: connect once so that it is cached, or put the model's files and the "
                "tokenizer's into one folder and name it with model='local-dir:FOLDER'."
            ) from error

    @property
    def context_length(self) -> int:
        """Tokens that a text is padded to."""
        return int(self.architecture["text_cfg"].get("context_length", 77))


def on_meta() -> bool:
    """Whether modules are built on the meta device, which holds shapes and no values."""
    return torch.get_default_device().type == "meta"


def _preprocessing(found: Mapping[str, Any] | None) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    fields = asdict(PreprocessCfg())
    fields |= {name: value for name, value in (found or {}).items() if name in fields and value is not None}
    del fields["size"], fields["mode"]  # the network's own; always RGB
    return fields


def _safe_file(pretrained: str, model: str, tags: list[str]) -> Path:
    file = expanded(pretrained)
    if not pretrained:
        raise InvalidArgumentError(
            f"no weights were given for {model!r}; give a tag ({', '.join(tags) or 'there is none'}) or the "
            "path of a safetensors file as `pretrained`."
        )
    if not file.suffix and not file.exists():
        raise UnknownNameError(f"pretrained tag of {model!r}", pretrained, tags)
    return _safe(file.absolute())


def _safe(file: Path) -> Path:
    if file.suffix != _SAFE:  # open_clip unpickles whatever is called otherwise
        raise CheckpointError(f"{file} is not a {_SAFE} file. {_CONVERT}")
    return file


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing; expected open_clip weights in safetensors. Put the file there, or give "
            "another one."
        )
    return file


def _config_file(model: str) -> Path:
    if model.startswith(_HUB):
        return _download(model.removeprefix(_HUB), _CONFIG)
    file = Path(model.removeprefix(_FOLDER)) / _CONFIG
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; {model!r} must hold {_CONFIG} and {_WEIGHTS}.")
    return file


def _download(repository: str, name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            hint = _CONVERT if name.endswith(_SAFE) else "It is not a repository of open_clip."
            raise CheckpointError(f"{repository} on the Hugging Face Hub has no {name}. {hint}") from error
        raise CheckpointError(
            f"{name} of {repository} is neither cached nor can it be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {error}). Connect once, or give a local safetensors file."
        ) from error
