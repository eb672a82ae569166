"""Paste the commands of README and docs/commands.md, in order, into a fresh clone: exit code and seconds of each.

    python benchmarks/readme.py                   # in the present environment, without pip
    python benchmarks/readme.py --install         # in a fresh virtual environment
    python benchmarks/readme.py --only 'run grid$' measure     # commands that match one of these patterns

A server (eqscale ui) is right if it answers, and is then stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/commands.md")
SERVER_SECONDS = 120.0


def commands(page: Path) -> Iterator[str]:
    """The commands in the bash blocks of a page, without comments; those of the tests are left out."""
    for before, block in re.findall(r"([^\n]*)\n```bash\n(.*?)```", page.read_text(), re.DOTALL):
        if before.endswith("<!-- test-command -->"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"\s+#.*", "", line).strip():
                yield command


def serve(command: str, folder: Path, environment: dict[str, str]) -> int:
    """Start a server; 0 once it answers."""
    process = subprocess.Popen(
        command.split(), cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + SERVER_SECONDS
    try:
        while time.monotonic() < end and process.poll() is None:
            try:
                return 0 if urllib.request.urlopen("http://127.0.0.1:5000/", timeout=5).status == 200 else 1
            except OSError:
                time.sleep(0.5)
        return process.poll() or 1
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="in a fresh virtual environment")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PATTERN", help="commands that match one of these")
    parser.add_argument("--folder", type=Path, help="where to clone to (default: a temporary folder)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="readme-"))
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": "" if args.install else str(folder)}
    if args.install:
        scripts = folder / "venv/bin"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    worst = 0
    for command in [command for page in PAGES for command in commands(folder / page)]:
        if (command.startswith("pip") and not args.install) or not any(re.search(p, command) for p in args.only):
            continue
        if "RUN_ID" in command:
            weights = next((folder / "studies/first/weights").glob("*.pt"))
            command = command.replace("RUN_ID", weights.stem)
        begin = time.monotonic()
        if command == "eqscale ui":
            code = serve(command, folder, environment)
        else:
            ended = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            code = ended.returncode
            (folder / "readme.log").open("a").write(f"$ {command}\n{ended.stdout}{ended.stderr}\n")
        worst = max(worst, code)
        print(f"{code:3d} {time.monotonic() - begin:7.1f} s  {command}", flush=True)
    print(f"output: {folder / 'readme.log'}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
