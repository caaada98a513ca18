"""The page of this example and the picture of it in docs/, from the results that lie here.

make example-page    # both, anew
make example         # the results, too: runs the model for some minutes
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PICTURE = ROOT / "docs" / "report.png"
DATA = ("run.json", "*.parquet")
VIEW = {"width": 1280, "height": 1180}


def measure() -> None:
    """Compare the targets of suite.yaml, and keep the results in place of those that lie here."""
    with tempfile.TemporaryDirectory() as folder:
        suite = (HERE / "suite.yaml").relative_to(ROOT)
        command = [sys.executable, "-m", "harness", "compare", str(suite), "--side-by-side", "--out", folder]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode not in (0, 1):  # 1: what the example shows does not all pass
            sys.exit(done.returncode)
        (run,) = (path.parent for path in Path(folder).glob("*/run.json"))
        for pattern in DATA:
            for file in run.glob(pattern):
                shutil.copy(file, HERE / file.name)
        told = (HERE / "run.json").read_text(encoding="utf-8")
        # Where a home and that folder were is of no interest.
        told = told.replace(f" --out {folder}", "").replace(str(Path.home()), "~")
        (HERE / "run.json").write_text(told, encoding="utf-8")


def render() -> None:
    """report.html of the results here."""
    from harness.reports import html
    from harness.store import read

    (HERE / "report.html").write_text(html.render(read(HERE)), encoding="utf-8")


def photograph() -> None:
    """docs/report.png: what report.html shows when it is opened."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from browser import chromium, opened, watched

    with chromium() as browser, watched(browser, viewport=VIEW, color_scheme="light") as (page, _):
        opened(page, HERE / "report.html")
        page.screenshot(path=PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the model, too")
    if parser.parse_args().measure:
        measure()
    render()
    photograph()
