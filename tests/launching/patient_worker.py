"""A worker for tests of engines: python -m tests.launching.patient_worker LOG EPOCHS [SECONDS [PAUSES]]

It does nothing but what the engines see of a worker: it "trains" an epoch every SECONDS, keeps its place in LOG, saves
for two seconds when it is paused, and ends with the exit status of a study. PAUSES: how often it asks first to be
resumed. With --check as the last argument, it ends at once.
"""

import sys
import time
from pathlib import Path

from ablation.base.interrupts import handle_interrupts, pause_status


def main() -> int:
    if sys.argv[-1] == "--check":
        return 0
    log, epochs = Path(sys.argv[1]), int(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.5
    pauses = int(sys.argv[4]) if len(sys.argv) > 4 else 0

    def write(line: str) -> None:
        with log.open("a") as file:
            file.write(f"{line}\n")

    handle_interrupts()
    before = log.read_text().splitlines() if log.exists() else []
    write("start")
    if before.count("start") < pauses:
        return 75
    try:
        for _ in range(before.count("epoch"), epochs):
            time.sleep(seconds)
            write("epoch")
    except KeyboardInterrupt:
        time.sleep(2)
        write("saved")
        return pause_status()
    return 0


if __name__ == "__main__":
    sys.exit(main())
