"""A front page at the root of a site that Quarto made from the top of the project.

Quarto runs this after its own work: the chapters lie in `nbs/` there, and so does the index.
"""

import os
from pathlib import Path

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>medseg</title>
<meta http-equiv="refresh" content="0; url=nbs/index.html">
<a href="nbs/index.html">medseg</a>
"""

if __name__ == "__main__":
    place = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", "_docs"))
    if (place / "nbs" / "index.html").is_file():
        (place / "index.html").write_text(PAGE, encoding="utf-8")
