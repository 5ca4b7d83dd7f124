"""Check the locked packages of the images for known vulnerabilities: ``python -m tools.audit``.

pip-audit asks the package index. An index that knows no advisories, such as a mirror, leaves
packages out, and pip-audit then reports success; here such a package counts as not checked.

Exit codes: 0 all checked, none vulnerable; 1 vulnerabilities; 3 packages that nobody checked.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCKS = ("deploy/requirements.lock.txt", "deploy/requirements.cuda.lock.txt")
VULNERABLE, NOT_CHECKED = 1, 3
_TIMEOUT_S = 600


@dataclass(frozen=True)
class Verdict:
    """Result for one lock: lines to print, and the exit code."""

    lines: Sequence[str]
    code: int


def verdict(lock: str, report: Mapping[str, Any]) -> Verdict:
    """Judge a JSON report of pip-audit."""
    packages = report["dependencies"]
    unchecked = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{lock}: {package['name']} {package['version']} has {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    code = VULNERABLE if lines else NOT_CHECKED if unchecked or not packages else 0
    if unchecked or not packages:
        lines.append(
            f"{lock}: {len(unchecked)} of {len(packages)} packages were not checked, the index "
            f"has no advisories for them: {', '.join(unchecked[:3])}, ... Run it where pypi.org "
            f"answers."
        )
    elif not lines:
        lines.append(f"{lock}: none of {len(packages)} packages has a known vulnerability.")
    return Verdict(lines, code)


def audit(lock: str) -> Verdict:
    """Run pip-audit for one lock."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "--require-hashes"]
    command += ["--disable-pip", "--format", "json", "--requirement", lock]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    try:
        return verdict(lock, json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Verdict([f"{lock}: no index answered: {last}"], NOT_CHECKED)


def main() -> int:
    verdicts = [audit(lock) for lock in LOCKS]
    print("\n".join(line for one in verdicts for line in one.lines))
    codes = {one.code for one in verdicts}
    return next((code for code in (VULNERABLE, NOT_CHECKED) if code in codes), 0)


if __name__ == "__main__":
    sys.exit(main())
