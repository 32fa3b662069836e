"""What a processor computes with: part of where a speed comes from."""

_NAMES = {"AVX512": "AVX-512", "DEFAULT": "no vector instructions"}


def instruction_set() -> str:
    """The widest vector instructions that torch uses here, and whether they multiply bfloat16.

    Returns:
        For example "AVX-512 with bfloat16", "AVX-512, AMX with bfloat16" or "AVX2".
    """
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    name = _NAMES.get(capability, capability)
    features = torch.cpu.get_capabilities()
    if features.get("amx_bf16"):
        name = f"{name}, AMX"
    # a capability lower than the processor's own (ATEN_CPU_CAPABILITY) binds torch's kernels only;
    # the matrix products are oneDNN's, which asks the processor
    if any(features.get(feature) for feature in ("amx_bf16", "avx512_bf16", "bf16")):
        return f"{name} with bfloat16"
    return name
