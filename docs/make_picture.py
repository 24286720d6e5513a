"""Draw the picture of a run: replay its `events.jsonl` through the real console and save the screen as SVG.

python docs/make_picture.py RUN_DIR docs/run.svg
"""

import io
import json
import re
import sys
from pathlib import Path

import rich.console

from sparknet.reporting import LiveConsole

COLUMNS = 112


def draw_run(run_dir: Path) -> str:
    """Return the SVG of what a terminal shows at the end of a run.

    Args:
        run_dir: holds `events.jsonl` and, if the run was finished, `result.json`.
    """
    screen = rich.console.Console(
        file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, highlight=False, legacy_windows=False
    )
    console = LiveConsole(screen, animate=False, clock=lambda: 0.0)
    with (run_dir / "events.jsonl").open(encoding="utf-8") as events:
        for line in events:
            console.on_event(json.loads(line))
    console.close()
    result = run_dir / "result.json"
    if result.exists():
        console.print_result(json.loads(result.read_text(encoding="utf-8")))
    svg = screen.export_svg(title="sparknet train", unique_id="sparknet")
    # rich links its font from the web; the picture must not make a request when it is looked at
    svg = re.sub(r"@font-face\s*{[^}]*}|<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/make_picture.py RUN_DIR FILE.svg")
    Path(sys.argv[2]).write_text(draw_run(Path(sys.argv[1])), encoding="utf-8")
