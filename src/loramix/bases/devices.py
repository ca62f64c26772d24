"""Where and in which number format to compute."""


def accelerator() -> str:
    """Return the device to compute on: `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def number_format(dtype: str) -> str:
    """Return the number format that `fast` stands for on this machine; any other name as it is.

    Fast is bfloat16 where the accelerator or processor multiplies in it, else float32.
    """
    import torch

    if dtype != "fast":
        return dtype
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Processors without these instructions emulate bfloat16, several times slower than float32.
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
