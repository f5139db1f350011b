"""Says whether the committed generated code belongs to the committed protos."""

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent
STAMP = ROOT / "rm_api" / "generated.sha256"


def digest_of_protos() -> str:
    """SHA-256 over the path and content of every proto and over the generated code, in order of path."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.rglob("*.proto"), *ROOT.rglob("*_pb2*.py"), *ROOT.rglob("*_pb2*.pyi")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def main() -> int:
    """0 when fresh; 1, with what to do, when not."""
    if STAMP.exists() and STAMP.read_text().strip() == digest_of_protos():
        return 0
    print(
        "The generated code in proto/rm_api is not from these protos: run `make proto` and commit the result."
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
