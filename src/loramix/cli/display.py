"""One display on standard error: the messages and progress of loramix, not those of libraries."""

import logging
import sys
import warnings
from functools import cache


def show_messages() -> None:
    """Let the package's log messages appear on standard error, as plain lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("loramix")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def silence_libraries() -> None:
    """Switch off the progress bars of the libraries, except for downloads, and two known
    warnings.
    """
    import datasets
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    # transformers switches these off as well, and a download may take minutes
    enable_progress_bars()
    # on file systems without exact times, the Trainer warns at every checkpoint
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # PEFT asks transformers the old way
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


@cache
def show_in_worker() -> None:
    """Set up the messages of another process, once; they reach the display of the command."""
    show_messages()
    silence_libraries()
