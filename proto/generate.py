"""Generates the Python of the contract beside its protos, with the oldest generator that we support.

Newer protobuf runtimes read older generated code, older ones refuse newer; so this runs in an environment of
its own (`make proto`). A digest of the protos goes into the package: `check_fresh.py` compares it.
"""

import sys
from pathlib import Path

from check_fresh import STAMP, digest_of_protos
from grpc_tools import protoc

ROOT = Path(__file__).parent


def main() -> int:
    """Runs protoc over every proto; returns its exit status."""
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    include = str(Path(protoc.__file__).parent / "_proto")
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            f"-I{include}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            *protos,
        ]
    )
    if status == 0:
        STAMP.write_text(digest_of_protos() + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
