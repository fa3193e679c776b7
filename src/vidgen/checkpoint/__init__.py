"""Checkpoints: a folder of configurations and safetensors, one sub-folder per component.

    folder/
      vidgen.json                       format, strategy, its configuration, the components' classes
      scheduler/scheduler_config.json   diffusers' own file
      <component>/config.json, diffusion_pytorch_model.safetensors

A component may also be a reference to another checkpoint's. Every component that is there loads alone with its
diffusers class. Nothing is ever unpickled.
"""

from vidgen.checkpoint.folder import replaced_folder, settled, writable
from vidgen.checkpoint.index import FORMAT, INDEX
from vidgen.checkpoint.push import push_strategy
from vidgen.checkpoint.source import find_checkpoint, locate
from vidgen.checkpoint.store import build, complete, load_strategy, save_strategy

__all__ = [
    "FORMAT",
    "INDEX",
    "build",
    "complete",
    "find_checkpoint",
    "load_strategy",
    "locate",
    "push_strategy",
    "replaced_folder",
    "save_strategy",
    "settled",
    "writable",
]
