"""Environments of the peers under bench/side: their own packages first, then ours or our torch alone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path

SIDE = Path(__file__).parent.parent / "side"
_STAMP = "requirements.txt"
_INSTALL_TIMEOUT_S = 600.0


def python_with(name: str, requirements: Sequence[str], *, shares_all: bool = True) -> Path:
    """The interpreter of an environment with these packages, made where there is none; all share one torch.

    ``shares_all``: it sees our other packages, too. Raises RuntimeError, which says what pip said.
    """
    folder = SIDE / name
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    wanted = "\n".join([*requirements, f"# shares {'all' if shares_all else 'torch'} {version('torch')}"]) + "\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    ours = Path(sysconfig.get_path("purelib")) if shares_all else _torch_alone(folder / "torch_alone")
    (Path(site) / "ours.pth").write_text(f"{ours}\n")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={version('torch')}\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-c", str(constraints), *requirements])
    stamp.write_text(wanted)
    return python


def _torch_alone(folder: Path) -> Path:
    """A folder with links to what belongs to our torch; what torch needs itself, pip adds."""
    folder.mkdir()
    torch = distribution("torch")
    tops = {file.parts[0] for file in torch.files or ()} - {"..", "__pycache__"}
    for top in sorted(tops):
        (folder / top).symlink_to(Path(str(torch.locate_file(top))).absolute())
    return folder


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)} did not end within {_INSTALL_TIMEOUT_S:g} s.") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
