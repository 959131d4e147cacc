"""`python -m accelerd.paper [DIR]`: writes completions and manual pages into a checkout (here, when none is named)."""

from __future__ import annotations

import sys
from pathlib import Path

from accelerd.paper.files import files


def main(argv: list[str]) -> int:
    root = Path(argv[0]) if argv else Path()
    for name, text in files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
