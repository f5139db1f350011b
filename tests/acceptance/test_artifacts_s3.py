"""A store that speaks S3, by s3fs and moto. botocore wants an older dateutil than ours, so they have an environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-peers" / "s3"
# Any other boto3 than the one that aiobotocore names keeps pip looking for an hour.
PACKAGES = ("s3fs", "aiobotocore[boto3]", "moto[s3,server]")
TESTS = Path(__file__).parent / "peers" / "artifacts_s3.py"


@pytest.fixture
def s3_python() -> Path:
    """The Python of an environment with ``PACKAGES``, made once; what they do not bring comes from ours."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    if subprocess.run([python, "-c", "import s3fs, moto.server"], capture_output=True, check=False).returncode != 0:
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install {' '.join(PACKAGES)}: {done.stderr.strip()[-300:]}")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = sysconfig.get_path("purelib")
    link = ENVIRONMENT / "lib" / version / "site-packages" / "ours.pth"
    link.write_text(f"import site; site.addsitedir({ours!r})\n")  # behind its own: those win
    return python


def test_artifacts_in_a_store_that_speaks_s3(s3_python: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [s3_python, "-m", "pytest", "-rs", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\.{5} +\[100%\]", done.stdout), done.stdout  # five passed, none was skipped
