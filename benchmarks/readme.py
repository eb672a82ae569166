"""Paste the commands of README and docs, in order, into a fresh clone: exit code and seconds of each.

    python benchmarks/readme.py                   # in the present environment, without pip
    python benchmarks/readme.py --install         # in a fresh virtual environment
    python benchmarks/readme.py --list            # say what would run, and what not, and why
    python benchmarks/readme.py --only 'run grid$' measure     # commands that match one of these patterns

README's study runs as shown. Larger ones train for half a minute, and those of the preset cpu are planned only: what is
added to a command is printed. A study that was stopped by it is right (exit code 130), as is a server (eqscale ui) that
answers, which is then stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
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
FIRST_PAGES = ("README.md", "docs/commands.md")
SERVER_SECONDS = 120.0

NOT_HERE = {
    r"python -m pytest": "the tests, which CI runs",
    r"^pip install": "an installation: --install runs README's first",
    r"^python benchmarks/models\.py": "half an hour on an idle machine",
    r"^python benchmarks/faults/run\.py(?! --help)": "hours",
    r"--shard 1/4": "an hour on each of four GPUs",
}
"""Commands that this script leaves out: pattern -> why."""

_HALF_A_MINUTE = "--max-hours 0.01"
ADDED = {
    r"^eqscale run grid$|--dry-run|--export": "",
    r"--preset cpu": "--dry-run",
    r"--preset forces-quick": f"--train-systems 200 --test-systems 50 {_HALF_A_MINUTE}",
    r"^eqscale run |^python tune_jobs/": _HALF_A_MINUTE,
}
"""What makes a study small: pattern -> options; the first that matches counts."""

STANDS_FOR = {"FILE.py": "docs/examples/deep_sets.py", "NAME": "deep_sets", "--shard 1/2": "--shard 1/16"}
"""What the reader replaces, and what would take long."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A command of a page.

    Attributes:
        program: the Python block before it on the page; a file that the command names may hold it.
    """

    page: str
    command: str
    program: str

    @property
    def left_out(self) -> str:
        """Why it isn't run here, if so."""
        return next((why for pattern, why in NOT_HERE.items() if re.search(pattern, self.command)), "")

    @property
    def small(self) -> str:
        """The command with the reader's words replaced, and made small."""
        added = next((options for pattern, options in ADDED.items() if re.search(pattern, self.command)), "")
        words = self.command
        for word, value in STANDS_FOR.items():
            words = words.replace(word, value)
        return f"{words} {added}".strip()


def shown(root: Path) -> Iterator[Shown]:
    """The commands in the bash blocks of README and docs, without comments."""
    others = sorted(str(page.relative_to(root)) for page in (root / "docs").glob("*.md"))
    for page in (*FIRST_PAGES, *(page for page in others if page not in FIRST_PAGES)):
        program = ""
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", (root / page).read_text(), re.DOTALL | re.MULTILINE):
            if kind == "python":
                program = block
            if kind == "bash":
                for line in block.replace("\\\n", " ").splitlines():
                    if command := re.sub(r"\s+#.*", "", line).strip():
                        yield Shown(page, re.sub(r" +", " ", command), program)


def ready(command: str, program: str, folder: Path) -> str:
    """The command with a run's weights named; a file that it needs and that isn't there is written."""
    if found := re.search(r"studies/([\w-]+)/weights/RUN_ID", command):
        weights = next((folder / "studies" / found[1] / "weights").glob("*.pt"), None)
        command = command.replace("RUN_ID", weights.stem if weights else "RUN_ID")
    for name in re.findall(r"(?<=-file )[\w/]+\.py", command):
        if not (folder / name).exists():
            (folder / name).write_text(program)
    return command


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
    parser.add_argument("--list", action="store_true", help="say what would run, and what not, and why")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PATTERN", help="commands that match one of these")
    parser.add_argument("--folder", type=Path, help="clone to work in; made if it isn't there (default: temporary)")
    args = parser.parse_args()
    if args.list:
        for item in shown(ROOT):
            print(
                f"{item.page}: {item.command if item.left_out else item.small}  {item.left_out and '# '}{item.left_out}"
            )
        return 0
    folder = args.folder or Path(tempfile.mkdtemp(prefix="readme-"))
    if not (folder / "README.md").exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": "" if args.install else str(folder)}
    if args.install:
        scripts = folder / "venv/bin"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    worst, done = 0, set()
    for item in shown(folder):
        installs = args.install and item.command.startswith("pip install -q -e . ")
        if (item.left_out and not installs) or not any(re.search(p, item.command) for p in args.only):
            continue
        if item.command in done:  # several pages show it
            continue
        done.add(item.command)
        command = ready(item.small, item.program, folder)
        begin = time.monotonic()
        if command == "eqscale ui":
            code = serve(command, folder, environment)
        else:
            ended = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
            stopped = ended.returncode == 130 and _HALF_A_MINUTE in command
            code = 0 if stopped else ended.returncode
            (folder / "readme.log").open("a").write(f"$ {command}\n{ended.stdout}{ended.stderr}\n")
        worst = max(worst, code)
        print(f"{code:3d} {time.monotonic() - begin:7.1f} s  {item.page}: {command}", flush=True)
    print(f"output: {folder / 'readme.log'}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
