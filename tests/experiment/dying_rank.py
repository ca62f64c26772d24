"""Runs loramix, of which one rank dies as by SIGKILL, amid training however busy the machine is.

    python dying_rank.py RANK FOLDER run …

It dies once the first checkpoint below FOLDER is sealed.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from loramix.__main__ import main
from loramix.experiment.training.mixing_trainer import Checkpoints

VICTIM, FOLDER, *ARGUMENTS = sys.argv[1:]
save = Checkpoints.on_save


def save_and_die(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
    save(self, *args, **kwargs)
    if os.environ["RANK"] != VICTIM or FOLDER not in self.trainer.args.output_dir:
        return
    while not any(Path(self.trainer.args.output_dir).glob("checkpoint-*/sha256.json")):
        time.sleep(0.01)  # the first rank seals it
    os.kill(os.getpid(), signal.SIGKILL)


Checkpoints.on_save = save_and_die  # type: ignore[method-assign]
sys.argv[1:] = ARGUMENTS
main()
