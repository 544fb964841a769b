"""Certificates for tests, by the script that operators use."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "k8s" / "certificates" / "make.sh"


def make_certificates(folder: Path, *pairs: str) -> Path:
    """Make the certificates of an exchange with these pairs, such as btc-usdt; return folder."""
    subprocess.run(["sh", SCRIPT, folder, *pairs], check=True, capture_output=True)
    return folder
