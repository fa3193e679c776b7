"""``import vidgen``, ``vidgen --help`` and listing load neither torch nor any plug-in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vidgen

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "av", "vidgen.strategies")
CHECK = f"import sys; heavy = [m for m in {HEAVY!r} if m in sys.modules]; assert not heavy, heavy"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "code",
    [
        "import vidgen; vidgen.__version__; dir(vidgen)",
        "from vidgen import plugins; assert 'vdm' in plugins.available(plugins.STRATEGIES)",
        "import vidgen.plans",
        "import sys; sys.argv = ['vidgen', '--help']\n"
        "from vidgen.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code",
        "import sys; sys.argv = ['vidgen', 'list', '--json']\n"
        "from vidgen.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code",
        "import sys; sys.argv = ['vidgen', 'generate', '--help']\n"
        "from vidgen.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code",
    ],
    ids=["import", "plugins", "plans", "help", "list", "command help"],
)
def test_nothing_heavy_is_loaded(code):
    done = run(f"{code}\n{CHECK}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vidgen tr", ["train"]),
        ("vidgen train v", ["vdm"]),
        ("vidgen train vdm --recipe t", ["tiny"]),
        ("vidgen info vdm --recipe=", ["small", "tiny"]),
        ("vidgen train --recipe vdm/", ["vdm/small", "vdm/tiny"]),
        ("vidgen train unheard-of --recipe ti", []),
    ],
)
def test_completion_knows_the_names_and_loads_nothing_heavy(monkeypatch, line, expected):
    monkeypatch.setenv("_VIDGEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    done = run(f"from vidgen.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\n{CHECK}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


def test_the_shell_is_told_how_to_complete(monkeypatch):
    monkeypatch.setenv("_VIDGEN_COMPLETE", "source_bash")
    done = run("from vidgen.cli import main\nmain()")
    assert "_VIDGEN_COMPLETE=complete_bash" in done.stdout
    assert "complete -o default -F" in done.stdout  # folders are completed too


def test_lazy_names_resolve():
    for name in vidgen.__all__:
        assert getattr(vidgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vidgen.nothing  # noqa: B018
