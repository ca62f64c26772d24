"""The adapters of a loaded PeftModel, as experts."""

import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from loramix.errors import ExpertError
from loramix.storage.adapter_config import settle
from loramix.storage.experts import LOADED, Expert, load_expert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel


def take_adapters(
    model: "PeftModel", *, lossy: "Sequence[str]" = ()
) -> "tuple[PreTrainedModel, list[Expert]]":
    """Return the base of a PeftModel, freed of its adapters in place, and these as experts.

    The adapters are written to a temporary folder, from which a mixture copies its files when it is
    saved; it goes when the base does.

    Raises ExpertError if an adapter cannot be an expert, or is merged into the base; the model is
    unchanged then.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        raise ExpertError(
            f"the adapters {', '.join(merged)} are merged into the base, which is another model "
            "with them; call unmerge_adapter() first"
        )
    folder = Path(mkdtemp(prefix="loramix-adapters-"))
    try:
        model.save_pretrained(str(folder))
        # PEFT gives each adapter a folder of its name, and `default` the folder itself.
        places = {
            name: folder if name == "default" else folder / name for name in model.peft_config
        }
        for place in places.values():
            settle(place)
        experts = [
            replace(load_expert(name, place, lossy=lossy), source=LOADED)
            for name, place in places.items()
        ]
    except BaseException:
        shutil.rmtree(folder)
        raise
    base: PreTrainedModel = model.unload()
    weakref.finalize(base, shutil.rmtree, folder, ignore_errors=True)
    return base, experts
