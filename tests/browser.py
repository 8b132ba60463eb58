"""See that the browser tests have a browser.

Debian's chromium as root, playwright's own elsewhere; says in one line what it could not do, and
never fails.
"""

import os
import shutil
import subprocess
import sys


def have_browser() -> bool:
    "Whether a browser can be started as the tests start it."
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_api.sync_playwright() as p:
        try:
            p.chromium.launch(
                args=["--no-sandbox", "--disable-gpu"],
                **(dict(executable_path=chromium) if chromium else {}),
            ).close()
            return True
        except sync_api.Error:
            return False


def main():
    if have_browser():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        steps = [
            ["apt-get", "-qq", "update"],
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", "chromium"],
        ]
    else:
        steps = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for step in steps:
        done = subprocess.run(
            step,
            capture_output=True,
            text=True,
            env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"),
        )
        if done.returncode:
            print(
                f"no browser: {' '.join(step[-2:])}:"
                f" {(done.stderr or done.stdout).strip().splitlines()[-1:] or ['failed']}; the"
                " browser tests will be reported as not run"
            )


if __name__ == "__main__":
    main()
