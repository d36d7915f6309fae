"""A virtual environment for a client from PyPI, made on first use, or an honest `not run`.

`enter("openai==3.54.0")` runs the calling script again inside `target/client-venv/<name>`, with exactly the given
requirements installed. When that is impossible (no `venv` module, no package index, too old a Python) the
process ends with code 77 and says `not run: <reason>`, also in the file that `TANDEM_NOT_RUN_FILE` names.
Nothing else is installed, and nothing outside `target/` is written.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

NOT_RUN = 77
ROOT = Path(__file__).resolve().parents[2]
INSTALL_TIMEOUT_S = 420


def not_run(reason: str) -> None:
    """Ends the process: neither passed nor failed."""
    line = f"not run: {Path(sys.argv[0]).name}: {reason}"
    print(line, flush=True)
    ledger = os.environ.get("TANDEM_NOT_RUN_FILE")
    if ledger:
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    sys.exit(NOT_RUN)


def enter(*requirements: str, without_dependencies: tuple = ()) -> None:
    """Returns inside an environment that holds `requirements` ("name==version"); elsewhere it does not return.

    Those of `without_dependencies` get only what is named beside them."""
    python = environment(*requirements, without_dependencies=without_dependencies)
    if Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [str(python), *sys.argv])


def environment(*requirements: str, without_dependencies: tuple = ()) -> Path:
    """The Python of an environment as `enter` wants it, made on first use."""
    name = requirements[0].split("==")[0]
    folder = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "client-venv" / name
    python = folder / "bin" / "python"
    if Path(sys.prefix).resolve() == folder.resolve():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        # Two tests may want the same environment at once: the second waits for the first to finish it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "installed.txt"
        wanted = "\n".join(requirements)
        if not (python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
            install(folder, python, requirements, without_dependencies)
            stamp.write_text(wanted, encoding="utf-8")
    return python


def install(folder: Path, python: Path, requirements: tuple, without_dependencies: tuple) -> None:
    """Makes the environment anew."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--retries", "1", "--timeout", "15"]
    pip += ["--only-binary", ":all:"]
    commands = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
    commands += [[*pip, *(name for name in requirements if name not in without_dependencies)]]
    commands += [[*pip, "--no-deps", *without_dependencies]] if without_dependencies else []
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            not_run(f"installing {' '.join(requirements)} took longer than {INSTALL_TIMEOUT_S} s")
        except OSError as error:
            not_run(f"cannot run {command[0]}: {error}")
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip().splitlines()
            errors = [line for line in output if line.startswith("ERROR")] or output[-1:] or ["no output"]
            not_run(f"cannot install {' '.join(requirements)}: {errors[-1]}")
